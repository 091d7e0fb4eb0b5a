"""TensorFlow Serving's REST form: rows and columns in, the same form out, and every bad body refused by its code."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inference.contracts import Activation, Task, VersionRoute
from inference.errors import InferenceError
from inference.runtime.plans import Array
from inference.server.protocols import Call, v1
from tests.inference.signatures import JSON, deployment_of, f32, i64, refused, spec, version_of

pytestmark = pytest.mark.unit

THREE = version_of()
NAMED = version_of(columns=("amount", "age", "country"), nullable=("age",))
TEXT = version_of(spec("s", "BYTES", -1))
TWO = version_of(spec("a", "FP32", -1, 2), spec("b", "INT64", -1, 1))
PICTURES = version_of(
    spec("pixels", "FP32", -1, 1, 2, 2),
    outputs=(spec("logits", "FP32", -1, 2),),
    task=Task.IMAGE_CLASSIFICATION,
    labels=("no", "yes"),
    activation=Activation.NONE,
)
PNG = b"\x89PNG\r\n\x1a\n and so on"


def decode(body: Any, version: VersionRoute = THREE, kind: str = "application/json", max_rows: int = 8) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {b"content-type": kind.encode()} if kind else {}
    return v1.decode(content, headers, deployment_of(version, max_rows=max_rows), version)


def answer(call: Call, outputs: dict[str, Array], version: VersionRoute = THREE) -> Any:
    kind, _headers, body = v1.encode(call, outputs, deployment_of(version), version, "p")
    assert kind == b"application/json"
    assert b"NaN" not in body
    return json.loads(body)


def test_rows_of_values_become_one_tensor() -> None:
    call = decode({"signature_name": "serving_default", "instances": [[1, 2, 3], [4, 5, 6]]})
    assert call.rows == 2
    assert call.inputs["x"].dtype == np.float32
    assert call.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_rows_by_column_name_take_any_order() -> None:
    call = decode({"instances": [{"age": 2, "amount": 1, "country": 3}]}, NAMED)
    assert call.inputs["x"].tolist() == [[1, 2, 3]]
    assert np.isnan(decode({"instances": [{"age": None, "amount": 1, "country": 3}]}, NAMED).inputs["x"][0, 1])


def test_rows_by_input_name_feed_several_inputs() -> None:
    call = decode({"instances": [{"a": [1, 2], "b": 3}, {"b": 4, "a": [5, 6]}]}, TWO)
    assert call.inputs["a"].tolist() == [[1, 2], [5, 6]]
    assert call.inputs["b"].tolist() == [[3], [4]]
    assert decode({"instances": [{"x": [1, 2, 3]}]}, NAMED).inputs["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("version", "inputs", "expected"),
    [
        (THREE, [[1, 2, 3]], {"x": [[1, 2, 3]]}),
        (THREE, {"x": [[1, 2, 3]]}, {"x": [[1, 2, 3]]}),
        (NAMED, {"country": [3, 6], "age": [2, 5], "amount": [1, 4]}, {"x": [[1, 2, 3], [4, 5, 6]]}),
        (TWO, {"a": [[1, 2]], "b": [[3]]}, {"a": [[1, 2]], "b": [[3]]}),
        (TEXT, ["a", {"b64": "Yg=="}], {"s": ["a", "b"]}),
    ],
)
def test_columns_are_read_bare_or_by_name(version: VersionRoute, inputs: Any, expected: dict[str, Any]) -> None:
    call = decode({"inputs": inputs}, version)
    assert {name: array.tolist() for name, array in call.inputs.items()} == expected
    assert call.rows == len(next(iter(expected.values())))


def test_the_answer_has_the_form_of_the_call() -> None:
    rows, columns = decode({"instances": [[1, 2, 3]] * 2}), decode({"inputs": [[1, 2, 3]] * 2})
    one = {"y": f32([[0.1], [0.2]])}
    assert answer(rows, one) == {"predictions": [[0.1], [0.2]]}
    assert answer(columns, one) == {"outputs": [[0.1], [0.2]]}
    two = {"label": np.array([3, 4]), "text": np.array([["a"], ["b"]], dtype=object)}
    assert answer(rows, two) == {"predictions": [{"label": 3, "text": ["a"]}, {"label": 4, "text": ["b"]}]}
    assert answer(columns, two) == {"outputs": {"label": [3, 4], "text": [["a"], ["b"]]}}


def test_one_row_is_answered_with_one_prediction() -> None:
    call = decode({"instances": [[1, 2, 3]]})
    assert answer(call, {"y": f32([[0.5]])}) == {"predictions": [[0.5]]}
    assert answer(call, {"y": f32([0.5])}) == {"predictions": [0.5]}
    assert answer(call, {"y": f32(0.5)}) == {"predictions": [0.5]}
    assert answer(call, {"y": f32([[1]]), "z": i64([2])}) == {"predictions": [{"y": [1.0], "z": 2}]}


def test_a_model_without_a_batch_dimension_takes_one_instance() -> None:
    fixed = version_of(spec("x", "FP32", 3), outputs=(spec("y", "FP32", 2),), batched=False)
    for instances in ([[1, 2, 3]], [1, 2, 3]):
        call = decode({"instances": instances}, fixed)
        assert call.inputs["x"].tolist() == [1, 2, 3]
        assert call.rows == 1
    call = decode({"instances": [[1, 2, 3]]}, fixed)
    assert answer(call, {"y": f32([1, 2])}, fixed) == {"predictions": [[1, 2]]}
    one = version_of(spec("x", "FP32", 1, 3), batched=False)
    assert decode({"instances": [[1, 2, 3]]}, one).inputs["x"].shape == (1, 3)


def test_values_that_are_not_finite_are_null_with_a_warning() -> None:
    call = decode({"instances": [[1, 2, 3]]})
    body = answer(call, {"y": f32([[np.nan]])})
    assert body["predictions"] == [[None]]
    assert "y" in body["warnings"][0]


def test_pictures_are_returned_as_they_came() -> None:
    b64 = {"b64": base64.b64encode(PNG).decode()}
    bodies: list[Any] = [{"instances": [b64, b64]}, {"instances": [{"pixels": b64}] * 2}, {"inputs": [b64, b64]}]
    for body in bodies:
        call = decode(body, PICTURES)
        assert (call.pictures, call.rows, call.inputs) == ([PNG, PNG], 2, {})
    for single in [{"inputs": b64}, {"inputs": {"pixels": [b64]}}]:
        assert decode(single, PICTURES).pictures == [PNG]
    for kind in ("image/png", "IMAGE/JPEG", "application/dicom; transfer-syntax=1.2"):
        assert decode(PNG, PICTURES, kind).pictures == [PNG]
    assert decode({"instances": [[[[1, 2], [3, 4]]]]}, PICTURES).inputs["pixels"].shape == (1, 1, 2, 2)


def test_pictures_are_answered_with_labelled_scores() -> None:
    call = decode(PNG, PICTURES, "image/png")
    body = answer(call, {"logits": f32([[0.25, 0.75]])}, PICTURES)
    assert body == {"predictions": [{"scores": {"no": 0.25, "yes": 0.75}, "label": "yes"}]}


def test_tensors_are_answered_with_tensors_whatever_the_model_is_for() -> None:
    call = decode({"instances": [[[[1, 2], [3, 4]]]]}, PICTURES)
    assert answer(call, {"logits": f32([[0.25, 0.75]])}, PICTURES) == {"predictions": [[0.25, 0.75]]}


def test_broken_pictures_are_refused() -> None:
    refused(lambda: decode({"instances": [{"b64": "%%%"}]}, PICTURES), "wrong_type", 422)
    refused(lambda: decode({"instances": [{"b64": "AAAA"}, 5]}, PICTURES), "wrong_type", 422)
    refused(lambda: decode(b"", PICTURES, "image/png"), "empty_body", 400)
    refused(lambda: decode(PNG, THREE, "image/png"), "unsupported_media_type", 415)
    refused(lambda: decode({"instances": [{"b64": "AAAA"}] * 9}, PICTURES), "batch_too_large", 413)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"]
)
def test_json_is_read_under_any_other_content_type(kind: str) -> None:
    assert decode({"instances": [[1, 2, 3]]}, kind=kind).rows == 1


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "text/xml", "application/xml", "application/soap+xml"]
)
def test_forms_with_parts_and_xml_are_not(kind: str) -> None:
    refused(lambda: decode({"instances": [[1, 2, 3]]}, kind=kind), "unsupported_media_type", 415)


GOOD = b'{"instances": [[1, 2, 3]]}'


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        # Table B, rows 1 to 5
        (b"", "empty_body", 400),
        (b" \r\n\t ", "empty_body", 400),
        (b"\xef\xbb\xbf", "empty_body", 400),
        (GOOD[:-1], "bad_json", 400),
        (GOOD + b"x", "bad_json", 400),
        (GOOD + GOOD, "bad_json", 400),
        (b'{"instances": [[1, 2, 3],]}', "bad_json", 400),
        (b'{"instances": [[01, 2, 3]]}', "bad_json", 400),
        (b'{"instances": [["\x01"]]}', "bad_json", 400),
        (b'{"instances": [["\xff"]]}', "bad_encoding", 400),
        (GOOD.decode().encode("utf-16"), "bad_encoding", 400),
        (GOOD.decode().encode("utf-16-le"), "bad_encoding", 400),
        (GOOD.decode().encode("utf-32"), "bad_encoding", 400),
        (b'{"instances": [[NaN, 2, 3]]}', "non_finite", 400),
        (b'{"instances": [[1, Infinity, 3]]}', "non_finite", 400),
        (b'{"instances": [[1, 2, -Infinity]]}', "non_finite", 400),
        (b'{"instances": [[1e999, 2, 3]]}', "non_finite", 400),
        (b'{"instances": [[1, 2, 3]], "other": NaN}', "non_finite", 400),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep", 400),
        (b"[" * 100_000, "too_deep", 400),
        (b'{"a":' * 100_000, "too_deep", 400),
        (b'{"instances": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}", "too_deep", 400),
        (b'{"instances": [[' + b"1" * 10_000 + b", 2, 3]]}", "bad_json", 400),
        (b'{"instances": [[1, 2, 3]], "instances": [[1, 2, 3]]}', "duplicate_key", 400),
        (b'{"instances": [[1, 2, 3]], "x" : "a:b", "x" : 2}', "duplicate_key", 400),
        (b"[]", "bad_request", 400),
        (b"5", "bad_request", 400),
        (b"{}", "bad_request", 400),
        (b'{"instance": [[1, 2, 3]]}', "bad_request", 400),
        (b'{"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}', "bad_request", 400),
        (b'{"instances": [[1, 2, 3]], "signature_name": 5}', "bad_request", 400),
        # Rows 9 to 13
        (b'{"instances": []}', "wrong_shape", 422),
        (b'{"instances": {}}', "wrong_shape", 422),
        (b'{"instances": null}', "wrong_shape", 422),
        (b'{"instances": [1, 2, 3]}', "wrong_shape", 422),
        (b'{"instances": [[1, 2]]}', "wrong_shape", 422),
        (b'{"instances": [[1, 2, 3], [1, 2]]}', "wrong_shape", 422),
        (b'{"instances": [[[1, 2, 3]]]}', "wrong_shape", 422),
        (b'{"inputs": []}', "wrong_shape", 422),
        (b'{"inputs": [[]]}', "wrong_shape", 422),
        (b'{"instances": [["1", 2, 3]]}', "wrong_type", 422),
        (b'{"instances": [["1,5", 2, 3]]}', "wrong_type", 422),
        (b'{"instances": [[true, 2, 3]]}', "wrong_type", 422),
        (b'{"instances": [[null, 2, 3]]}', "wrong_type", 422),
        (b'{"instances": [[1e39, 2, 3]]}', "out_of_range", 422),
        (b'{"instances": [' + b"[1,2,3]," * 8 + b"[1,2,3]]}", "batch_too_large", 413),
        (b'{"inputs": [' + b"[1,2,3]," * 8 + b"[1,2,3]]}", "batch_too_large", 413),
        # Row 21
        (b'{"instances": [[1, 2, 3]], "note": "\\u0000"}', "bad_text", 422),
        (b'{"instances": [[1, 2, 3]], "\\ud800": 1}', "bad_text", 422),
    ],
)
def test_a_bad_body_is_refused_by_its_code(body: bytes, code: str, status: int) -> None:
    refused(lambda: decode(body), code, status)


def test_a_byte_order_mark_is_accepted_and_deep_or_long_numbers_are_not_a_crash() -> None:
    assert decode(b"\xef\xbb\xbf" + GOOD).rows == 1
    assert decode(b'{"instances": [[-0.0, 1e-320, 1e-45]]}').rows == 1
    assert decode(b'{"instances": [[1' + b"0" * 30 + b", 2, 3]]}").inputs["x"][0, 0] == f32(1e30)
    assert decode(b'{"instances": [[1, 2, 3]], "note": "a:b \\\\u0000 \\":"}').rows == 1


def test_bad_json_names_its_offset() -> None:
    error = refused(lambda: decode('{"instances": [["é", ]]}'.encode()), "bad_json", 400)
    assert error.errors[0]["loc"] == ["body", 22]


def test_a_value_that_is_not_finite_is_located() -> None:
    error = refused(lambda: decode(b'{"instances": [[1, NaN, 3], [1, 2, 1e999]]}'), "non_finite", 400)
    assert [located["loc"] for located in error.errors] == [["instances", 0, 1], ["instances", 1, 2]]
    assert np.isnan(decode(b'{"instances": [[1, NaN, 3]]}', NAMED).inputs["x"][0, 1])
    refused(lambda: decode(b'{"instances": [[NaN, 2, 3]]}', NAMED), "non_finite", 400)


@pytest.mark.parametrize(
    ("row", "locs", "hint"),
    [
        ({"amount": 1, "age": 2}, [["instances", 1, "country"]], "missing"),
        ({"amuont": 1, "age": 2, "country": 3}, [["instances", 1, "amuont"], ["instances", 1, "amount"]], "'amount'?"),
        ({"amount": 1, "age": 2, "country": 3, "zip": 4}, [["instances", 1, "zip"]], "unknown"),
    ],
)
def test_a_wrong_feature_is_named_with_a_suggestion(row: dict[str, Any], locs: list[Any], hint: str) -> None:
    good = {"amount": 1, "age": 2, "country": 3}
    error = refused(lambda: decode({"instances": [good, row]}, NAMED), "unknown_feature", 422)
    assert [located["loc"] for located in error.errors] == locs
    assert hint in error.message


def test_a_flood_of_wrong_names_is_refused_without_comparing_each() -> None:
    flood = {f"amount{number}": 1 for number in range(50_000)}
    assert len(refused(lambda: decode({"instances": [flood]}, NAMED), "unknown_feature", 422).errors) == 20
    assert "did you mean" in refused(lambda: decode({"instanses": [], **flood}), "bad_request", 400).message
    refused(lambda: decode({"instances": [{"a" * 1_000_000: 1}]}, NAMED), "unknown_feature", 422)


def test_a_bad_cell_of_a_named_row_is_located_by_name() -> None:
    good = {"amount": 1, "age": 2, "country": 3}
    error = refused(lambda: decode({"instances": [good, {**good, "country": "de"}]}, NAMED), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [["instances", 1, "country"]]
    error = refused(
        lambda: decode({"inputs": {"amount": [1, 2], "age": [1, 2], "country": [1, "de"]}}, NAMED), "wrong_type", 422
    )
    assert [located["loc"] for located in error.errors] == [["inputs", "country", 1]]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: decode({"instances": [{"amount": 1, "age": 2, "country": 3}, 5]}, NAMED), "wrong_type"),
        (lambda: decode({"instances": [{"amount": 1, "age": 2, "country": 3}, [1, 2, 3]]}, NAMED), "wrong_type"),
        (lambda: decode({"instances": [{}]}, NAMED), "unknown_feature"),
        (lambda: decode({"instances": [[1, 2], 3]}, TWO), "wrong_type"),
        (lambda: decode({"instances": [{"a": [1, 2], "c": 3}]}, TWO), "unknown_feature"),
        (lambda: decode({"inputs": {"a": [[1, 2]]}}, TWO), "unknown_feature"),
        (lambda: decode({"inputs": {"a": [[1, 2]], "b": [[1], [2]]}}, TWO), "wrong_shape"),
        (lambda: decode({"inputs": {"amount": [1], "age": [2], "country": [3, 4]}}, NAMED), "wrong_shape"),
        (lambda: decode({"inputs": {"amount": 1, "age": 2, "country": 3}}, NAMED), "wrong_shape"),
        (lambda: decode({"instances": ["a\0"]}, TEXT), "bad_text"),
        (lambda: decode(b'{"instances": ["\\ud83d"]}', TEXT), "bad_text"),
        (lambda: decode({"instances": [{"b64": "%"}]}, TEXT), "wrong_type"),
    ],
)
def test_objects_of_the_wrong_kind_are_refused(call: Callable[[], Call], code: str) -> None:
    refused(call, code, 422)


def test_a_feature_named_twice_is_refused() -> None:
    body = b'{"instances": [{"amount": 1, "age": 2, "country": 3, "amount": 4}]}'
    refused(lambda: decode(body, NAMED), "duplicate_key", 400)


def test_mutated_bodies_are_decoded_or_refused_but_never_crash() -> None:
    random = np.random.default_rng(3)
    seeds = [b'{"instances": [{"amount": 1, "age": null, "country": 3.5e1}]}', GOOD, b'{"inputs": {"x": [[1,2,3]]}}']
    for round_ in range(3000):
        body = bytearray(seeds[round_ % len(seeds)])
        for _ in range(random.integers(1, 4)):
            body[random.integers(len(body))] = random.integers(256)
        try:
            decode(bytes(body), NAMED)
        except InferenceError as error:
            assert 400 <= error.status < 500


def test_the_status_and_metadata_documents_are_tensorflow_servings() -> None:
    deployment = deployment_of(THREE)
    status = json.loads(v1.status(deployment, {7}, None))
    assert status["model_version_status"] == [
        {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    assert json.loads(v1.status(deployment, (), 7))["model_version_status"][0]["state"] == "LOADING"
    refused(lambda: v1.status(deployment, (), 8), "not_found", 404)
    document = json.loads(v1.metadata(deployment, THREE))
    assert document["model_spec"] == {"name": "toy-live", "signature_name": "", "version": "7"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"][0]["size"] == "-1"


def test_it_reads_what_json_headers_declare() -> None:
    assert v1.decode(GOOD, JSON, deployment_of(THREE), THREE).rows == 1
