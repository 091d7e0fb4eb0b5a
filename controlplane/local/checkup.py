"""What `manage.py doctor` looks at: each check returns what is fine, or raises CannotStart with what to type."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from celery import Celery
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from controlplane import environment
from controlplane.accounts.models import User
from controlplane.deployments.models import DataplaneProcess
from controlplane.local import postgres, preflight, probe, redis
from controlplane.local.errors import CannotStart
from controlplane.local.home import Home


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    ok: bool
    name: str
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.text}"


def _python() -> str:
    preflight.check_python()
    return sys.version.split()[0]


def _home() -> str:
    home = Home(settings.SIGNALBOX_HOME)
    home.create()
    for name in ("secret-key", "master-key", "admin-password"):
        file = home.root / name
        if file.exists() and file.stat().st_mode & 0o077:
            raise CannotStart(f"{file} can be read by others: type chmod 600 {file}.")
    return f"{home.root} can be written and its secrets are private"


def _disk() -> str:
    free_bytes = shutil.disk_usage(settings.SIGNALBOX_HOME).free
    preflight.check_disk(settings.SIGNALBOX_HOME, free_bytes)
    return f"{free_bytes / 2**30:.1f} GB are free"


def _address() -> str:
    insecure = environment.flag("SIGNALBOX_INSECURE_HTTP")
    preflight.check_exposure(settings.SIGNALBOX_HOST, settings.SERVED_OVER_TLS, insecure)
    return settings.SIGNALBOX_PUBLIC_URL or f"{_front_door()}, for this machine alone"


def _front_door() -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.SIGNALBOX_HOST, settings.SIGNALBOX_HOST)  # noqa: S104
    return f"http://{host}:{settings.SIGNALBOX_PORT}"


def _stores() -> str:
    parts = []
    if not environment.text("DATABASE_URL"):
        parts.append(str(postgres.installed() / "bin" / "postgres"))
    if not environment.text("REDIS_URL"):
        parts.append(str(redis.binary()))
    return " and ".join(parts) or "both are configured elsewhere"


def _database() -> str:
    if not settings.DATABASE_URL:
        raise CannotStart("the embedded server of this home was never started: type make run.")
    preflight.check_database(settings.DATABASE_URL)
    return "PostgreSQL answers"


def _migrations() -> str:
    executor = MigrationExecutor(connection)
    left = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if left:
        raise CannotStart(f"{len(left)} migrations are missing: type python manage.py prepare.")
    return "the tables are those of this version"


def _people() -> str:
    if not User.objects.filter(is_superuser=True, is_active=True).exists():
        raise CannotStart("nobody can administer this installation: type python manage.py prepare.")
    return "there is a site admin"


def _redis() -> str:
    if not settings.REDIS_URL:
        raise CannotStart("the embedded server of this home was never started: type make run.")
    preflight.check_redis(settings.REDIS_URL)
    return "Redis answers"


def _worker() -> str:
    with Celery("doctor", broker=settings.REDIS_URL, set_as_current=False) as broker:
        if not probe.worker_answers(broker, timeout_s=3.0):
            raise CannotStart("no Celery worker answers: type make run, or start the worker's service.")
    return "a Celery worker answers"


def _serving() -> str:
    if not probe.front_door_is_ready(_front_door()):
        raise CannotStart(
            f"{_front_door()}/v2/health/ready is not ready: type make run, or start the inference service."
        )
    return f"{_front_door()} is ready"


def _pages() -> str:
    if not probe.page_answers(_front_door()):
        raise CannotStart(f"no page comes through {_front_door()}: read web.log, or start the web service.")
    return "pages answer"


def _documents() -> str:
    """Whether every live serving process could load what was published last."""
    live = DataplaneProcess.objects.live()
    failed = live.filter(failed_generation__isnull=False).first()
    if failed is not None:
        raise CannotStart(
            f"process {failed.pid} on {failed.host} could not load the routes of generation {failed.failed_generation} "
            "(the old ones serve): see the deployment's page for the version, and roll back or mend it."
        )
    return f"{live.count()} serving processes hold the latest routes"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "home": _home,
    "disk": _disk,
    "address": _address,
    "stores": _stores,
    "database": _database,
    "migrations": _migrations,
    "people": _people,
    "redis": _redis,
    "worker": _worker,
    "serving": _serving,
    "pages": _pages,
    "documents": _documents,
}
# These ask the database, so its own failure is told once.
NEED_DATABASE = frozenset({"migrations", "people", "documents"})


def findings() -> Iterator[Finding]:
    """Runs the checks in order."""
    reached = True
    for name, check in CHECKS.items():
        if name in NEED_DATABASE and not reached:
            continue
        try:
            yield Finding(True, name, check())
        except CannotStart as problem:
            reached = reached and name != "database"
            yield Finding(False, name, str(problem))
