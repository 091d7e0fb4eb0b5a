"""How right a deployment's versions were, from feedback rollups: counts by true and predicted label, with intervals."""

import math
import uuid
from typing import Any, TypedDict

from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import SHOWN
from controlplane.predictions import tallies
from controlplane.predictions.models import FeedbackRollup
from inference.contracts import Source

Z_95 = 1.959964
Number = float | None


class Metric(TypedDict):
    """A figure with its 95 % interval; all None where there is nothing to compute it from."""

    value: Number
    low: Number
    high: Number


class VersionAccuracy(TypedDict):
    version: int
    role: str
    n: int
    ungradable: int
    metrics: dict[str, Metric]
    labels: list[dict[str, Any]]
    confusion: dict[str, dict[str, int]]


class Accuracy(TypedDict):
    deployment: str
    since: str
    until: str
    n: int
    versions: list[VersionAccuracy]


def wilson(right: float, n: float) -> Metric:
    """A share with its Wilson score interval (Wilson 1927), which stays sensible for few and for extreme counts."""
    if n <= 0:
        return {"value": None, "low": None, "high": None}
    share = right / n
    middle = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n))
    scale = 1 + Z_95**2 / n
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return {"value": round(share, 6), "low": round(low, 6), "high": round(high, 6)}


def accuracy(deployment_id: uuid.UUID, name: str, interval: Interval) -> Accuracy:
    """What feedback on the predictions of an interval says of each version. One query."""
    found = FeedbackRollup.objects.filter(
        deployment_id=deployment_id,
        bucket__gte=interval.since,
        bucket__lt=interval.until,
        source__in=[*SHOWN, Source.SHADOW.value],
    )
    sums: dict[tuple[str, int], tallies.Tally] = {}
    for rollup in found:
        tallies.merge(sums.setdefault((rollup.role, rollup.version), {"n": 0}), rollup.tally)
    versions = [_version(role, version, tally) for (role, version), tally in sorted(sums.items())]
    return {
        "deployment": name,
        "since": interval.since.isoformat(),
        "until": interval.until.isoformat(),
        "n": sum(version["n"] for version in versions if version["role"] == "live"),
        "versions": versions,
    }


def accuracies(deployment_ids: list[uuid.UUID], interval: Interval) -> dict[uuid.UUID, Metric]:
    """The accuracy of many deployments over all their live versions, for the overview. One query."""
    found = FeedbackRollup.objects.filter(
        deployment_id__in=deployment_ids,
        bucket__gte=interval.since,
        bucket__lt=interval.until,
        role="live",
        source__in=SHOWN,
    )
    sums: dict[uuid.UUID, tallies.Tally] = {}
    for rollup in found:
        if rollup.deployment_id is not None:
            tallies.merge(sums.setdefault(rollup.deployment_id, {"n": 0}), rollup.tally)
    return {identity: wilson(*_right(sums.get(identity, {"n": 0}))) for identity in deployment_ids}


def _right(tally: tallies.Tally) -> tuple[int, int]:
    """How many were right, of how many."""
    confusion: dict[str, dict[str, int]] = tally.get("confusion", {})
    if confusion:
        return sum(row.get(label, 0) for label, row in confusion.items()), sum(
            sum(row.values()) for row in confusion.values()
        )
    counts = list(tally.get("labels", {}).values())
    return sum(tp + tn for tp, _, _, tn in counts), sum(sum(four) for four in counts)


def _version(role: str, version: int, tally: tallies.Tally) -> VersionAccuracy:
    metrics: dict[str, Metric] = {}
    if "regression" in tally:
        metrics.update(_regression(tally["regression"]))
    elif tally.get("confusion") or tally.get("labels"):
        metrics["accuracy"] = wilson(*_right(tally))
    labels = _labels_of(tally)
    graded = [one for one in labels if one["recall"]["value"] is not None]
    if graded:
        recall = sum(one["recall"]["value"] for one in graded) / len(graded)
        metrics["balanced_accuracy"] = {"value": round(recall, 6), "low": None, "high": None}
    return {
        "version": version,
        "role": role,
        "n": tally["n"],
        "ungradable": tally.get("ungradable", 0),
        "metrics": metrics,
        "labels": labels,
        "confusion": tally.get("confusion", {}),
    }


def _labels_of(tally: tallies.Tally) -> list[dict[str, Any]]:
    """Per label precision, recall and the area under its ROC curve."""
    counts: dict[str, tuple[int, int, int, int]] = {}
    confusion: dict[str, dict[str, int]] = tally.get("confusion", {})
    if confusion:
        total = sum(sum(row.values()) for row in confusion.values())
        for label in sorted(set(confusion) | {said for row in confusion.values() for said in row if said}):
            tp = confusion.get(label, {}).get(label, 0)
            fn = sum(confusion.get(label, {}).values()) - tp
            fp = sum(row.get(label, 0) for row in confusion.values()) - tp
            counts[label] = (tp, fp, fn, total - tp - fp - fn)
    for label, four in tally.get("labels", {}).items():
        counts[label] = tuple(four)
    scores = tally.get("scores", {})
    return [
        {
            "label": label,
            "n": tp + fn,
            "precision": wilson(tp, tp + fp),
            "recall": wilson(tp, tp + fn),
            "auc": area_under_curve(scores.get(label, {})),
        }
        for label, (tp, fp, fn, _) in counts.items()
    ]


def area_under_curve(histograms: dict[str, dict[str, int]]) -> Number:
    """The ROC area from score histograms {"1": {bin: count}, "0": ...}; ties within a bin count half."""
    true = {int(index): count for index, count in histograms.get("1", {}).items()}
    false = {int(index): count for index, count in histograms.get("0", {}).items()}
    positives, negatives = sum(true.values()), sum(false.values())
    if positives <= 0 or negatives <= 0:
        return None
    below, wins = 0, 0.0
    for index in sorted(true.keys() | false.keys()):
        here = false.get(index, 0)
        wins += true.get(index, 0) * (below + here / 2)
        below += here
    return round(wins / (positives * negatives), 6)


def _regression(sums: list[float]) -> dict[str, Metric]:
    n, error, absolute, square, truth, truth_square = sums
    if n < 1:
        return {}
    spread = truth_square - truth * truth / n
    bias = error / n
    # Normal approximation of the mean error's interval; the next figures have none that sums alone can give.
    deviation = math.sqrt(max(0.0, square / n - bias * bias))
    half = Z_95 * deviation / math.sqrt(n)

    def plain(value: Number) -> Metric:
        return {"value": value, "low": None, "high": None}

    return {
        "mae": plain(absolute / n),
        "rmse": plain(math.sqrt(square / n)),
        "bias": {"value": bias, "low": bias - half, "high": bias + half},
        "r2": plain(1 - square / spread if spread > 0 else None),
    }
