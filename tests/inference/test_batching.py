"""Calls that share a run: alike in result, apart in failure."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.batching import Answer, Arrays, Batcher, Bounds
from inference.errors import InferenceError
from tests.inference.eager import Eager

pytestmark = pytest.mark.unit


class Doubler:
    """y = 2 x; refuses negative numbers; `gate` closed holds every run. `runs` holds the rows of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, inputs: Arrays) -> Arrays:
        self.begun.release()
        assert self.gate.wait(30)
        x = inputs["x"]
        self.runs.append(len(x))
        if (x < 0).any():
            raise InferenceError("model_rejected_input")
        return {"y": x * 2}


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as opened:
        yield opened


def row(value: float, width: int = 1) -> Arrays:
    return {"x": np.full((1, width), value, np.float32)}


def later(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def begun(model: Doubler) -> None:
    """Wait until a run has begun."""
    await asyncio.to_thread(model.begun.acquire)


async def blocked(batcher: Batcher, model: Doubler) -> "asyncio.Task[Answer]":
    """Close the gate and put a first call before it, so that what follows gathers."""
    model.gate.clear()
    first = asyncio.create_task(batcher.submit(row(0), 1, later()))
    await begun(model)
    return first


async def test_an_idle_model_answers_at_once(pool: ThreadPoolExecutor) -> None:
    answer = await Batcher(Doubler(), pool, batched=True).submit(row(3), 1, later())
    assert answer.outputs["y"].tolist() == [[6.0]]
    assert answer.compute_s >= 0


async def test_calls_that_gather_share_a_run_and_get_their_own_rows(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(n), 1, later())) for n in range(10)]
    await asyncio.sleep(0)
    model.gate.set()
    answers = await asyncio.gather(first, *tasks)
    assert [answer.outputs["y"].tolist() for answer in answers[1:]] == [[[2.0 * n]] for n in range(10)]
    assert model.runs == [1, 10]


async def test_calls_of_another_shape_do_not_share(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(n, 1 + n % 2), 1, later())) for n in range(6)]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *tasks)
    assert model.runs == [1, 3, 3]


async def test_a_run_is_never_larger_than_allowed(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(n), 1, later(), Bounds(4))) for n in range(9)]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *tasks)
    assert model.runs == [1, 4, 4, 1]


async def test_a_model_without_a_batch_dimension_runs_each_call_alone(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=False)
    await asyncio.gather(*(batcher.submit(row(n), 1, later()) for n in range(5)))
    assert model.runs == [1] * 5


async def test_one_bad_call_fails_alone(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(value), 1, later())) for value in (1, -1, 2)]
    await asyncio.sleep(0)
    model.gate.set()
    await first
    good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, InferenceError)
    assert bad.code == "model_rejected_input"
    assert isinstance(good, Answer)
    assert isinstance(fine, Answer)
    assert (good.outputs["y"].item(), fine.outputs["y"].item()) == (2.0, 4.0)


async def test_a_disconnect_does_not_fail_batch_mates(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(n), 1, later())) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    first.cancel()
    await asyncio.sleep(0)
    model.gate.set()
    left = await asyncio.gather(tasks[0], tasks[2])
    assert [answer.outputs["y"].item() for answer in left] == [0.0, 4.0]
    assert model.runs == [1, 2]


async def test_what_expired_in_the_queue_is_never_run(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, cost=Eager())
    first = await blocked(batcher, model)
    with pytest.raises(InferenceError) as caught:
        await batcher.submit(row(1), 1, later(0.02))
    assert caught.value.code == "deadline_exceeded"
    model.gate.set()
    await first
    assert (await batcher.submit(row(2), 1, later())).outputs["y"].item() == 4.0
    assert model.runs == [1, 1]


async def test_a_full_queue_refuses_at_once(pool: ThreadPoolExecutor) -> None:
    model = Doubler()
    batcher = Batcher(model, pool, batched=True, max_waiting=2, cost=Eager())
    first = await blocked(batcher, model)
    tasks = [asyncio.create_task(batcher.submit(row(n), 1, later())) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(InferenceError) as caught:
        await batcher.submit(row(9), 1, later())
    assert (caught.value.code, caught.value.headers["Retry-After"]) == ("overloaded", "1")
    model.gate.set()
    await asyncio.gather(first, *tasks)
    assert batcher.waiting == 0


async def test_a_model_that_breaks_its_promise_of_rows_is_not_batched_again(pool: ThreadPoolExecutor) -> None:
    gate, begun_runs, sizes = threading.Event(), threading.Semaphore(0), list[int]()

    def total(inputs: Arrays) -> Arrays:
        begun_runs.release()
        assert gate.wait(30)
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"].sum(keepdims=True)}

    batcher = Batcher(total, pool, batched=True, cost=Eager())
    first = asyncio.create_task(batcher.submit(row(1), 1, later()))
    await asyncio.to_thread(begun_runs.acquire)
    tasks = [asyncio.create_task(batcher.submit(row(n), 1, later())) for n in (2, 3)]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(first, *tasks)
    assert [answer.outputs["y"].item() for answer in answers] == [1.0, 2.0, 3.0]
    await asyncio.gather(*(batcher.submit(row(1), 1, later()) for _ in range(3)))
    assert sizes == [1, 2, 1, 1, 1, 1, 1]


async def test_a_fault_of_the_runtime_reaches_every_caller_of_the_run(pool: ThreadPoolExecutor) -> None:
    def broken(inputs: Arrays) -> Arrays:
        raise RuntimeError("out of luck")

    batcher = Batcher(broken, pool, batched=True)
    with pytest.raises(RuntimeError, match="luck"):
        await batcher.submit(row(1), 1, later())
    with pytest.raises(RuntimeError, match="luck"):
        await batcher.submit(row(1), 1, later())
