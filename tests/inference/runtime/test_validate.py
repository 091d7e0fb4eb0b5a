"""What validation finds out about a good model, and which descriptions it refuses: table B, rows 31, 34 and 36."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from inference.contracts import Activation, Task, ValidationReport, ValidationRequest
from inference.runtime.onnx import load_model
from inference.runtime.validate import validate
from tests.inference import toys
from tests.inference.toys import FLOAT, INT64, constant, node, tensor

pytestmark = pytest.mark.unit

PREPROCESSOR = {"do_grayscale": True, "do_resize": True, "size": {"height": 8, "width": 8}, "do_rescale": True}


def report_on(tmp_path: Path, data: bytes, **described: Any) -> ValidationReport:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return validate(ValidationRequest(model_path=str(path), rewritten_path=str(tmp_path / "rewritten"), **described))


def test_a_good_model_is_described(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.linear_regression())
    assert report.ok and report.code == "" and report.warnings == ()
    assert report.task is Task.TABULAR_REGRESSION and report.activation is Activation.NONE
    assert report.operators == {"Gemm": 1}
    assert report.parameters == 4
    assert report.opset == {"ai.onnx": toys.OPSET} and report.ir_version == toys.IR_VERSION
    assert report.producer == "toys"
    assert report.model_bytes == len(toys.linear_regression())
    assert report.latency_ms is not None and 0 < report.latency_ms < 1000
    assert report.memory_bytes is not None and report.memory_bytes >= 0
    assert report.signature is not None and report.signature.batched
    assert report.runtime.startswith("onnxruntime ")
    assert [check.name for check in report.checks] == [
        *("file", "graph", "types", "load", "meaning", "labels", "columns", "preprocessor"),
        *("sample", "outputs", "batching", "latency"),
    ]


@pytest.mark.parametrize(
    ("data", "task", "activation"),
    [
        (toys.classifier(), Task.TABULAR_CLASSIFICATION, Activation.NONE),
        (toys.classifier(softmax=False), Task.TENSOR, Activation.NONE),
        (toys.linear_regression(), Task.TABULAR_REGRESSION, Activation.NONE),
        (toys.picture_classifier(), Task.IMAGE_CLASSIFICATION, Activation.SOFTMAX),
        (toys.picture_classifier(tail="Softmax"), Task.IMAGE_CLASSIFICATION, Activation.NONE),
        (toys.picture_classifier(tail="Sigmoid"), Task.IMAGE_MULTILABEL, Activation.NONE),
        (toys.zipmap_classifier(), Task.TABULAR_CLASSIFICATION, Activation.NONE),
        (toys.several(), Task.TENSOR, Activation.NONE),
        (toys.text(), Task.TENSOR, Activation.NONE),
        (toys.identity(TensorProto.FLOAT, ["n", 3, "h", "w"]), Task.TENSOR, Activation.NONE),
    ],
)
def test_task_and_activation_are_inferred(tmp_path: Path, data: bytes, task: Task, activation: Activation) -> None:
    report = report_on(tmp_path, data)
    assert report.ok, report.reason
    assert (report.task, report.activation) == (task, activation)


@pytest.mark.parametrize(
    ("data", "task", "activation"),
    [
        (toys.classifier(softmax=False), Task.TABULAR_CLASSIFICATION, Activation.SOFTMAX),
        (toys.linear_regression(), Task.TABULAR_CLASSIFICATION, Activation.SIGMOID),
        (toys.picture_classifier(), Task.IMAGE_MULTILABEL, Activation.SIGMOID),
        (toys.picture_classifier(tail="Sigmoid"), Task.IMAGE_CLASSIFICATION, Activation.NONE),
        (toys.classifier(softmax=False), Task.RANKING, Activation.NONE),
    ],
)
def test_a_given_task_decides_what_is_still_to_apply(
    tmp_path: Path, data: bytes, task: Task, activation: Activation
) -> None:
    report = report_on(tmp_path, data, task=task)
    assert (report.ok, report.task, report.activation) == (True, task, activation)


@pytest.mark.parametrize(
    ("data", "task"),
    [
        (toys.identity(TensorProto.INT64), Task.TABULAR_CLASSIFICATION),
        (toys.identity(TensorProto.STRING), Task.TABULAR_REGRESSION),
        (toys.identity(TensorProto.FLOAT, ["n", 3, 8, 8]), Task.IMAGE_MULTILABEL),
    ],
)
def test_a_task_that_the_output_cannot_mean_is_refused(tmp_path: Path, data: bytes, task: Task) -> None:
    report = report_on(tmp_path, data, task=task)
    assert (report.ok, report.code) == (False, "validation_error")


def _softmax_behind(*names: str) -> bytes:
    """x -> Softmax -> the named nodes -> y."""
    extra: dict[str, list[str]] = {
        "QuantizeLinear": ["scale", "zero"],
        "DequantizeLinear": ["scale", "zero"],
        "Reshape": ["shape"],
    }
    attributes: dict[str, dict[str, int]] = {"Cast": {"to": FLOAT}}
    nodes, last = [node("Softmax", ["x"], ["s"], axis=-1)], "s"
    for index, name in enumerate(names):
        out = "y" if index == len(names) - 1 else f"t{index}"
        nodes.append(node(name, [last, *extra.get(name, [])], [out], **attributes.get(name, {})))
        last = out
    constants = [
        constant("scale", 0.00390625, np.float32),
        constant("zero", 0, np.uint8),
        constant("shape", [-1, 2], np.int64),
    ]
    return toys.saved(nodes, [tensor("x", FLOAT, ["n", 2])], [tensor("y", FLOAT, ["n", 2])], constants)


@pytest.mark.parametrize(
    "names",
    [("QuantizeLinear", "DequantizeLinear"), ("Cast", "Identity"), ("Reshape",), ("Identity", "Cast", "Reshape")],
)
def test_a_softmax_is_found_behind_nodes_that_hand_it_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    report = report_on(tmp_path, _softmax_behind(*names))
    assert report.ok, report.reason
    assert (report.task, report.activation) == (Task.TABULAR_CLASSIFICATION, Activation.NONE)
    assert any("comes from softmax" in check.detail for check in report.checks)


def test_a_softmax_inside_the_graph_is_not_the_activation(tmp_path: Path) -> None:
    data = toys.saved(
        [node("Softmax", ["x"], ["s"], axis=-1), node("MatMul", ["s", "w"], ["y"])],
        [tensor("x", FLOAT, ["n", 2])],
        [tensor("y", FLOAT, ["n", 2])],
        [constant("w", np.eye(2), np.float32)],
    )
    assert report_on(tmp_path, data, task=Task.TABULAR_CLASSIFICATION).activation is Activation.SOFTMAX


def test_a_sigmoid_joined_with_its_complement_is_scores(tmp_path: Path) -> None:
    data = toys.saved(
        [
            node("Sigmoid", ["x"], ["p"]),
            node("Sub", ["one", "p"], ["q"]),
            node("Concat", ["q", "p"], ["y"], axis=1),
        ],
        [tensor("x", FLOAT, ["n", 1])],
        [tensor("y", FLOAT, ["n", 2])],
        [constant("one", 1.0, np.float32)],
    )
    report = report_on(tmp_path, data)
    assert (report.task, report.activation) == (Task.TABULAR_CLASSIFICATION, Activation.NONE)


def test_a_second_activation_is_warned_of(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.classifier(), activation=Activation.SOFTMAX)
    assert report.ok and report.activation is Activation.SOFTMAX
    assert any("a second one" in warning for warning in report.warnings)


@pytest.mark.parametrize(("names", "labels"), [(("no", "yes"), ("no", "yes")), (None, ("0", "1"))])
def test_a_zipmap_tail_is_cut_and_its_keys_are_the_labels(
    tmp_path: Path, names: tuple[str, ...] | None, labels: tuple[str, ...]
) -> None:
    report = report_on(tmp_path, toys.zipmap_classifier(names=names))
    assert report.ok and report.zipmap_cut and report.labels == labels
    assert report.signature is not None and report.signature.score_output == 1
    assert [spec.name for spec in report.signature.outputs] == ["label", "probabilities"]
    assert report.signature.outputs[1].shape == (-1, 2)
    cut = load_model((tmp_path / "rewritten").read_bytes())
    x = np.array([[1, 2, 3], [-1, 0, 1]], np.float32)
    logits = x @ toys.CLASS_WEIGHTS
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cut.run({"features": x})["probabilities"], expected, rtol=1e-5)


def test_nothing_is_rewritten_where_there_is_no_zipmap(tmp_path: Path) -> None:
    assert not report_on(tmp_path, toys.classifier()).zipmap_cut
    assert not (tmp_path / "rewritten").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LogisticRegression", "RandomForestClassifier", "GradientBoostingClassifier"])
def test_scikit_learn_classifiers_as_skl2onnx_writes_them(tmp_path: Path, kind: str) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    module = "sklearn.linear_model" if kind == "LogisticRegression" else "sklearn.ensemble"
    options = {} if kind == "LogisticRegression" else {"n_estimators": 3, "random_state": 0}
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype(np.float32)
    y = np.where(x[:, 0] + x[:, 1] > 0, "fraud", "fine")
    fitted = getattr(importlib.import_module(module), kind)(**options).fit(x, y)
    data = skl2onnx.to_onnx(fitted, x[:1], target_opset=17).SerializeToString()

    report = report_on(tmp_path, data, columns=("a", "b", "c", "d"))

    assert report.ok, report.reason
    assert report.zipmap_cut and report.labels == ("fine", "fraud")
    assert (report.task, report.activation) == (Task.TABULAR_CLASSIFICATION, Activation.NONE)
    assert report.signature is not None and report.signature.batched
    scores = report.signature.outputs[report.signature.score_output].name
    cut = load_model((tmp_path / "rewritten").read_bytes())
    got = cut.run({report.signature.inputs[0].name: x})[scores]
    np.testing.assert_allclose(got, fitted.predict_proba(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("a", "b", "c"), "2 scores, but there are 3 labels"),
        (("a",), "2 scores, but there is 1 label"),
        (("a", "a"), "twice"),
        (("a", " "), "empty"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: tuple[str, ...], said: str) -> None:
    report = report_on(tmp_path, toys.classifier(), labels=labels)
    assert (report.ok, report.code) == (False, "bad_labels")
    assert said in report.reason


def test_labels_in_another_order_than_the_files_own_are_refused(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.zipmap_classifier(), labels=("yes", "no"))
    assert report.code == "bad_labels" and "no, yes" in report.reason
    assert report_on(tmp_path, toys.zipmap_classifier(), labels=("fine", "fraud")).labels == ("fine", "fraud")


def test_two_labels_fit_one_score(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.linear_regression(), labels=("no", "yes"))
    assert report.ok and report.task is Task.TABULAR_CLASSIFICATION and report.activation is Activation.SIGMOID


def test_a_width_that_the_file_hides_is_learnt_from_the_run(tmp_path: Path) -> None:
    data = toys.saved(
        [node("MatMul", ["x", "w"], ["m"]), node("Reshape", ["m", "shape"], ["s"]), node("Softmax", ["s"], ["y"])],
        [tensor("x", FLOAT, ["n", 3]), tensor("shape", INT64, [2])],
        [tensor("y", FLOAT, ["n", "k"])],
        [constant("w", np.ones((3, 4)), np.float32)],
    )
    path = tmp_path / "inputs.npz"
    feed = {"x": np.ones((1, 3), np.float32), "shape": np.array([1, 4])}
    np.savez(path, **feed, **load_model(data).run(feed))
    report = report_on(tmp_path, data, labels=("a", "b"), golden_path=str(path))
    assert (report.code, report.ok) == ("bad_labels", False)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("a", "b"), "takes 3 columns, 2 were named"),
        (("a", "b", "b"), "twice"),
        (("a", "b", ""), "empty name"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: tuple[str, ...], said: str) -> None:
    report = report_on(tmp_path, toys.linear_regression(), columns=columns)
    assert (report.ok, report.code) == (False, "bad_columns")
    assert said in report.reason


def test_columns_of_several_inputs_are_their_names_in_order(tmp_path: Path) -> None:
    data = toys.several()
    assert report_on(tmp_path, data, columns=("left", "right")).ok
    assert "in the order left, right" in report_on(tmp_path, data, columns=("right", "left")).reason
    assert report_on(tmp_path, data, columns=("left", "wrong")).code == "bad_columns"


def test_pictures_have_no_columns(tmp_path: Path) -> None:
    assert report_on(tmp_path, toys.picture_classifier(), columns=("a",)).code == "bad_columns"


def test_a_preprocessor_that_fits_is_accepted(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.picture_classifier(), preprocessor=PREPROCESSOR, labels=("a", "b", "c"))
    assert report.ok and report.warnings == ()


@pytest.mark.parametrize(
    ("data", "change", "said"),
    [
        (toys.picture_classifier(), {"size": {"height": 9, "width": 8}}, "[1, 9, 8]"),
        (toys.picture_classifier(channels=3), {}, "[1, 8, 8]"),
        (toys.picture_classifier(), {"size": "large"}, "size"),
        (toys.linear_regression(), {}, "[n, channels, height, width]"),
    ],
)
def test_a_preprocessor_that_does_not_fit_is_refused(
    tmp_path: Path, data: bytes, change: dict[str, Any], said: str
) -> None:
    report = report_on(tmp_path, data, preprocessor={**PREPROCESSOR, **change})
    assert (report.ok, report.code) == (False, "bad_preprocessor")
    assert said in report.reason


def test_a_model_that_fails_on_every_sample_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = toys.saved(
        [node("Gather", ["table", "index"], ["y"])],
        [tensor("index", INT64, ["n"])],
        [tensor("y", FLOAT, ["n"])],
        [constant("table", np.zeros(0), np.float32)],
    )
    report = report_on(tmp_path, data)
    assert (report.ok, report.code) == (False, "sample_failed")
    assert "Gather node: indices element out of data bounds" in report.reason
    assert "/" not in report.reason and "onnxruntime" not in report.reason.lower()


def test_rows_that_influence_each_other_are_not_batched(tmp_path: Path) -> None:
    data = toys.saved(
        [node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1), node("Sub", ["x", "mean"], ["y"])],
        [tensor("x", FLOAT, ["n", 3])],
        [tensor("y", FLOAT, ["n", 3])],
    )
    report = report_on(tmp_path, data)
    assert report.ok and report.signature is not None
    assert not report.signature.batched
    assert any("influence each other" in warning for warning in report.warnings)


def test_a_free_size_is_found_that_the_model_takes(tmp_path: Path) -> None:
    """A convolution without padding needs pictures of at least its kernel."""
    data = toys.saved(
        [node("Conv", ["x", "w"], ["y"])],
        [tensor("x", FLOAT, ["n", 1, "h", "w"])],
        [tensor("y", FLOAT, ["n", 1, None, None])],
        [constant("w", np.ones((1, 1, 5, 5)), np.float32)],
    )
    report = report_on(tmp_path, data)
    assert report.ok, report.reason


def test_an_answer_that_is_not_finite_is_warned_of(tmp_path: Path) -> None:
    data = toys.saved(
        [node("Div", ["x", "zero"], ["y"])],
        [tensor("x", FLOAT, ["n", 2])],
        [tensor("y", FLOAT, ["n", 2])],
        [constant("zero", 0.0, np.float32)],
    )
    report = report_on(tmp_path, data)
    assert report.ok and any("NaN or an infinity" in warning for warning in report.warnings)
