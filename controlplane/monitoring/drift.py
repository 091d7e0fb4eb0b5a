"""How far what a deployment sees and says has moved: sketches of now against a reference set, or the time before.

Per column: PSI and Jensen-Shannon divergence over the tenths of the baseline (or its categories), the
Kolmogorov-Smirnov distance, and the Wasserstein distance in standard deviations of the baseline.
"""

import csv
import math
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.parquet

from controlplane.catalog.models import ModelVersion
from controlplane.catalog.storage import path_of
from controlplane.deployments.models import Deployment
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import SHOWN
from controlplane.predictions import sketches
from controlplane.predictions.models import Rollup
from controlplane.predictions.sketches import Sketch

TENTHS = [index / 10 for index in range(1, 10)]
RANKS = [(index + 0.5) / 100 for index in range(100)]
# A column moved when PSI passes this by more than chance gives samples of these sizes.
PSI_LIMIT = 0.2
ENOUGH = 50
TARGET = "target"
SMALLEST_SHARE = 1e-4
Number = float | None


class Moved(TypedDict):
    """One column. Figures are None where one side has too few values."""

    name: str
    drifting: bool
    psi: Number
    js: Number
    wasserstein: Number
    ks: Number
    n: int
    n_baseline: int
    missing_share: Number
    missing_share_baseline: Number
    mean: Number
    mean_baseline: Number


class Drift(TypedDict):
    """`baseline`: reference (the set of version `reference_version`), earlier (the stretch before), or None."""

    deployment: str
    since: str
    until: str
    baseline: str | None
    reference_version: int | None
    n: int
    features: list[Moved]
    prediction: dict[str, Any]


def drift(deployment: Deployment, interval: Interval) -> Drift:
    """Live traffic of an interval against its baseline. Three queries; the reference set is read once a process."""
    now, versions = _served(deployment, interval)
    span = interval.until - interval.since
    earlier, _ = _served(deployment, Interval(interval.since - span, interval.since, interval.step_s))
    reference = (
        ModelVersion.objects.filter(model_id=deployment.model_id, number__in=versions)
        .exclude(reference_artifact=None)
        .order_by("-number")
        .first()
    )
    base, kind = earlier[sketches.FEATURES], "earlier" if any(earlier.values()) else None
    if reference is not None and reference.reference_artifact_id is not None:
        columns = tuple(str(column["name"]) for column in reference.columns)
        read = reference_sketches(reference.reference_artifact_id, columns)
        if read:
            base, kind = read, "reference"
    features = [compare(name, base.get(name, Sketch()), sketch) for name, sketch in now[sketches.FEATURES].items()]
    pictures = [
        compare(f"picture {name}", earlier[sketches.PICTURES].get(name, Sketch()), sketch)
        for name, sketch in now[sketches.PICTURES].items()
    ]
    scores = [
        compare(name, earlier[sketches.SCORES].get(name, Sketch()), sketch)
        for name, sketch in now[sketches.SCORES].items()
    ]
    moved = by_effect([*features, *pictures])
    return {
        "deployment": deployment.name,
        "since": interval.since.isoformat(),
        "until": interval.until.isoformat(),
        "baseline": kind,
        "reference_version": reference.number if reference is not None and kind == "reference" else None,
        "n": max((one["n"] for one in moved), default=0),
        "features": moved,
        "prediction": {
            "baseline": "earlier" if earlier[sketches.SCORES] else None,
            "drifting": any(one["drifting"] for one in scores),
            "scores": by_effect(scores),
        },
    }


def by_effect(moved: Sequence[Moved]) -> list[Moved]:
    """The most moved first."""
    return sorted(moved, key=lambda one: (not one["drifting"], -(one["psi"] or 0.0), one["name"]))


def _served(deployment: Deployment, interval: Interval) -> tuple[sketches.Bundle, set[int]]:
    """Sketches of live traffic, and the versions that served. One query."""
    found = Rollup.objects.filter(
        deployment_id=deployment.pk,
        bucket__gte=interval.since,
        bucket__lt=interval.until,
        role="live",
        source__in=SHOWN,
    )
    bundle, versions = sketches.new_bundle(), set()
    for version, packed in found.exclude(sketches=b"").values_list("version", "sketches").iterator(chunk_size=500):
        versions.add(version)
        sketches.merge_bundles(bundle, sketches.unpack(packed))
    return bundle, versions


@lru_cache(maxsize=32)
def reference_sketches(sha256: str, columns: tuple[str, ...]) -> dict[str, Sketch]:
    """Sketches of a reference set's columns (CSV, Parquet, NPZ of tables); {} for pictures and what cannot be read."""
    path = path_of(sha256)
    if not path.exists():
        return {}
    with path.open("rb") as stream:
        head = stream.read(4)
    if head == b"PAR1":
        table = pyarrow.parquet.read_table(path)
        found = {name: table.column(name).to_pylist() for name in table.column_names if name != TARGET}
    elif head == b"PK\x03\x04":
        found = _npz(path, columns)
    else:
        found = _csv(path)
    sketched: dict[str, Sketch] = {}
    for name, values in found.items():
        sketched[name] = Sketch()
        sketched[name].add(values)
    return sketched


def _csv(path: Path) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        header = next(rows)
        cells = list(zip(*(row for row in rows if len(row) == len(header)), strict=True))
    return {
        name: [_cell(cell) for cell in values] for name, values in zip(header, cells, strict=False) if name != TARGET
    }


def _cell(text: str) -> float | str | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _npz(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                # Of a zip of pictures the entries are bytes.
                if name == TARGET or not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
                    continue
                table = array.reshape(len(array), -1)
                width = table.shape[1]
                names = columns if len(columns) == width else [name] if width == 1 else _indexed(name, width)
                found.update(zip(names, table.T.tolist(), strict=True))
    except (ValueError, OSError, KeyError, zipfile.BadZipFile):
        return {}
    return found


def _indexed(name: str, width: int) -> list[str]:
    return [f"{name}[{index}]" for index in range(width)]


def compare(name: str, base: Sketch, now: Sketch) -> Moved:
    """One column of now against its baseline."""
    moved: Moved = {
        "name": name,
        "drifting": False,
        "psi": None,
        "js": None,
        "wasserstein": None,
        "ks": None,
        "n": now.n,
        "n_baseline": base.n,
        "missing_share": _share(now),
        "missing_share_baseline": _share(base),
        "mean": now.mean,
        "mean_baseline": base.mean,
    }
    if base.n < ENOUGH or now.n < ENOUGH or base.is_numeric != now.is_numeric:
        return moved
    expected, found = _numeric(base, now) if base.is_numeric else _categorical(base, now)
    index = psi(expected, found)
    moved["psi"], moved["js"] = index, jensen_shannon(expected, found)
    if base.is_numeric:
        moved["ks"], moved["wasserstein"] = _distances(base, now)
    # By chance alone PSI is about (bins - 1)(1/n + 1/m); twice that is left to it.
    chance = 2 * (len(expected) - 1) * (1 / base.n + 1 / now.n)
    moved["drifting"] = index > PSI_LIMIT + chance
    return moved


def _share(sketch: Sketch) -> Number:
    total = sketch.n + sketch.missing
    return sketch.missing / total if total else None


def _numeric(base: Sketch, now: Sketch) -> tuple[list[float], list[float]]:
    """Shares of both in the tenths of the baseline; equal edges (few distinct values) are joined."""
    edges = sorted(set(base.quantiles(TENTHS) or []))
    if not edges:
        return [1.0], [1.0]
    return [float(x) for x in base.kll.get_pmf(edges)], [float(x) for x in now.kll.get_pmf(edges)]


def _categorical(base: Sketch, now: Sketch) -> tuple[list[float], list[float]]:
    names = sorted(base.categories.keys() | now.categories.keys())
    expected = [base.categories.get(name, 0) / base.n for name in names] + [base.other / base.n]
    found = [now.categories.get(name, 0) / now.n for name in names] + [now.other / now.n]
    return expected, found


def psi(expected: Sequence[float], found: Sequence[float]) -> float:
    """The population stability index; an empty bin counts as 0.01 %."""
    pairs = [(max(e, SMALLEST_SHARE), max(f, SMALLEST_SHARE)) for e, f in zip(expected, found, strict=True) if e or f]
    return round(sum((f - e) * math.log(f / e) for e, f in pairs), 6)


def jensen_shannon(expected: Sequence[float], found: Sequence[float]) -> float:
    """The Jensen-Shannon divergence to base 2: 0 for equal, 1 for disjoint."""

    def divergence(left: float, middle: float) -> float:
        return left * math.log2(left / middle) if left > 0 else 0.0

    total = sum(
        (divergence(e, (e + f) / 2) + divergence(f, (e + f) / 2)) / 2
        for e, f in zip(expected, found, strict=True)
        if e or f
    )
    return round(min(1.0, max(0.0, total)), 6)


def _distances(base: Sketch, now: Sketch) -> tuple[float, Number]:
    """(Kolmogorov-Smirnov, Wasserstein in the baseline's standard deviations; None where it has none)."""
    left, right = base.quantiles(RANKS) or [], now.quantiles(RANKS) or []
    points = sorted(set(left) | set(right))
    cdf_base, cdf_now = base.kll.get_cdf(points), now.kll.get_cdf(points)
    ks = max(abs(a - b) for a, b in zip(cdf_base, cdf_now, strict=True))
    deviation = base.deviation
    distance = sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(RANKS)
    return round(float(ks), 6), round(distance / deviation, 6) if deviation else None
