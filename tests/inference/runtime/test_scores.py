"""From outputs to labelled scores: activations, shapes, labels and thresholds."""

from typing import Any

import numpy as np
import pytest

from inference.contracts import Activation, Datatype, Signature, Task, TensorSpec, VersionRoute
from inference.runtime.scores import labelled, scores_of

pytestmark = pytest.mark.unit


def version(
    *,
    task: Task = Task.IMAGE_CLASSIFICATION,
    activation: Activation = Activation.NONE,
    labels: tuple[str, ...] = ("a", "b"),
    thresholds: dict[str, float] | None = None,
    batched: bool = True,
) -> VersionRoute:
    out = TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1, len(labels)))
    return VersionRoute(
        id="v",
        model="m",
        number=1,
        artifact_sha256="0" * 64,
        artifact_bytes=1,
        signature=Signature(inputs=(), outputs=(out,), batched=batched),
        task=task,
        activation=activation,
        labels=labels,
        thresholds=thresholds or {},
    )


def out(values: Any, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {"out": np.array(values, dtype)}


def test_softmax_rows_sum_to_one() -> None:
    scores = scores_of(version(activation=Activation.SOFTMAX), out([[1, 2], [0, 0]]))
    assert scores is not None
    np.testing.assert_allclose(scores, [[0.26894142, 0.73105858], [0.5, 0.5]])
    assert scores.dtype == np.float64


@pytest.mark.parametrize("activation", [Activation.SOFTMAX, Activation.SIGMOID])
def test_extreme_logits_do_not_overflow(activation: Activation) -> None:
    scores = scores_of(version(activation=activation), out([[1e30, -1e30], [-1e4, 1e4]]))
    assert scores is not None
    np.testing.assert_array_equal(scores, [[1, 0], [0, 1]])


def test_sigmoid_is_taken_of_each_label() -> None:
    scores = scores_of(version(activation=Activation.SIGMOID), out([[0, np.log(3)]]))
    assert scores is not None
    np.testing.assert_allclose(scores, [[0.5, 0.75]], rtol=1e-6)


def test_half_precision_is_computed_in_double() -> None:
    scores = scores_of(version(activation=Activation.SOFTMAX), out([[20, 0]], np.float16))
    assert scores is not None
    assert 0 < scores[0, 1] < 1e-8


def test_one_score_under_two_labels_is_the_second_ones() -> None:
    assert labelled(version(), out([[0.75]])) == [{"scores": {"a": 0.25, "b": 0.75}, "label": "b"}]


def test_shapes_of_other_ranks_become_rows_of_scores() -> None:
    many = scores_of(version(), out([[[[1.0]], [[2.0]]]]))
    flat = scores_of(version(batched=False), out([1.0, 2.0]))
    column = scores_of(version(labels=("a",)), out([1.0, 2.0, 3.0]))
    assert many is not None and flat is not None and column is not None
    assert many.tolist() == flat.tolist() == [[1, 2]]
    assert column.shape == (3, 1)


def test_a_tensor_task_a_missing_output_and_text_have_no_scores() -> None:
    assert scores_of(version(task=Task.TENSOR), out([[1, 2]])) is None
    assert scores_of(version(), {"other": np.ones((1, 2))}) is None
    assert scores_of(version(), {"out": np.array([["x", "y"]], dtype=object)}) is None
    assert labelled(version(), {}) == []


def test_one_label_is_named_by_the_highest_score() -> None:
    answer = labelled(version(), out([[0.4, 0.6], [0.9, 0.1]]))
    assert [row["label"] for row in answer] == ["b", "a"]


def test_a_label_that_reaches_its_own_threshold_goes_before_a_higher_score() -> None:
    fraud = version(labels=("fine", "fraud"), thresholds={"fraud": 0.3})
    assert [row["label"] for row in labelled(fraud, out([[0.6, 0.4], [0.8, 0.2]]))] == ["fraud", "fine"]


def test_no_label_is_named_when_all_are_below_their_thresholds() -> None:
    strict = version(thresholds={"a": 0.9, "b": 0.9})
    assert labelled(strict, out([[0.5, 0.5]]))[0]["label"] is None


def test_many_labels_are_named_where_above_threshold() -> None:
    chest = version(task=Task.IMAGE_MULTILABEL, labels=("a", "b", "c"), thresholds={"a": 0.95})
    first, second = labelled(chest, out([[0.9, 0.6, 0.75], [0.1, 0.2, 0.3]]))
    assert (first["label"], first["labels"]) == ("c", ["c", "b"])
    assert (second["label"], second["labels"]) == (None, [])


def test_labels_without_names_are_numbered() -> None:
    unnamed = version(labels=())
    assert labelled(unnamed, out([[0.25, 0.75]])) == [{"scores": {"0": 0.25, "1": 0.75}, "label": "1"}]


def test_a_row_of_nan_names_no_label() -> None:
    assert labelled(version(), out([[np.nan, np.nan]]))[0]["label"] is None
