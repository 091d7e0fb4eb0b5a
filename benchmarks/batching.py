"""`python -m benchmarks.batching`: what shared runs are worth in the executor lane.

To a small convolutional network (some 5 ms a picture), or with `--model dense` to wide layers, whose weights are read
once a run.

Sixteen callers in a closed loop, each asking again some 0.3 ms after its answer (the way through a connection), with
three settings in alternating windows: `off` (every call runs alone), `greedy` (a run takes all that waits) and
`adaptive` (a run takes as many rows as pay, and is held back where that pays). Beside it a single caller, whom sharing
must not cost anything. No HTTP: what differs between the settings is in the executor lane alone.
"""

import argparse
import asyncio
import json
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.convnet import network
from inference.batching import Arrays, Batcher, Bounds
from inference.contracts import MAX_BATCH_ROWS, MAX_WAIT_MS
from inference.pacing import CostModel
from inference.registry import low_priority_pool, measured
from inference.runtime.onnx import OnnxModel, load_model
from inference.slots import Slots

SETTINGS = {
    "off": Bounds(1, 0.0),
    "greedy": Bounds(MAX_BATCH_ROWS, 0.0),
    "adaptive": Bounds(MAX_BATCH_ROWS, MAX_WAIT_MS / 1000),
}
_THREADS = 32


def dense() -> bytes:
    """x FP32 [n, 64] -> y FP32 [n, 1]: three layers 2,048 wide, whose weights a run reads once for all its rows."""
    chance = np.random.default_rng(7)
    sizes = (64, 2048, 2048, 2048, 1)
    nodes, weights, x = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(sizes)):
        values = chance.normal(0, before**-0.5, (before, after)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        last = layer == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], ["y" if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [x := f"r{layer}"]))
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return content


class Greedy(CostModel):
    """Knows no size that is too large, as before runs were measured while serving."""

    def best_rows(self, most: int) -> int:
        return most


@dataclass(slots=True)
class Window:
    """Calls per second, and milliseconds of the median call and of the slowest in a hundred; rows of a run."""

    per_s: float
    p50_ms: float
    p99_ms: float
    run_rows: float


async def window(batcher: Batcher, inputs: Arrays, bounds: Bounds, *, callers: int, seconds: float) -> Window:
    """One closed loop for so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    taken: list[float] = []
    rows: list[int] = []

    async def caller(seed: int) -> None:
        chance = random.Random(seed)
        while (asked := loop.time()) < end:
            answer = await batcher.submit(inputs, 1, asked + 60, bounds)
            taken.append(loop.time() - asked)
            rows.append(answer.run_rows)
            await asyncio.sleep(chance.uniform(0.0001, 0.0005))

    began = loop.time()
    await asyncio.gather(*map(caller, range(callers)))
    taken.sort()
    return Window(
        len(taken) / (loop.time() - began),
        median(taken) * 1e3,
        taken[int(len(taken) * 0.99)] * 1e3,
        len(rows) / sum(1 / each for each in rows),
    )


async def compared(model: OnnxModel, *, rounds: int, seconds: float, callers: int, threads: int) -> dict[str, Any]:
    """Medians over the rounds for each setting."""
    pool = low_priority_pool(_THREADS, "run")
    points = measured(model, 0.001).points
    inputs = model.sample_inputs(1)
    batchers = {
        name: Batcher(
            model.run,
            pool,
            batched=True,
            concurrency=threads,
            slots=Slots(threads),
            cost=(Greedy if name == "greedy" else CostModel)(*points),
        )
        for name in SETTINGS
    }
    found: dict[str, list[Window]] = {name: [] for name in SETTINGS}
    for turn in range(rounds + 1):
        for name in sorted(SETTINGS, reverse=bool(turn % 2)):
            got = await window(batchers[name], inputs, SETTINGS[name], callers=callers, seconds=seconds)
            if turn:  # the first round warms up
                found[name].append(got)
    pool.shutdown()
    told: dict[str, Any] = {}
    for name, windows in found.items():
        told[name] = {
            field: round(median(getattr(each, field) for each in windows), 2)
            for field in ("per_s", "p50_ms", "p99_ms", "run_rows")
        }
        # Window by window beside that of `off` in the same round: what the machine does besides falls out.
        for field in ("per_s", "p99_ms"):
            ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(windows, found["off"], strict=True)]
            told[name][f"{field}_ratio"] = round(median(ratios), 2)
    cost = batchers["adaptive"].cost
    told["cost"] = {"fixed_ms": round(cost.fixed_s * 1e3, 3), "row_ms": round(cost.row_s * 1e3, 3)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="windows of each setting (20)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a window in seconds (1)")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--model", choices=("convnet", "dense"), default="convnet")
    parser.add_argument("--threads", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    arguments = parser.parse_args()
    model = load_model(dense() if arguments.model == "dense" else network(stages=((32, 1), (64, 1), (128, 1))))
    figures: dict[str, Any] = {}
    for callers in sorted({1, arguments.callers}):
        figures[f"{callers} callers"] = got = asyncio.run(
            compared(
                model,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                callers=callers,
                threads=arguments.threads,
            )
        )
        cost = got["cost"]
        print(f"{callers} callers; a run of n rows: {cost['fixed_ms']} ms + {cost['row_ms']} ms x n")
        for name in SETTINGS:
            one = got[name]
            print(
                f"  {name:9} {one['per_s']:8.1f}/s ({one['per_s_ratio']:.2f}x)"
                f"  p50 {one['p50_ms']:6.2f} ms  p99 {one['p99_ms']:6.2f} ms ({one['p99_ms_ratio']:.2f}x)"
                f"  {one['run_rows']:.1f} rows a run"
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
