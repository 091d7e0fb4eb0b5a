"""What a model's answer means: which output holds the scores, whether they are scores already, and which task it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from inference.contracts import Activation, Datatype, Signature, Task, TensorSpec
from inference.errors import InferenceError
from inference.runtime.preprocess import Pipeline

_FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
_PIXELS = (*_FLOATS, Datatype.UINT8)

# Nodes that hand scores on: they change form, type or order, not what a value means.
_TRANSPARENT = frozenset(
    {
        *("Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Reshape"),
        *("Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split", "Clip", "Normalizer", "Dropout"),
    }
)
_CLASSIFIERS = frozenset({"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"})
_LINKS = {"Softmax": Activation.SOFTMAX, "Sigmoid": Activation.SIGMOID, "HardSigmoid": Activation.SIGMOID}
_MOST_STEPS = 64


@dataclass(frozen=True, slots=True)
class Tail:
    """What an output comes from. `applied`: the activation that the graph has applied itself.

    `classifier`: it comes from a classifier operator of ai.onnx.ml, whose scores are final unless it applies none.
    """

    applied: Activation = Activation.NONE
    classifier: bool = False
    # What a classifier operator calls its scores.
    labels: tuple[str, ...] = ()


def tail_of(model: onnx.ModelProto, output: str) -> Tail:
    """Walk from `output` back through nodes that change no meaning; at most 64 steps, into local functions too.

    A Concat is looked through, and 1 - p beside p in one, as converters write for two classes.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    stack = [(model.graph.node, output, False)]
    seen: set[tuple[int, str]] = set()
    makers: dict[int, dict[str, onnx.NodeProto]] = {}
    while stack and len(seen) < _MOST_STEPS:
        nodes, name, joined = stack.pop()
        if (id(nodes), name) in seen:
            continue
        seen.add((id(nodes), name))
        made_by = makers.setdefault(id(nodes), {made: node for node in nodes for made in node.output})
        node = made_by.get(name)
        if node is None:
            continue
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            position = list(node.output).index(name)
            stack.append((function.node, function.output[position], joined))
        elif node.op_type in _LINKS:
            return Tail(_LINKS[node.op_type])
        elif node.op_type in _CLASSIFIERS and node.domain == "ai.onnx.ml":
            return _classifier_tail(node)
        elif node.op_type == "Concat" or (node.op_type == "Sub" and joined):
            stack.extend((nodes, given, True) for given in node.input)
        elif node.op_type in _TRANSPARENT and node.input:
            stack.append((nodes, node.input[0], joined))
    return Tail()


def _classifier_tail(node: onnx.NodeProto) -> Tail:
    """A forest's votes and a logistic link are scores; a linear or SVM classifier without a link gives margins."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    link = attributes["post_transform"].s if "post_transform" in attributes else b"NONE"
    labels: tuple[str, ...] = ()
    for name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
        if name in attributes and not labels:
            texts = [text.decode("utf-8", "replace") for text in attributes[name].strings]
            labels = tuple(texts or map(str, attributes[name].ints))
    applied = {b"SOFTMAX": Activation.SOFTMAX, b"SOFTMAX_ZERO": Activation.SOFTMAX, b"LOGISTIC": Activation.SIGMOID}
    if link in applied:
        return Tail(applied[link], classifier=True, labels=labels)
    has_probabilities = "prob_a" in attributes and bool(attributes["prob_a"].floats)
    if node.op_type == "TreeEnsembleClassifier" or has_probabilities:
        return Tail(Activation.SOFTMAX, classifier=True, labels=labels)
    return Tail(classifier=True, labels=labels)


def score_output(signature: Signature, tails: Sequence[Tail], zipmap: Sequence[str], labels: int) -> int:
    """Index of the output that labels and activation speak of: ZipMap's, one with a link, one as wide as the labels,
    one named for scores, else the first of floats, else the first."""
    outputs = list(enumerate(signature.outputs))
    floats = [(index, spec) for index, spec in outputs if spec.datatype in _FLOATS]
    for wanted in (
        [index for index, spec in floats if spec.name in zipmap],
        [index for index, _ in floats if tails[index].applied is not Activation.NONE],
        [index for index, _ in floats if tails[index].classifier],
        [index for index, spec in floats if labels and width_of(spec) == labels],
        [index for index, spec in floats if any(word in spec.name.lower() for word in ("prob", "score", "logit"))],
        [index for index, _ in floats],
    ):
        if wanted:
            return wanted[0]
    return 0


def width_of(spec: TensorSpec) -> int | None:
    """How many scores a row has; None where the file does not say, or the output is no list of scores."""
    if len(spec.shape) < 2:
        return 1 if len(spec.shape) == 1 and spec.shape[0] == -1 else (spec.shape[0] if spec.shape else None)
    if any(size != 1 for size in spec.shape[2:]):
        return None
    return spec.shape[1] if spec.shape[1] > 0 else None


def infer_task(signature: Signature, tail: Tail, *, score: int, labels: int, preprocessor: bool) -> Task:
    """The task that the shapes and the last operator speak for; `tensor` where they say nothing."""
    output = signature.outputs[score]
    plain = len(output.shape) <= 2 or all(size == 1 for size in output.shape[2:])
    if output.datatype not in _FLOATS or not plain:
        return Task.TENSOR
    if preprocessor or any(is_picture(spec) for spec in signature.inputs):
        return Task.IMAGE_MULTILABEL if tail.applied is Activation.SIGMOID else Task.IMAGE_CLASSIFICATION
    tabular = all(len(spec.shape) <= 2 for spec in signature.inputs)
    if not tabular:
        return Task.TENSOR
    if tail.applied is not Activation.NONE or tail.classifier or labels > 1:
        return Task.TABULAR_CLASSIFICATION
    numeric = any(spec.datatype in _FLOATS for spec in signature.inputs)
    return Task.TABULAR_REGRESSION if width_of(output) == 1 and numeric else Task.TENSOR


def is_picture(spec: TensorSpec) -> bool:
    """[n, channels, height, width] or [n, height, width, channels] with 1 or 3 channels."""
    return len(spec.shape) == 4 and spec.datatype in _PIXELS and (spec.shape[1] in (1, 3) or spec.shape[3] in (1, 3))


def default_activation(task: Task, tail: Tail, width: int | None) -> Activation:
    """What is still to be applied: nothing where the graph applied it, else what the task asks for."""
    if tail.applied is not Activation.NONE:
        return Activation.NONE
    if task is Task.IMAGE_MULTILABEL:
        return Activation.SIGMOID
    if task in (Task.IMAGE_CLASSIFICATION, Task.TABULAR_CLASSIFICATION):
        return Activation.SIGMOID if width == 1 else Activation.SOFTMAX
    return Activation.NONE


def check_task(task: Task, output: TensorSpec) -> None:
    """Raise InferenceError validation_error where the score output cannot mean what a given task says."""
    if task is Task.TENSOR:
        return
    if task is Task.TABULAR_REGRESSION:
        if output.datatype in (Datatype.BYTES, Datatype.BOOL):
            raise InferenceError("validation_error", f"A {task} needs an output of numbers, not {output.datatype}.")
        return
    if output.datatype not in _FLOATS:
        raise InferenceError(
            "validation_error",
            f"The task {task} needs an output of scores in floating point; {output.name} is {output.datatype}.",
        )
    if len(output.shape) > 2 and any(size > 1 for size in output.shape[2:]):
        raise InferenceError(
            "validation_error",
            f"The task {task} needs an output of [n, labels]; {output.name} has the shape {list(output.shape)}.",
        )


def check_labels(labels: Sequence[str], task: Task, width: int | None, carried: Sequence[str]) -> None:
    """Raise InferenceError bad_labels where they do not fit: `width` scores, `carried` the file's own labels."""
    if not labels:
        return
    doubled = [label for index, label in enumerate(labels) if label in labels[:index]]
    if doubled:
        raise _bad_labels(f"The label {doubled[0]!r} is there twice.")
    if any(not label.strip() or not label.isprintable() for label in labels):
        raise _bad_labels("A label is empty or has control characters.")
    if task is Task.TABULAR_REGRESSION:
        raise _bad_labels("A regression has no labels.")
    if carried and sorted(carried) == sorted(labels) and tuple(carried) != tuple(labels):
        raise _bad_labels(f"The model gives its scores in the order {', '.join(carried)}.")
    if width is None or task is Task.TENSOR:
        return
    # One score with two labels is the second one's.
    if len(labels) != width and (width, len(labels)) != (1, 2):
        scores, given = _count(width, "score"), _count(len(labels), "label")
        raise _bad_labels(f"The model gives {scores}, but there {'is' if len(labels) == 1 else 'are'} {given}.")


def check_columns(columns: Sequence[str], task: Task, signature: Signature) -> None:
    """Raise InferenceError bad_columns where the names do not fit the inputs: one rank-2 input, or one input each."""
    if not columns:
        return
    doubled = [name for index, name in enumerate(columns) if name in columns[:index]]
    if doubled:
        raise _bad_columns(f"The column {doubled[0]!r} is there twice.")
    if any(not name.strip() for name in columns):
        raise _bad_columns("A column has an empty name.")
    if task.takes_pictures:
        raise _bad_columns("A model of pictures has no columns.")
    if len(signature.inputs) == 1:
        shape = signature.inputs[0].shape
        if len(shape) != 2:
            raise _bad_columns(f"Columns need an input of rows and columns; this one has the shape {list(shape)}.")
        if shape[1] not in (-1, len(columns)):
            raise _bad_columns(f"The model takes {_count(shape[1], 'column')}, {len(columns)} were named.")
        return
    names = [spec.name for spec in signature.inputs]
    if sorted(names) != sorted(columns):
        raise _bad_columns(f"The model's inputs are {', '.join(names[:20])}.")
    if names != list(columns):
        raise _bad_columns(f"The model takes its inputs in the order {', '.join(names[:20])}.")


def check_preprocessor(config: dict[str, Any] | None, task: Task, signature: Signature) -> str:
    """What the pipeline gives the model; raises InferenceError bad_preprocessor where the model can't take that."""
    if config is None:
        return ""
    shape = Pipeline.from_config(config).shape
    if not task.takes_pictures:
        raise InferenceError("bad_preprocessor", f"A preprocessor needs a task of pictures, not {task}.")
    spec = next((spec for spec in signature.inputs if len(spec.shape) == 4), None)
    if spec is None or len(signature.inputs) > 1:
        raise InferenceError("bad_preprocessor", "The model has not one input of [n, channels, height, width].")
    if spec.datatype is not Datatype.FP32:
        raise InferenceError("bad_preprocessor", f"The pipeline gives FP32, the model takes {spec.datatype}.")
    if shape is None:
        return "pictures keep their own size"
    if any(want not in (-1, got) for want, got in zip(spec.shape[1:], shape, strict=True)):
        raise InferenceError(
            "bad_preprocessor",
            f"The pipeline gives {list(shape)} for a picture, the model takes {list(spec.shape[1:])}.",
        )
    return f"{list(shape)} for a picture"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _bad_labels(sentence: str) -> InferenceError:
    return InferenceError("bad_labels", sentence)


def _bad_columns(sentence: str) -> InferenceError:
    return InferenceError("bad_columns", sentence)
