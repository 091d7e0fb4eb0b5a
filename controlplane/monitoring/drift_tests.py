"""The drift tests: one function each, entered in TESTS. A further test is a function and a line there.

When is a column called drifting? When a test that decides (a) finds an effect of at least its `limit` beyond what
chance gives samples of these sizes, and (b) has a p-value below ALARM divided by the number of p-values looked at
together (Bonferroni 1936): over all columns of a deployment and all tests. So a window without any shift is called
drifting with a probability of at most ALARM, however many columns there are; and a tiny shift that a million rows make
certain is not called drifting either.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controlplane.monitoring.distributions import LEAST_EXPECTED, RESOLVED, Pair

# The chance that a window without any shift is called drifting, over all its columns and tests.
ALARM = 1e-4
# Rows that each side needs: five in each tenth, as the chi-squared test wants.
ENOUGH = 50
SMALLEST_SHARE = 1e-4


@dataclass(frozen=True, slots=True)
class Result:
    """`effect` is the value less what chance gives; `p` the chance of such a value without a shift; `size` an effect
    size that does not grow with the number of rows."""

    value: float
    p: float | None = None
    effect: float | None = None
    size: float | None = None


@dataclass(frozen=True, slots=True)
class DriftTest:
    """`run` returns None where the test does not apply. `limit` is None for a figure that informs and never decides."""

    key: str
    name: str
    run: Callable[[Pair], Result | None]
    limit: float | None
    meaning: str


def psi(pair: Pair) -> Result | None:
    """The population stability index over the bins; an empty bin counts as 0.01 %. Decides by chi-squared's p-value."""
    base, now = (np.maximum(shares, SMALLEST_SHARE) for shares in pair.shares)
    used = (pair.shares[0] > 0) | (pair.shares[1] > 0)
    value = float(((now - base) * np.log(now / base))[used].sum())
    # By chance alone the index is about (bins - 1)(1/n + 1/m).
    chance = max(0, int(used.sum()) - 1) * (1 / pair.base.n + 1 / pair.now.n)
    tested = chi_squared(pair)
    return Result(value, tested.p if tested else None, value - chance)


def jensen_shannon(pair: Pair) -> Result:
    """The Jensen-Shannon divergence over the bins, to base 2: 0 for equal, 1 for disjoint."""
    base, now = pair.shares
    middle = (base + now) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(one > 0, one * np.log2(one / middle), 0.0).sum() / 2 for one in (base, now)]
    return Result(min(1.0, max(0.0, float(sum(parts)))))


def wasserstein(pair: Pair) -> Result | None:
    """How far the numbers would have to be moved on average, in the baseline's standard deviations."""
    deviation = pair.base.deviation
    if not pair.is_numeric or not deviation:
        return None
    points, base, now = pair.steps
    return Result(float((np.abs(base - now)[:-1] * np.diff(points)).sum() / deviation))


def kolmogorov_smirnov(pair: Pair) -> Result | None:
    """The greatest distance between the two distribution functions, with the limiting p-value (Smirnov 1939)."""
    if not pair.is_numeric:
        return None
    _, base, now = pair.steps
    distance = float(np.abs(base - now).max())
    n, m = min(RESOLVED, pair.base.numbers), min(RESOLVED, pair.now.numbers)
    return Result(distance, _kolmogorov(distance * math.sqrt(n * m / (n + m))), distance)


def chi_squared(pair: Pair) -> Result | None:
    """Pearson's chi-squared over the bins of the two samples, its p-value, and Cramér's V as the effect's size."""
    value, degrees, whole = pair.pearson
    if degrees < 1:
        return Result(0.0, 1.0, size=0.0)
    return Result(value, chi_squared_tail(value, degrees), size=math.sqrt(value / whole))


def missing(pair: Pair) -> Result | None:
    """Missing values: the share of now less that of the baseline; decides by the test of two proportions."""
    base, now = pair.base, pair.now
    if not base.missing and not now.missing:
        return Result(0.0, 1.0, 0.0)
    value = now.missing / now.rows - base.missing / base.rows
    whole = base.rows + now.rows
    both = (base.missing + now.missing) / whole
    if min(base.rows, now.rows) * min(both, 1 - both) < LEAST_EXPECTED:
        return Result(value, 1.0, abs(value))
    error = math.sqrt(both * (1 - both) * (1 / base.rows + 1 / now.rows))
    return Result(value, math.erfc(abs(value) / error / math.sqrt(2)), abs(value))


TESTS: tuple[DriftTest, ...] = (
    DriftTest("psi", "PSI", psi, 0.1, "population stability index over the baseline's tenths or categories"),
    DriftTest("ks", "Kolmogorov–Smirnov", kolmogorov_smirnov, 0.1, "greatest gap between the two distributions"),
    DriftTest("missing", "Missing values", missing, 0.05, "change of the share of missing values"),
    DriftTest("wasserstein", "Wasserstein", wasserstein, None, "mean way to move, in baseline standard deviations"),
    DriftTest("js", "Jensen–Shannon", jensen_shannon, None, "divergence of the shares: 0 equal, 1 disjoint"),
    DriftTest("chi2", "χ²", chi_squared, None, "Pearson's statistic over the same bins; size is Cramér's V"),
)
# P-values that one column adds to those looked at together.
DECIDING = sum(test.limit is not None for test in TESTS)


def decides(test: DriftTest, result: Result, columns: int) -> bool:
    """Whether this result alone makes a column be called drifting, among that many columns."""
    if test.limit is None or result.effect is None or result.p is None:
        return False
    return result.effect >= test.limit and result.p < p_limit(columns)


def p_limit(columns: int) -> float:
    """Below which a p-value counts, where that many columns are looked at together."""
    return ALARM / (DECIDING * max(1, columns))


def _kolmogorov(z: float) -> float:
    """The chance that the Kolmogorov distribution exceeds z."""
    if z < 0.2:
        return 1.0
    tail = 0.0
    for k in range(1, 101):
        term = 2 * math.exp(-2 * k * k * z * z)
        # The terms fall ever faster: one that is lost in the rounding of the sum ends it.
        if term < 1e-17 * tail:
            break
        tail += term if k % 2 else -term
    return min(1.0, max(0.0, tail))


def chi_squared_tail(value: float, degrees: int) -> float:
    """The chance that chi-squared of that many degrees of freedom exceeds a value: Q(degrees / 2, value / 2).

    By the series below the mean and Lentz's continued fraction above it (Numerical Recipes, 6.2).
    """
    a, x = degrees / 2, value / 2
    if x <= 0:
        return 1.0
    scale = math.exp(-x + a * math.log(x) - math.lgamma(a)) if x < 700 + a else 0.0
    if x < a + 1:
        term = total = 1 / a
        k = a
        while abs(term) > abs(total) * 1e-15:
            k += 1
            term *= x / k
            total += term
        return max(0.0, 1 - total * scale)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for i in range(1, 1000):
        step = -i * (i - a)
        b += 2
        d = 1 / (step * d + b)
        c = b + step / c
        fraction *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return fraction * scale
