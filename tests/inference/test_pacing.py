"""When a batch is released, decided on made-up clocks: costs that are learned, gaps that are remembered, the rule."""

import random

import pytest

from inference.pacing import Arrivals, CostModel, worth_waiting_s

pytestmark = pytest.mark.unit


def fed(model: CostModel, fixed: float, row: float, *, runs: int = 200, seed: int = 1, noise: float = 0.1) -> CostModel:
    """The model after runs of that cost, of sizes by chance, one in twenty preempted for most of its time."""
    chance = random.Random(seed)
    for _ in range(runs):
        rows = chance.randint(1, 64)
        seconds = (fixed + row * rows) * chance.uniform(1 - noise, 1 + noise)
        model.observe(rows, seconds * (8 if chance.random() < 0.05 else 1))
    return model


@pytest.mark.parametrize("seed", range(20))
def test_the_cost_of_runs_is_learned_whatever_it_is(seed: int) -> None:
    chance = random.Random(seed)
    fixed, row = 10 ** chance.uniform(-4, -2), 10 ** chance.uniform(-5, -2.5)
    cost = fed(CostModel((1, 0.001)), fixed, row, seed=seed)
    for rows in (8, 32, 64):
        assert cost.seconds(rows) == pytest.approx(fixed + row * rows, rel=0.5)


def test_one_measurement_assumes_no_gain_of_sharing() -> None:
    cost = CostModel((1, 0.004))
    assert cost.fixed_s == pytest.approx(0.0, abs=1e-9)
    assert cost.seconds(10) == pytest.approx(0.04)


def test_two_measurements_give_the_line() -> None:
    cost = CostModel((1, 0.003), (8, 0.010))
    assert cost.fixed_s == pytest.approx(0.002)
    assert cost.row_s == pytest.approx(0.001)
    assert cost.rows_within(0.012) == pytest.approx(10)


def test_runs_of_one_size_keep_the_slope_that_was_measured() -> None:
    cost = CostModel((1, 0.003), (8, 0.010))
    for _ in range(1000):
        cost.observe(1, 0.003)
    assert cost.row_s == pytest.approx(0.001, rel=0.1)


def test_a_preempted_run_moves_little_and_a_slower_machine_is_noticed() -> None:
    cost = fed(CostModel(), 0.002, 0.001, noise=0.02)
    before = cost.seconds(8)
    cost.observe(8, 5.0)
    assert cost.seconds(8) < before * 1.2
    for _ in range(200):
        cost.observe(8, 3 * before)
    assert cost.seconds(8) == pytest.approx(3 * before, rel=0.1)


@pytest.mark.parametrize("seed", range(50))
def test_a_cost_is_never_negative(seed: int) -> None:
    chance = random.Random(seed)
    cost = CostModel(*[(chance.randint(1, 8), chance.random()) for _ in range(chance.randint(0, 3))])
    for _ in range(100):
        cost.observe(chance.randint(1, 64), chance.random())
        assert cost.fixed_s >= 0
        assert cost.row_s >= 0


def test_runs_grow_to_the_size_whose_rows_are_cheapest() -> None:
    cheap = fed(CostModel((1, 0.006), (8, 0.013)), 0.005, 0.001)
    assert cheap.best_rows(64) == 64
    assert cheap.best_rows(10) == 10
    assert cheap.best_rows(1) == 1


def test_runs_do_not_grow_where_rows_get_dearer() -> None:
    """As a small convolutional network's do, whose intermediate results outgrow the cache."""
    cost = CostModel((1, 0.004), (8, 0.040))
    assert cost.best_rows(64) == 1
    # One run in 32 looks whether that is still so.
    sizes = []
    for _ in range(640):
        rows = cost.best_rows(64)
        sizes.append(rows)
        cost.observe(rows, 0.004 if rows == 1 else 0.005 * rows)
    assert set(sizes) == {1, 2}
    assert sizes.count(2) == 20
    # And it is noticed when it is not.
    for _ in range(3000):
        rows = cost.best_rows(64)
        cost.observe(rows, 0.004 + 0.0005 * rows)
    assert cost.best_rows(64) >= 32


def test_a_size_that_looked_dear_for_a_while_is_tried_again() -> None:
    cost = CostModel((1, 0.004), (8, 0.040))
    for _ in range(50):
        cost.observe(1, 0.080)
        cost.observe(16, 0.080)
    assert cost.best_rows(64) > 1
    for _ in range(2000):
        rows = cost.best_rows(64)
        cost.observe(rows, 0.004 if rows == 1 else 0.005 * rows)
    sizes = []
    for _ in range(64):
        sizes.append(cost.best_rows(64))
        cost.observe(sizes[-1], 0.004 if sizes[-1] == 1 else 0.005 * sizes[-1])
    assert sizes.count(1) >= 60


def bursts(*, size: int, gap: float, pause: float, times: int = 40, busy: float = 1.0) -> tuple[Arrivals, float]:
    """What is known after bursts of calls, at the moment at which a new one began; and that moment."""
    arrivals, now = Arrivals(), 100.0
    arrivals.set_busy(now, busy)
    for _ in range(times):
        for _ in range(size):
            arrivals.add(now, 1)
            now += gap
        now += pause - gap
    arrivals.add(now, 1)
    return arrivals, now


def wait(
    arrivals: Arrivals, now: float, cost: CostModel, *, rows: int = 1, most_s: float = 0.005, **rest: bool
) -> float:
    return worth_waiting_s(
        cost,
        arrivals,
        now,
        rows=rows,
        calls=rows,
        threads=1,
        another_free=rest.get("another_free", False),
        most_s=most_s,
    )


DEAR = CostModel((1, 0.006), (8, 0.013))  # 5 ms + 1 ms a row
LINEAR = CostModel((1, 0.005))


def test_it_waits_for_a_burst_under_way_and_not_for_its_end() -> None:
    arrivals, now = bursts(size=16, gap=0.0002, pause=0.02)
    assert 0.0002 <= wait(arrivals, now, DEAR) <= 0.001
    assert wait(arrivals, now + 0.004, DEAR) == 0.0


def test_it_never_waits_where_sharing_saves_nothing() -> None:
    arrivals, now = bursts(size=16, gap=0.0002, pause=0.02)
    assert wait(arrivals, now, LINEAR) == 0.0


def test_it_never_waits_for_a_single_caller_to_ask_again() -> None:
    for cost in (DEAR, LINEAR):
        took = cost.seconds(1)
        arrivals, now = bursts(size=1, gap=took + 0.0005, pause=took + 0.0005, times=400, busy=0.95)
        assert wait(arrivals, now, cost, most_s=1.0) == 0.0


def test_it_waits_longer_the_busier_the_threads_are() -> None:
    idle, now = bursts(size=4, gap=0.0005, pause=0.1, busy=0.0)
    full, _ = bursts(size=4, gap=0.0005, pause=0.1, busy=1.0)
    assert wait(idle, now, DEAR, another_free=True) == 0.0
    assert wait(full, now, DEAR, another_free=True) > 0.0


def test_what_was_known_of_gaps_fades_with_time() -> None:
    arrivals, now = bursts(size=16, gap=0.0002, pause=0.02)
    arrivals.add(now + 60, 1)
    assert wait(arrivals, now + 60, DEAR) == 0.0


@pytest.mark.parametrize("seed", range(200))
def test_no_wait_is_longer_than_allowed_or_for_nothing(seed: int) -> None:
    chance = random.Random(seed)
    arrivals, now = Arrivals(), 0.0
    for _ in range(chance.randint(0, 200)):
        now += chance.expovariate(10 ** chance.uniform(1, 4))
        if chance.random() < 0.3:
            arrivals.set_busy(now, chance.random())
        arrivals.add(now, chance.randint(1, 8))
    cost = fed(CostModel((1, 0.003)), 10 ** chance.uniform(-5, -2), 10 ** chance.uniform(-5, -2), seed=seed, runs=30)
    most = chance.choice([0.0, 0.001, 0.005, 0.05])
    rows = chance.randint(1, 32)
    found = wait(arrivals, now + chance.random() * 0.01, cost, rows=rows, most_s=most)
    assert 0.0 <= found <= most
    if not arrivals.ahead(now):
        assert found == 0.0


@pytest.mark.parametrize("seed", range(50))
def test_what_is_told_of_the_next_call_is_a_distribution(seed: int) -> None:
    chance = random.Random(seed)
    arrivals, now = Arrivals(), 0.0
    for _ in range(100):
        now += chance.expovariate(1000)
        arrivals.add(now, 1)
    steps = arrivals.ahead(now + chance.random() * 0.002)
    assert all(seconds >= 0 and probability >= 0 for seconds, probability in steps)
    assert [seconds for seconds, _ in steps] == sorted(seconds for seconds, _ in steps)
    assert sum(probability for _, probability in steps) <= 1 + 1e-9


@pytest.mark.parametrize("rate", [50.0, 200.0, 800.0])
def test_the_rate_of_calls_is_known(rate: float) -> None:
    chance = random.Random(3)
    arrivals, now = Arrivals(), 0.0
    while now < 5:
        now += chance.expovariate(rate)
        arrivals.add(now, 1)
    assert arrivals.rate(now) == pytest.approx(rate, rel=0.4)
    assert arrivals.rate(now + 10) < 1
