"""Shared runs of real models: the outputs are those of the call alone, to the bit where the kernels allow it.

A kernel that picks its algorithm by the number of rows (matrix products, convolutions) may sum in another order: then
outputs agree to a few units in the last place.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.batching import Answer, Arrays, Batcher, Bounds
from inference.errors import InferenceError
from inference.runs import VIEW_BYTES
from inference.runtime.onnx import OnnxModel, load_model
from tests.inference import toys
from tests.inference.eager import Eager

pytestmark = pytest.mark.unit

SHARED = Path(__file__).parents[3] / "shared" / "data"
XRAY = SHARED / "xray" / "nih15_model" / "model.onnx"
RELATIVE = 1e-4


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as opened:
        yield opened


def trees(*, count: int = 40, depth: int = 5, features: int = 6) -> bytes:
    """x FP32 [n, features] -> y FP32 [n, 1]: the sum of `count` complete trees with made-up thresholds and leaves."""
    chance = random.Random(5)
    inner, nodes = 2**depth - 1, 2 ** (depth + 1) - 1
    every = [(tree, node) for tree in range(count) for node in range(nodes)]
    leaves = [(tree, node) for tree, node in every if node >= inner]
    ensemble = toys.node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[tree for tree, _ in every],
        nodes_nodeids=[node for _, node in every],
        nodes_featureids=[chance.randrange(features) if node < inner else 0 for _, node in every],
        nodes_values=[chance.gauss(0, 1) if node < inner else 0.0 for _, node in every],
        nodes_modes=["BRANCH_LEQ" if node < inner else "LEAF" for _, node in every],
        nodes_truenodeids=[2 * node + 1 if node < inner else 0 for _, node in every],
        nodes_falsenodeids=[2 * node + 2 if node < inner else 0 for _, node in every],
        target_treeids=[tree for tree, _ in leaves],
        target_nodeids=[node for _, node in leaves],
        target_ids=[0] * len(leaves),
        target_weights=[chance.gauss(0, 1) for _ in leaves],
    )
    return toys.saved(
        [ensemble],
        [toys.tensor("x", toys.FLOAT, ["n", features])],
        [toys.tensor("y", toys.FLOAT, ["n", 1])],
        domains={"ai.onnx.ml": 3},
    )


def elementwise() -> bytes:
    """x FP32 [n, 7] -> y FP32 [n, 7]: sigmoid of a scaled and shifted x."""
    return toys.saved(
        [
            toys.node("Mul", ["x", "scale"], ["scaled"]),
            toys.node("Add", ["scaled", "shift"], ["shifted"]),
            toys.node("Sigmoid", ["shifted"], ["y"]),
        ],
        [toys.tensor("x", toys.FLOAT, ["n", 7])],
        [toys.tensor("y", toys.FLOAT, ["n", 7])],
        [toys.constant("scale", np.linspace(-2, 2, 7), np.float32), toys.constant("shift", [0.1] * 7, np.float32)],
    )


def convolution() -> bytes:
    """x FP32 [n, 1, 16, 16] -> y FP32 [n, 5]: two convolutions, a mean and a linear layer."""
    weights = np.random.default_rng(2)
    return toys.saved(
        [
            toys.node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
            toys.node("Relu", ["c1"], ["r1"]),
            toys.node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
            toys.node("GlobalAveragePool", ["c2"], ["pooled"]),
            toys.node("Flatten", ["pooled"], ["flat"]),
            toys.node("MatMul", ["flat", "w3"], ["y"]),
        ],
        [toys.tensor("x", toys.FLOAT, ["n", 1, 16, 16])],
        [toys.tensor("y", toys.FLOAT, ["n", 5])],
        [
            toys.constant("w1", weights.normal(0, 0.3, (16, 1, 3, 3)), np.float32),
            toys.constant("w2", weights.normal(0, 0.1, (32, 16, 3, 3)), np.float32),
            toys.constant("w3", weights.normal(0, 0.3, (32, 5)), np.float32),
        ],
    )


async def shared(model: OnnxModel, pool: ThreadPoolExecutor, calls: list[Arrays]) -> list[Answer | BaseException]:
    """Answers of calls that gathered while the model's only slot was in use."""
    batcher = Batcher(model.run, pool, batched=True, cost=Eager())
    deadline = asyncio.get_running_loop().time() + 60
    tasks = [asyncio.create_task(batcher.submit(call, len(next(iter(call.values()))), deadline)) for call in calls]
    return await asyncio.gather(*tasks, return_exceptions=True)


def made_calls(model: OnnxModel, seed: int, count: int = 24) -> list[Arrays]:
    chance = np.random.default_rng(seed)
    [spec] = model.signature.inputs
    shape = spec.shape[1:]
    return [
        {spec.name: chance.standard_normal((chance.integers(1, 5), *shape)).astype(np.float32)} for _ in range(count)
    ]


async def compared(
    model: OnnxModel, pool: ThreadPoolExecutor, calls: list[Arrays], equal: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    answers = await shared(model, pool, calls)
    sizes = []
    for call, answer in zip(calls, answers, strict=True):
        assert isinstance(answer, Answer)
        sizes.append(answer.run_rows)
        for name, expected in model.run(call).items():
            equal(answer.outputs[name], expected)
    assert max(sizes) > 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("made", [trees, elementwise, toys.half_precision, lambda: toys.identity(toys.FLOAT)])
async def test_trees_and_elementwise_models_give_the_same_bits_as_alone(
    pool: ThreadPoolExecutor, made: Callable[[], bytes], seed: int
) -> None:
    model = load_model(made())
    calls = made_calls(model, seed)
    if made is toys.half_precision:
        calls = [{"x": call["x"].astype(np.float16)} for call in calls]
    await compared(model, pool, calls, np.testing.assert_array_equal)


@pytest.mark.parametrize("made", [convolution, toys.linear_regression, toys.classifier, toys.picture_classifier])
async def test_products_and_convolutions_agree_within_the_tolerance_stated(
    pool: ThreadPoolExecutor, made: Callable[[], bytes]
) -> None:
    model = load_model(made())

    def close(got: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(got, expected, rtol=RELATIVE, atol=RELATIVE * float(np.abs(expected).max()))

    await compared(model, pool, made_calls(model, 1), close)


@pytest.mark.skipif(not XRAY.is_file(), reason="the shared X-ray model is not here")
async def test_a_real_x_ray_model_agrees_within_the_tolerance_stated(pool: ThreadPoolExecutor) -> None:
    model = load_model(XRAY.read_bytes())
    if not model.signature.batched:
        pytest.skip("the model takes one picture a run")
    chance = np.random.default_rng(3)
    [spec] = model.signature.inputs
    shape = [size if size > 0 else 224 for size in spec.shape[1:]]
    calls = [{spec.name: chance.standard_normal((1, *shape)).astype(np.float32)} for _ in range(4)]
    for call, answer in zip(calls, await shared(model, pool, calls), strict=True):
        assert isinstance(answer, Answer)
        for name, expected in model.run(call).items():
            np.testing.assert_allclose(answer.outputs[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
async def test_calls_that_the_model_rejects_fail_alone(pool: ThreadPoolExecutor, seed: int) -> None:
    model = load_model(toys.lookup())
    chance = random.Random(seed)
    indexes = [[chance.choice([0, 1, 2] * 6 + [99]) for _ in range(chance.randint(1, 3))] for _ in range(40)]
    answers = await shared(model, pool, [{"index": np.array(index, np.int64)} for index in indexes])
    for index, answer in zip(indexes, answers, strict=True):
        if 99 in index:
            assert isinstance(answer, InferenceError)
            assert answer.code == "model_rejected_input"
        else:
            assert isinstance(answer, Answer)
            assert answer.outputs["value"].tolist() == [10.0 * each for each in index]


async def test_a_large_call_goes_in_slices_and_gives_the_same(pool: ThreadPoolExecutor) -> None:
    model = load_model(trees())
    x = np.random.default_rng(4).standard_normal((1001, 6)).astype(np.float32)
    sizes: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        return model.run(inputs)

    batcher = Batcher(run, pool, batched=True, cost=Eager())
    answer = await batcher.submit({"x": x}, 1001, asyncio.get_running_loop().time() + 60, Bounds(64))
    np.testing.assert_array_equal(answer.outputs["y"], model.run({"x": x})["y"])
    assert sum(sizes) == 1001
    assert sizes[0] == 64
    whole = await batcher.submit({"x": x}, 1001, asyncio.get_running_loop().time() + 60, Bounds(1))
    np.testing.assert_array_equal(whole.outputs["y"], answer.outputs["y"])
    assert sizes[-1] == 1001


async def test_parts_of_a_large_output_do_not_keep_it(pool: ThreadPoolExecutor) -> None:
    width = VIEW_BYTES // 4
    model = load_model(toys.identity(toys.FLOAT, ["n", width]))
    calls = [{"x": np.full((1, width), n, np.float32)} for n in range(4)]
    answers = await shared(model, pool, calls)
    for number, answer in enumerate(answers):
        assert isinstance(answer, Answer)
        assert answer.outputs["y"].nbytes == VIEW_BYTES
        base = answer.outputs["y"].base
        assert base is None or getattr(base, "nbytes", VIEW_BYTES) <= VIEW_BYTES
        assert (answer.outputs["y"] == number).all()
