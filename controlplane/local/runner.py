"""`manage.py up`: starts every part of Signalbox on this machine, watches over them, and ends them together."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from controlplane import environment
from controlplane.local import preflight, redis
from controlplane.local.errors import CannotStart
from controlplane.local.home import Home, socket_folder
from controlplane.local.postgres import Postgres, embedded
from controlplane.local.prepared import is_prepared, remember
from controlplane.local.redis import Redis
from controlplane.local.supervisor import Service, StopRequested, Supervisor
from controlplane.local.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
FRONT_DOOR_WITHIN_S = 150.0
DEMO_WITHIN_S = 600.0
# For calls that are in progress when the front door is told to end, and its goodbye.
DOOR_END_S = 16.0
# Of the parts that keep and show things: on a busy machine what answers calls goes first, and it needs none of them.
SECOND = 5
# Calls a second: enough to see the pages move, without dwarfing two days of history in every chart.
DEMO_RATE = "1"
# How often a part may end by itself before a start is given up.
PATIENCE = 5

# Parts end from the highest tier down: first who makes calls, then who answers them, last what they stand on.
TIER_STORE, TIER_WORK, TIER_PAGES, TIER_DOOR, TIER_CALLERS = range(5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reload", action="store_true", help="start parts again when a file of the project changes")


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="manage.py up", description=__doc__)
    add_arguments(parser)
    return run(reload=parser.parse_args(arguments).reload)


def run(*, reload: bool) -> int:
    """Runs until it is told to stop; returns 0 then, and 1 with one sentence on stderr where it cannot start."""
    try:
        preflight.check_python()
        home = Home(Path(environment.text("SIGNALBOX_HOME") or ROOT / "var").absolute())
        home.create()
        with Supervisor(home) as supervisor:
            try:
                Runner(supervisor, reload=reload).run()
            except StopRequested:
                supervisor.say("up", "stopping")
    except (CannotStart, ImproperlyConfigured) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


class Runner:
    """One start, in order. Raises CannotStart or ImproperlyConfigured; StopRequested when it is told to end."""

    def __init__(self, supervisor: Supervisor, *, reload: bool) -> None:
        # Reads and checks every setting; makes the two keys the first time.
        from controlplane import settings

        self._supervisor = supervisor
        self._home = supervisor.home
        self._reload = reload
        self._demo = settings.SIGNALBOX_DEMO
        self._version = settings.VERSION
        host = settings.SIGNALBOX_HOST
        preflight.check_exposure(host, settings.SERVED_OVER_TLS, environment.flag("SIGNALBOX_INSECURE_HTTP"))
        preflight.check_processes(environment.text("SIGNALBOX_WEB_PROCESSES", "1"))
        environment.integer("SIGNALBOX_THREADS", 1, 1, 4096)
        self._door_end_s = DOOR_END_S + environment.integer("SIGNALBOX_DRAIN_S", 0, 0, 300)
        preflight.check_disk(self._home.root)
        port = preflight.free_port(host, settings.SIGNALBOX_PORT)
        shown = f"[{host}]" if ":" in host else host
        self._address = f"http://{shown}:{port}"
        # A server on every interface is asked at the loopback one.
        asked = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, shown)  # noqa: S104 - compared, not bound
        self._asked = f"http://{asked}:{port}"
        # Where Django's processes listen; a deep home needs a shorter place.
        self._upstream = socket_folder(self._home.run) / "web.sock"
        self._environment: Mapping[str, str] = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            "SIGNALBOX_HOME": str(self._home.root),
            "SIGNALBOX_HOST": host,
            "SIGNALBOX_PORT": str(port),
            "SIGNALBOX_SECRET_KEY": settings.SECRET_KEY,
            "SIGNALBOX_MASTER_KEY": settings.SIGNALBOX_MASTER_KEY,
            "SIGNALBOX_UPSTREAM": str(self._upstream),
            # Celery would import every page to check it at each start.
            "CELERY_SKIP_CHECKS": "1",
        }

    def run(self) -> None:
        began_at = time.monotonic()
        self._start_stores()
        had_password = self._home.admin_password_file.exists()
        database_url = self._environment["DATABASE_URL"]
        if not is_prepared(self._home, database_url):
            self._task("prepare", within_s=300)
            remember(self._home, database_url)
        for service in self._parts():
            self._supervisor.start(service)
        self._await_answers()
        self._load_demo()
        if self._home.admin_password_file.exists() and not had_password:
            # On the console alone: a log is read by more people than the file.
            password = self._home.admin_password_file.read_text().strip()
            self._supervisor.say("", f"Sign in as admin with the password {password}")
            self._supervisor.say("", f"(shown this once; it is kept in {self._home.admin_password_file})")
        self._supervisor.report(state="ready", address=self._address, start_s=round(time.monotonic() - began_at, 1))
        self._supervisor.say("", f"Signalbox is ready at {self._address}")
        self._watch_over()

    def _start_stores(self) -> None:
        """PostgreSQL and Redis, embedded where none is configured; their addresses for all other parts."""
        database_url = environment.text("DATABASE_URL")
        redis_url = environment.text("REDIS_URL")
        if redis_url:
            preflight.check_redis(redis_url)
        if database_url:
            preflight.check_database(database_url)
        broker = None if redis_url else self._start_redis()
        postgres = None if database_url else self._start_postgres()
        if broker is not None:
            self._await(broker.is_ready, "redis")
            redis_url = broker.url
        if postgres is not None:
            self._await(postgres.is_ready, "postgres")
            database_url = postgres.ensure_database()
        # Commands that know the home alone find the stores here.
        self._home.write_private(self._home.run / "database-url", database_url + "\n")
        self._home.write_private(self._home.run / "redis-url", redis_url + "\n")
        self._environment = {**self._environment, "DATABASE_URL": database_url, "REDIS_URL": redis_url}

    def _start_redis(self) -> Redis:
        redis.binary()
        broker = Redis(self._home.redis, socket_folder(self._home.run) / "redis.sock")
        broker.recover()
        self._supervisor.start(
            Service("redis", broker.command(), TIER_STORE, environment=_bare_environment(), drain_s=20)
        )
        return broker

    def _start_postgres(self) -> Postgres:
        durable = environment.flag("SIGNALBOX_POSTGRES_FSYNC", default=True)
        postgres = embedded(self._home, durable=durable)
        if postgres.is_elsewhere:
            self._supervisor.say("up", f"the database is kept in {postgres.folder}, for {self._home.root} is closed")
        postgres.prepare()
        self._supervisor.start(
            Service(
                "postgres",
                postgres.command(),
                TIER_STORE,
                environment=_bare_environment(),
                account=postgres.account,
                niceness=SECOND,
                stop_signal=signal.SIGINT,
                drain_s=30,
            )
        )
        return postgres

    def _parts(self) -> list[Service]:
        python = sys.executable
        pooled = {**self._environment, "SIGNALBOX_DATABASE_POOL": "1"}
        # The socket stands in a 0700 folder, so whoever speaks there is the front door; it names the client.
        web: tuple[str, ...] = (python, "-m", "uvicorn", "controlplane.asgi:application")
        web += ("--uds", str(self._upstream))
        web += ("--log-level", "warning", "--no-access-log", "--lifespan", "off", "--timeout-graceful-shutdown", "5")
        web += ("--proxy-headers", "--forwarded-allow-ips", "*")
        worker: tuple[str, ...] = (python, "-m", "celery", "-A", "controlplane.celery", "worker", "--loglevel", "INFO")
        worker += ("--queues", "celery,heavy,validation", "--concurrency", "2", "--hostname", "worker@%h")
        worker += ("--without-mingle", "--without-gossip", "--without-heartbeat")
        manage = (python, str(ROOT / "manage.py"))
        return [
            Service("web", web, TIER_PAGES, pooled, niceness=SECOND, reloads=True),
            Service(
                "server",
                (python, "-m", "inference.server"),
                TIER_DOOR,
                self._environment,
                drain_s=self._door_end_s,
                reloads=True,
            ),
            Service("worker", worker, TIER_WORK, self._environment, niceness=SECOND, drain_s=20, reloads=True),
            Service("ingest", (*manage, "ingest"), TIER_WORK, self._environment, niceness=19, reloads=True),
            Service("scheduler", (*manage, "scheduler"), TIER_WORK, self._environment, niceness=19, reloads=True),
        ]

    def _await_answers(self) -> None:
        """Until a call, a page and a worker's answer came back."""
        command = (sys.executable, "-m", "controlplane.local.probe", self._asked, str(FRONT_DOOR_WITHIN_S))
        probe = Service("probe", command, TIER_CALLERS, self._environment, lasting=False)
        status = self._supervisor.run(probe, FRONT_DOOR_WITHIN_S + 30, patience=PATIENCE)
        if status != 0:
            raise CannotStart(f"Not everything answers: read the files in {self._home.log}, then start again.")

    def _load_demo(self) -> None:
        """The demo, once for a home and version; its traffic then runs as a part of its own."""
        if not self._demo:
            return
        mark = self._home.demo_mark
        if not mark.exists() or mark.read_text().strip() != self._version:
            self._supervisor.say("up", "loading the demo")
            command = (sys.executable, str(ROOT / "manage.py"), "load_demo")
            service = Service("load_demo", command, TIER_CALLERS, self._environment, lasting=False)
            if self._supervisor.run(service, DEMO_WITHIN_S) != 0:
                self._supervisor.say("up", f"the demo could not be loaded: read {self._home.log / 'load_demo.log'}")
                return
            if self._home.doctor_password_file.exists():
                self._supervisor.say("", f"The demo's doctor signs in as doctor: {self._home.doctor_password_file}")
            mark.write_text(f"{self._version}\n")
        traffic = (sys.executable, str(ROOT / "manage.py"), "demo_traffic", "--rate", DEMO_RATE)
        self._supervisor.start(
            Service("demo_traffic", traffic, TIER_CALLERS, self._environment, niceness=10, reloads=True)
        )

    def _watch_over(self) -> None:
        """Until it is told to stop; with --reload, parts start again when a file changed."""
        watch = Watch(ROOT) if self._reload else None
        while not self._supervisor.stopping:
            self._supervisor.turn(0.5)
            changed = watch.changed() if watch else set()
            if changed:
                names = ", ".join(sorted(str(path.relative_to(ROOT)) for path in changed)[:3])
                self._supervisor.say("up", f"starting parts again: {names} changed")
                self._supervisor.restart(lambda service: service.reloads)
        self._supervisor.say("up", "stopping")

    def _task(self, command: str, *, within_s: float) -> None:
        service = Service(
            command,
            (sys.executable, str(ROOT / "manage.py"), command),
            TIER_CALLERS,
            self._environment,
            lasting=False,
        )
        if self._supervisor.run(service, within_s) != 0:
            raise CannotStart(f"manage.py {command} failed: read {self._home.log / f'{command}.log'} and start again.")

    def _await(self, is_ready: Callable[[], bool], name: str) -> None:
        if not self._supervisor.wait(is_ready, 60, patience=1):
            raise CannotStart(self._supervisor.why(name))


def _bare_environment() -> dict[str, str]:
    """What the stores need; none of our secrets."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C", "TZ": "UTC"}
