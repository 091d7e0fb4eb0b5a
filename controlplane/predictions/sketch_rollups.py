"""Sketches over time: what drift is measured on. Kept apart from the counts and in wider buckets, so that a day of a
hundred columns is a few dozen small rows and not thousands of large ones.

Deltas of ten minutes come from the ingester as KLL sketches (sketches.py). Those of an open bucket are folded into one
every few seconds; once a bucket is over they become digests (inference/runtime/digest.py), which cost a third to store
and are read as arrays; digests are merged into hours and days. Rows are inserted and replaced by their sum; they are
never updated.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from django.db import connection, transaction
from django.db.models import Count, Q
from django.utils import timezone

from controlplane.predictions import sketches
from controlplane.predictions.kept import Columns, Kept
from controlplane.predictions.models import SketchForm, SketchRollup
from controlplane.predictions.records import Kind, LogRow
from inference.contracts import Outcome, Role
from inference.packing import Block, Part
from inference.runtime import digest as digests
from inference.runtime.digest import Digest
from inference.runtime.pixels import told_of

# (width of a bucket, the age at which it is merged into the next wider one): an hour and the hour before it are asked
# for in ten minutes.
LEVELS = ((600, timedelta(minutes=150)), (3600, timedelta(days=35)))
WIDEST_S = 86_400
# A bucket is over when nothing is likely to come for it any more; what comes later makes it be closed again.
CLOSED_AFTER = timedelta(seconds=60)
FOLDED_FROM = 4
KEYS_AT_ONCE = 200

_kept = Kept()


class SketchKey(NamedTuple):
    """What the sketches of one row are about; `bucket` is Unix seconds."""

    deployment_id: uuid.UUID
    version_id: uuid.UUID
    version: int
    role: str
    source: str
    kind: str
    bucket: int
    width_s: int

    def fields(self) -> dict[str, Any]:
        return {**self._asdict(), "bucket": datetime.fromtimestamp(self.bucket, UTC)}


@dataclass(frozen=True, slots=True)
class Stretch:
    """The columns of one kind that one version saw or said from `start` on (Unix seconds), for `width_s`."""

    kind: str
    start: int
    width_s: int
    version: int
    columns: Columns

    @property
    def middle(self) -> float:
        return self.start + self.width_s / 2


def width_for(age: timedelta) -> int:
    """The width in which values of this age are sketched."""
    return next((width_s for width_s, until in LEVELS if age < until), WIDEST_S)


class SketchGatherer:
    """Gathers the served rows of one transaction. The caller leaves out rows that are not counted."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._rows: dict[tuple[Kind, int, int], list[LogRow]] = {}

    def add(self, kind: Kind, second: int, rows: Sequence[LogRow]) -> None:
        """Rows of one kind that came in one second."""
        served = [row for row in rows if row.record.outcome is Outcome.OK]
        if served:
            width_s = width_for(self._now - datetime.fromtimestamp(second, UTC))
            self._rows.setdefault((kind, second // width_s * width_s, width_s), []).extend(served)

    def save(self) -> None:
        """Inserts a row for each kind of values, version and bucket."""
        made = [row for key, rows in self._rows.items() for row in _rollups(*key, _sketched(rows))]
        SketchRollup.objects.bulk_create(made, batch_size=500)


def _sketched(rows: Sequence[LogRow]) -> sketches.Bundle:
    bundle = sketches.new_bundle()
    blocks: dict[Block, list[Part]] = defaultdict(list)
    others = []
    for row in rows:
        if row.part is None:
            others.append(row)
        else:
            blocks[row.part.block].append(row.part)
    for block, parts in blocks.items():
        for kind, names, table in (
            (sketches.FEATURES, block.columns, block.features),
            (sketches.SCORES, block.labels, block.scores),
        ):
            if names:
                cells = np.concatenate([table[part.start : part.stop] for part in parts])
                sketches.add_table(bundle, kind, names, cells)
    sketches.add_calls(bundle, sketches.FEATURES, [row.features for row in others])
    sketches.add_calls(bundle, sketches.SCORES, [row.scores for row in others])
    pictures = [told_of(picture) for row in rows for picture in row.record.pictures]
    sketches.add_calls(bundle, sketches.PICTURES, pictures)
    return bundle


def _rollups(kind: Kind, bucket: int, width_s: int, bundle: sketches.Bundle) -> list[SketchRollup]:
    found = []
    for values, columns in bundle.items():
        if columns:
            key = SketchKey(
                *(kind.deployment_id, kind.version_id, kind.version, kind.role.value, kind.source.value),
                *(values, bucket, width_s),
            )
            packed = sketches.pack({values: columns})
            found.append(SketchRollup(**key.fields(), form=SketchForm.KLL, packed=packed))
    return found


def read(
    deployment_id: uuid.UUID, kinds: Sequence[str], since: datetime, until: datetime, sources: Sequence[str]
) -> list[Stretch]:
    """Live traffic of the buckets whose middle lies in an interval, and of the newest; oldest first. One query, which
    brings of closed buckets only those that were not read here lately.
    """
    held = _kept.of(deployment_id)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, kind, bucket, width_s, version, form, CASE WHEN id <> ALL(%s) THEN packed END "
            "FROM sketch_rollup WHERE deployment_id = %s "
            "AND kind = ANY(%s) AND role = %s AND source = ANY(%s) AND bucket > %s AND bucket < %s "
            "AND bucket + width_s * interval '0.5 second' >= %s ORDER BY bucket, id",
            [
                *(list(held), deployment_id, list(kinds), Role.LIVE.value, list(sources)),
                *(since - timedelta(seconds=WIDEST_S), until, since),
            ],
        )
        rows = cursor.fetchall()
    # Sketches of one bucket are merged before they are read as points.
    open_ones: dict[tuple[str, int, int, int], list[bytes]] = {}
    closed: dict[int, tuple[Columns, int]] = {}
    found = []
    for identity, kind, bucket, width_s, version, form, packed in rows:
        start = int(bucket.timestamp())
        if form == SketchForm.KLL:
            open_ones.setdefault((kind, start, width_s, version), []).append(packed)
            continue
        columns = held[identity] if packed is None else digests.unpack(packed)
        closed[identity] = columns, 0 if packed is None else len(packed)
        found.append(Stretch(kind, start, width_s, version, columns))
    _kept.used(closed, deployment_id)
    for (kind, start, width_s, version), parts in open_ones.items():
        sketched = _merged_sketches(parts).get(kind, {})
        found.append(Stretch(kind, start, width_s, version, {name: one.digest() for name, one in sketched.items()}))
    return sorted(found, key=lambda stretch: stretch.start)


def compact(now: datetime | None = None) -> int:
    """Periodic: folds open buckets, closes those that are over, merges old ones into wider ones.

    Returns how many rows were replaced. One transaction for each bucket, so readers see the parts or their sum.
    """
    now = now or timezone.now()
    replaced = _close(now) + _fold()
    for (width_s, age), target_s in zip(LEVELS, [*(width_s for width_s, _ in LEVELS[1:]), WIDEST_S], strict=True):
        replaced += _widen(now, width_s, age, target_s)
    return replaced


def _close(now: datetime) -> int:
    over = Q()
    for width_s in (*(width_s for width_s, _ in LEVELS), WIDEST_S):
        over |= Q(width_s=width_s, bucket__lt=now - CLOSED_AFTER - timedelta(seconds=width_s))
    keys = (
        SketchRollup.objects.filter(over, form=SketchForm.KLL)
        .order_by("bucket")
        .values_list(*SketchKey._fields)
        .distinct()[:KEYS_AT_ONCE]
    )
    return sum(_replace(SketchKey(*key), [SketchKey(*key)]) for key in map(_unix, keys))


def _fold() -> int:
    crowded = (
        SketchRollup.objects.filter(form=SketchForm.KLL)
        .order_by()
        .values_list(*SketchKey._fields)
        .annotate(rows=Count("id"))
        .filter(rows__gte=FOLDED_FROM)[:KEYS_AT_ONCE]
    )
    return sum(_replace(SketchKey(*key[:-1]), [SketchKey(*key[:-1])], SketchForm.KLL) for key in map(_unix, crowded))


def _widen(now: datetime, width_s: int, age: timedelta, target_s: int) -> int:
    until = datetime.fromtimestamp(int((now - age).timestamp()) // target_s * target_s, UTC)
    narrow = SketchRollup.objects.filter(width_s=width_s, bucket__lt=until).order_by("bucket")
    groups: dict[SketchKey, list[SketchKey]] = {}
    for key in map(_unix, narrow.values_list(*SketchKey._fields).distinct()[: KEYS_AT_ONCE * 6]):
        mine = SketchKey(*key)
        wide = mine._replace(bucket=mine.bucket // target_s * target_s, width_s=target_s)
        groups.setdefault(wide, []).append(mine)
    return sum(_replace(wide, parts) for wide, parts in groups.items())


def _unix(row: tuple[Any, ...]) -> tuple[Any, ...]:
    place = SketchKey._fields.index("bucket")
    return (*row[:place], int(row[place].timestamp()), *row[place + 1 :])


def _replace(target: SketchKey, parts: Sequence[SketchKey], form: SketchForm = SketchForm.DIGESTS) -> int:
    """Puts one row for `target` in the place of all rows of `parts`; returns how many those were."""
    with transaction.atomic():
        rows: list[SketchRollup] = []
        for key in parts:
            found = SketchRollup.objects.select_for_update(skip_locked=True).filter(**key.fields())
            rows += found.filter(form=form) if form == SketchForm.KLL else found
        if not rows:
            return 0
        if form == SketchForm.KLL:
            packed = sketches.pack(_merged_sketches([row.packed for row in rows]))
        else:
            packed = digests.pack(_merged_columns(rows, target.kind))
        SketchRollup.objects.create(**target.fields(), form=form, packed=packed)
        SketchRollup.objects.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def _merged_sketches(parts: Iterable[bytes | memoryview]) -> sketches.Bundle:
    bundle = sketches.new_bundle()
    for packed in parts:
        sketches.merge_bundles(bundle, sketches.unpack(packed))
    return bundle


def _merged_columns(rows: Sequence[SketchRollup], kind: str) -> dict[str, Digest]:
    named: dict[str, list[Digest]] = {}
    fresh = _merged_sketches([row.packed for row in rows if row.form == SketchForm.KLL])
    for name, sketch in fresh.get(kind, {}).items():
        named.setdefault(name, []).append(sketch.digest())
    for row in rows:
        if row.form == SketchForm.DIGESTS:
            for name, one in digests.unpack(row.packed).items():
                named.setdefault(name, []).append(one)
    return {name: merged(found) for name, found in named.items()}


def merged(parts: Sequence[Digest]) -> Digest:
    """The digest of all that the parts hold."""
    if len(parts) == 1:
        return parts[0]
    whole = Digest(categories={})
    for part in parts:
        whole.n += part.n
        whole.missing += part.missing
        whole.numbers += part.numbers
        whole.total += part.total
        whole.squares += part.squares
        whole.other += part.other
        for name, count in part.categories.items():
            if name in whole.categories or len(whole.categories) < digests.CATEGORIES:
                whole.categories[name] = whole.categories.get(name, 0) + count
            else:
                whole.other += count
    numeric = [part.weighted() for part in parts if part.numbers]
    whole.points = digests.thinned(numeric, digests.POINTS).astype("<f4").tobytes() if numeric else b""
    return whole
