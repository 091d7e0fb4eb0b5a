"""The figures of drift equal scipy's of the raw values, to the stated error; and what does not move is left alone."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from controlplane.monitoring.distributions import Distribution, Pair
from controlplane.monitoring.drift_columns import compare
from controlplane.monitoring.drift_tests import ENOUGH, TESTS, chi_squared_tail
from inference.runtime.digest import POINTS, Column, digest_of
from inference.runtime.reference_columns import POINTS as REFERENCE_POINTS

pytestmark = pytest.mark.unit

Draw = Callable[[np.random.Generator, int], np.ndarray]
# Half a step of a digest on either side.
ERROR = 0.5 / POINTS + 0.5 / REFERENCE_POINTS

SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(10, 2, n),
    "skewed": lambda rng, n: rng.lognormal(0, 1.5, n),
    "rare flag": lambda rng, n: (rng.random(n) < 0.05).astype(float),
    "counts": lambda rng, n: np.round(rng.exponential(2, n)),
}


def distribution(values: np.ndarray, points: int = POINTS) -> Distribution:
    column = Column(points)
    column.add_numbers(np.asarray(values, np.float64))
    return Distribution.of([column.digest()])


def pair(base: np.ndarray, now: np.ndarray) -> Pair:
    return Pair(distribution(base, REFERENCE_POINTS), distribution(now))


def binned(base: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Raw counts of both in the tenths of the baseline."""
    edges = np.unique(np.quantile(base, np.arange(1, 10) / 10, method="inverted_cdf"))
    return np.array([np.bincount(np.searchsorted(edges, one), minlength=len(edges) + 1) for one in (base, now)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_figures_of_numbers_are_those_of_scipy(shape: str, shift: float) -> None:
    rng = np.random.default_rng(3)
    base, now = SHAPES[shape](rng, 4000), SHAPES[shape](rng, 3000) + shift
    found = compare("x", "feature", pair(base, now), 1)

    assert found["ks"] == pytest.approx(stats.ks_2samp(base, now).statistic, abs=ERROR)
    if shape != "skewed":  # its tail holds most of its deviation
        distance = stats.wasserstein_distance(base, now) / base.std()
        assert found["wasserstein"] == pytest.approx(distance, abs=0.03)
    counts = binned(base, now)
    expected, seen = (row / row.sum() for row in counts)
    assert found["js"] == pytest.approx(jensenshannon(expected, seen, base=2) ** 2, abs=0.02)
    value = stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0], correction=False)
    assert found["cramers_v"] == pytest.approx(np.sqrt(value.statistic / counts.sum()), abs=0.03)
    assert found["psi"] is not None
    if seen.min() > 0.01:
        assert found["psi"] == pytest.approx(((seen - expected) * np.log(seen / expected)).sum(), abs=0.05)


def test_figures_of_categories_are_exact() -> None:
    rng = np.random.default_rng(4)
    base = rng.choice(["a", "b", "c"], 900, p=[0.5, 0.3, 0.2]).tolist()
    now = rng.choice(["a", "b", "c"], 700, p=[0.4, 0.3, 0.3]).tolist()
    both = Pair(Distribution.of([digest_of(base)]), Distribution.of([digest_of(now)]))
    found = compare("shop", "feature", both, 1)

    table = np.array([[one.count(name) for name in "abc"] for one in (base, now)])
    value = stats.chi2_contingency(table, correction=False)
    assert found["chi2"] == pytest.approx(value.statistic, rel=1e-4)
    assert found["chi2_p"] == pytest.approx(value.pvalue, rel=1e-4)
    assert found["cramers_v"] == pytest.approx(stats.contingency.association(table, method="cramer"), rel=1e-4)
    shares = table / table.sum(axis=1, keepdims=True)
    assert found["js"] == pytest.approx(jensenshannon(*shares, base=2) ** 2, rel=1e-4)
    assert found["ks"] is None


@pytest.mark.parametrize("degrees", [1, 9, 40, 200])
@pytest.mark.parametrize("times", [0.0, 0.3, 1.0, 1.5, 4.0, 30.0])
def test_the_tail_of_chi_squared_is_scipys(degrees: int, times: float) -> None:
    value = degrees * times
    assert chi_squared_tail(value, degrees) == pytest.approx(stats.chi2.sf(value, degrees), rel=1e-9, abs=1e-290)


@pytest.mark.parametrize(("rows", "rows_before"), [(ENOUGH, ENOUGH), (60, 4000), (500, 2000)])
def test_without_a_shift_nothing_of_a_hundred_columns_is_called_drifting(rows: int, rows_before: int) -> None:
    rng = np.random.default_rng(rows)
    draws = list(SHAPES.values())
    columns = [pair(draws[index % 4](rng, rows_before), draws[index % 4](rng, rows)) for index in range(100)]
    for _ in range(6):  # windows; the baseline stays, as a reference set does
        columns = [Pair(one.base, distribution(draws[index % 4](rng, rows))) for index, one in enumerate(columns)]
        assert [index for index, one in enumerate(columns) if compare("x", "feature", one, 100)["drifting"]] == []


def test_a_shift_of_half_a_deviation_is_found_in_500_rows_among_a_hundred_columns() -> None:
    rng = np.random.default_rng(6)
    found = [
        compare("x", "feature", pair(rng.normal(0, 1, 2000), rng.normal(0.5, 1, 500)), 100)["drifting"]
        for _ in range(40)
    ]
    assert all(found)


def test_a_tiny_shift_that_many_rows_make_certain_is_no_drift() -> None:
    rng = np.random.default_rng(7)
    found = compare("x", "feature", pair(rng.normal(0, 1, 50_000), rng.normal(0.05, 1, 50_000)), 1)
    assert not found["drifting"]


def test_a_wider_spread_and_a_rare_flag_that_is_no_longer_rare_are_found() -> None:
    rng = np.random.default_rng(8)
    assert compare("x", "feature", pair(rng.normal(0, 1, 2000), rng.normal(0, 2.5, 500)), 100)["drifting"]
    assert compare("x", "feature", pair(SHAPES["rare flag"](rng, 2000), np.ones(500)), 100)["drifting"]


def test_values_that_go_missing_are_drift_by_themselves() -> None:
    base, now = digest_of([1.0] * 200), digest_of([None] * 150)
    found = compare("x", "feature", Pair(Distribution.of([base]), Distribution.of([now])), 100)
    assert (found["drifting"], found["by"], found["missing_share"], found["enough"]) == (True, ["missing"], 1.0, False)


def test_too_few_rows_say_how_many_are_needed() -> None:
    found = compare("x", "feature", pair(np.arange(500.0), np.arange(34.0) + 1e6), 1)
    assert (found["drifting"], found["enough"], found["needed"], found["psi"]) == (False, False, ENOUGH - 34, None)


def test_numbers_and_texts_are_not_compared() -> None:
    both = Pair(Distribution.of([digest_of([1.0] * 90)]), Distribution.of([digest_of(["a"] * 90)]))
    found = compare("x", "feature", both, 1)
    assert (found["enough"], found["drifting"], found["psi"]) == (False, False, None)


def test_digests_of_parts_are_that_of_the_whole() -> None:
    values = np.random.default_rng(9).lognormal(0, 1, 24_000)
    parts = Distribution.of([digest_of(part.tolist()) for part in np.split(values, 24)])
    points = np.quantile(values, [0.01, 0.2, 0.5, 0.9, 0.99])
    assert parts.share_up_to(points) == pytest.approx([0.01, 0.2, 0.5, 0.9, 0.99], abs=0.5 / POINTS)
    assert parts.n == 24_000
    assert parts.mean == pytest.approx(values.mean(), rel=1e-6)


def test_a_long_column_is_digested_in_bounded_memory() -> None:
    values = np.random.default_rng(10).normal(0, 1, 300_000)
    column = Column(REFERENCE_POINTS, held_rows=2_048)
    for part in np.split(values, 100):
        column.add_numbers(part)
    found = Distribution.of([column.digest()])
    assert found.share_up_to(np.quantile(values, [0.1, 0.5, 0.9])) == pytest.approx([0.1, 0.5, 0.9], abs=0.003)


def test_every_test_has_a_name_and_a_meaning() -> None:
    assert len({test.key for test in TESTS}) == len(TESTS)
    assert all(test.name and test.meaning for test in TESTS)


def test_a_constant_column_has_no_distance_in_deviations() -> None:
    found = compare("c", "feature", pair(np.ones(100), np.ones(100)), 1)
    assert (found["drifting"], found["psi"], found["wasserstein"]) == (False, 0.0, None)
