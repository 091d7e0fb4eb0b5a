"""What tests stand on: one PostgreSQL for the whole run, a Redis, the product itself. All real, all gone afterwards."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx
import psycopg
from psycopg import sql

from controlplane.local.home import Home
from controlplane.local.postgres import embedded
from controlplane.local.processes import marked_with, spawn, stop_stepwise
from controlplane.local.redis import Redis

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = "signalbox_template"
PASSWORD = "tests-only"


def wait_for(done: Callable[[], bool], within_s: float, what: str, every_s: float = 0.02) -> None:
    """Returns once `done()`, asked each `every_s`; raises TimeoutError naming `what` after `within_s` seconds."""
    end = time.monotonic() + within_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {within_s:.0f} s")
        time.sleep(every_s)


# PostgreSQL: a guard process owns the server, so it ends when the run does, however the run ends.


@dataclass(frozen=True, slots=True)
class Cluster:
    """The run's PostgreSQL. Databases made here live until the run ends, unless dropped."""

    sockets: Path

    def url(self, database: str, user: str = "signalbox") -> str:
        return f"postgresql://{user}:{PASSWORD}@/{database}?host={quote(str(self.sockets), safe='')}"

    def create(self, database: str, template: str | None = None) -> str:
        """Makes a database owned by `signalbox` and returns its URL."""
        statement = sql.SQL("CREATE DATABASE {} OWNER signalbox TEMPLATE {}")
        names = sql.Identifier(database), sql.Identifier(template or "template1")
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(statement.format(*names))
        return self.url(database)

    def exists(self, database: str) -> bool:
        with psycopg.connect(self.url("postgres", "postgres")) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
            return found.fetchone() is not None

    def drop(self, database: str) -> None:
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process of the run at a time."""
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def cluster(root: Path, run_pid: int) -> Cluster:
    """The run's cluster; the first caller has it started. `run_pid`: the process whose end ends it."""
    with locked(root / "lock"):
        ready = root / "cluster-ready"
        if not ready.exists():
            with (root / "guard.log").open("ab") as log:
                command = [sys.executable, "-m", "tests.services", str(root), str(run_pid)]
                guard = subprocess.Popen(
                    command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            wait_for(lambda: ready.exists() or guard.poll() is not None, 60, "the tests' PostgreSQL")
            if not ready.exists():
                raise RuntimeError((root / "guard.log").read_text())
            # Popen would warn about a process that is meant to go on.
            guard.returncode = 0
        return Cluster(Path(ready.read_text()))


def end_cluster(root: Path) -> None:
    """Ends the guard, which ends PostgreSQL and removes the run's folder; waits for it."""
    try:
        guard = int((root / "guard-pid").read_text())
    except FileNotFoundError:
        shutil.rmtree(root, ignore_errors=True)
        return
    stop_stepwise([guard], ((signal.SIGTERM, 20), (signal.SIGKILL, 5)))


def guard(root: Path, run_pid: int) -> None:
    """The guard process: runs PostgreSQL until process `run_pid` ends or SIGTERM comes, then removes `root`."""
    home = Home(root / "cluster")
    home.create()
    for user in ("postgres", "signalbox"):
        home.write_private(home.root / f"database-password-{user}", PASSWORD)
    (root / "guard-pid").write_text(str(os.getpid()))
    postgres = embedded(home, durable=False)
    ended, end = os.pipe()
    signal.signal(signal.SIGTERM, lambda number, frame: os.write(end, b"."))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    postgres.prepare()
    server = spawn(postgres.command(), environment={"LANG": "C"}, account=postgres.account, output=2)
    try:
        wait_for(lambda: postgres.is_ready() or server.poll() is not None, 30, "PostgreSQL")
        postgres.ensure_database()
        draft = root / "cluster-ready.draft"
        draft.write_text(str(postgres.sockets))
        draft.replace(root / "cluster-ready")
        run = os.pidfd_open(run_pid)
        select.select([ended, run], [], [])
    finally:
        # Nothing of it is wanted any more, so it need not be flushed.
        stop_stepwise([server.pid], ((signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
        server.wait()
        if postgres.is_elsewhere:
            shutil.rmtree(postgres.folder, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A Redis that forgets, in `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = Redis(folder, folder / "redis.sock", durable=False)
    with (folder / "redis.log").open("ab") as log:
        child = spawn(server.command(), environment={"LANG": "C"}, output=log.fileno())
    try:
        wait_for(lambda: server.is_ready() or child.poll() is not None, 20, "the tests' Redis")
        assert server.is_ready(), (folder / "redis.log").read_text()
        yield server
    finally:
        child.kill()
        child.wait()


# The product


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without any setting of the product, plus `changes`."""
    ours = ("SIGNALBOX_", "DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE", "PYTEST_", "COVERAGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **changes}


@dataclass
class Product:
    """Signalbox as a user starts it, on a free port. `start()` it, `stop()` it; its state stays in `home`."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    admin_password: str = "a-password-of-the-tests"
    process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output_file(self) -> Path:
        return self.home.with_name(self.home.name + ".out")

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """What `manage.py` commands need to act on this home."""
        usual = {
            "SIGNALBOX_HOME": str(self.home),
            "SIGNALBOX_PORT": str(self.port),
            "SIGNALBOX_DEMO": "0",
            "SIGNALBOX_ADMIN_PASSWORD": self.admin_password,
            "SIGNALBOX_POSTGRES_FSYNC": "0",
        }
        return clean_environment(**(usual | self.settings))

    @property
    def status(self) -> dict[str, object]:
        """What run/status.json tells."""
        try:
            told = json.loads((self.home / "run" / "status.json").read_text())
        except FileNotFoundError:
            return {}
        assert isinstance(told, dict)
        return told

    def begin(self) -> None:
        """Starts `manage.py up` and returns at once."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        with self.output_file.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up"],
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, within_s: float = 150.0) -> float:
        """Starts it, waits for the ready line, and returns the seconds it took."""
        began_at = time.monotonic()
        seen = self.output.count("Signalbox is ready at") if self.output_file.exists() else 0
        self.begin()
        assert self.process is not None
        running = self.process

        def is_ready() -> bool:
            return self.output.count("Signalbox is ready at") > seen or running.poll() is not None

        try:
            wait_for(is_ready, within_s, "Signalbox is ready")
        except TimeoutError as error:
            self.kill()
            raise TimeoutError(f"{error}\n{self.output[-4000:]}") from None
        if running.poll() is not None:
            raise RuntimeError(f"manage.py up ended with {running.returncode}\n{self.output[-4000:]}")
        return time.monotonic() - began_at

    def stop(self, within_s: float = 60.0) -> int:
        """SIGTERM, as `make run`'s user would; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL of the runner alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def left_behind(self) -> set[int]:
        """Processes of this home that still run."""
        return marked_with(self.home)

    def pid_of(self, part: str) -> int | None:
        """The process id of a part as the runner knows it, None while it is down."""
        processes = self.status.get("processes", {})
        assert isinstance(processes, dict)
        pid = processes.get(part, {}).get("pid")
        return int(pid) if pid else None

    def manage(self, *arguments: str, within_s: float = 120.0) -> str:
        """Runs a command of `manage.py` on this home and returns what it printed; raises where it failed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
        )
        if done.returncode != 0:
            raise RuntimeError(f"manage.py {' '.join(arguments)} ended with {done.returncode}\n{done.stderr[-4000:]}")
        return done.stdout.strip()

    def issue_key(self, label: str = "tests", *arguments: str) -> str:
        """A new API key by the command; `arguments` as it takes them (`--scope`, `--deployment`, `--test`)."""
        return self.manage("issue_api_key", label, *arguments)

    def http(self, key: str | None = None) -> httpx.Client:
        """A client of this product, with `key` as bearer where given; close it."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30.0, trust_env=False)

    def remove(self) -> None:
        """Ends what still runs and removes the home."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        stop_stepwise(self.left_behind(), ((signal.SIGTERM, 5), (signal.SIGKILL, 5)))
        pointer = self.home / "postgres-folder"
        if pointer.exists():
            shutil.rmtree(pointer.read_text().strip(), ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)
        self.output_file.unlink(missing_ok=True)


def new_database(server: Cluster) -> str:
    """A fresh copy of the migrated template; returns its URL."""
    return server.create(f"copy_{uuid4().hex[:12]}", TEMPLATE)


if __name__ == "__main__":
    guard(Path(sys.argv[1]), int(sys.argv[2]))
