"""Writes records to the log and counts them, exactly once. The spool's ingester and finished jobs use the same way."""

import logging
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import DataError, connection, transaction
from django.utils import timezone

from controlplane.predictions import matching
from controlplane.predictions.cleaning import clean_text
from controlplane.predictions.models import FailedCall
from controlplane.predictions.partitions import ensure_partitions, first_id, time_of
from controlplane.predictions.records import COLUMNS, LogRow, Refusal, sort_out
from controlplane.predictions.rollups import Gatherer
from inference.contracts import Outcome, Role, SpoolRecord

logger = logging.getLogger(__name__)

FAILED_CALLS_KEPT = 100
# Serialises transactions that hold calls with an Idempotency-Key: each must see which calls the others counted.
RETRY_LOCK = 0x5B_0002
RETRIES_WITHIN = timedelta(hours=24)

_names = ", ".join(COLUMNS)
_STAGE = "CREATE TEMP TABLE IF NOT EXISTS prediction_staging (LIKE prediction) ON COMMIT DELETE ROWS"
_COPY = f"COPY prediction_staging ({_names}) FROM STDIN"
_INSERT = (
    f"INSERT INTO prediction ({_names}) SELECT {_names} FROM prediction_staging ON CONFLICT DO NOTHING RETURNING id"  # noqa: S608
)


@dataclass(slots=True)
class Landed:
    """What became of a batch: ids that are new in the log, how many were there before, what could not be written."""

    inserted: list[uuid.UUID] = field(default_factory=list)
    repeated: int = 0
    refused: int = 0
    bad: list[SpoolRecord] = field(default_factory=list)


def record_predictions(records: Sequence[SpoolRecord], now: datetime | None = None) -> Landed:
    """Writes a batch and its rollups in the caller's transaction. A constant number of statements for good records.

    A record that PostgreSQL does not take is found by halving the batch and handed back in `bad`; the others land.
    """
    now = now or timezone.now()
    found = sort_out(records, now)
    landed = Landed(bad=list(found.bad))
    with transaction.atomic():
        gatherer = Gatherer(now)
        unique = {row.id: row for row in found.rows}
        rows = list(unique.values())
        ensure_partitions({time_of(row.id).date() for row in rows})
        _leave_out_retries(rows)
        inserted = _insert(rows, landed) if rows else []
        for row in inserted:
            if row.counted:
                gatherer.add_row(row)
        for refusal in found.refusals:
            gatherer.add_refusal(refusal)
        gatherer.save()
        landed.inserted = [row.id for row in inserted]
        landed.repeated = len(found.rows) - len(inserted) - (len(landed.bad) - len(found.bad))
        landed.refused = len(found.refusals)
        _remember_failures(inserted, found.refusals)
        _count_key_use(inserted, found.refusals)
        matching.match_arrived(inserted)
    return landed


def _insert(rows: list[LogRow], landed: Landed) -> list[LogRow]:
    """The rows that were new. Rows that PostgreSQL refuses go to `landed.bad`."""
    try:
        with transaction.atomic():
            return _copy(rows)
    except (DataError, ValueError, RecursionError) as error:
        if len(rows) == 1:
            logger.warning("a record was refused by the database: %s", type(error).__name__)
            landed.bad.append(rows[0].record)
            return []
    middle = len(rows) // 2
    return _insert(rows[:middle], landed) + _insert(rows[middle:], landed)


def _copy(rows: list[LogRow]) -> list[LogRow]:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL client_min_messages = warning")
        cursor.execute(_STAGE)
        cursor.execute("TRUNCATE prediction_staging")
        with cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row.values())
        cursor.execute(_INSERT)
        new = {identity for (identity,) in cursor.fetchall()}
    return [row for row in rows if row.id in new]


def _leave_out_retries(rows: list[LogRow]) -> None:
    """Marks rows that repeat a call (by its Idempotency-Key) as not counted, where the log or this batch counts it.

    The front door names the first call (`retry_of`) where one process saw both; the others are found here.
    """
    groups: dict[tuple[object, ...], list[LogRow]] = defaultdict(list)
    for row in rows:
        if row.digest is not None and row.counted and row.record.role is Role.LIVE:
            groups[row.key_id, row.deployment_id, row.idempotency_key, row.digest].append(row)
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
                list({row.deployment_id for row in members}),
                list({row.idempotency_key for row in members}),
                first_id(min(row.at for row in members) - RETRIES_WITHIN),
                first_id(max(row.at for row in members) + RETRIES_WITHIN),
                [row.id for row in members],
            ],
        )
        counted = {tuple(found[:4]): found[4] for found in cursor.fetchall()}
    for call, mine in groups.items():
        first = counted.get(call) or min(mine, key=lambda row: row.id).id
        for row in mine:
            row.counted = row.id == first
            if not row.counted and row.retry_of is None and first < row.id:
                row.retry_of = first


def _remember_failures(rows: list[LogRow], refusals: list[Refusal]) -> None:
    """Keeps the last calls that failed of each key."""
    failed: list[LogRow | Refusal] = [row for row in rows if row.record.outcome is not Outcome.OK]
    failed += refusals
    calls = [
        FailedCall(
            key_id=call.key_id,
            deployment_id=call.deployment_id,
            at=call.at,
            status=call.record.status,
            code=clean_text(call.record.code[:40]),
            loc=clean_text(call.record.loc[:200]),
            request_id=clean_text(call.record.context.get("request_id", call.record.id)[:64]),
        )
        for call in failed
        if call.key_id is not None and call.record.role is Role.LIVE
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


def _count_key_use(rows: list[LogRow], refusals: list[Refusal]) -> None:
    """Adds to the hourly counts of each key; in the order of the keys, so that two ingesters never wait crosswise."""
    counts: dict[tuple[uuid.UUID, datetime], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        if row.key_id is not None and row.record.role is Role.LIVE:
            count = counts[row.key_id, row.at.replace(minute=0, second=0, microsecond=0)]
            count[0] += 1
            count[1] += row.record.outcome is not Outcome.OK
    for refusal in refusals:
        if refusal.key_id is not None:
            count = counts[refusal.key_id, refusal.at.replace(minute=0, second=0, microsecond=0)]
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
