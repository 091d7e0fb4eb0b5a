"""The models of the benchmarks, each written as ONNX by this file alone: made at the first run, kept for the next.

- `trees`: a binary classifier of 100 boosted trees of depth 6 on 30 features (ai.onnx.ml's TreeEnsembleClassifier, what
  scikit-learn's and XGBoost's exports hold); label and two probabilities out.
- `net`: a network of two small hidden layers on 5 features; three probabilities out.
- `image`: a convolutional classifier of grey pictures of 32 x 32 pixels; three probabilities out.
- `heavy`: a network of ResNet's kind on 224 x 224 pixels; for the measure of neighbours alone.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.convnet import SMALL, network

Floats = npt.NDArray[np.float32]
# Part of the kept files' names: count up where a model below changes.
_EDITION = 1
_IR_VERSION = 9
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
TREES, DEPTH, FEATURES = 100, 6, 30
_RATE = 0.1


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be served: its one input FP32 [n, *shape], and its outputs' names in order."""

    name: str
    what: str
    input: str
    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    make: Callable[[int], bytes]

    def file(self, number: int = 1) -> Path:
        """The ONNX file of version `number`, each with its own weights."""
        path = Path(tempfile.gettempdir()) / f"signalbox-bench-{_EDITION}-{self.name}-{number}.onnx"
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_bytes(self.make(number))
            draft.replace(path)
        return path

    def rows(self, count: int) -> Floats:
        """Rows as a caller would send them: numbers of a few digits, the same at every call."""
        values = np.random.default_rng(7).normal(size=(count, *self.shape))
        return np.round(values, 3).astype(np.float32)


def boosted_trees(number: int) -> bytes:
    """Gradient boosting of the log-loss (Friedman 2001) whose splits are drawn (Geurts et al. 2006): complete trees."""
    rng = np.random.default_rng(number)
    rows = rng.normal(size=(4_000, FEATURES)).astype(np.float32)
    labels = rows[:, :5].sum(axis=1) + rng.normal(size=len(rows)) > 0
    score = np.zeros(len(rows))
    inner, leaves = 2**DEPTH - 1, 2**DEPTH
    features = rng.integers(0, FEATURES, (TREES, inner))
    thresholds = rng.normal(0, 0.8, (TREES, inner)).astype(np.float32)
    weights = np.zeros((TREES, leaves), np.float32)
    for tree in range(TREES):
        at = np.zeros(len(rows), np.int64)
        for _ in range(DEPTH):
            right = rows[np.arange(len(rows)), features[tree, at]] > thresholds[tree, at]
            at = 2 * at + 1 + right
        missed = labels - 1 / (1 + np.exp(-score))
        counts = np.bincount(at - inner, minlength=leaves)
        # A Newton step has about four times the mean residual; unseen leaves say nothing.
        weights[tree] = _RATE * 4 * np.bincount(at - inner, missed, leaves) / np.maximum(counts, 1)
        score += weights[tree][at - inner]
    return _tree_ensemble(features, thresholds, weights)


def _tree_ensemble(features: npt.NDArray[np.int64], thresholds: Floats, weights: Floats) -> bytes:
    """Complete trees in heap order: the children of node k are 2k + 1 (feature <= threshold) and 2k + 2."""
    trees, inner = features.shape
    nodes = inner + weights.shape[1]
    ids = np.tile(np.arange(nodes), trees)
    is_inner = ids < inner
    padding = np.zeros((trees, weights.shape[1]))
    ensemble = helper.make_node(
        "TreeEnsembleClassifier",
        ["features"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        nodes_treeids=np.repeat(np.arange(trees), nodes).tolist(),
        nodes_nodeids=ids.tolist(),
        nodes_featureids=np.hstack([features, padding.astype(np.int64)]).ravel().tolist(),
        nodes_values=np.hstack([thresholds, padding.astype(np.float32)]).ravel().tolist(),
        nodes_modes=["BRANCH_LEQ" if one else "LEAF" for one in is_inner],
        nodes_truenodeids=np.where(is_inner, 2 * ids + 1, 0).tolist(),
        nodes_falsenodeids=np.where(is_inner, 2 * ids + 2, 0).tolist(),
        nodes_missing_value_tracks_true=[0] * len(ids),
        class_treeids=np.repeat(np.arange(trees), nodes - inner).tolist(),
        class_nodeids=np.tile(np.arange(inner, nodes), trees).tolist(),
        class_ids=[0] * weights.size,
        class_weights=weights.ravel().tolist(),
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
    ]
    return _saved([ensemble], "features", (FEATURES,), outputs)


def small_net(number: int) -> bytes:
    """5 -> 16 -> 16 -> 3, with drawn weights."""
    rng = np.random.default_rng(number)
    nodes, weights, last = [], [], "features"
    for index, (before, after) in enumerate(((5, 16), (16, 16), (16, 3))):
        name = f"w{index}"
        values = rng.normal(0, (2 / before) ** 0.5, (before, after)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node("MatMul", [last, name], [f"sum{index}"]))
        last = f"out{index}" if index < 2 else "probabilities"
        nodes.append(helper.make_node("Relu" if index < 2 else "Softmax", [f"sum{index}"], [last]))
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])]
    return _saved(nodes, "features", (5,), outputs, weights)


def _saved(
    nodes: Sequence[onnx.NodeProto],
    name: str,
    shape: tuple[int, ...],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[Any] = (),
) -> bytes:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])]
    graph = helper.make_graph(list(nodes), "bench", inputs, list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _image(number: int) -> bytes:
    return network(side=32, stages=SMALL, labels=3, seed=number, output="probabilities", softmax=True)


def _heavy(number: int) -> bytes:
    return network(stages=((64, 2), (128, 2), (256, 2), (512, 2)), seed=number)


MODELS = {
    model.name: model
    for model in (
        Model(
            "trees",
            f"{TREES} boosted trees of depth {DEPTH} on {FEATURES} features",
            "features",
            (FEATURES,),
            ("label", "probabilities"),
            boosted_trees,
        ),
        Model("net", "a small network on 5 features", "features", (5,), ("probabilities",), small_net),
        Model("image", "a classifier of 32 x 32 pictures", "picture", (1, 32, 32), ("probabilities",), _image),
        Model("heavy", "a network on 224 x 224 pictures", "picture", (1, 224, 224), ("logits",), _heavy),
    )
}
