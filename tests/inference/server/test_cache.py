"""Kept answers: what is found again, for how long, within which budget, and by whom."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.contracts import Lane
from inference.errors import InferenceError
from inference.runs import Answer
from inference.server.cache import Caches, ResponseCache, VersionCache, digest_of
from inference.server.metrics import Metrics
from inference.server.protocols import Call
from tests.inference import toys
from tests.inference.server.house import (
    deployment,
    linear,
    version,
    with_fields,
)
from tests.inference.server.test_metrics import lines

pytestmark = pytest.mark.unit

TTL_S = 60.0
ROOM = 1 << 20


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def array(*values: float) -> Any:
    return np.array([values], np.float32)


def call_of(*values: float) -> Call:
    return Call({"x": array(*values)}, 1)


def answer_of(*values: float) -> Answer:
    return Answer({"y": array(*values)}, 0.001, 0.002)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def caches(tmp_path: Path, clock: FakeClock) -> Caches:
    return Caches(Metrics(tmp_path / "metrics"), clock)


def cache_of(caches: Caches, home: Path, **settings: Any) -> VersionCache:
    """The cache of version 1 of one deployment that keeps answers."""
    route = deployment(linear(home), **{"cache_ttl_s": TTL_S, "cache_bytes": ROOM, **settings})
    caches.hold([route])
    found = caches.of(route, route.versions[1])
    assert found is not None
    return found


def keep(cache: VersionCache, number: float) -> Call:
    """Keep an answer to a call that was looked for in vain."""
    call = call_of(number)
    assert cache.find(call) is None
    cache.keep(call, answer_of(number))
    return call


# -- what is kept


def test_a_kept_answer_is_found_and_took_no_time(caches: Caches, tmp_path: Path) -> None:
    cache = cache_of(caches, tmp_path)
    keep(cache, 4)
    found = cache.find(call_of(4))
    assert found is not None
    assert found.outputs["y"].tolist() == [[4.0]]
    assert (found.cached, found.queue_s, found.compute_s) == (True, 0.0, 0.0)
    assert cache.find(call_of(5)) is None


def test_what_is_kept_is_a_copy_that_cannot_be_written_to(caches: Caches, tmp_path: Path) -> None:
    cache, call, run = cache_of(caches, tmp_path), call_of(1), np.zeros((100, 1), np.float32)
    cache.find(call)
    cache.keep(call, Answer({"y": run[3:4]}, 0.0, 0.0))
    run[:] = 9
    found = cache.find(call)
    assert found is not None
    kept = found.outputs["y"]
    assert kept.tolist() == [[0.0]]
    assert kept.base is None
    assert not kept.flags.writeable


def test_an_answer_expires_from_when_it_was_computed(caches: Caches, tmp_path: Path, clock: FakeClock) -> None:
    cache = cache_of(caches, tmp_path)
    call = keep(cache, 1)
    clock.now += TTL_S - 0.001
    assert cache.find(call) is not None
    clock.now += 0.001
    assert cache.find(call) is None
    assert len(cache.store) == cache.store.size == 0


def test_what_has_expired_leaves_memory_without_being_asked_for(
    caches: Caches, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.server.cache.MOST_DROPPED", 4)
    cache = cache_of(caches, tmp_path)
    for n in range(6):
        keep(cache, n)
    caches.drop_expired()
    clock.now += TTL_S / 2
    young = keep(cache, 9)
    clock.now += TTL_S / 2
    left = []
    for _ in range(3):
        caches.drop_expired()
        left.append(len(cache.store))
    assert left == [3, 1, 1], "so many at most in one go"
    assert cache.find(young) is not None
    clock.now += TTL_S / 2
    caches.drop_expired()
    assert (len(cache.store), cache.store.size) == (0, 0)


def test_what_was_used_after_one_that_expires_later_leaves_one_time_to_live_after_at_the_latest(
    caches: Caches, tmp_path: Path, clock: FakeClock
) -> None:
    cache = cache_of(caches, tmp_path)
    early = keep(cache, 1)
    clock.now += TTL_S / 2
    keep(cache, 2)
    assert cache.find(early) is not None
    clock.now += TTL_S / 2
    caches.drop_expired()
    assert len(cache.store) == 2
    clock.now += TTL_S / 2
    caches.drop_expired()
    assert len(cache.store) == 0


def test_the_least_recently_used_makes_room(caches: Caches, tmp_path: Path) -> None:
    cache = cache_of(caches, tmp_path)
    keep(cache, 1)
    cache = cache_of(caches, tmp_path, cache_bytes=3 * cache.store.size)
    one, two, three = keep(cache, 1), keep(cache, 2), keep(cache, 3)
    cache.find(one)
    keep(cache, 4)
    assert [cache.find(call) is not None for call in (one, two, three)] == [True, False, True]


def test_no_more_than_the_budget_is_ever_held(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    store = ResponseCache(TTL_S, 64 * 1024, metrics.counter("signalbox_cache_bytes", deployment="toy"))
    dice = np.random.default_rng(7)
    texts = np.array([["a" * 500, "ü" * 300]], object)
    for _ in range(500):
        numbers = np.zeros((1, int(dice.integers(0, 8_000))), np.float32)
        store.keep(dice.bytes(32), {"y": numbers, "words": texts}, None)  # type: ignore[arg-type]  # of no version
        assert len(store) > 0
        assert store.size <= 64 * 1024
        [held] = [value for series, value in lines(tmp_path).items() if series.startswith("signalbox_cache_bytes")][:1]
        assert held == store.size


def test_an_answer_larger_than_the_budget_is_not_kept_and_pushes_nothing_out(caches: Caches, tmp_path: Path) -> None:
    cache = cache_of(caches, tmp_path, cache_bytes=64 * 1024)
    small, large = keep(cache, 1), call_of(2)
    cache.find(large)
    cache.keep(large, Answer({"y": np.zeros(20_000, np.float32)}, 0.0, 0.0))
    assert cache.find(large) is None
    assert cache.find(small) is not None


# -- what is the same question


def test_text_is_the_same_as_str_and_as_utf8(tmp_path: Path) -> None:
    route = linear(tmp_path)
    as_text = {"w": np.array(["über", "a"], object)}
    as_bytes = {"w": np.array(["über".encode(), b"a"], object)}
    assert digest_of(route, as_text) == digest_of(route, as_bytes)
    assert digest_of(route, {"w": np.array(["\ud800"], object)}) != digest_of(route, as_text)


def test_the_order_of_inputs_and_of_memory_does_not_matter(tmp_path: Path) -> None:
    route, table = linear(tmp_path), np.arange(6, dtype=np.float32).reshape(2, 3)
    transposed = np.asfortranarray(table)
    assert digest_of(route, {"a": table, "b": table}) == digest_of(route, {"b": transposed, "a": transposed})


OTHERS: list[dict[str, Any]] = [
    {"x": np.array([[1, 2, 3, 4]], np.float32)},
    {"x": np.array([[1, 2], [3, 5]], np.float32)},
    {"x": np.array([[1, 2], [3, 4]], np.float64)},
    {"x": np.array([[1, 2], [3, 4]], np.int32)},
    {"z": np.array([[1, 2], [3, 4]], np.float32)},
    {"x": np.array([[1, 2], [3, 4]], np.float32), "y": np.zeros(0, np.float32)},
    {"x": np.array([[1, 2], [3, 4]], np.float32).astype(object).astype(str).astype(object)},
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_name_shape_type_or_number_is_another_question(tmp_path: Path, other: dict[str, Any]) -> None:
    route = linear(tmp_path)
    digest = digest_of(route, {"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert digest != digest_of(route, other)
    assert digest == digest_of(route, {"x": np.array([[1, 2], [3, 4]], np.float32)})


def test_texts_that_read_alike_in_a_row_are_told_apart(tmp_path: Path) -> None:
    route = linear(tmp_path)
    digests = {digest_of(route, {"w": np.array(words, object)}) for words in (["ab", "c"], ["a", "bc"], ["abc", ""])}
    assert len(digests) == 3


# -- whose it is


def test_deployments_and_versions_do_not_answer_for_each_other(caches: Caches, tmp_path: Path) -> None:
    two = version(tmp_path, 2, toys.linear_regression())
    mine = deployment(linear(tmp_path), two, cache_ttl_s=TTL_S)
    theirs = deployment(linear(tmp_path), two, id="d-other", name="other", cache_ttl_s=TTL_S)
    caches.hold([mine, theirs])
    found = [caches.of(route, each) for route in (mine, theirs) for each in route.versions.values()]
    kept = [cache for cache in found if cache is not None]
    assert len(kept) == 4
    keep(kept[0], 1)
    assert [cache.find(call_of(1)) is not None for cache in kept] == [True, False, False, False]


def test_what_does_not_concern_a_deployment_leaves_its_answers(caches: Caches, tmp_path: Path) -> None:
    cache = cache_of(caches, tmp_path)
    call = keep(cache, 1)
    route = deployment(linear(tmp_path), live={1: 10_000}, cache_ttl_s=TTL_S, cache_bytes=ROOM, max_rows=5)
    caches.hold([route, deployment(linear(tmp_path), id="d-new", name="new")])
    assert caches.of(route, route.versions[1]) is cache
    assert cache.find(call) is not None


@pytest.mark.parametrize(
    "change",
    [{"cache_ttl_s": 5.0}, {"cache_bytes": ROOM * 2}, {"cache_ttl_s": 0.0}, {"retired": True}, {"lane": Lane.JOB}],
)
def test_another_setting_empties_it(caches: Caches, tmp_path: Path, change: dict[str, Any]) -> None:
    cache = cache_of(caches, tmp_path)
    call = keep(cache, 1)
    settings = {"cache_ttl_s": TTL_S, "cache_bytes": ROOM, **change}
    caches.hold([with_fields(deployment(linear(tmp_path)), **settings)])
    assert cache.find(call) is None
    assert cache.store.size == 0
    # A call that was under way meanwhile keeps nothing any more.
    cache.keep(call, answer_of(1))
    assert cache.find(call) is None


def test_a_version_that_leaves_takes_its_answers_with_it(caches: Caches, tmp_path: Path) -> None:
    one, two = linear(tmp_path), version(tmp_path, 2, toys.linear_regression())
    settings: dict[str, Any] = {"cache_ttl_s": TTL_S}
    both = deployment(one, two, **settings)
    caches.hold([both])
    first, second = caches.of(both, one), caches.of(both, two)
    assert first is not None
    assert second is not None
    calls = keep(first, 1), keep(second, 1)
    caches.hold([deployment(one, **settings)])
    assert first.find(calls[0]) is not None
    assert second.find(calls[1]) is None
    assert len(first.store) == 1


# -- calls that are alike at the same time


class Runs:
    """Runs that end when a test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.cancelled = 0
        self.error: InferenceError | None = None

    async def __call__(self) -> Answer:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return answer_of(7)

    def asked(self, cache: VersionCache, deadline_s: float = 60.0) -> "asyncio.Task[Answer]":
        call = call_of(1)
        assert cache.find(call) is None
        loop = asyncio.get_running_loop()
        return loop.create_task(cache.share(call, loop.time() + deadline_s, self))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_calls_that_are_alike_share_a_run(caches: Caches, tmp_path: Path) -> None:
    cache, runs = cache_of(caches, tmp_path), Runs()
    asked = [runs.asked(cache) for _ in range(5)]
    await turns()
    runs.gate.set()
    answers = await asyncio.gather(*asked)
    assert runs.begun == 1
    assert [answer.outputs["y"].tolist() for answer in answers] == [[[7.0]]] * 5
    assert [answer.cached for answer in answers] == [False, True, True, True, True]
    assert cache.find(call_of(1)) is not None


async def test_the_run_goes_on_when_who_began_it_leaves(caches: Caches, tmp_path: Path) -> None:
    cache, runs = cache_of(caches, tmp_path), Runs()
    first, second = runs.asked(cache), runs.asked(cache)
    await turns()
    first.cancel()
    await turns()
    runs.gate.set()
    assert (await second).cached
    assert (runs.begun, runs.cancelled) == (1, 0)


async def test_the_run_ends_when_nobody_waits_and_a_newcomer_has_its_own(caches: Caches, tmp_path: Path) -> None:
    cache, runs = cache_of(caches, tmp_path), Runs()
    gone = [runs.asked(cache), runs.asked(cache)]
    await turns()
    for task in gone:
        task.cancel()
    newcomer = runs.asked(cache)
    await turns()
    assert (runs.begun, runs.cancelled) == (2, 1)
    runs.gate.set()
    assert not (await newcomer).cached


async def test_a_failure_is_not_kept_and_is_nobody_elses(caches: Caches, tmp_path: Path) -> None:
    cache, runs = cache_of(caches, tmp_path), Runs()
    runs.error = InferenceError("overloaded")
    first, second = runs.asked(cache), runs.asked(cache)
    await turns()
    runs.gate.set()
    for task in (first, second):
        with pytest.raises(InferenceError) as refused:
            await task
        assert refused.value.code == "overloaded"
    assert runs.begun == 2
    assert cache.find(call_of(1)) is None
    runs.error = None
    assert not (await runs.asked(cache)).cached


async def test_a_deadline_is_the_callers_own(caches: Caches, tmp_path: Path) -> None:
    cache, runs = cache_of(caches, tmp_path), Runs()
    patient, hurried = runs.asked(cache), runs.asked(cache, deadline_s=0.0)
    with pytest.raises(InferenceError) as refused:
        await hurried
    assert refused.value.code == "deadline_exceeded"
    runs.gate.set()
    assert not (await patient).cached
