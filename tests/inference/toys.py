"""Small ONNX models for tests, each made from scratch: what they compute is stated, so that a test can check it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9

FLOAT, INT64, STRING, FLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.FLOAT16

# The weights of `linear_regression` and `classifier`.
SLOPES = np.array([[1.0], [2.0], [-1.0]], np.float32)
INTERCEPT = np.array([0.5], np.float32)
CLASS_WEIGHTS = np.array([[1.0, -1.0], [0.5, -0.5], [0.0, 1.0]], np.float32)


def tensor(name: str, kind: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


def constant(name: str, values: Any, dtype: Any = None) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "toy", list(inputs), list(outputs), list(constants))
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="toys")


def saved(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    **rest: Any,
) -> bytes:
    data: bytes = model_of(nodes, inputs, outputs, constants, **rest).SerializeToString()
    return data


def linear_regression() -> bytes:
    """x FP32 [n, 3] -> y FP32 [n, 1]: x @ SLOPES + INTERCEPT."""
    return saved(
        [node("Gemm", ["x", "slopes", "intercept"], ["y"])],
        [tensor("x", FLOAT, ["n", 3])],
        [tensor("y", FLOAT, ["n", 1])],
        [constant("slopes", SLOPES), constant("intercept", INTERCEPT)],
    )


def classifier(*, softmax: bool = True, scale: float = 1.0) -> bytes:
    """features FP32 [n, 3] -> probabilities (or logits) FP32 [n, 2]: features @ (CLASS_WEIGHTS * scale)."""
    out = "probabilities" if softmax else "logits"
    nodes = [node("MatMul", ["features", "weights"], ["raw" if softmax else out])]
    if softmax:
        nodes.append(node("Softmax", ["raw"], [out], axis=-1))
    return saved(
        nodes,
        [tensor("features", FLOAT, ["n", 3])],
        [tensor(out, FLOAT, ["n", 2])],
        [constant("weights", CLASS_WEIGHTS * np.float32(scale))],
    )


def half_precision() -> bytes:
    """x FP16 [n, 3] -> y FP16 [n, 3]: x + x."""
    return saved([node("Add", ["x", "x"], ["y"])], [tensor("x", FLOAT16, ["n", 3])], [tensor("y", FLOAT16, ["n", 3])])


def text() -> bytes:
    """words BYTES [n] -> numbers INT64 [n] (one 1, two 2, any other -1) and echo BYTES [n]."""
    encoder = node(
        "LabelEncoder",
        ["words"],
        ["numbers"],
        domain="ai.onnx.ml",
        keys_strings=["one", "two"],
        values_int64s=[1, 2],
        default_int64=-1,
    )
    return saved(
        [encoder, node("Identity", ["words"], ["echo"])],
        [tensor("words", STRING, ["n"])],
        [tensor("numbers", INT64, ["n"]), tensor("echo", STRING, ["n"])],
        domains={"ai.onnx.ml": 3},
    )


def several() -> bytes:
    """left FP32 [n, 2] and right INT64 [n, 2] -> sum FP32 [n, 2] and larger BOOL [n, 2] (left > right)."""
    return saved(
        [
            node("Cast", ["right"], ["as_float"], to=FLOAT),
            node("Add", ["left", "as_float"], ["sum"]),
            node("Greater", ["left", "as_float"], ["larger"]),
        ],
        [tensor("left", FLOAT, ["n", 2]), tensor("right", INT64, ["n", 2])],
        [tensor("sum", FLOAT, ["n", 2]), tensor("larger", TensorProto.BOOL, ["n", 2])],
    )


def dynamic() -> bytes:
    """x FP32 [n, length] -> total FP32 [n, 1]: the sum of each row, of any length."""
    return saved(
        [node("ReduceSum", ["x", "axes"], ["total"])],
        [tensor("x", FLOAT, ["n", "length"])],
        [tensor("total", FLOAT, ["n", 1])],
        [constant("axes", [1], np.int64)],
    )


def identity(kind: int, shape: Sequence[int | str | None] | None = ("n", 2)) -> bytes:
    """x -> y of the TensorProto datatype `kind`, unchanged."""
    return saved([node("Identity", ["x"], ["y"])], [tensor("x", kind, shape)], [tensor("y", kind, shape)])


def lookup() -> bytes:
    """index INT64 [n] -> value FP32 [n]: 0, 10 or 20; any other index is refused by the runtime."""
    return saved(
        [node("Gather", ["table", "index"], ["value"])],
        [tensor("index", INT64, ["n"])],
        [tensor("value", FLOAT, ["n"])],
        [constant("table", [0.0, 10.0, 20.0], np.float32)],
    )


def picture_classifier(*, channels: int = 1, size: int = 8, labels: int = 3, tail: str | None = None) -> bytes:
    """pixels FP32 [n, channels, size, size] -> scores FP32 [n, labels]: label k gets k times the mean, then `tail`."""
    out = "raw" if tail else "scores"
    nodes = [
        node("GlobalAveragePool", ["pixels"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "weights"], [out]),
    ]
    if tail:
        nodes.append(node(tail, ["raw"], ["scores"]))
    weights = np.tile(np.arange(labels, dtype=np.float32), (channels, 1)) / channels
    return saved(
        nodes,
        [tensor("pixels", FLOAT, ["n", channels, size, size])],
        [tensor("scores", FLOAT, ["n", labels])],
        [constant("weights", weights)],
    )


def zipmap_classifier(*, names: Sequence[str] | None = ("no", "yes")) -> bytes:
    """features FP32 [n, 3] -> label and probabilities, as skl2onnx writes a classifier: a sequence of maps at the end.

    With `names` the labels are text, without they are the numbers 0 and 1.
    """
    labels: dict[str, Any] = {"classlabels_strings": list(names)} if names else {"classlabels_ints": [0, 1]}
    keys: dict[str, Any] = {"classlabels_strings": list(names)} if names else {"classlabels_int64s": [0, 1]}
    kind = STRING if names else INT64
    linear = node(
        "LinearClassifier",
        ["features"],
        ["label", "plain"],
        domain="ai.onnx.ml",
        coefficients=[float(value) for value in CLASS_WEIGHTS.T.flat],
        intercepts=[0.0, 0.0],
        post_transform="SOFTMAX",
        multi_class=1,
        **labels,
    )
    maps = helper.make_value_info(
        "probabilities",
        helper.make_sequence_type_proto(helper.make_map_type_proto(kind, helper.make_tensor_type_proto(FLOAT, []))),
    )
    return saved(
        [linear, node("ZipMap", ["plain"], ["probabilities"], domain="ai.onnx.ml", **keys)],
        [tensor("features", FLOAT, ["n", 3])],
        [tensor("label", kind, ["n"]), maps],
        domains={"ai.onnx.ml": 1},
    )


def memory_bomb(elements: int = 10**12) -> bytes:
    """x FP32 [n] -> y FP32: asks for `elements` floats (4 bytes each) at every run."""
    return saved(
        [
            node("Shape", ["x"], ["length"]),
            node("Mul", ["length", "many"], ["shape"]),
            node("ConstantOfShape", ["shape"], ["huge"]),
            node("ReduceSum", ["huge"], ["y"], keepdims=1),
        ],
        [tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, [1])],
        [constant("many", [elements], np.int64)],
    )


def endless_loop() -> bytes:
    """x FP32 [n] -> y FP32 [n]: adds x to itself some 10^18 times."""
    body = helper.make_graph(
        [node("Add", ["state", "state"], ["next"]), node("Identity", ["go"], ["still"])],
        "body",
        [tensor("i", INT64, []), tensor("go", TensorProto.BOOL, []), tensor("state", FLOAT, None)],
        [tensor("still", TensorProto.BOOL, []), tensor("next", FLOAT, None)],
    )
    return saved(
        [node("Loop", ["count", "true", "x"], ["y"], body=body)],
        [tensor("x", FLOAT, ["n"])],
        [tensor("y", FLOAT, ["n"])],
        [constant("count", 10**18, np.int64), constant("true", True, np.bool_)],
    )
