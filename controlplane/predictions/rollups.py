"""Rollups: deltas are gathered from records, inserted, and compacted into wider buckets. Nothing is ever updated."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import transaction
from django.utils import timezone

from controlplane.predictions import sketches, tallies
from controlplane.predictions.cleaning import clean_text
from controlplane.predictions.histograms import Histogram, bin_of, merge
from controlplane.predictions.models import FeedbackRollup, Rollup
from controlplane.predictions.records import LogRow, Refusal
from inference.contracts import Outcome, Source

# (width of a bucket, the age at which it is merged into the next wider one). A day and a bit: the last 24 hours are
# shown in minutes, whatever the minute at which they are asked for.
LEVELS = ((10, timedelta(minutes=10)), (60, timedelta(hours=26)), (3600, timedelta(days=35)))
WIDEST_S = 86_400
COMPACT_ROWS = 2_000
# Distinct error codes and places in one delta; a caller can invent places.
PLACES = 100
PLACE_LENGTH = 120


class Key(NamedTuple):
    """What one delta is about; `bucket` is Unix seconds."""

    deployment_id: uuid.UUID | None
    version_id: uuid.UUID | None
    version: int
    revision: int
    role: str
    source: str
    bucket: int
    width_s: int

    def fields(self) -> dict[str, Any]:
        found = self._asdict()
        found["bucket"] = datetime.fromtimestamp(self.bucket, UTC)
        return found


def width_for(age: timedelta) -> int:
    """The width in which something of this age is counted: what compaction would make of it anyway."""
    for width_s, until in LEVELS:
        if age < until:
            return width_s
    return WIDEST_S


def bucket_of(at: datetime, width_s: int) -> int:
    return int(at.timestamp()) // width_s * width_s


@dataclass(slots=True)
class Delta:
    """What one transaction adds to one key."""

    calls: int = 0
    rows: int = 0
    failed: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    total: Histogram = field(default_factory=dict)
    queue: Histogram = field(default_factory=dict)
    compute: Histogram = field(default_factory=dict)
    # {kind: {name: values}}: gathered first, so that a sketch is fed once per delta and not once per record.
    columns: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    bundle: sketches.Bundle | None = None

    def add_row(self, row: LogRow) -> None:
        record = row.record
        self.calls += 1
        _bump(self.outcomes, record.outcome.value, 1)
        if record.outcome is not Outcome.OK:
            self._fail(record.code, record.loc, 1)
            return
        self.rows += record.rows
        _count(self.total, record.total_ms)
        _count(self.queue, record.queue_ms)
        _count(self.compute, record.compute_ms)
        if record.features:
            self._gather(sketches.FEATURES, record.features)
        if record.scores:
            self._gather(sketches.SCORES, record.scores)
        for picture in record.pictures:
            numbers = {name: [value] for name, value in picture.items() if isinstance(value, int | float)}
            self._gather(sketches.PICTURES, numbers)

    def add_refusal(self, refusal: Refusal) -> None:
        self.calls += refusal.calls
        _bump(self.outcomes, refusal.record.outcome.value, refusal.calls)
        self._fail(refusal.record.code, refusal.record.loc, refusal.calls)

    def _fail(self, code: str, place: str, count: int) -> None:
        self.failed += count
        code = clean_text(code)[:40] or "internal"
        _bump(self.codes, code, count)
        if place:
            _bump(self.places, f"{code}|{clean_text(place)[:PLACE_LENGTH]}", count, most=PLACES)

    def _gather(self, kind: str, columns: Mapping[str, list[Any]]) -> None:
        mine = self.columns.setdefault(kind, {})
        for name, values in columns.items():
            gathered = mine.get(name)
            if gathered is None:
                # A name with U+0000 cannot be shown or asked for.
                gathered = mine.setdefault(clean_text(name), [])
            if isinstance(values, list):
                gathered += values
            else:
                gathered.append(values)

    def add_rollup(self, rollup: Rollup) -> None:
        """Adds a stored delta."""
        self.calls += rollup.calls
        self.rows += rollup.rows
        self.failed += rollup.failed
        for mine, theirs in ((self.outcomes, rollup.outcomes), (self.codes, rollup.codes)):
            for name, count in theirs.items():
                _bump(mine, name, count)
        for name, count in rollup.places.items():
            _bump(self.places, name, count, most=PLACES)
        for mine_bins, name in ((self.total, "total"), (self.queue, "queue"), (self.compute, "compute")):
            merge(mine_bins, rollup.latency.get(name, {}))
        if self.bundle is None:
            self.bundle = sketches.new_bundle()
        sketches.merge_bundles(self.bundle, sketches.unpack(rollup.sketches))

    def as_rollup(self, key: Key) -> Rollup:
        bundle = self.bundle if self.bundle is not None else sketches.new_bundle()
        for kind, columns in self.columns.items():
            sketches.add_columns(bundle, kind, columns)
        return Rollup(
            **key.fields(),
            calls=self.calls,
            rows=self.rows,
            failed=self.failed,
            outcomes=self.outcomes,
            codes=self.codes,
            places=self.places,
            latency={
                name: bins
                for name, bins in (("total", self.total), ("queue", self.queue), ("compute", self.compute))
                if bins
            },
            sketches=sketches.pack(bundle),
        )


def _bump(counts: dict[str, int], name: str, count: int, most: int | None = None) -> None:
    if most is not None and name not in counts and len(counts) >= most:
        name = "other"
    counts[name] = counts.get(name, 0) + count


def _count(bins: Histogram, ms: float) -> None:
    index = bin_of(ms)
    bins[index] = bins.get(index, 0) + 1


class Gatherer:
    """Gathers the deltas of one transaction. The caller leaves out rows that are not counted."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._deltas: dict[Key, Delta] = {}

    def _delta(self, row: LogRow | Refusal) -> Delta:
        record = row.record
        width_s = width_for(self._now - row.at)
        key = Key(
            row.deployment_id,
            row.version_id,
            record.version,
            record.revision,
            record.role.value,
            record.source.value,
            bucket_of(row.at, width_s),
            width_s,
        )
        delta = self._deltas.get(key)
        if delta is None:
            delta = self._deltas[key] = Delta()
        return delta

    def add_row(self, row: LogRow) -> None:
        self._delta(row).add_row(row)

    def add_refusal(self, refusal: Refusal) -> None:
        if refusal.record.source is not Source.TEST:
            self._delta(refusal).add_refusal(refusal)

    def save(self) -> int:
        """Inserts the deltas; returns how many. A few INSERTs."""
        rollups = [delta.as_rollup(key) for key, delta in self._deltas.items()]
        Rollup.objects.bulk_create(rollups, batch_size=500)
        return len(rollups)


class FeedbackGatherer:
    """Gathers what the feedback of one transaction adds, by the time of the predictions it speaks of."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._tallies: dict[Key, tallies.Tally] = {}

    def add(
        self,
        *,
        deployment_id: uuid.UUID,
        version_id: uuid.UUID,
        version: int,
        revision: int,
        role: str,
        source: str,
        at: datetime,
        tally: tallies.Tally,
    ) -> None:
        width_s = width_for(self._now - at)
        key = Key(deployment_id, version_id, version, revision, role, source, bucket_of(at, width_s), width_s)
        tallies.merge(self._tallies.setdefault(key, {"n": 0}), tally)

    def save(self) -> int:
        rollups = [
            FeedbackRollup(**key.fields(), n=tally["n"], tally=tally)
            for key, tally in self._tallies.items()
            if tally != {"n": 0}
        ]
        FeedbackRollup.objects.bulk_create(rollups, batch_size=500)
        return len(rollups)


def compact(now: datetime | None = None, rows: int = COMPACT_ROWS) -> int:
    """Periodic: merges buckets that are old enough into wider ones; returns how many rows were replaced.

    Each step is one transaction that deletes the narrow rows and inserts their sums, so readers see either.
    """
    now = now or timezone.now()
    replaced = 0
    wider = [width_s for width_s, _ in LEVELS[1:]] + [WIDEST_S]
    for (width_s, age), target_s in zip(LEVELS, wider, strict=True):
        until = datetime.fromtimestamp(bucket_of(now - age, target_s), UTC)
        while count := _compact_calls(width_s, target_s, until, rows) + _compact_feedback(
            width_s, target_s, until, rows
        ):
            replaced += count
            if count < rows:
                break
    return replaced


def _widened(row: Rollup | FeedbackRollup, width_s: int) -> Key:
    return Key(
        row.deployment_id,
        row.version_id,
        row.version,
        row.revision,
        row.role,
        row.source,
        bucket_of(row.bucket, width_s),
        width_s,
    )


def _compact_calls(width_s: int, target_s: int, until: datetime, rows: int) -> int:
    with transaction.atomic():
        narrow = list(
            Rollup.objects.select_for_update(skip_locked=True)
            .filter(width_s=width_s, bucket__lt=until)
            .order_by("bucket")[:rows]
        )
        deltas: dict[Key, Delta] = {}
        for row in narrow:
            deltas.setdefault(_widened(row, target_s), Delta()).add_rollup(row)
        Rollup.objects.bulk_create([delta.as_rollup(key) for key, delta in deltas.items()])
        Rollup.objects.filter(pk__in=[row.pk for row in narrow]).delete()
    return len(narrow)


def _compact_feedback(width_s: int, target_s: int, until: datetime, rows: int) -> int:
    with transaction.atomic():
        narrow = list(
            FeedbackRollup.objects.select_for_update(skip_locked=True)
            .filter(width_s=width_s, bucket__lt=until)
            .order_by("bucket")[:rows]
        )
        sums: dict[Key, tallies.Tally] = {}
        for row in narrow:
            tallies.merge(sums.setdefault(_widened(row, target_s), {"n": 0}), row.tally)
        FeedbackRollup.objects.bulk_create(
            [FeedbackRollup(**key.fields(), n=tally["n"], tally=tally) for key, tally in sums.items()]
        )
        FeedbackRollup.objects.filter(pk__in=[row.pk for row in narrow]).delete()
    return len(narrow)
