"""SageMaker's invocations: CSV and JSON in, the form that Accept asks for out."""

import json
from typing import Any

import numpy as np
import pytest

from inference.contracts import Task, VersionRoute
from inference.runtime.plans import Array
from inference.server.protocols import Call, sagemaker
from tests.inference.signatures import deployment_of, f32, i64, refused, spec, version_of

pytestmark = pytest.mark.unit

NAMED = version_of(columns=("amount", "age", "country"), nullable=("age",))
MIXED = version_of(spec("a", "FP32", -1, 2), spec("s", "BYTES", -1, 1), spec("b", "BOOL", -1), spec("i", "INT8", -1))
PICTURES = version_of(
    spec("pixels", "FP32", -1, 1, 2, 2),
    outputs=(spec("scores", "FP32", -1, 2),),
    task=Task.IMAGE_CLASSIFICATION,
    labels=("no", "yes"),
)


def decode(body: bytes | str, version: VersionRoute = NAMED, kind: bytes = b"text/csv", accept: bytes = b"") -> Call:
    content = body.encode() if isinstance(body, str) else body
    headers = {b"content-type": kind, b"accept": accept}
    return sagemaker.decode(content, headers, deployment_of(version), version)


def answer(call: Call, outputs: dict[str, Array], version: VersionRoute = NAMED) -> tuple[bytes, str]:
    kind, _headers, body = sagemaker.encode(call, outputs, deployment_of(version), version, "p")
    return kind, body.decode()


@pytest.mark.parametrize(
    "body", ["1,2,3\n4,5,6\n", "1,2,3\r\n4,5,6", "\ufeff1,2,3\n4,5,6\n", '"1", 2 ,+3.\n.4e1,5,6\n\n', "1,2,3\n\n4,5,6"]
)
def test_lines_are_rows_in_the_order_of_the_columns(body: str) -> None:
    call = decode(body)
    assert call.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert call.rows == 2


def test_an_empty_cell_is_missing_where_the_column_may_be() -> None:
    assert np.isnan(decode("1,,3").inputs["x"][0, 1])
    assert np.isnan(decode("1,nan,3").inputs["x"][0, 1])
    error = refused(lambda: decode("1,2,3\n,2,3"), "wrong_type", 422)
    assert error.errors[0]["loc"] == ["rows", 1, "amount"]


def test_a_cell_of_very_many_digits_is_refused_in_no_time() -> None:
    refused(lambda: decode("1" * 60_000 + "x,2,3"), "wrong_type", 422)


def test_several_inputs_take_their_cells_from_left_to_right() -> None:
    call = decode('1,2,"a,b",true,-5', MIXED)
    assert {name: array.tolist() for name, array in call.inputs.items()} == {
        "a": [[1, 2]],
        "s": [["a,b"]],
        "b": [True],
        "i": [-5],
    }


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ("", "empty_body", 400),
        ("\n\n", "empty_body", 400),
        (b"1,2,\xe9", "bad_encoding", 400),
        ("1,2,3".encode("utf-16"), "bad_encoding", 400),
        ("1,2,3".encode("utf-16-le"), "bad_text", 422),
        ("1,2", "wrong_shape", 422),
        ("1,2,3\n1,2", "wrong_shape", 422),
        ("1,2,3,4", "wrong_shape", 422),
        ("1;2;3", "wrong_shape", 422),
        ('1,2,"3', "invalid_input", 422),
        ("1,2," + "3" * 200_000, "invalid_input", 422),
        ("1,2,x", "wrong_type", 422),
        ('1,2,"3,5"', "wrong_type", 422),
        ("1,2,1_000", "wrong_type", 422),
        ("1,2,0x10", "wrong_type", 422),
        ("1,2,٣", "wrong_type", 422),
        ("amount,age,country\n1,2,3", "wrong_type", 422),
        ("nan,2,3", "non_finite", 400),
        ("1,inf,3", "non_finite", 400),
        ("1,2,1e999", "non_finite", 400),
        ("1,2,1e39", "out_of_range", 422),
        ("1,2,3\n" * 9, "batch_too_large", 413),
    ],
)
def test_bad_csv_is_refused_by_its_code(body: bytes | str, code: str, status: int) -> None:
    refused(lambda: decode(body), code, status)


def test_refusals_say_what_to_change() -> None:
    assert "header" in refused(lambda: decode("amount,age,country\n1,2,3"), "wrong_type", 422).message
    assert "commas" in refused(lambda: decode("1;2;3"), "wrong_shape", 422).message
    image = version_of(spec("x", "FP32", -1, -1, 3))
    assert "JSON" in refused(lambda: decode("1,2,3", image), "invalid_input", 422).message


@pytest.mark.parametrize(
    "document",
    [[[1, 2, 3]], {"instances": [[1, 2, 3]]}, [{"amount": 1, "age": 2, "country": 3}], {"inputs": [[1, 2, 3]]}],
)
def test_json_is_a_bare_list_of_rows_or_the_v1_document(document: Any) -> None:
    call = decode(json.dumps(document), kind=b"application/json")
    assert call.inputs["x"].tolist() == [[1, 2, 3]]
    kind, body = answer(call, {"y": f32([[0.1]])})
    assert kind == b"application/json"
    assert json.loads(body) in ({"predictions": [[0.1]]}, {"outputs": [[0.1]]})


@pytest.mark.parametrize(
    ("kind", "accept", "is_csv"),
    [
        (b"text/csv", b"", True),
        (b"text/csv; charset=utf-8", b"*/*", True),
        (b"text/csv", b"application/json", False),
        (b"application/json", b"Text/CSV", True),
        (b"application/json", b"*/*", False),
        (b"application/json", b"text/html, text/csv;q=0.9, application/json", True),
    ],
)
def test_accept_chooses_the_form_of_the_answer(kind: bytes, accept: bytes, is_csv: bool) -> None:
    call = decode("1,2,3" if kind.startswith(b"text") else "[[1, 2, 3]]", kind=kind, accept=accept)
    sent, body = answer(call, {"y": f32([[0.1]])})
    assert sent.startswith(b"text/csv") is is_csv
    assert body == ("0.1\n" if is_csv else '{"predictions":[[0.1]]}')


def test_csv_answers_have_a_line_per_row_with_all_outputs() -> None:
    call = decode("1,2,3\n4,5,6")
    outputs = {
        "label": np.array(["a,b", "c"], dtype=object),
        "p": f32([[0.1, np.nan], [1e-9, 3]]),
        "ok": np.array([True, False]),
        "all": i64([7]),
    }
    assert answer(call, outputs)[1] == '"a,b",0.1,,1,7\nc,1e-09,3.0,0,7\n'


def test_a_picture_is_a_body_of_its_own() -> None:
    for kind in (b"application/x-image", b"image/png", b"application/dicom"):
        call = decode(b"picture", PICTURES, kind, b"text/csv")
        assert call.pictures == [b"picture"]
        assert answer(call, {"scores": f32([[0.25, 0.75]])}, PICTURES)[1] == "yes,0.25,0.75\n"
    refused(lambda: decode(b"picture", NAMED, b"image/png"), "unsupported_media_type", 415)


@pytest.mark.parametrize("kind", [b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/xml"])
def test_forms_and_xml_are_refused(kind: bytes) -> None:
    refused(lambda: decode("[[1, 2, 3]]", kind=kind), "unsupported_media_type", 415)


def test_a_bare_list_is_checked_like_any_rows() -> None:
    refused(lambda: decode("[]", kind=b"application/json"), "wrong_shape", 422)
    refused(lambda: decode("5", kind=b"application/json"), "bad_request", 400)
    body = '[{"amount": 1, "age": 2, "country": 3, "age": 4}]'
    refused(lambda: decode(body, kind=b"application/json"), "duplicate_key", 400)
