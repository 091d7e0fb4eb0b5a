"""The log's days: a partition of table `prediction` for each, made ahead or on demand, dropped whole by retention."""

import logging
import uuid
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from django.db import OperationalError, connection, transaction
from django.db.models import Max
from django.utils import timezone

from controlplane.deployments.models import Deployment

logger = logging.getLogger(__name__)

DAYS_AHEAD = 3
DEFAULT_RETENTION_DAYS = 30
PREFIX = "prediction_"
# Serialises making and dropping partitions, whoever does it.
ADVISORY_LOCK = 0x5B_0001
DELETE_ROWS = 20_000


def time_of(prediction_id: uuid.UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond."""
    return datetime.fromtimestamp((prediction_id.int >> 80) / 1000, UTC)


def is_uuid7(candidate: uuid.UUID) -> bool:
    return candidate.version == 7


def first_id(at: datetime) -> uuid.UUID:
    """The smallest id that a UUIDv7 made at `at` or later can have."""
    return uuid.UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def ensure_partitions(days: Iterable[date]) -> int:
    """Makes the partitions of these days where they are missing; returns how many were made. Needs a transaction.

    One query where all are there. A new table is attached, which locks the log less than creating it as a partition.
    """
    wanted = {f"{PREFIX}{day:%Y%m%d}": day for day in days}
    missing = wanted.keys() - _existing(wanted)
    if not missing:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        missing -= _existing(missing)
        for name in sorted(missing):
            low = first_id(midnight(wanted[name]))
            high = first_id(midnight(wanted[name] + timedelta(days=1)))
            cursor.execute(f"CREATE TABLE {name} (LIKE prediction INCLUDING ALL)")
            cursor.execute(f"ALTER TABLE prediction ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")
    return len(missing)


def _existing(names: Iterable[str]) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid "
            "WHERE inhparent = 'prediction'::regclass AND relname = ANY(%s)",
            [list(names)],
        )
        return {name for (name,) in cursor.fetchall()}


def partition_days() -> list[date]:
    """The days that have a partition, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid "
            "WHERE inhparent = 'prediction'::regclass ORDER BY relname"
        )
        return [datetime.strptime(name.removeprefix(PREFIX), "%Y%m%d").date() for (name,) in cursor.fetchall()]


def make_ahead() -> int:
    """Periodic: today's partition and those of the next days."""
    today = timezone.now().date()
    with transaction.atomic():
        return ensure_partitions(today + timedelta(days=ahead) for ahead in range(-1, DAYS_AHEAD + 1))


def longest_retention_days() -> int:
    """The longest retention that any deployment has, retired ones included."""
    longest: int | None = Deployment.objects.aggregate(longest=Max("retention_days"))["longest"]
    return longest or DEFAULT_RETENTION_DAYS


def drop_expired() -> int:
    """Periodic: drops the days that every deployment's retention has passed; returns how many.

    A partition that somebody reads for long is left for the next time.
    """
    horizon = (timezone.now() - timedelta(days=longest_retention_days())).date()
    dropped = 0
    for day in partition_days():
        if day >= horizon:
            break
        name = f"{PREFIX}{day:%Y%m%d}"
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '2s'")
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
                cursor.execute(f"DROP TABLE IF EXISTS {name}")
        except OperationalError as error:
            logger.warning("partition %s is in use and stays for now: %s", name, str(error).strip())
            break
        logger.info("dropped partition %s of the prediction log", name)
        dropped += 1
    return dropped


def delete_expired() -> int:
    """Periodic: deletes the rows of deployments whose own retention is shorter than the longest, and what was said of
    predictions past their retention (their rollups have counted it); returns how many.

    At most DELETE_ROWS a deployment and call, so that no transaction is long.
    """
    now, longest, deleted = timezone.now(), longest_retention_days(), 0
    for deployment_id, days in Deployment.objects.filter(retention_days__lt=longest).values_list(
        "id", "retention_days"
    ):
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM prediction WHERE deployment_id = %s AND id IN ("
                "SELECT id FROM prediction WHERE deployment_id = %s AND id < %s ORDER BY id DESC LIMIT %s)",
                [deployment_id, deployment_id, first_id(now - timedelta(days=days)), DELETE_ROWS],
            )
            deleted += cursor.rowcount
    return deleted + _delete_expired_feedback(now)


def _delete_expired_feedback(now: datetime) -> int:
    """A word names its prediction, or (rejected or given up) only its deployment and the time it was given."""
    deleted: int = 0
    for deployment_id, days in Deployment.objects.values_list("id", "retention_days"):
        horizon = now - timedelta(days=days)
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM feedback WHERE id IN (SELECT id FROM feedback WHERE deployment_id = %s AND state <> "
                "'pending' AND (prediction_id < %s OR prediction_id IS NULL AND given_at < %s) LIMIT %s)",
                [deployment_id, first_id(horizon), horizon, DELETE_ROWS],
            )
            deleted += cursor.rowcount
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM feedback WHERE id IN (SELECT id FROM feedback WHERE deployment_id IS NULL AND state <> "
            "'pending' AND given_at < %s LIMIT %s)",
            [now - timedelta(days=longest_retention_days()), DELETE_ROWS],
        )
        deleted += cursor.rowcount
    return deleted
