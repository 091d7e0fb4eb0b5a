"""Cut the tail that scikit-learn's converter puts behind a classifier.

skl2onnx ends a classifier with ZipMap, which turns the scores [rows, labels] into a sequence of maps; those cannot be
served as tensors and are slow to make. The scores themselves go out under the same name instead.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper


@dataclass(frozen=True, slots=True)
class ZipMapCut:
    """What was cut: the outputs that are plain now, and the labels that the first of them had as keys."""

    outputs: tuple[str, ...]
    labels: tuple[str, ...]


def cut_zipmap(model: onnx.ModelProto) -> ZipMapCut | None:
    """Change `model` in place where a graph output comes from ZipMap; None where none does."""
    graph = model.graph
    makers = {node.output[0]: node for node in graph.node if node.op_type == "ZipMap" and node.output and node.input}
    cut: list[str] = []
    labels: tuple[str, ...] = ()
    for value in graph.output:
        node = makers.get(value.name)
        if node is None:
            continue
        keys = _keys(node)
        labels = labels or keys
        # An Identity keeps the name that callers know, also where the scores are an output of their own.
        plain = helper.make_node("Identity", [node.input[0]], [value.name], name=node.name)
        node.CopyFrom(plain)
        shape = [_rows(graph), len(keys) or None]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
        cut.append(value.name)
    return ZipMapCut(tuple(cut), labels) if cut else None


def _keys(node: onnx.NodeProto) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_strings" and attribute.strings:
            return tuple(label.decode("utf-8", "replace") for label in attribute.strings)
        if attribute.name == "classlabels_int64s" and attribute.ints:
            return tuple(str(label) for label in attribute.ints)
    return ()


def _rows(graph: onnx.GraphProto) -> str | int | None:
    """The first dimension of the first input, which the scores share."""
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims:
            return dims[0].dim_param or (dims[0].dim_value if dims[0].HasField("dim_value") else None)
    return None
