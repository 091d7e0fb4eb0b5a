"""Figures with their 95 % intervals, from counts and sums alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

Z_95 = 1.959964
Number = float | None


class Metric(TypedDict):
    """A figure with its 95 % interval; all None where there is nothing to compute it from."""

    value: Number
    low: Number
    high: Number


def unknown() -> Metric:
    return {"value": None, "low": None, "high": None}


def bare(value: Number) -> Metric:
    """A figure without an interval."""
    return {"value": value, "low": None, "high": None}


def wilson(right: float, n: float) -> Metric:
    """A share with its Wilson score interval (Wilson 1927), which stays sensible for few and for extreme counts."""
    if n <= 0:
        return unknown()
    share = right / n
    middle = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(max(0.0, share * (1 - share)) / n + Z_95**2 / (4 * n * n))
    scale = 1 + Z_95**2 / n
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return {"value": round(share, 6), "low": round(min(low, share), 6), "high": round(max(high, share), 6)}


def share_with_error(value: float, error: float, n: float) -> Metric:
    """A figure between 0 and 1 with standard error `error` from `n` cases: Wilson's interval at the effective sample
    size value (1 - value) / error² (Korn and Graubard 1998), at most `n`. Unlike value ± 2 errors it stays within 0 and
    1, and does not shrink to a point at the ends.
    """
    if n <= 0:
        return unknown()
    spread = value * (1 - value)
    effective = min(n, spread / (error * error)) if error > 0 and spread > 0 else n
    return wilson(value * effective, effective)


def mean(total: float, squares: float, n: float) -> Metric:
    """A mean with its normal interval, from Σ x and Σ x²."""
    if n <= 0:
        return unknown()
    value = total / n
    half = Z_95 * math.sqrt(max(0.0, squares / n - value * value) / n)
    return {"value": value, "low": value - half, "high": value + half}


def delta_error(cells: Iterable[tuple[float, float]], n: float) -> float:
    """The standard error of a smooth function of multinomial shares, by the delta method.

    `cells` are (count, derivative of the function by the cell's share); every cell of the `n` cases with a derivative
    that is not 0 must be there.
    """
    first = second = 0.0
    for count, slope in cells:
        first += slope * count / n
        second += slope * slope * count / n
    return math.sqrt(max(0.0, second - first * first) / n)


def f1(tp: float, fp: float, fn: float) -> Metric:
    """F1 = 2 tp / (2 tp + fp + fn) with its delta-method interval (Takahashi et al. 2022)."""
    # The cases outside these three have slope 0 and their number cancels out. A step that holds a revision, and not the
    # feedback before it, has negative counts.
    weight, n = 2 * tp + fp + fn, tp + fp + fn
    if weight <= 0 or n <= 0:
        return unknown()
    slope_tp, slope_other = 2 * (fp + fn) * n / weight**2, -2 * tp * n / weight**2
    return share_with_error(2 * tp / weight, delta_error([(tp, slope_tp), (fp + fn, slope_other)], n), n)


def auroc(histograms: Mapping[str, Mapping[str, int]]) -> tuple[Metric, Number]:
    """The area under the ROC curve from score histograms {"1": {bin: count}, "0": ...}, and its binning error.

    Interval: DeLong, DeLong and Clarke-Pearson 1988. Scores of one bin count as equal, which moves the area by no more
    than the second figure.
    """
    true = {int(index): count for index, count in histograms.get("1", {}).items()}
    false = {int(index): count for index, count in histograms.get("0", {}).items()}
    positives, negatives = sum(true.values()), sum(false.values())
    if positives <= 0 or negatives <= 0:
        return unknown(), None
    below_false = below_true = wins = ties = 0.0
    # How many of the other kind each case beats: DeLong's structural components.
    of_true: list[tuple[int, float]] = []
    of_false: list[tuple[int, float]] = []
    for index in sorted(true.keys() | false.keys()):
        here_true, here_false = true.get(index, 0), false.get(index, 0)
        beaten = below_false + here_false / 2
        of_true.append((here_true, beaten / negatives))
        of_false.append((here_false, (positives - below_true - here_true / 2) / positives))
        wins += here_true * beaten
        ties += here_true * here_false
        below_false += here_false
        below_true += here_true
    area = wins / (positives * negatives)
    variance = _variance(of_true, area) / positives + _variance(of_false, area) / negatives
    # Perfect separation has no variance to go by; then the rarer kind says how sure that can be.
    cases = positives + negatives if variance > 0 else min(positives, negatives)
    found = share_with_error(area, math.sqrt(max(0.0, variance)), cases)
    return found, round(ties / 2 / (positives * negatives), 6)


def _variance(parts: Sequence[tuple[int, float]], middle: float) -> float:
    n = sum(count for count, _ in parts)
    return sum(count * (value - middle) ** 2 for count, value in parts) / (n - 1) if n > 1 else 0.0


def average(metrics: Sequence[Metric], missing: float | None = None) -> Metric:
    """The mean over labels (macro average), with the mean of the intervals: as if their errors moved together, so it
    is never too narrow. `missing` stands in for figures that are undefined; None leaves them out.
    """
    known = [one if one["value"] is not None else bare(missing) for one in metrics]
    values = [(one["value"], one["low"], one["high"]) for one in known]
    whole = [
        (value, value if low is None else low, value if high is None else high)
        for value, low, high in values
        if value is not None
    ]
    if not whole:
        return unknown()
    value, low, high = (round(sum(side) / len(whole), 6) for side in zip(*whole, strict=True))
    return {"value": value, "low": low, "high": high}
