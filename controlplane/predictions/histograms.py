"""Sparse log-bucket histograms: the one place that knows the width of a bucket.

A value of `v` ms falls into bin floor(8 * log2(v / 1 µs)), so a bin is 9 % wide and a quantile is off by at most 4.5 %.
A histogram is a dict {bin: count}; as JSON its bins are text. Merging is adding, so histograms of any stretches of
time, versions and hosts add up to what one histogram over all of them would be.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Histogram = dict[int, int]

BINS_PER_DOUBLING = 8
SMALLEST_MS = 0.001
LAST_BIN = BINS_PER_DOUBLING * 40  # 2^40 µs is twelve days

_PLAIN = str.maketrans('{}":,', "     ")

SCORE_BINS = 400
LOGIT_END = 10.0


def bin_of(ms: float) -> int:
    """The bin of a duration; shorter than 1 µs (and a clock that ran backwards) is bin 0."""
    return int(_bins([ms])[0])


def _bins(durations_ms: Sequence[float]) -> npt.NDArray[np.int64]:
    doublings = np.log2(np.fmax(durations_ms, SMALLEST_MS) / SMALLEST_MS)
    bins: npt.NDArray[np.int64] = np.minimum(BINS_PER_DOUBLING * doublings, LAST_BIN).astype(np.int64)
    return bins


def edge_ms(index: int) -> float:
    """Where bin `index` starts."""
    return SMALLEST_MS * math.exp2(index / BINS_PER_DOUBLING)


def histogram(durations_ms: Sequence[float]) -> Histogram:
    bins, counts = np.unique(_bins(durations_ms), return_counts=True)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


def merge(into: Histogram, other: Mapping[int, int] | Mapping[str, int]) -> Histogram:
    """Adds `other` (with bins as numbers, or as text out of JSON) to `into`, and returns `into`."""
    known = into.get
    for key, count in other.items():
        index = int(key)
        into[index] = known(index, 0) + count
    return into


def summed(texts: str) -> Histogram:
    """The sum of histograms as they are stored, JSON objects of bins, that stand one after another in a text."""
    plain = texts.translate(_PLAIN).strip()
    if not plain:
        return {}
    # Read as one row of numbers: a tenth of what decoding and adding dicts takes.
    numbers = np.fromstring(plain, np.int64, sep=" ")
    counts = np.bincount(numbers[::2], numbers[1::2])
    return {int(index): int(counts[index]) for index in np.flatnonzero(counts)}


def total(bins: Mapping[int, int]) -> int:
    return sum(bins.values())


def quantile(bins: Mapping[int, int], p: float) -> float | None:
    """The `p` quantile (0..1) in ms, interpolated on the log scale within its bin; None for an empty histogram."""
    count = total(bins)
    if count <= 0:
        return None
    rank = p * count
    seen = 0
    for index in sorted(bins):
        here = bins[index]
        if here > 0 and seen + here >= rank:
            part = min(1.0, max(0.0, (rank - seen) / here))
            return edge_ms(index) * math.exp2(part / BINS_PER_DOUBLING)
        seen += here
    return edge_ms(max(bins) + 1)


def score_bin(score: float) -> int:
    """The bin, 0..399, of a score in 0..1: 0.05 wide on the logit scale (0.0125 in the middle), so that scores which
    crowd near 0 or 1, as those of rare labels do, are still told apart. Scores outside count at the ends."""
    if score <= 0.0:
        return 0
    if score >= 1.0:
        return SCORE_BINS - 1
    logit = math.log(score / (1 - score))
    return min(SCORE_BINS - 1, max(0, int((logit + LOGIT_END) / (2 * LOGIT_END) * SCORE_BINS)))
