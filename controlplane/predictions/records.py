"""Sorts spooled records into rows of the log, refused calls, and what cannot be either."""

import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from controlplane.predictions.cleaning import clean_text, json_text
from controlplane.predictions.partitions import is_uuid7, time_of
from inference.contracts import Outcome, Role, Source, SpoolRecord

_encoder = msgspec.json.Encoder()

INT32 = 2**31 - 1
INT64 = 2**63 - 1
LONGEST_MS = 1e12
# A record's clock may be wrong; its id says when it was made to the millisecond and decides its partition.
OLDEST = timedelta(days=3660)
NEWEST = timedelta(days=30)
CLOCK_SLACK = timedelta(days=1)
TEXT_LENGTH = 256

# The columns of table `prediction`, in the order of LogRow.values().
COLUMNS = (
    *("id", "at", "deployment_id", "version_id", "version", "revision", "routes_generation", "key_id", "client_id"),
    *("retry_of", "shadow_of", "idempotency_key", "source", "role", "lane", "pinned", "queue_ms", "compute_ms"),
    *("total_ms", "rows", "outcome", "status", "code", "loc", "inputs", "outputs", "scores", "context", "pictures"),
    *("warnings", "counted", "digest"),
)


@dataclass(slots=True)
class LogRow:
    """A record that becomes a row of the log. `counted` says whether it enters the rollups."""

    record: SpoolRecord
    id: uuid.UUID
    at: datetime
    deployment_id: uuid.UUID
    version_id: uuid.UUID
    key_id: uuid.UUID | None
    retry_of: uuid.UUID | None
    shadow_of: uuid.UUID | None
    counted: bool
    # What was asked, where an Idempotency-Key was sent: calls with one key and digest are one call and its retries.
    digest: int | None = None

    @property
    def idempotency_key(self) -> str:
        """As it is stored."""
        return _short(self.record.idempotency_key)

    def values(self) -> tuple[Any, ...]:
        record = self.record
        return (
            self.id,
            self.at,
            self.deployment_id,
            self.version_id,
            record.version,
            record.revision,
            record.routes_generation,
            self.key_id,
            _short(record.client_id),
            self.retry_of,
            self.shadow_of,
            self.idempotency_key,
            record.source.value,
            record.role.value,
            record.lane.value,
            record.pinned,
            _ms(record.queue_ms),
            _ms(record.compute_ms),
            _ms(record.total_ms),
            record.rows,
            record.outcome.value,
            record.status,
            _short(record.code),
            _short(record.loc),
            json_text(record.inputs),
            json_text(record.outputs),
            json_text(record.scores),
            json_text(record.context),
            json_text(record.pictures),
            json_text(record.warnings),
            self.counted,
            self.digest,
        )


@dataclass(slots=True)
class Refusal:
    """A call that was answered with an error; it is counted and not logged."""

    record: SpoolRecord
    at: datetime
    deployment_id: uuid.UUID | None
    version_id: uuid.UUID | None
    key_id: uuid.UUID | None

    @property
    def calls(self) -> int:
        """A flood of like refusals is spooled as one record, whose `rows` says how many they were."""
        return max(1, self.record.rows)


@dataclass(slots=True)
class Sorted:
    rows: list[LogRow] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    bad: list[SpoolRecord] = field(default_factory=list)


def sort_out(records: Iterable[SpoolRecord], now: datetime) -> Sorted:
    """Every record ends in exactly one of the three lists."""
    found = Sorted()
    for record in records:
        if not _in_range(record):
            found.bad.append(record)
            continue
        row = None if _is_refusal(record) else _row(record, now)
        if row is not None:
            found.rows.append(row)
        elif record.outcome is Outcome.OK:
            found.bad.append(record)
        else:
            found.refusals.append(_refusal(record, now))
    return found


def _is_refusal(record: SpoolRecord) -> bool:
    """A call that got an error got no prediction. A shadow's failure is logged: nobody else would tell of it."""
    return record.outcome is not Outcome.OK and record.role is Role.LIVE


def _row(record: SpoolRecord, now: datetime) -> LogRow | None:
    """The row, or None where its ids are not what they must be."""
    identity, deployment_id, version_id = _uuid(record.id), _uuid(record.deployment_id), _uuid(record.version_id)
    if identity is None or not is_uuid7(identity) or deployment_id is None or version_id is None:
        return None
    try:
        made_at = time_of(identity)
    except (ValueError, OverflowError):
        return None
    if not now - OLDEST <= made_at <= now + NEWEST:
        return None
    return LogRow(
        record=record,
        id=identity,
        at=_moment(record.at, made_at),
        deployment_id=deployment_id,
        version_id=version_id,
        key_id=_uuid(record.key_id),
        retry_of=_uuid(record.retry_of),
        shadow_of=_uuid(record.shadow_of),
        counted=record.source is not Source.TEST,
        digest=_digest(record) if record.idempotency_key else None,
    )


def _digest(record: SpoolRecord) -> int:
    """64 bits of a hash of the input, as far as the record has it."""
    asked = [record.features, record.inputs, [picture.get("sha256") for picture in record.pictures]]
    return int.from_bytes(blake2b(_encoder.encode(asked), digest_size=8).digest(), "big", signed=True)


def _refusal(record: SpoolRecord, now: datetime) -> Refusal:
    at = _moment(record.at, now, slack=OLDEST)
    return Refusal(record, at, _uuid(record.deployment_id), _uuid(record.version_id), _uuid(record.key_id))


def _in_range(record: SpoolRecord) -> bool:
    return (
        0 <= record.version <= INT32
        and 0 <= record.revision <= INT32
        and 0 <= record.rows <= INT32
        and 0 <= record.status <= 999
        and 0 <= record.routes_generation <= INT64
    )


def _uuid(text: str) -> uuid.UUID | None:
    if len(text) != 36:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _moment(at: float, otherwise: datetime, slack: timedelta = CLOCK_SLACK) -> datetime:
    """`at` as a time where it lies near `otherwise`, else `otherwise`."""
    if not abs(at - otherwise.timestamp()) <= slack.total_seconds():
        return otherwise
    return datetime.fromtimestamp(at, UTC)


def _ms(value: float) -> float:
    return min(LONGEST_MS, max(0.0, value)) if math.isfinite(value) else 0.0


def _short(text: str) -> str:
    return clean_text(text)[:TEXT_LENGTH] if text else ""
