"""What a call can rely on, whoever else asks: deadlines, bounds, turns; and when runs are held back."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import pytest

from inference.batching import Answer, Arrays, Batcher, Bounds
from inference.errors import InferenceError
from inference.pacing import CostModel
from tests.inference.eager import Eager

pytestmark = pytest.mark.unit


class Gated:
    """y = x; each run waits for a turn of the gate. `runs` holds the values of each run's first column."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def __call__(self, inputs: Arrays) -> Arrays:
        self.runs.append(inputs["x"][:, 0].tolist())
        self.begun.release()
        assert self.gate.acquire(timeout=30)
        return {"y": inputs["x"]}

    async def next_run(self) -> list[float]:
        await asyncio.to_thread(self.begun.acquire)
        return self.runs[-1]


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as opened:
        yield opened


def rows(value: float, count: int = 1) -> Arrays:
    return {"x": np.full((count, 1), value, np.float32)}


def later(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def ask(
    batcher: Batcher, value: float, count: int = 1, *, seconds: float = 30.0, bounds: Bounds | None = None
) -> "asyncio.Task[Answer]":
    return asyncio.create_task(batcher.submit(rows(value, count), count, later(seconds), bounds or Bounds()))


async def test_small_calls_have_their_turn_between_the_slices_of_a_large_one(pool: ThreadPoolExecutor) -> None:
    model = Gated()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    large = ask(batcher, 1, 40, bounds=Bounds(8))
    assert await model.next_run() == [1.0] * 8
    order = [8]
    small = [ask(batcher, 2 + n) for n in range(3)]
    await asyncio.sleep(0)
    model.gate.release()
    assert await model.next_run() == [2.0, 3.0, 4.0]
    late = ask(batcher, 5)
    await asyncio.sleep(0)
    model.gate.release()
    # The large call's turn comes too, whoever asks meanwhile.
    assert await model.next_run() == [1.0] * 8
    model.gate.release()
    assert await model.next_run() == [5.0]
    model.gate.release(10)
    answers = await asyncio.gather(large, *small, late)
    assert answers[0].outputs["y"].tolist() == [[1.0]] * 40
    assert [answer.outputs["y"].item() for answer in answers[1:]] == [2.0, 3.0, 4.0, 5.0]
    order += [len(run) for run in model.runs[1:]]
    assert sum(order) == 44


async def test_a_large_call_whose_caller_left_is_not_gone_on_with(pool: ThreadPoolExecutor) -> None:
    model = Gated()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    large = ask(batcher, 1, 40, bounds=Bounds(8))
    await model.next_run()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    model.gate.release(2)
    await ask(batcher, 2)
    assert [len(run) for run in model.runs] == [8, 1]


async def test_calls_of_deployments_with_other_bounds_share_within_the_narrower(pool: ThreadPoolExecutor) -> None:
    model = Gated()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = ask(batcher, 0)
    await model.next_run()
    tasks = [ask(batcher, n, bounds=Bounds(8) if n % 4 else Bounds(1)) for n in range(1, 9)]
    tasks += [ask(batcher, 9, bounds=Bounds(2))]
    await asyncio.sleep(0)
    model.gate.release(20)
    await asyncio.gather(first, *tasks)
    # 4 and 8 share with nobody, 9 with one at most.
    assert [4.0] in model.runs
    assert [8.0] in model.runs
    assert all(len(run) <= 2 for run in model.runs if 9.0 in run)
    assert max(map(len, model.runs)) >= 5


async def test_a_call_with_too_little_time_left_is_refused_before_compute_and_now_and_then_tried(
    pool: ThreadPoolExecutor,
) -> None:
    batcher = Batcher(lambda inputs: inputs, pool, batched=True, cost=Eager((1, 10.0)))
    # The first is tried: perhaps the model is faster than it was.
    assert (await ask(batcher, 1, seconds=1.0)).outputs["x"].item() == 1.0
    for _ in range(3):
        with pytest.raises(InferenceError) as caught:
            await ask(batcher, 1, seconds=1.0)
        assert caught.value.code == "deadline_exceeded"


async def test_company_never_makes_a_call_miss_a_deadline_that_it_would_keep_alone(pool: ThreadPoolExecutor) -> None:
    model = Gated()
    batcher = Batcher(model, pool, batched=True, cost=Eager((1, 0.5)))
    first = ask(batcher, 0)
    await model.next_run()
    urgent = ask(batcher, 1, seconds=20.0)
    large = ask(batcher, 2, 50, seconds=100.0)
    small = ask(batcher, 3, 2, seconds=100.0)
    await asyncio.sleep(0)
    model.gate.release(3)
    await asyncio.gather(first, urgent, large, small)
    assert [len(run) for run in model.runs] == [1, 3, 50]


@pytest.mark.parametrize("seed", range(15))
async def test_whatever_comes_every_call_gets_its_own_answer_or_error(pool: ThreadPoolExecutor, seed: int) -> None:
    chance = random.Random(seed)
    sizes: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        x = inputs["x"]
        sizes.append(len(x))
        end = perf_counter() + len(x) * 1e-5
        while perf_counter() < end:
            pass
        if (x < 0).any():
            raise InferenceError("model_rejected_input")
        return {"y": x * 2}

    batcher = Batcher(run, pool, batched=True, concurrency=chance.randint(1, 3))

    async def call(value: float) -> None:
        await asyncio.sleep(chance.random() * 0.02)
        count = chance.choice([1, 1, 1, 2, 5, 40])
        bounds = chance.choice([Bounds(), Bounds(8), Bounds(1), Bounds(16, 0.0)])
        # A machine that stalls makes runs look dear: nobody is to be refused for it here.
        work = asyncio.create_task(batcher.submit(rows(value, count), count, later(3600.0), bounds))
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 0.002)
            work.cancel()
        try:
            answer = await work
        except InferenceError as error:
            assert error.code == "model_rejected_input"
            assert value < 0
        except asyncio.CancelledError:
            pass
        else:
            assert value >= 0
            assert answer.outputs["y"].tolist() == [[value * 2]] * count
            assert 1 <= answer.run_rows <= 64

    await asyncio.gather(*(call(chance.choice([n, n, n, n, -n - 1])) for n in range(150)))
    assert batcher.waiting == 0
    # Nothing is left behind: the next call is answered as the first was.
    assert (await ask(batcher, 3)).outputs["y"].item() == 6.0
    assert max(sizes) <= 64


async def test_a_lone_call_is_never_held_back(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batching.worth_waiting_s", lambda *_, **__: pytest.fail("it was asked"))
    batcher = Batcher(lambda inputs: inputs, pool, batched=True, cost=CostModel((1, 0.006), (8, 0.013)))
    await ask(batcher, 1)


async def test_a_run_is_held_back_for_what_comes_and_begins_when_it_is_full(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Gated()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = ask(batcher, 0, bounds=Bounds(4, 30.0))
    await model.next_run()
    # From here on the rule says: wait as long as is allowed.
    monkeypatch.setattr("inference.batching.worth_waiting_s", lambda *_, most_s, **__: most_s)
    tasks = [ask(batcher, n, bounds=Bounds(4, 30.0)) for n in range(1, 4)]
    await asyncio.sleep(0)
    model.gate.release()
    await first
    await asyncio.sleep(0)
    assert len(model.runs) == 1
    tasks.append(ask(batcher, 4, bounds=Bounds(4, 30.0)))
    assert await model.next_run() == [1.0, 2.0, 3.0, 4.0]
    model.gate.release()
    await asyncio.gather(*tasks)


async def test_a_run_is_held_back_no_longer_than_the_bound(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.batching.worth_waiting_s", lambda *_, most_s, **__: max(most_s, 0.0))
    batcher = Batcher(lambda inputs: inputs, pool, batched=True)
    answers = await asyncio.gather(*(batcher.submit(rows(n), 1, later(), Bounds(64, 0.01)) for n in range(3)))
    assert [answer.outputs["x"].item() for answer in answers] == [0.0, 1.0, 2.0]


async def test_who_would_wait_too_long_is_refused_with_the_time_to_come_back(pool: ThreadPoolExecutor) -> None:
    run = Gated()
    batcher = Batcher(run, pool, batched=False, cost=CostModel())
    for _ in range(3):
        batcher.cost.observe(1, 0.9)
    running = ask(batcher, 0)
    await run.next_run()
    held = [ask(batcher, value, seconds=60) for value in range(1, 4)]
    await asyncio.sleep(0)
    with pytest.raises(InferenceError) as refused:
        await ask(batcher, 9, seconds=5)
    patient = ask(batcher, 10, seconds=60)
    assert (refused.value.code, refused.value.headers) == ("overloaded", {"Retry-After": "3"})
    for _ in range(5):
        run.gate.release()
    assert [answer.run_rows for answer in await asyncio.gather(running, patient, *held)] == [1] * 5


async def test_a_large_call_that_waits_counts_as_its_next_slice(pool: ThreadPoolExecutor) -> None:
    run = Gated()
    batcher = Batcher(run, pool, batched=True, cost=CostModel())
    for count in (1, 64, 64, 1):
        batcher.cost.observe(count, 0.001 * count)
    running = ask(batcher, 0)
    await run.next_run()
    held = [ask(batcher, 1, 100_000), ask(batcher, 2), ask(batcher, 3)]
    await asyncio.sleep(0)
    newcomer = ask(batcher, 4)
    await asyncio.sleep(0)
    assert not newcomer.done()
    held[0].cancel()
    for _ in range(10):
        run.gate.release()
    await asyncio.gather(running, newcomer, *held[1:])
