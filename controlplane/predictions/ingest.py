"""Writes records to the log and counts them, exactly once. The spool's ingester and finished jobs use the same way."""

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import msgspec
from django.db import DataError, IntegrityError, connection, transaction
from django.utils import timezone

from controlplane.predictions import matching
from controlplane.predictions.cleaning import clean_text
from controlplane.predictions.models import FailedCall
from controlplane.predictions.partitions import ensure_partitions, first_id
from controlplane.predictions.records import COLUMNS, Kind, LogRow, Refusal, sort_out
from controlplane.predictions.rollups import Gatherer
from inference.contracts import Outcome, Role, SpoolRecord
from inference.spool import UNREADABLE

logger = logging.getLogger(__name__)

FAILED_CALLS_KEPT = 100
# Serialises transactions that hold calls with an Idempotency-Key: each must see which calls the others counted.
RETRY_LOCK = 0x5B_0002
RETRIES_WITHIN = timedelta(hours=24)

_names = ", ".join(COLUMNS)
_COPY = f"COPY prediction ({_names}) FROM STDIN"
_STAGE = "CREATE TEMP TABLE IF NOT EXISTS prediction_staging (LIKE prediction) ON COMMIT DELETE ROWS"
_COPY_STAGED = f"COPY prediction_staging ({_names}) FROM STDIN"
_INSERT_STAGED = (
    f"INSERT INTO prediction ({_names}) SELECT {_names} FROM prediction_staging "  # noqa: S608
    "ON CONFLICT DO NOTHING RETURNING id::text"
)

_encoder = msgspec.json.Encoder()
# Rows of one kind and one second.
Seconds = Mapping[tuple[Kind, int], list[LogRow]]


@dataclass(slots=True)
class Landed:
    """What became of a batch: ids that are new in the log, how many were there before, lines that are no record or
    could not be written, and when the last record was made, in Unix seconds."""

    inserted: list[str] = field(default_factory=list)
    repeated: int = 0
    refused: int = 0
    bad: list[bytes] = field(default_factory=list)
    last_at: float | None = None


def record_predictions(records: Iterable[SpoolRecord], now: datetime | None = None) -> Landed:
    """As `record_lines`, of records that were never spooled."""
    return record_lines([_encoder.encode(record) for record in records], now)


def record_lines(lines: Sequence[bytes], now: datetime | None = None) -> Landed:
    """Writes a batch and its rollups in the caller's transaction. A constant number of statements for good lines.

    A line that PostgreSQL does not take is found by halving the batch and handed back in `bad`; the others land.
    """
    now = now or timezone.now()
    found = sort_out(lines, now)
    landed = Landed(bad=list(found.bad), last_at=found.last_at)
    with transaction.atomic():
        gatherer = Gatherer(now)
        rows = list({row.id: row for row in found.rows}.values())
        ensure_partitions(map(date.fromordinal, {row.day for row in rows}))
        _leave_out_retries(rows)
        inserted = _insert(rows, landed) if rows else []
        seconds = _by_second(inserted)
        for (kind, second), mine in seconds.items():
            gatherer.add_rows(kind, second, [row for row in mine if row.counted])
        for refusal in found.refusals:
            gatherer.add_refusal(refusal)
        gatherer.save()
        landed.inserted = [row.id for row in inserted]
        landed.repeated = len(found.rows) - len(inserted) - (len(landed.bad) - len(found.bad))
        landed.refused = len(found.refusals)
        _remember_failures(inserted, found.refusals)
        _count_key_use(seconds, found.refusals)
        matching.match_arrived(inserted)
    return landed


def _by_second(rows: Sequence[LogRow]) -> Seconds:
    found: dict[tuple[Kind, int], list[LogRow]] = defaultdict(list)
    for row in rows:
        found[row.kind, int(row.at)].append(row)
    return found


def _insert(rows: list[LogRow], landed: Landed) -> list[LogRow]:
    """The rows that were new. Rows that PostgreSQL refuses go to `landed.bad`."""
    try:
        copied = b"".join([row.copied() for row in rows])
        with transaction.atomic():
            try:
                # Half of the cost of going by a second table; a row is there already only where it was spooled twice.
                with transaction.atomic():
                    _copy(_COPY, copied)
                return rows
            except IntegrityError:
                new = _insert_staged(copied)
                return [row for row in rows if row.id in new]
    except (DataError, ValueError, *UNREADABLE) as error:
        if len(rows) == 1:
            logger.warning("a record was refused by the database: %s", type(error).__name__)
            landed.bad.append(rows[0].line)
            return []
    middle = len(rows) // 2
    return _insert(rows[:middle], landed) + _insert(rows[middle:], landed)


def _copy(statement: str, copied: bytes) -> None:
    # Django wraps the errors of `execute` alone.
    with connection.cursor() as cursor, connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.write(copied)


def _insert_staged(copied: bytes) -> set[str]:
    """Inserts those of the rows that are not in the log yet, and returns their ids."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL client_min_messages = warning")
        cursor.execute(_STAGE)
        cursor.execute("TRUNCATE prediction_staging")
        _copy(_COPY_STAGED, copied)
        cursor.execute(_INSERT_STAGED)
        return {identity for (identity,) in cursor.fetchall()}


def _leave_out_retries(rows: list[LogRow]) -> None:
    """Marks rows that repeat a call (by its Idempotency-Key) as not counted, where the log or this batch counts it.

    The front door names the first call (`retry_of`) where one process saw both; the others are found here.
    """
    groups: dict[tuple[object, ...], list[LogRow]] = defaultdict(list)
    for row in rows:
        if row.digest is not None and row.counted and row.record.role is Role.LIVE:
            groups[row.kind.key_id, row.kind.deployment_id, row.idempotency_key, row.digest].append(row)
    if not groups:
        return
    members = [row for mine in groups.values() for row in mine]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [RETRY_LOCK])
        cursor.execute(
            "SELECT key_id, deployment_id, idempotency_key, digest, id FROM prediction WHERE counted "
            "AND deployment_id = ANY(%s) AND idempotency_key = ANY(%s) AND idempotency_key <> '' "
            "AND id >= %s AND id < %s AND id <> ALL(%s)",
            [
                list({row.kind.deployment_id for row in members}),
                list({row.idempotency_key for row in members}),
                first_id(_moment(min(row.at for row in members)) - RETRIES_WITHIN),
                first_id(_moment(max(row.at for row in members)) + RETRIES_WITHIN),
                [uuid.UUID(row.id) for row in members],
            ],
        )
        counted = {tuple(found[:4]): found[4] for found in cursor.fetchall()}
    for call, mine in groups.items():
        first = str(counted.get(call) or min(row.id for row in mine))
        for row in mine:
            row.counted = row.id == first
            if not row.counted and row.retry_of is None and first < row.id:
                row.retry_of = uuid.UUID(first)


def _remember_failures(rows: list[LogRow], refusals: list[Refusal]) -> None:
    """Keeps the last calls that failed of each key."""
    failed: list[tuple[Kind | Refusal, LogRow | Refusal]] = [(refusal, refusal) for refusal in refusals]
    failed += [(row.kind, row) for row in rows if row.record.outcome is not Outcome.OK]
    calls = [
        FailedCall(
            key_id=about.key_id,
            deployment_id=about.deployment_id,
            at=_moment(call.at),
            status=call.record.status,
            code=clean_text(call.record.code[:40]),
            loc=clean_text(call.record.loc[:200]),
            request_id=clean_text(call.record.context.get("request_id", call.record.id)[:64]),
        )
        for about, call in failed
        if about.key_id is not None and call.record.role is Role.LIVE
    ]
    if not calls:
        return
    calls.sort(key=lambda call: call.at)
    by_key: dict[uuid.UUID, list[FailedCall]] = defaultdict(list)
    for call in calls:
        by_key[call.key_id].append(call)
    FailedCall.objects.bulk_create([call for mine in by_key.values() for call in mine[-FAILED_CALLS_KEPT:]])
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM failed_call WHERE id IN (SELECT id FROM ("
            "SELECT id, row_number() OVER (PARTITION BY key_id ORDER BY at DESC, id DESC) AS place "
            "FROM failed_call WHERE key_id = ANY(%s)) AS ranked WHERE place > %s)",
            [list(by_key), FAILED_CALLS_KEPT],
        )


def _count_key_use(seconds: Seconds, refusals: list[Refusal]) -> None:
    """Adds to the hourly counts of each key; in the order of the keys, so that two ingesters never wait crosswise."""
    counts: dict[tuple[uuid.UUID, datetime], list[int]] = defaultdict(lambda: [0, 0])
    for (kind, second), rows in seconds.items():
        if kind.key_id is not None and kind.role is Role.LIVE:
            count = counts[kind.key_id, _hour(second)]
            count[0] += len(rows)
            count[1] += sum(row.record.outcome is not Outcome.OK for row in rows)
    for refusal in refusals:
        if refusal.key_id is not None:
            count = counts[refusal.key_id, _hour(refusal.at)]
            count[0] += refusal.calls
            count[1] += refusal.calls
    if not counts:
        return
    keyed = sorted(counts.items())
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO key_use (key_id, hour, calls, failed) SELECT * FROM unnest(%s::uuid[], %s::timestamptz[], "
            "%s::bigint[], %s::bigint[]) ON CONFLICT (key_id, hour) DO UPDATE SET "
            "calls = key_use.calls + EXCLUDED.calls, failed = key_use.failed + EXCLUDED.failed",
            [
                [key for (key, _), _ in keyed],
                [hour for (_, hour), _ in keyed],
                [calls for _, (calls, _) in keyed],
                [failed for _, (_, failed) in keyed],
            ],
        )


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _hour(at: float) -> datetime:
    return _moment(at // 3600 * 3600)
