"""What a tally of feedback says: each task's figures with intervals, and what the best constant answer would get."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from controlplane.monitoring.estimates import (
    Z_95,
    Metric,
    Number,
    auroc,
    average,
    bare,
    delta_error,
    f1,
    mean,
    share_with_error,
    wilson,
)
from controlplane.predictions.tallies import CUTS, Tally

Confusion = Mapping[str, Mapping[str, int]]


class LabelScore(TypedDict):
    """One label against all others. `n` cases had it, `negatives` had not; recall is also called sensitivity.

    `auroc_binning`: how far the area may be off, as scores are kept in bins.
    """

    label: str
    n: int
    negatives: int
    precision: Metric
    recall: Metric
    specificity: Metric
    f1: Metric
    auroc: Metric
    auroc_binning: Number


class Constant(TypedDict):
    """The best answer that looks at nothing: what it is (None for a ranking or a number), and its figures."""

    answer: str | None
    metrics: dict[str, float]


class Scored(TypedDict):
    """`headline` names the metric that stands for the task; None where nothing was labelled."""

    n: int
    headline: str | None
    metrics: dict[str, Metric]
    labels: list[LabelScore]
    confusion: Confusion
    constant: Constant | None


def scored(tally: Tally) -> Scored:
    """Every figure that a tally holds. Macro averages run over the labels that were true at least once."""
    found: Scored = {
        "n": tally.get("n", 0),
        "headline": None,
        "metrics": {},
        "labels": [],
        "confusion": tally.get("confusion", {}),
        "constant": None,
    }
    if tally.get("regression", [0])[0] > 0:
        found["headline"], found["metrics"] = "rmse", _regression(tally["regression"], tally.get("moments"))
        found["constant"] = _constant_number(tally["regression"])
    elif tally.get("ranking", [0])[0] > 0:
        found["headline"], found["metrics"] = f"ndcg_at_{CUTS[-1]}", _ranking(tally["ranking"])
        found["constant"] = _constant_items(tally.get("items", {}), tally["ranking"][0])
    elif tally.get("confusion"):
        found["labels"] = _labels(_one_against_all(tally["confusion"]), tally)
        found["headline"], found["metrics"] = "accuracy", _classes(tally["confusion"], found["labels"])
        found["constant"] = _constant_class(tally["confusion"])
    elif tally.get("labels"):
        found["labels"] = _labels({label: tuple(four) for label, four in tally["labels"].items()}, tally)
        found["headline"], found["metrics"] = "accuracy", _multilabel(tally, found["labels"])
        found["constant"] = _constant_labels(tally["labels"])
    return found


def no_better(figures: Scored) -> bool:
    """Whether the headline's interval reaches what the best constant answer gets; False where either is unknown."""
    behind = _behind_constant(figures)
    return behind is not None and behind[1] >= 0


def is_worse(figures: Scored) -> bool:
    """Whether the headline's whole interval lies on the wrong side of what the best constant answer gets."""
    behind = _behind_constant(figures)
    return behind is not None and behind[0] > 0


def _behind_constant(figures: Scored) -> tuple[float, float] | None:
    """How far the headline is behind what the best constant answer gets, at least and at most, by its interval; below
    0 it is ahead. None where either is unknown."""
    name, constant = figures["headline"], figures["constant"]
    if name is None or constant is None or name not in constant["metrics"]:
        return None
    metric, other = figures["metrics"][name], constant["metrics"][name]
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return None
    return (low - other, high - other) if name == "rmse" else (other - high, other - low)


def right_of(tally: Tally) -> tuple[float, int]:
    """How many of the labelled cases were right, of how many; of several labels a case, the share that was."""
    confusion: Confusion = tally.get("confusion", {})
    if confusion:
        return sum(row.get(label, 0) for label, row in confusion.items()), _total(confusion)
    counts = list(tally.get("labels", {}).values())
    cells = sum(sum(four) for four in counts)
    n = tally.get("n", 0)
    return (n * sum(tp + tn for tp, _, _, tn in counts) / cells if cells else 0.0), n


def _total(confusion: Confusion) -> int:
    return sum(sum(row.values()) for row in confusion.values())


def _one_against_all(confusion: Confusion) -> dict[str, tuple[int, int, int, int]]:
    total = _total(confusion)
    said: dict[str, int] = {}
    for row in confusion.values():
        for label, count in row.items():
            said[label] = said.get(label, 0) + count
    counts = {}
    for label in sorted(set(confusion) | {name for name in said if name}):
        tp = confusion.get(label, {}).get(label, 0)
        fn = sum(confusion.get(label, {}).values()) - tp
        fp = said.get(label, 0) - tp
        counts[label] = (tp, fp, fn, total - tp - fp - fn)
    return counts


def _labels(counts: Mapping[str, Sequence[int]], tally: Tally) -> list[LabelScore]:
    found: list[LabelScore] = []
    for label, (tp, fp, fn, tn) in counts.items():
        area, binning = auroc(tally.get("logits", {}).get(label, {}))
        found.append(
            {
                "label": label,
                "n": tp + fn,
                "negatives": fp + tn,
                "precision": wilson(tp, tp + fp),
                "recall": wilson(tp, tp + fn),
                "specificity": wilson(tn, tn + fp),
                "f1": f1(tp, fp, fn),
                "auroc": area,
                "auroc_binning": binning,
            }
        )
    return found


def _classes(confusion: Confusion, labels: Sequence[LabelScore]) -> dict[str, Metric]:
    right, n = right_of({"confusion": confusion})
    present = [one for one in labels if one["n"] > 0]
    return {
        "accuracy": wilson(right, n),
        "precision": _macro(confusion, n, "precision"),
        "recall": _macro(confusion, n, "recall"),
        "f1": _macro(confusion, n, "f1"),
        "auroc": average([one["auroc"] for one in present]),
    }


def _macro(confusion: Confusion, n: int, name: str) -> Metric:
    """A macro average over the true labels with its delta-method interval: the labels' errors share one table."""
    counts = {label: four for label, four in _one_against_all(confusion).items() if four[0] + four[2] > 0}
    if not counts or n <= 0:
        return bare(None)
    # Per label: its value, and the slopes by the shares of its tp, fp and fn cells.
    parts: dict[str, tuple[float, float, float, float]] = {}
    for label, (tp, fp, fn, _) in counts.items():
        base = {"precision": tp + fp, "recall": tp + fn, "f1": 2 * tp + fp + fn}[name]
        scale = 2 if name == "f1" else 1
        value = scale * tp / base if base else 0.0
        slope = scale * n / base if base else 0.0
        by_tp = slope * (1 - value)
        by_fp = 0.0 if name == "recall" else -slope * value / scale
        by_fn = 0.0 if name == "precision" else -slope * value / scale
        parts[label] = (value, by_tp, by_fp, by_fn)
    nothing = (0.0, 0.0, 0.0, 0.0)
    cells = [
        (
            count,
            (parts.get(true, nothing)[1] if said == true else parts.get(true, nothing)[3] + parts.get(said, nothing)[2])
            / len(parts),
        )
        for true, row in confusion.items()
        for said, count in row.items()
    ]
    value = sum(part[0] for part in parts.values()) / len(parts)
    return share_with_error(value, delta_error(cells, n), n)


def _multilabel(tally: Tally, labels: Sequence[LabelScore]) -> dict[str, Metric]:
    right, n = right_of(tally)
    present = [one for one in labels if one["n"] > 0]
    return {
        "accuracy": wilson(right, n),
        "exact": wilson(tally.get("exact", 0), n),
        "precision": average([one["precision"] for one in present], missing=0.0),
        "recall": average([one["recall"] for one in present]),
        "f1": average([one["f1"] for one in present], missing=0.0),
        "auroc": average([one["auroc"] for one in present]),
    }


def _ranking(sums: Sequence[float]) -> dict[str, Metric]:
    n = sums[0]
    hits = sums[1 : 1 + len(CUTS)]
    gain, gain_squares, reciprocal, reciprocal_squares = sums[1 + len(CUTS) :]
    return {
        **{f"hit_rate_at_{cut}": wilson(hit, n) for cut, hit in zip(CUTS, hits, strict=True)},
        f"ndcg_at_{CUTS[-1]}": _mean_share(gain, gain_squares, n),
        "mrr": _mean_share(reciprocal, reciprocal_squares, n),
    }


def _mean_share(total: float, squares: float, n: float) -> Metric:
    value = total / n
    return share_with_error(value, math.sqrt(max(0.0, squares / n - value * value) / n), n)


def _regression(sums: Sequence[float], moments: Sequence[float] | None) -> dict[str, Metric]:
    n, error, absolute, square, truth, truth_square = sums
    found = {
        "mae": mean(absolute, square, n),
        "rmse": bare(math.sqrt(max(0.0, square / n))),
        "bias": mean(error, square, n),
        "r2": bare(None),
    }
    spread = truth_square / n - (truth / n) ** 2
    if spread > 0:
        found["r2"] = bare(1 - square / n / spread)
    if moments is not None:
        mse = mean(square, moments[0], n)
        found["rmse"]["low"] = math.sqrt(max(0.0, mse["low"] or 0.0))
        found["rmse"]["high"] = math.sqrt(max(0.0, mse["high"] or 0.0))
        if spread > 0:
            half = _r2_half(sums, moments, spread)
            value = 1 - square / n / spread
            found["r2"] = {"value": value, "low": value - half, "high": min(1.0, value + half)}
    return found


def _r2_half(sums: Sequence[float], moments: Sequence[float], spread: float) -> float:
    """Half the interval of R² = 1 - E[e²] / Var[y] by the delta method over E[e²], E[y], E[y²]."""
    n, _, _, square, truth, truth_square = sums
    e4, e2y, e2y2, y3, y4 = (value / n for value in moments)
    mse, y1 = square / n, truth / n
    a, b, c = -1 / spread, mse / spread**2, -2 * y1 * mse / spread**2
    middle = a * mse + b * truth_square / n + c * y1
    second = a * a * e4 + b * b * y4 + c * c * truth_square / n + 2 * (a * b * e2y2 + a * c * e2y + b * c * y3)
    return Z_95 * math.sqrt(max(0.0, second - middle * middle) / n)


def _constant_number(sums: Sequence[float]) -> Constant:
    n, truth, truth_square = sums[0], sums[4], sums[5]
    spread = max(0.0, truth_square / n - (truth / n) ** 2)
    return {"answer": None, "metrics": {"rmse": math.sqrt(spread), "r2": 0.0}}


def _constant_items(items: Mapping[str, int], n: float) -> Constant:
    popular = sorted(items.values(), reverse=True)
    metrics = {f"hit_rate_at_{cut}": min(1.0, sum(popular[:cut]) / n) for cut in CUTS}
    return {"answer": None, "metrics": {name: round(value, 6) for name, value in metrics.items()}}


def _constant_class(confusion: Confusion) -> Constant:
    totals = {label: sum(row.values()) for label, row in confusion.items()}
    answer = max(sorted(totals), key=lambda label: totals[label])
    n = sum(totals.values())
    return {"answer": answer, "metrics": {"accuracy": round(totals[answer] / n, 6) if n > 0 else 0.0}}


def _constant_labels(labels: Mapping[str, Sequence[int]]) -> Constant:
    cells = sum(sum(four) for four in labels.values())
    right = sum(max(tp + fn, fp + tn) for tp, fp, fn, tn in labels.values())
    often = [label for label, (tp, fp, fn, tn) in labels.items() if tp + fn > fp + tn]
    return {
        "answer": ", ".join(sorted(often)) or "nothing",
        "metrics": {"accuracy": round(right / cells, 6) if cells > 0 else 0.0},
    }
