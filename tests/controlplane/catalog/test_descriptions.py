"""What an uploader says of a version is read strictly."""

import json
from typing import Any

import pytest

from controlplane.catalog.descriptions import Description, check_model_name, describe
from controlplane.errors import DomainError
from inference.contracts import Activation, Column, Task

pytestmark = pytest.mark.unit

IMAGE = {"do_resize": True, "size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
RECORD = {"threshold": 0.5, "sensitivity": 0.9, "specificity": 0.8, "positives": 390, "negatives": 234}


def refusal(**given: Any) -> tuple[str, list[str | int]]:
    with pytest.raises(DomainError) as caught:
        describe(given)
    return caught.value.code, caught.value.errors[0]["loc"]


def test_everything_is_optional() -> None:
    assert describe({}) == Description()


def test_a_full_description_is_read_from_texts() -> None:
    said = describe(
        {
            "task": "tabular-classification",
            "activation": "softmax",
            "labels": "ok, fraud",
            "thresholds": '{"fraud": 0.7}',
            "columns": '["amount", {"name": "age", "nullable": true}]',
            "accepts_non_finite": "true",
            "source_commit": "ABCDEF1",
            "source_run_url": "https://runs.example.org/1",
            "source_data_sha256": "a" * 64,
            "intended_use": '{"modality": "CR", "view": ""}',
            "performance": json.dumps({"source": "a test split", "labels": {"fraud": RECORD}}),
            "notes": " line one\nline two ",
        }
    )
    assert (said.task, said.activation) == (Task.TABULAR_CLASSIFICATION, Activation.SOFTMAX)
    assert said.labels == ("ok", "fraud")
    assert said.thresholds == {"fraud": 0.7}
    assert said.columns == (Column(name="amount"), Column(name="age", nullable=True))
    assert said.accepts_non_finite and said.source_commit == "abcdef1"
    assert said.intended_use == {"modality": "CR"}
    assert said.performance == {"source": "a test split", "labels": {"fraud": RECORD}}
    assert said.notes == "line one\nline two"


@pytest.mark.parametrize(
    "given",
    [
        ["cat", "dog"],
        "cat,dog",
        '["cat", "dog"]',
        '{"0": "cat", "1": "dog"}',
        {"id2label": {"1": "dog", "0": "cat"}, "model_type": "vit"},
        json.dumps({"id2label": {"0": "cat", "1": "dog"}}).encode(),
        b'\xef\xbb\xbf["cat", "dog"]',
    ],
)
def test_labels_come_in_every_usual_form(given: Any) -> None:
    assert describe({"labels": given}).labels == ("cat", "dog")


@pytest.mark.parametrize(
    "given",
    [
        ["cat", "cat"],
        ["cat", ""],
        ["cat", " dog"],
        ["cat", 3],
        ["cat", "do\u202eg"],
        ["cat", "d\x00g"],
        ["x" * 201],
        '{"0": "cat", "2": "dog"}',
        '{"0": "cat", "0": "dog"}',
        '{"zero": "cat"}',
        '["cat", ',
        b"\xff\xfe",
        "[" * 100_000,
        '["cat", NaN]',
        5,
    ],
)
def test_labels_that_make_no_sense_are_refused(given: Any) -> None:
    assert refusal(labels=given)[0] == "bad_labels"


@pytest.mark.parametrize(
    "given", ['["a", "a"]', '{"a": 1}', '[{"nam": "a"}]', '[{"name": "a", "nullable": "yes"}]', "[1]", "a,,b", "[oops"]
)
def test_columns_that_make_no_sense_are_refused(given: Any) -> None:
    assert refusal(columns=given)[0] == "bad_columns"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"thresholds": {"fraud": 1.5}}, "validation_error"),
        ({"thresholds": {"fraud": True}}, "validation_error"),
        ({"thresholds": [0.5]}, "validation_error"),
        ({"thresholds": {"frod": 0.5}, "labels": ["ok", "fraud"]}, "bad_labels"),
        ({"task": "guessing"}, "validation_error"),
        ({"activation": "relu"}, "validation_error"),
        ({"accepts_non_finite": "maybe"}, "validation_error"),
        ({"source_commit": "main"}, "validation_error"),
        ({"source_run_url": "javascript:alert(1)"}, "validation_error"),
        ({"source_data_sha256": "abc"}, "validation_error"),
        ({"intended_use": {"colour": "red"}}, "validation_error"),
        ({"performance": {"labels": {}}}, "validation_error"),
        ({"performance": {"source": "here", "labels": {"fraud": {"sensitivity": 0.9}}}}, "validation_error"),
        ({"performance": {"source": "here", "labels": {"fraud": {**RECORD, "positives": 0}}}}, "validation_error"),
        ({"performance": {"source": "here", "labels": {"fraud": {**RECORD, "threshold": 2}}}}, "validation_error"),
        ({"performance": {"source": "here", "labels": {"frod": RECORD}}, "labels": ["ok", "fraud"]}, "bad_labels"),
        ({"notes": "x" * 4001}, "validation_error"),
        ({"notes": "a\x00b"}, "bad_text"),
        ({"notes": "a\ud800b"}, "bad_text"),
        ({"preprocessor": "not json"}, "bad_preprocessor"),
        ({"preprocessor": "[]"}, "bad_preprocessor"),
        ({"preprocessor": {**IMAGE, "image_mean": [0.5]}}, "bad_preprocessor"),
        ({"preprocessor": {**IMAGE, "do_fly": True}}, "bad_preprocessor"),
    ],
)
def test_other_fields_that_make_no_sense_are_refused(given: dict[str, Any], code: str) -> None:
    found, location = refusal(**given)
    assert found == code
    assert location[0] in given


@pytest.mark.parametrize(
    "name",
    ["../x", "a" * 300, "🦊", "a\u202eb", "frаud", "Fraud", "", "-a", "_a", "a b", "a.b", "a/b", "a\n", "a\x00", "ﬁ"],
)
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_model_name(name)
    assert caught.value.code == "bad_name"


def test_plain_names_are_names() -> None:
    for name in ("fraud", "card-fraud_2", "9lives", "a" * 60):
        assert check_model_name(name) == name


def test_what_changes_an_answer_changes_the_identity_and_remarks_do_not() -> None:
    base = {"labels": ["ok", "fraud"], "columns": ["a", "b"]}
    identity = describe(base).identity("0" * 64)
    assert describe({**base, "notes": "new", "source_commit": "abcdef1"}).identity("0" * 64) == identity
    for change in (
        {"labels": ["fraud", "ok"]},
        {"columns": ["b", "a"]},
        {"columns": ["a", {"name": "b", "nullable": True}]},
        {"activation": "sigmoid"},
        {"task": "tensor"},
        {"thresholds": {"fraud": 0.4}},
        {"preprocessor": IMAGE},
        {"accepts_non_finite": True},
    ):
        assert describe({**base, **change}).identity("0" * 64) != identity
    assert describe(base).identity("1" * 64) != identity
