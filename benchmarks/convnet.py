"""Convolutional networks of ResNet's shape (He et al. 2016), with made-up weights: they cost what theirs do.

As it is by default, ResNet-34's, one costs what a chest X-ray classifier costs, 3.6 billion multiplications for
224 x 224 pixels, and knows nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = 14
# (channels, blocks) of each stage; every stage but the first halves the picture.
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
SMALL = ((32, 1), (64, 1), (128, 1))


class _Graph:
    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int) -> str:
        """Values that keep the size of what passes through (He et al. 2015)."""
        name = f"w{len(self.weights)}"
        scale = (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
        values = self._random.normal(0, scale, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, channels: tuple[int, int], side: int = 3, stride: int = 1) -> str:
        pads = [side // 2] * 4
        weight = self.weight(channels[1], channels[0], side, side)
        return self.add("Conv", [x, weight], pads=pads, strides=[stride, stride])

    def block(self, x: str, before: int, after: int, stride: int) -> str:
        inner = self.add("Relu", [self.conv(x, (before, after), stride=stride)])
        inner = self.conv(inner, (after, after))
        past = x if before == after else self.conv(x, (before, after), side=1, stride=stride)
        # Halved, so that sixteen sums do not grow without end.
        half = numpy_helper.from_array(np.array(0.5, np.float32), f"half{len(self.nodes)}")
        self.weights.append(half)
        return self.add("Relu", [self.add("Mul", [self.add("Add", [inner, past]), half.name])])


def network(
    *,
    side: int = 224,
    stages: Sequence[tuple[int, int]] = STAGES,
    labels: int = LABELS,
    seed: int = 7,
    output: str = "logits",
    softmax: bool = False,
) -> bytes:
    """An ONNX file: grey pictures of `side` x `side` in, a logit a label out, or a probability where `softmax`."""
    graph = _Graph(seed)
    before = stages[0][0]
    x = graph.add("Relu", [graph.conv("picture", (1, before), side=7, stride=2)])
    x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, (channels, blocks) in enumerate(stages):
        for number in range(blocks):
            x = graph.block(x, before, channels, 2 if stage and not number else 1)
            before = channels
    flat = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    logits = "raw" if softmax else output
    graph.nodes.append(helper.make_node("Gemm", [flat, graph.weight(before, labels)], [logits]))
    if softmax:
        graph.nodes.append(helper.make_node("Softmax", [logits], [output]))
    whole = helper.make_graph(
        graph.nodes,
        "convnet",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", 1, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", labels])],
        graph.weights,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content
