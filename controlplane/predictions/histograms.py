"""Sparse log-bucket histograms: the one place that knows the width of a bucket.

A value of `v` ms falls into bin floor(8 * log2(v / 1 µs)), so a bin is 9 % wide and a quantile is off by at most 4.5 %.
A histogram is a dict {bin: count}; as JSON its bins are text. Merging is adding, so histograms of any stretches of
time, versions and hosts add up to what one histogram over all of them would be.
"""

import math
from collections.abc import Iterable, Mapping

Histogram = dict[int, int]

BINS_PER_DOUBLING = 8
SMALLEST_MS = 0.001
LAST_BIN = BINS_PER_DOUBLING * 40  # 2^40 µs is twelve days

SCORE_BINS = 100


def bin_of(ms: float) -> int:
    """The bin of a duration; shorter than 1 µs (and a clock that ran backwards) is bin 0."""
    if not ms > SMALLEST_MS:
        return 0
    return min(LAST_BIN, int(BINS_PER_DOUBLING * math.log2(ms / SMALLEST_MS))) if ms < math.inf else LAST_BIN


def edge_ms(index: int) -> float:
    """Where bin `index` starts."""
    return SMALLEST_MS * math.exp2(index / BINS_PER_DOUBLING)


def histogram(durations_ms: Iterable[float]) -> Histogram:
    found: Histogram = {}
    for ms in durations_ms:
        index = bin_of(ms)
        found[index] = found.get(index, 0) + 1
    return found


def merge(into: Histogram, other: Mapping[int, int] | Mapping[str, int]) -> Histogram:
    """Adds `other` (with bins as numbers, or as text out of JSON) to `into`, and returns `into`."""
    for key, count in other.items():
        index = int(key)
        into[index] = into.get(index, 0) + count
    return into


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
    """The bin, 0..99, of a score in 0..1; scores outside count at the ends."""
    return min(SCORE_BINS - 1, max(0, int(score * SCORE_BINS)))
