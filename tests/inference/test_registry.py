"""Models are loaded from checked bytes, measured, shared, and let go."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from inference.contracts import Datatype, DeploymentRoute, Lane, Routes, Signature, TensorSpec
from inference.errors import InferenceError
from inference.registry import ArtifactStore, Registry, measured
from inference.runtime.loading import Runtime
from inference.runtime.onnx import load_model
from tests.inference import toys
from tests.inference.server.house import deployment, linear, store, version

pytestmark = pytest.mark.unit


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    made = Registry(ArtifactStore(tmp_path / "artifacts"), load_model, threads=1)
    yield made
    made.close()


def routes(*deployments: DeploymentRoute) -> Routes:
    return Routes(generation=1, deployments=deployments)


class Timed:
    """A runtime that claims to take `base` seconds and `row` more for each further row."""

    device = "cpu"

    def __init__(self, base: float, row: float = 0.0, *, batched: bool = True) -> None:
        spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3))
        self.signature = Signature(inputs=(spec,), outputs=(spec,), batched=batched)
        self._base, self._row = base, row

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return inputs

    def measure(self, rows: int = 1) -> float:
        return self._base + self._row * (rows - 1)

    def sample_inputs(self, rows: int = 1) -> dict[str, np.ndarray]:
        return {"x": np.zeros((rows, 3), np.float32)}


def test_a_stored_file_is_read_only_if_it_is_what_it_was(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path / "artifacts")
    sha256 = store(tmp_path, b"model")
    assert artifacts.read(sha256) == b"model"
    artifacts.path(sha256).write_bytes(b"mode1")
    with pytest.raises(InferenceError, match="not the one registered"):
        artifacts.read(sha256)
    artifacts.path(sha256).unlink()
    with pytest.raises(InferenceError, match="cannot be read") as caught:
        artifacts.read(sha256)
    assert str(tmp_path) not in caught.value.message


async def test_versions_of_one_file_share_one_model(registry: Registry, tmp_path: Path) -> None:
    assert await registry.prepare(routes(deployment(linear(tmp_path), linear(tmp_path, 2)))) == {}
    held = registry.get(linear(tmp_path).artifact_sha256)
    assert held is not None
    assert held.run_inline({"x": np.array([[1, 2, 3]], np.float32)}).outputs["y"].tolist() == [[2.5]]
    assert held.cost_s > 0


async def test_a_version_that_does_not_load_is_named_and_the_others_load(registry: Registry, tmp_path: Path) -> None:
    good, broken = linear(tmp_path), version(tmp_path, 2, toys.classifier())
    (tmp_path / "artifacts" / broken.artifact_sha256[:2] / broken.artifact_sha256).unlink()
    failures = await registry.prepare(routes(deployment(good, broken, shadow={2: 1})))
    assert set(failures) == {"v2"}
    assert failures["v2"].code == "load_failed"
    assert registry.get(good.artifact_sha256) is not None


async def test_what_no_routes_need_is_let_go_but_not_from_under_a_call(registry: Registry, tmp_path: Path) -> None:
    first, second = linear(tmp_path), version(tmp_path, 2, toys.classifier())
    await registry.prepare(routes(deployment(first, second, live={1: 9_999, 2: 1})))
    in_flight = registry.get(second.artifact_sha256)
    assert in_flight is not None
    registry.keep([routes(deployment(first))])
    assert registry.get(second.artifact_sha256) is None
    assert registry.get(first.artifact_sha256) is not None
    in_flight.run_inline({"features": np.zeros((1, 3), np.float32)})
    gone = weakref.ref(in_flight.batcher)
    del in_flight
    # The loader's thread and the loop drop what they passed on a moment after they passed it on.
    registry.close()
    await asyncio.sleep(0)
    assert gone() is None


async def test_a_job_lane_and_a_retired_deployment_load_nothing(registry: Registry, tmp_path: Path) -> None:
    await registry.prepare(routes(deployment(linear(tmp_path), lane=Lane.JOB)))
    await registry.prepare(routes(deployment(linear(tmp_path), retired=True)))
    assert registry.get(linear(tmp_path).artifact_sha256) is None


@pytest.mark.parametrize(
    ("runtime", "cells"),
    [
        (Timed(0.0001, 0.0001), 30),
        (Timed(0.002), 0),
        (Timed(0.001), 0),
        (Timed(0.0001, batched=False), 3),
    ],
)
def test_the_lane_follows_the_measured_cost(runtime: Runtime, cells: int) -> None:
    assert measured(runtime, 0.001)[1] == pytest.approx(cells, abs=1)


def test_a_model_that_refuses_made_up_inputs_is_not_run_on_the_loop() -> None:
    class Picky(Timed):
        def measure(self, rows: int = 1) -> float:
            raise InferenceError("model_rejected_input")

    assert measured(Picky(0.0), 0.001)[:2] == (0.0, 0)


async def test_auto_picks_by_size_and_a_person_may_choose(registry: Registry, tmp_path: Path) -> None:
    await registry.prepare(routes(deployment(linear(tmp_path))))
    held = registry.get(linear(tmp_path).artifact_sha256)
    assert held is not None
    held.inline_cells = 30
    assert held.lane(Lane.AUTO, 30) is Lane.INLINE
    assert held.lane(Lane.AUTO, 33) is Lane.EXECUTOR
    assert held.lane(Lane.INLINE, 10**9) is Lane.INLINE
    assert held.lane(Lane.EXECUTOR, 1) is Lane.EXECUTOR
