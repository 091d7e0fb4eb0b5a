"""Rollups: deltas are gathered from records, inserted, and compacted into wider buckets. Nothing is ever updated."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import transaction
from django.utils import timezone

from controlplane.predictions import tallies
from controlplane.predictions.cleaning import clean_text
from controlplane.predictions.histograms import Histogram, histogram, merge
from controlplane.predictions.models import FeedbackRollup, Rollup
from controlplane.predictions.records import Kind, LogRow, Refusal
from controlplane.predictions.sketch_rollups import SketchGatherer
from inference.contracts import Outcome, Role, Source

# (width of a bucket, the age at which it is merged into the next wider one): what the steps of the windows that pages
# show need, an hour in minutes, six in five minutes, a day in half hours, and a bit, whatever the minute at which they
# are asked for. So a page reads some 250 rows of a version, however long its window.
LEVELS = (
    (10, timedelta(minutes=4)),
    (60, timedelta(minutes=75)),
    (300, timedelta(hours=7)),
    (1800, timedelta(hours=26)),
    (3600, timedelta(days=35)),
)
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
    cached: int = 0
    failed: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    total: Histogram = field(default_factory=dict)
    queue: Histogram = field(default_factory=dict)
    compute: Histogram = field(default_factory=dict)
    # Served rows; gathered first, so that histograms are fed once per delta and not once per row.
    served: list[LogRow] = field(default_factory=list)

    def add_rows(self, rows: Sequence[LogRow]) -> None:
        self.calls += len(rows)
        served = [row for row in rows if row.record.outcome is Outcome.OK]
        self.served += served
        if served:
            _bump(self.outcomes, Outcome.OK.value, len(served))
        if len(served) < len(rows):
            for row in rows:
                if row.record.outcome is not Outcome.OK:
                    _bump(self.outcomes, row.record.outcome.value, 1)
                    self._fail(row.record.code, row.record.loc, 1)

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

    def add_rollup(self, rollup: Rollup) -> None:
        """Adds a stored delta."""
        self.calls += rollup.calls
        self.rows += rollup.rows
        self.cached += rollup.cached
        self.failed += rollup.failed
        for mine, theirs in ((self.outcomes, rollup.outcomes), (self.codes, rollup.codes)):
            for name, count in theirs.items():
                _bump(mine, name, count)
        for name, count in rollup.places.items():
            _bump(self.places, name, count, most=PLACES)
        for mine_bins, name in ((self.total, "total"), (self.queue, "queue"), (self.compute, "compute")):
            merge(mine_bins, rollup.latency.get(name, {}))

    def as_rollup(self, key: Key) -> Rollup:
        if self.served:
            self._count_served()
        return Rollup(
            **key.fields(),
            calls=self.calls,
            rows=self.rows,
            cached=self.cached,
            failed=self.failed,
            outcomes=self.outcomes,
            codes=self.codes,
            places=self.places,
            latency={
                name: bins
                for name, bins in (("total", self.total), ("queue", self.queue), ("compute", self.compute))
                if bins
            },
        )

    def _count_served(self) -> None:
        records = [row.record for row in self.served]
        self.rows += sum(record.rows for record in records)
        merge(self.total, histogram([record.total_ms for record in records]))
        merge(self.queue, histogram([record.queue_ms for record in records]))
        computed = [record.compute_ms for record in records if not record.cached]
        self.cached += len(records) - len(computed)
        merge(self.compute, histogram(computed))


def _bump(counts: dict[str, int], name: str, count: int, most: int | None = None) -> None:
    if most is not None and name not in counts and len(counts) >= most:
        name = "other"
    counts[name] = counts.get(name, 0) + count


class Gatherer:
    """Gathers the deltas of one transaction. The caller leaves out rows that are not counted."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._deltas: dict[Key, Delta] = {}
        self._sketches = SketchGatherer(now)

    def add_rows(self, kind: Kind, second: int, rows: Sequence[LogRow]) -> None:
        """Rows of one kind that came in one second."""
        if rows:
            self._sketches.add(kind, second, rows)
            self._delta(kind, kind.version, kind.revision, kind.role, kind.source, second).add_rows(rows)

    def add_refusal(self, refusal: Refusal) -> None:
        record = refusal.record
        if record.source is not Source.TEST:
            at = int(refusal.at)
            self._delta(refusal, record.version, record.revision, record.role, record.source, at).add_refusal(refusal)

    def _delta(
        self, ids: Kind | Refusal, version: int, revision: int, role: Role, source: Source, second: int
    ) -> Delta:
        width_s = width_for(self._now - datetime.fromtimestamp(second, UTC))
        bucket = second // width_s * width_s
        key = Key(ids.deployment_id, ids.version_id, version, revision, role.value, source.value, bucket, width_s)
        return self._deltas.setdefault(key, Delta())

    def save(self) -> int:
        """Inserts the deltas, and those of the sketches; returns how many of the first. A few INSERTs."""
        self._sketches.save()
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
