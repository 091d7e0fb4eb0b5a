"""Sorts spooled lines into rows of the log, refused calls, and what cannot be either."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from controlplane.predictions.cleaning import clean_json, clean_text
from inference.contracts import Outcome, Role, Source, SpoolLine
from inference.packing import Part, spell_out
from inference.spool import UNREADABLE

INT32 = 2**31 - 1
INT64 = 2**63 - 1
LONGEST_MS = 1e12
# A record's clock may be wrong; its id says when it was made to the millisecond and decides its partition.
OLDEST = timedelta(days=3660)
NEWEST = timedelta(days=30)
CLOCK_SLACK = timedelta(days=1)
TEXT_LENGTH = 256

# The columns of table `prediction`, in the order of LogRow.copied(); the first eleven are alike for many calls.
COLUMNS = (
    *("deployment_id", "version_id", "version", "revision", "routes_generation", "key_id", "source", "role", "lane"),
    *("pinned", "cached", "id", "at", "client_id", "retry_of", "shadow_of", "idempotency_key", "queue_ms"),
    *("compute_ms", "total_ms", "rows", "outcome", "status", "code", "loc", "counted", "digest", "inputs", "outputs"),
    *("scores", "context", "pictures", "warnings"),
)

# Columns by name: lists over rows of whatever was sent.
Columns = Mapping[str, Sequence[Any]]

_UUID7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_line = msgspec.json.Decoder(SpoolLine)
_lists = msgspec.json.Decoder(dict[str, list[Any]])
_encoder = msgspec.json.Encoder()
_NULL = "\\N"
# Three times NULL: context, pictures and warnings of the usual call.
_NOTHING_TOLD = b"\\N\t\\N\t\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_UNIX_DAY = datetime(1970, 1, 1).toordinal()


@dataclass(slots=True, eq=False)
class Kind:
    """What many calls have in common; there is one object for each kind in a batch. `copied`: their first columns."""

    deployment_id: uuid.UUID
    version_id: uuid.UUID
    version: int
    revision: int
    key_id: uuid.UUID | None
    role: Role
    source: Source
    copied: str


@dataclass(slots=True)
class LogRow:
    """A line that becomes a row of the log; `at` in Unix seconds. `counted` says whether it enters the rollups."""

    line: bytes
    record: SpoolLine
    kind: Kind
    id: str
    made_ms: int
    at: float
    retry_of: uuid.UUID | None
    shadow_of: uuid.UUID | None
    # Its numbers: columns of a block, or else lists.
    part: Part | None
    features: Columns
    scores: Columns
    counted: bool
    # What was asked, where an Idempotency-Key was sent: calls with one key and digest are one call and its retries.
    digest: int | None = None

    @property
    def idempotency_key(self) -> str:
        """As it is stored."""
        return _short(self.record.idempotency_key)

    @property
    def day(self) -> int:
        """The day of its partition, as an ordinal."""
        return _UNIX_DAY + self.made_ms // 86_400_000

    def copied(self) -> bytes:
        """The row in the text format of COPY, https://www.postgresql.org/docs/current/sql-copy.html."""
        record = self.record
        second = int(self.at)
        facts = (
            f"{self.kind.copied}\t{self.id}\t{_second(second)}.{int((self.at - second) * 1e6):06}+00\t"
            f"{_text(record.client_id)}\t{self.retry_of or _NULL}\t{self.shadow_of or _NULL}\t"
            f"{_text(record.idempotency_key)}\t{_ms(record.queue_ms)}\t{_ms(record.compute_ms)}\t"
            f"{_ms(record.total_ms)}\t{record.rows}\t{record.outcome.value}\t{record.status}\t{_text(record.code)}\t"
            f"{_text(record.loc)}\t{self.counted}\t{_NULL if self.digest is None else self.digest}"
        )
        payload = _json(bytes(record.inputs)), _json(bytes(record.outputs)), _json(bytes(record.scores))
        if record.context or record.pictures or record.warnings:
            told = (record.context, record.pictures, record.warnings)
            more = b"\t".join([_json(_encoder.encode(value) if value else b"") for value in told])
        else:
            more = _NOTHING_TOLD
        return b"%b\t%b\t%b\t%b\t%b\n" % (facts.encode(), *payload, more)


@dataclass(slots=True)
class Refusal:
    """A call that was answered with an error; it is counted and not logged. `at` in Unix seconds."""

    record: SpoolLine
    at: float
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
    bad: list[bytes] = field(default_factory=list)
    # Of the last record, in Unix seconds.
    last_at: float | None = None


def sort_out(lines: Sequence[bytes], now: datetime) -> Sorted:
    """Every line ends in exactly one of the three lists."""
    found = Sorted()
    kinds: dict[tuple[Any, ...], Kind | None] = {}
    oldest_ms, newest_ms = (now - OLDEST).timestamp() * 1000, (now + NEWEST).timestamp() * 1000
    for line, record, part, features, scores in _read(lines, found.bad):
        found.last_at = record.at
        if not _in_range(record):
            found.bad.append(line)
            continue
        made_ms = _made_ms(record.id)
        kind = _kind(record, kinds)
        # A call that got an error got no prediction. A shadow's failure is logged: nobody else would tell of it.
        is_row = record.outcome is Outcome.OK or record.role is not Role.LIVE
        if is_row and kind is not None and oldest_ms <= made_ms <= newest_ms:
            found.rows.append(
                LogRow(
                    line=line,
                    record=record,
                    kind=kind,
                    id=record.id,
                    made_ms=made_ms,
                    at=_moment(record.at, made_ms / 1000),
                    retry_of=_uuid(record.retry_of),
                    shadow_of=_uuid(record.shadow_of),
                    part=part,
                    features=features,
                    scores=scores,
                    counted=record.source is not Source.TEST,
                    digest=_digest(record) if record.idempotency_key else None,
                )
            )
        elif record.outcome is Outcome.OK:
            found.bad.append(line)
        else:
            found.refusals.append(_refusal(record, now))
    return found


def _read(lines: Sequence[bytes], bad: list[bytes]) -> Iterator[tuple[bytes, SpoolLine, Part | None, Columns, Columns]]:
    """The lines that are records, what they hold in packed form spelled out; the others go to `bad`."""
    read: list[tuple[bytes, SpoolLine]] = []
    for line in lines:
        try:
            read.append((line, _line.decode(line)))
        except UNREADABLE:
            bad.append(line)
    for (line, record), part in zip(read, spell_out([record for _, record in read]), strict=True):
        if part is not None:
            yield line, record, part, {}, {}
        elif record.packed is not None:
            bad.append(line)
        else:
            try:
                columns = _columns(record.features), _columns(record.scores)
            except UNREADABLE:
                bad.append(line)
            else:
                yield line, record, None, *columns


def _columns(raw: msgspec.Raw) -> Columns:
    return {} if bytes(raw) in (b"", b"null") else _lists.decode(raw)


def _kind(record: SpoolLine, kinds: dict[tuple[Any, ...], Kind | None]) -> Kind | None:
    """The record's kind out of `kinds`, where it is put if it is new; None where an id is none."""
    likeness = (
        *(record.deployment_id, record.version_id, record.version, record.revision, record.routes_generation),
        *(record.key_id, record.source, record.role, record.lane, record.pinned, record.cached),
    )
    if likeness in kinds:
        return kinds[likeness]
    deployment_id, version_id, key_id = _uuid(record.deployment_id), _uuid(record.version_id), _uuid(record.key_id)
    if deployment_id is None or version_id is None:
        kinds[likeness] = None
        return None
    copied = (
        f"{deployment_id}\t{version_id}\t{record.version}\t{record.revision}\t{record.routes_generation}\t"
        f"{key_id or _NULL}\t{record.source}\t{record.role}\t{record.lane}\t{record.pinned}\t{record.cached}"
    )
    kind = kinds[likeness] = Kind(
        deployment_id, version_id, record.version, record.revision, key_id, record.role, record.source, copied
    )
    return kind


def _made_ms(identity: str) -> int:
    """When a UUIDv7 was made, in Unix milliseconds; -1 for anything else."""
    return int(identity[:8] + identity[9:13], 16) if _UUID7.fullmatch(identity) else -1


def _digest(record: SpoolLine) -> int:
    """64 bits of a hash of the input, as far as the record has it."""
    pictures = _encoder.encode([picture.get("sha256") for picture in record.pictures])
    asked = b"[%b,%b,%b]" % (bytes(record.features) or b"null", bytes(record.inputs) or b"null", pictures)
    return int.from_bytes(blake2b(asked, digest_size=8).digest(), "big", signed=True)


def _refusal(record: SpoolLine, now: datetime) -> Refusal:
    at = _moment(record.at, now.timestamp(), slack=OLDEST)
    return Refusal(record, at, _uuid(record.deployment_id), _uuid(record.version_id), _uuid(record.key_id))


def _in_range(record: SpoolLine) -> bool:
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


def _moment(at: float, otherwise: float, slack: timedelta = CLOCK_SLACK) -> float:
    """`at` where it lies near `otherwise`, else `otherwise`; all in Unix seconds."""
    return at if abs(at - otherwise) <= slack.total_seconds() else otherwise


def _ms(value: float) -> float:
    return value if 0.0 <= value <= LONGEST_MS else min(LONGEST_MS, max(0.0, value))


def _short(text: str) -> str:
    return clean_text(text)[:TEXT_LENGTH] if text else ""


def _text(text: str) -> str:
    """A cell of COPY's text format."""
    return _short(text).translate(_ESCAPES) if text else ""


def _json(body: bytes) -> bytes:
    """A jsonb cell of COPY's text format; NULL for null and for what is empty."""
    body = clean_json(body)
    if b"\\" in body:
        return body.replace(b"\\", b"\\\\")
    return body or b"\\N"


@lru_cache(maxsize=1024)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
