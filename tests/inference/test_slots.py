"""Bulkheads: a model that computes long, or for ever, takes from another no more than its share."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.batching import Arrays, Batcher, Bounds
from inference.errors import InferenceError
from inference.pacing import CostModel
from inference.slots import Slots, Tenant, Turn

pytestmark = pytest.mark.unit


class Models:
    """Tenants of these slots by name; `order` says who was let in, one letter a turn."""

    def __init__(self, slots: Slots, expected: dict[str, float]) -> None:
        self.order = ""
        self._let_in = asyncio.Event()
        self.turns: list[tuple[str, Turn]] = []
        self._expected = expected
        self.wanted = dict.fromkeys(expected, 0)
        self.tenants: dict[str, Tenant] = {}
        for name in expected:
            self.tenants[name] = slots.tenant(lambda name=name: self.go(name))  # type: ignore[misc]  # bound now

    def want(self, name: str, runs: int) -> None:
        self.wanted[name] += runs
        self.go(name)

    def go(self, name: str) -> None:
        while self.wanted[name]:
            turn = self.tenants[name].take(self._expected[name])
            if turn is None:
                return
            self.wanted[name] -= 1
            self.order += name
            self._let_in.set()
            self.turns.append((name, turn))

    async def until(self, order: str) -> None:
        while self.order != order:
            self._let_in.clear()
            await asyncio.wait_for(self._let_in.wait(), 30)

    def end_first(self) -> None:
        name, turn = self.turns.pop(0)
        turn.end(self._expected[name], self._expected[name] if self.wanted[name] else None)


async def test_models_that_compute_long_and_short_get_equal_time_not_equal_turns() -> None:
    models = Models(Slots(1), {"a": 40.0, "b": 10.0})
    models.want("a", 20)
    models.want("b", 40)
    while models.turns:
        models.end_first()
    # Until b has had all its runs.
    shared = models.order[: models.order.rindex("b")]
    assert shared.count("b") == pytest.approx(4 * shared.count("a"), abs=4)
    assert models.order.count("a") == 20


async def test_who_was_idle_gets_no_credit_for_it() -> None:
    models = Models(Slots(1), {"a": 1.0, "b": 1.0})
    models.want("a", 50)
    for _ in range(20):
        models.end_first()
    models.want("b", 20)
    for _ in range(20):
        models.end_first()
    assert models.order[21:].count("a") == pytest.approx(10, abs=1)


async def test_all_slots_are_used_and_no_more() -> None:
    slots = Slots(2)
    models = Models(slots, {"a": 1.0})
    models.want("a", 5)
    assert (models.order, slots.used, slots.free) == ("aa", 2, 0)
    models.end_first()
    assert (models.order, slots.used) == ("aaa", 2)


async def test_a_model_waits_for_a_long_run_of_another_no_longer_than_for_its_own() -> None:
    slots = Slots(2)
    models = Models(slots, {"a": 3600.0, "b": 0.01})
    models.want("a", 10)
    models.want("b", 3)
    assert models.order == "aa"
    await models.until("aab")
    # One run beyond the slots for a model, not more; when that ends the next begins likewise.
    models.go("b")
    assert models.order == "aab"
    models.turns.pop()[1].end(0.01, 0.01)
    await models.until("aabb")
    for _, turn in models.turns:
        turn.end(0.0)


async def test_a_run_that_stalls_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.slots.STALLED_S", 0.02)
    slots = Slots(1)
    models = Models(slots, {"a": 0.001, "b": 3600.0})
    models.want("a", 1)
    models.want("b", 1)
    assert models.order == "a"
    await models.until("ab")
    # a's run stalled: only b's is counted, also when a's ends after all.
    assert (slots.used, models.tenants["a"].running) == (1, 1)
    models.end_first()
    assert (slots.used, models.tenants["a"].running) == (1, 0)
    for _, turn in models.turns:
        turn.end(0.0)


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as opened:
        yield opened


async def test_a_stalled_model_slows_no_other_and_refuses_its_own_calls(pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()

    def stalls(inputs: Arrays) -> Arrays:
        gate.wait(60)
        return inputs

    slots = Slots(2)
    bad = Batcher(stalls, pool, batched=True, concurrency=2, slots=slots, max_waiting=4)
    good = Batcher(lambda inputs: inputs, pool, batched=True, concurrency=2, slots=slots, cost=CostModel((1, 0.001)))
    loop = asyncio.get_running_loop()
    one = {"x": np.ones((1, 1), np.float32)}
    stuck = [asyncio.create_task(bad.submit(one, 1, loop.time() + 60, Bounds(1))) for _ in range(6)]
    await asyncio.sleep(0)
    try:
        with pytest.raises(InferenceError) as caught:
            await bad.submit(one, 1, loop.time() + 60)
        assert caught.value.code == "overloaded"
        for _ in range(20):
            answer = await good.submit(one, 1, loop.time() + 30)
            assert answer.outputs["x"].tolist() == [[1.0]]
    finally:
        gate.set()
        await asyncio.gather(*stuck)
