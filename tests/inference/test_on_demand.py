"""Models at 0 %: loaded when a call pins them, and let go when others need the room."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from inference.contracts import Routes, VersionRoute
from inference.errors import InferenceError
from inference.registry import ArtifactStore, Registry
from inference.runtime.loading import Runtime
from inference.runtime.onnx import load_model
from tests.inference import toys
from tests.inference.server.house import deployment, version

pytestmark = pytest.mark.unit

SIZE = 1_000
LONG_S = 30.0


class Gate:
    """A loader that counts, and may be held up or made to fail."""

    def __init__(self) -> None:
        self.loads = 0
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def __call__(self, data: bytes) -> Runtime:
        self.loads += 1
        self.open.wait(60)
        if self.error is not None:
            raise self.error
        return load_model(data)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def registry(tmp_path: Path, gate: Gate) -> AsyncIterator[Registry]:
    made = Registry(ArtifactStore(tmp_path / "artifacts"), gate, threads=1, budget_bytes=3 * SIZE)
    yield made
    gate.open.set()
    made.close()


def numbered(home: Path, number: int, size: int = SIZE) -> VersionRoute:
    """A version with a file of its own that takes `size` bytes by its measurement."""
    return version(home, number, toys.classifier(scale=float(number)), memory_bytes=size)


def routes(*versions: VersionRoute, live: dict[int, int], generation: int = 1) -> Routes:
    return Routes(generation=generation, deployments=(deployment(*versions, live=live),))


def soon(seconds: float = LONG_S) -> float:
    return asyncio.get_running_loop().time() + seconds


async def call(registry: Registry, pinned: VersionRoute) -> list[float]:
    """What a call that pins a version is answered."""
    async with registry.using(pinned, soon()) as model:
        return model.run_inline({"features": np.ones((1, 3), np.float32)}).outputs["probabilities"][0].tolist()  # type: ignore[no-any-return]  # numpy's lists are untyped


def held(registry: Registry, *versions: VersionRoute) -> list[int]:
    return [each.number for each in versions if registry.get(each.artifact_sha256) is not None]


async def test_a_version_without_a_share_is_loaded_by_the_first_call_that_pins_it(
    registry: Registry, gate: Gate, tmp_path: Path
) -> None:
    one, two = numbered(tmp_path, 1), numbered(tmp_path, 2)
    assert await registry.prepare(routes(one, two, live={1: 10_000})) == {}
    assert held(registry, one, two) == [1]
    first = await call(registry, two)
    assert held(registry, one, two) == [1, 2]
    assert await call(registry, two) == first
    assert gate.loads == 2


async def test_calls_at_the_same_time_share_one_load(registry: Registry, gate: Gate, tmp_path: Path) -> None:
    two = numbered(tmp_path, 2)
    gate.open.clear()
    calls = [asyncio.create_task(call(registry, two)) for _ in range(10)]
    await asyncio.sleep(0)
    gate.open.set()
    answers = await asyncio.gather(*calls)
    assert answers == [answers[0]] * 10
    assert gate.loads == 1


async def test_the_least_recently_used_leaves_and_its_memory_with_it(registry: Registry, tmp_path: Path) -> None:
    one, two, three, four = (numbered(tmp_path, number) for number in range(1, 5))
    for each in (one, two, three, one):
        await call(registry, each)
    leaving = registry.get(two.artifact_sha256)
    assert leaving is not None
    gone = weakref.ref(leaving.runtime)
    del leaving
    await call(registry, four)
    assert held(registry, one, two, three, four) == [1, 3, 4]
    # The loader's thread drops what it handed over a moment later.
    for _ in range(200):
        if gone() is None:
            break
        await asyncio.sleep(0.01)
    assert gone() is None


async def test_no_model_leaves_while_a_call_uses_it_and_who_needs_the_room_waits(
    registry: Registry, tmp_path: Path
) -> None:
    versions = [numbered(tmp_path, number) for number in range(1, 5)]
    *others, last = versions
    async with AsyncExitStack() as calls:
        for each in others:
            await calls.enter_async_context(registry.using(each, soon()))
        waiting = asyncio.create_task(call(registry, last))
        with pytest.raises(InferenceError, match="3 models in use hold") as refused:
            async with registry.using(last, soon(0.05)):
                pass
        assert refused.value.code == "model_memory"
        assert not waiting.done()
        assert held(registry, *versions) == [1, 2, 3]
    await waiting
    # The calls ended in the other order.
    assert held(registry, *versions) == [1, 2, 4]


async def test_a_model_with_traffic_stays_however_many_are_pinned(registry: Registry, tmp_path: Path) -> None:
    versions = [numbered(tmp_path, number) for number in range(1, 8)]
    await registry.prepare(routes(*versions, live={1: 10_000}))
    for each in versions[1:]:
        await call(registry, each)
        assert registry.get(versions[0].artifact_sha256) is not None
        assert registry.residency.held_bytes <= 3 * SIZE
    assert held(registry, *versions) == [1, 6, 7]


async def test_a_failed_load_says_why_and_is_not_tried_again_at_once(
    registry: Registry, gate: Gate, tmp_path: Path
) -> None:
    two = numbered(tmp_path, 2)
    gate.error = InferenceError("load_failed", "ONNX Runtime could not load the model.")
    for _ in range(3):
        with pytest.raises(InferenceError) as refused:
            await call(registry, two)
        assert refused.value.code == "version_not_ready"
        assert refused.value.message == "Version 2 of toy does not load: ONNX Runtime could not load the model."
        assert int(refused.value.headers["Retry-After"]) > 0
    assert gate.loads == 1
    assert registry.residency.held_bytes == 0
    assert registry.has_failed(two.artifact_sha256)
    # Traffic is another matter: a change of the split tries it, and what it loads is there for pins too.
    gate.error = None
    assert await registry.prepare(routes(two, live={2: 10_000})) == {}
    assert not registry.has_failed(two.artifact_sha256)
    await call(registry, two)


async def test_an_unforeseen_fault_of_a_load_is_not_tried_again_at_once_either(
    registry: Registry, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate.error = KeyError("a fault of ours")
    with pytest.raises(KeyError):
        await call(registry, numbered(tmp_path, 2))
    with pytest.raises(InferenceError):
        await call(registry, numbered(tmp_path, 2))
    assert gate.loads == 1
    assert "did not load" in caplog.text


async def test_a_call_waits_for_a_load_until_its_deadline_and_the_load_goes_on(
    registry: Registry, gate: Gate, tmp_path: Path
) -> None:
    two = numbered(tmp_path, 2)
    gate.open.clear()
    with pytest.raises(InferenceError) as late:
        async with registry.using(two, soon(0.05)):
            pass
    assert late.value.code == "deadline_exceeded"
    gate.open.set()
    await call(registry, two)
    assert gate.loads == 1


async def test_traffic_that_does_not_fit_beside_what_serves_is_refused_with_the_figures(
    registry: Registry, gate: Gate, tmp_path: Path
) -> None:
    one, two, three = numbered(tmp_path, 1), numbered(tmp_path, 2, 2 * SIZE), numbered(tmp_path, 3, 2 * SIZE)
    serving = routes(one, two, three, live={1: 5_000, 2: 5_000})
    assert await registry.prepare(serving) == {}
    registry.keep([serving])
    change = routes(one, two, three, live={1: 5_000, 3: 5_000}, generation=2)
    failures = await registry.prepare(change, serving)
    assert set(failures) == {"v3"}
    assert failures["v3"].code == "model_memory"
    assert "2 models with traffic hold" in failures["v3"].reason
    assert held(registry, one, two, three) == [1, 2]
    assert gate.loads == 2
    # With the traffic taken from version 2 first there is room: it leaves when that is needed, and not before.
    registry.keep([first := routes(one, two, three, live={1: 10_000}, generation=3)])
    assert held(registry, one, two, three) == [1, 2]
    assert await registry.prepare(change, first) == {}
    assert held(registry, one, two, three) == [1, 3]


async def test_pinned_models_make_way_for_traffic(registry: Registry, tmp_path: Path) -> None:
    one, two, three = numbered(tmp_path, 1), numbered(tmp_path, 2), numbered(tmp_path, 3, 3 * SIZE)
    await call(registry, one)
    async with registry.using(two, soon()):
        preparing = asyncio.create_task(registry.prepare(routes(three, live={3: 10_000})))
        await asyncio.sleep(0)
        assert held(registry, two) == [2]
    assert await preparing == {}
    assert held(registry, one, two, three) == [3]


async def test_going_back_to_a_version_that_just_lost_its_traffic_needs_no_load(
    registry: Registry, gate: Gate, tmp_path: Path
) -> None:
    one, two, three = (numbered(tmp_path, number) for number in range(1, 4))
    for generation, number in enumerate((1, 2, 1, 2), 1):
        wanted = routes(one, two, three, live={number: 10_000}, generation=generation)
        assert await registry.prepare(wanted) == {}
        registry.keep([wanted])
        await call(registry, three)
    assert gate.loads == 3
