"""Open Inference Protocol V2: JSON and binary tensors, tritonclient's own requests, and the table of bad inputs."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.contracts import Datatype, Task, VersionRoute
from inference.errors import InferenceError
from inference.runtime.plans import NUMPY_DTYPES, Array
from inference.server.protocols import Call, v2
from tests.inference.signatures import JSON, deployment_of, f16, f32, i64, refused, spec, version_of

OPERATORS = Path(__file__).parents[4] / "shared" / "data" / "conformance" / "onnx_operators"
THREE = version_of()
TEXT = version_of(spec("s", "BYTES", -1, 2), outputs=(spec("t", "BYTES", -1),))
TWO = version_of(
    spec("a", "FP16", -1, 2), spec("b", "INT64", -1), outputs=(spec("y", "FP32", -1, 1), spec("z", "BOOL", -1))
)
PICTURES = version_of(spec("pixels", "FP32", -1, 1, 2, 2), task=Task.IMAGE_CLASSIFICATION, labels=("no", "yes"))
X = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}


def decode(
    document: Any, binary: bytes | None = None, version: VersionRoute = THREE, length: bytes | None = None
) -> Call:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = dict(JSON)
    if binary is not None or length is not None:
        headers = {b"inference-header-content-length": b"%d" % len(head) if length is None else length}
    return v2.decode(head + (binary or b""), headers, deployment_of(version), version)


def answer(call: Call, outputs: dict[str, Array], version: VersionRoute = THREE) -> tuple[dict[str, Any], bytes]:
    _kind, headers, body = v2.encode(call, outputs, deployment_of(version), version, "our-id")
    size = int(dict(headers).get(b"inference-header-content-length", len(body)))
    assert b"NaN" not in body[:size]
    return json.loads(body[:size]), body[size:]


@pytest.mark.unit
@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_flat_and_nested_data_are_the_same_tensor(data: Any) -> None:
    call = decode({"id": "mine", "inputs": [{**X, "data": data}], "parameters": {"anything": 1}})
    assert call.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (call.rows, call.client_id) == (2, "mine")


@pytest.mark.unit
def test_binary_inputs_are_taken_in_order() -> None:
    a, b = f16([[1, 2], [3, 4]]), i64([5, 6])
    inputs = [
        {"name": "b", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "a", "datatype": "FP16", "shape": [2, 2], "parameters": {"binary_data_size": 8}},
    ]
    call = decode({"inputs": inputs}, b.tobytes() + a.tobytes(), TWO)
    assert call.inputs["a"].dtype == np.float16
    assert (call.inputs["a"] == a).all()
    assert (call.inputs["b"] == b).all()
    mixed = decode({"inputs": [inputs[1], {**inputs[0], "parameters": {}, "data": [5, 6]}]}, a.tobytes(), TWO)
    assert (mixed.inputs["b"] == b).all()


@pytest.mark.unit
def test_half_floats_are_accepted_as_json_too() -> None:
    a = {"name": "a", "datatype": "FP16", "shape": [1, 2], "data": [0.5, 65504]}
    b = {"name": "b", "datatype": "INT64", "shape": [1], "data": [2**63 - 1]}
    call = decode({"inputs": [a, b]}, version=TWO)
    assert call.inputs["a"].tolist() == [[0.5, 65504]]
    assert call.inputs["b"].tolist() == [2**63 - 1]
    refused(lambda: decode({"inputs": [{**a, "data": [0.5, 65520]}, b]}, version=TWO), "out_of_range", 422)


@pytest.mark.unit
def test_texts_travel_as_json_and_as_binary() -> None:
    tensor = {"name": "s", "datatype": "BYTES", "shape": [1, 2]}
    content = b"\2\0\0\0\xc3\xa9\0\0\0\0"
    binary = decode({"inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}]}, content, TEXT)
    assert binary.inputs["s"].tolist() == [["é", ""]]
    assert decode({"inputs": [{**tensor, "data": ["é", ""]}]}, version=TEXT).inputs["s"].tolist() == [["é", ""]]


@pytest.mark.unit
def test_pictures_are_elements_of_a_bytes_tensor() -> None:
    tensor = {"name": "pixels", "datatype": "BYTES", "shape": [2]}
    texts = [base64.b64encode(picture).decode() for picture in (b"one", b"two!")]
    call = decode({"inputs": [{**tensor, "data": texts}]}, version=PICTURES)
    assert (call.pictures, call.rows, call.inputs) == ([b"one", b"two!"], 2, {})
    content = b"\3\0\0\0one\4\0\0\0two!"
    binary = {**tensor, "shape": [2, 1], "parameters": {"binary_data_size": len(content)}}
    assert decode({"inputs": [binary]}, content, PICTURES).pictures == [b"one", b"two!"]
    refused(lambda: decode({"inputs": [{**tensor, "data": ["%", "a"]}]}, version=PICTURES), "wrong_type", 422)
    refused(lambda: decode({"inputs": [{**tensor, "data": texts[:1]}]}, version=PICTURES), "wrong_shape", 422)
    refused(lambda: decode({"inputs": [{**binary, "shape": [1]}]}, content, PICTURES), "wrong_shape", 422)


@pytest.mark.unit
def test_the_answer_holds_the_outputs_that_were_asked_for() -> None:
    outputs = {"y": f32([[0.1]]), "z": np.array([True])}
    inputs = [
        {"name": "a", "datatype": "FP16", "shape": [1, 2], "data": [1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
    document, rest = answer(decode({"inputs": inputs, "id": "mine"}, version=TWO), outputs, TWO)
    assert document == {
        "model_name": "toy-live",
        "model_version": "7",
        "id": "mine",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.1]},
            {"name": "z", "datatype": "BOOL", "shape": [1], "data": [True]},
        ],
    }
    assert rest == b""
    asked = {"inputs": inputs, "outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]}
    document, rest = answer(decode(asked, version=TWO), outputs, TWO)
    assert document["id"] == "our-id"
    assert [output["name"] for output in document["outputs"]] == ["z", "y"]
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 4}
    assert rest == f32(0.1).tobytes()
    every = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    document, rest = answer(decode(every, version=TWO), outputs, TWO)
    assert len(rest) == 5
    assert all("data" not in output for output in document["outputs"])


@pytest.mark.unit
def test_texts_and_values_that_are_not_finite_are_answered() -> None:
    call = decode({"inputs": [{"name": "s", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}]}, version=TEXT)
    document, _ = answer(call, {"t": np.array(["é"], dtype=object)}, TEXT)
    assert document["outputs"][0]["data"] == ["é"]
    call.style = v2.Style(None, True)
    assert answer(call, {"t": np.array(["é", b"x"], dtype=object)}, TEXT)[1] == b"\2\0\0\0\xc3\xa9\1\0\0\0x"
    document, _ = answer(decode({"inputs": [X]}), {"y": f32([[np.inf], [1]])})
    assert document["outputs"][0]["data"] == [None, 1.0]
    assert "y" in document["parameters"]["warnings"]


@pytest.mark.unit
@pytest.mark.parametrize("given", ["a" * 129, "a\r\nb", "\t"])
def test_an_id_that_cannot_be_kept_is_replaced(given: str) -> None:
    call = decode({"id": given, "inputs": [X]})
    assert call.client_id == ""
    assert answer(call, {"y": f32([[1], [2]])})[0]["id"] == "our-id"


BAD: list[tuple[Any, str, int]] = [
    # Row 14: shapes, datatypes, names
    ({**X, "shape": [2, 2]}, "wrong_shape", 422),
    ({**X, "shape": [3, 3]}, "wrong_shape", 422),
    ({**X, "shape": [6]}, "wrong_shape", 422),
    ({**X, "shape": [-2, 3]}, "wrong_shape", 422),
    ({**X, "shape": [-1, 3]}, "wrong_shape", 422),
    ({**X, "shape": [0, 3], "data": []}, "wrong_shape", 422),
    ({**X, "shape": [2**62, 3]}, "wrong_shape", 422),
    ({**X, "shape": [2**63, 3]}, "wrong_shape", 422),
    ({**X, "shape": [2**70, 3]}, "wrong_shape", 422),
    ({**X, "shape": [2.0, 3]}, "wrong_shape", 422),
    ({**X, "shape": [True, 3]}, "wrong_shape", 422),
    ({**X, "shape": "2,3"}, "wrong_shape", 422),
    ({**X, "shape": None}, "wrong_shape", 422),
    ({**X, "shape": []}, "wrong_shape", 422),
    ({**X, "data": [1, 2, 3, 4, 5]}, "wrong_shape", 422),
    ({**X, "data": []}, "wrong_shape", 422),
    ({**X, "data": [[1, 2, 3]]}, "wrong_shape", 422),
    ({**X, "data": [[1, 2, 3], [4, 5]]}, "wrong_shape", 422),
    ({**X, "data": [[1, 2], [3, 4], [5, 6]]}, "wrong_shape", 422),
    ({**X, "data": [1, 2, 3, 4, 5, [6]]}, "wrong_shape", 422),
    ({**X, "data": None}, "wrong_shape", 422),
    ({**X, "data": "123456"}, "wrong_shape", 422),
    ({**X, "datatype": "FP33"}, "wrong_type", 422),
    ({**X, "datatype": "FP64"}, "wrong_type", 422),
    ({**X, "datatype": "BF16"}, "wrong_type", 422),
    ({**X, "datatype": 5}, "wrong_type", 422),
    ({**X, "datatype": ["FP32"]}, "wrong_type", 422),
    ({**X, "data": ["1", 2, 3, 4, 5, 6]}, "wrong_type", 422),
    ({**X, "data": [1, 2, True, 4, 5, 6]}, "wrong_type", 422),
    ({**X, "data": [1, 2, None, 4, 5, 6]}, "wrong_type", 422),
    ({**X, "data": [1, 2, 1e39, 4, 5, 6]}, "out_of_range", 422),
    ({**X, "shape": [9, 3], "data": [0] * 27}, "batch_too_large", 413),
    ({**X, "name": "y"}, "unknown_feature", 422),
    ({**X, "name": None}, "bad_request", 400),
    (5, "bad_request", 400),
    ({**X, "parameters": []}, "bad_request", 400),
    ({**X, "parameters": {"binary_data_size": 24}}, "bad_request", 400),
    ({**X, "parameters": {"shared_memory_region": "r"}}, "invalid_input", 422),
]


@pytest.mark.unit
@pytest.mark.parametrize(("tensor", "code", "status"), BAD)
def test_a_bad_tensor_is_refused_by_its_code(tensor: Any, code: str, status: int) -> None:
    refused(lambda: decode({"inputs": [tensor]}), code, status)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("document", "code", "status"),
    [
        (b"", "empty_body", 400),
        (b"{", "bad_json", 400),
        (b"[]", "bad_request", 400),
        (b"{}", "bad_request", 400),
        (b'{"inputs": []}', "bad_request", 400),
        (b'{"input": [{}]}', "bad_request", 400),
        ({"inputs": [X, X]}, "invalid_input", 422),
        ({"inputs": [X], "id": 5}, "bad_request", 400),
        ({"inputs": [X], "parameters": {"binary_data_output": 1}}, "bad_request", 400),
        ({"inputs": [X], "outputs": {}, "parameters": 5}, "bad_request", 400),
        ({"inputs": [X], "outputs": {"name": "y"}}, "bad_request", 400),
        ({"inputs": [X], "outputs": [{}]}, "bad_request", 400),
        ({"inputs": [X], "outputs": [{"name": "yy"}]}, "unknown_feature", 422),
        ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, "invalid_input", 422),
        ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "invalid_input", 422),
        (b'{"inputs": [{"name": "x", "name": "x"}]}', "duplicate_key", 400),
        (b'{"inputs": [{"name": "x", "data": [NaN]}]}', "non_finite", 400),
    ],
)
def test_a_bad_document_is_refused_by_its_code(document: Any, code: str, status: int) -> None:
    refused(lambda: decode(document), code, status)


@pytest.mark.unit
def test_a_missing_input_is_named() -> None:
    a = {"name": "a", "datatype": "FP16", "shape": [1, 2], "data": [1, 2]}
    assert "b is missing" in refused(lambda: decode({"inputs": [a]}, version=TWO), "unknown_feature", 422).message
    b = {"name": "b", "datatype": "INT64", "shape": [2], "data": [1, 2]}
    refused(lambda: decode({"inputs": [a, b]}, version=TWO), "wrong_shape", 422)


@pytest.mark.unit
def test_a_bad_cell_is_located_in_its_input() -> None:
    error = refused(lambda: decode({"inputs": [{**X, "data": [1, "2", 3, 4, None, 6]}]}), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [["inputs", 0, "data", 1], ["inputs", 0, "data", 4]]
    error = refused(lambda: decode({"inputs": [{**X, "data": [[1, 2, 3], [4, "5", 6]]}]}), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [["inputs", 0, "data", 1, 1]]


@pytest.mark.unit
@pytest.mark.parametrize("length", [b"", b"-1", b"0", b"1e2", b"x", b" 5", b"99999", b"9" * 30, b"\xb2"])
def test_a_header_length_that_cannot_be_is_a_bad_header(length: bytes) -> None:
    refused(lambda: decode({"inputs": [X]}, length=length), "bad_header", 400)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("size", "sent", "code", "status"),
    [
        (24, 23, "bad_binary", 400),
        (24, 25, "bad_binary", 400),
        (20, 20, "wrong_shape", 422),
        (-1, 24, "bad_request", 400),
        ("24", 24, "bad_request", 400),
        (2**62, 24, "bad_binary", 400),
    ],
)
def test_binary_data_of_the_wrong_length_is_refused(size: Any, sent: int, code: str, status: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": size}}
    refused(lambda: decode({"inputs": [tensor]}, b"\0" * sent), code, status)


@pytest.mark.unit
def test_binary_values_are_checked_too() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    content = f32([1, np.nan, 3]).tobytes()
    error = refused(lambda: decode({"inputs": [tensor]}, content), "non_finite", 400)
    assert error.errors[0]["loc"] == ["inputs", 0, "data", 1]
    refused(lambda: decode({"inputs": [{**tensor, "data": [1, 2, 3]}]}, content), "invalid_input", 422)


@pytest.mark.unit
@pytest.mark.parametrize(
    "kind", [b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/xml", b"image/png"]
)
def test_other_content_types_are_refused(kind: bytes) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    call = lambda: v2.decode(body, {b"content-type": kind}, deployment_of(THREE), THREE)  # noqa: E731
    refused(call, "unsupported_media_type", 415)


@pytest.mark.unit
def test_mutated_requests_are_decoded_or_refused_but_never_crash() -> None:
    random = np.random.default_rng(5)
    content = f32([1, 2, 3]).tobytes()
    binary = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    seeds = [
        (json.dumps({"inputs": [X], "outputs": [{"name": "y"}]}).encode(), b""),
        (json.dumps({"inputs": [binary]}).encode(), content),
    ]
    for round_ in range(3000):
        head, rest = seeds[round_ % 2]
        body = bytearray(head + rest)
        for _ in range(random.integers(1, 4)):
            body[random.integers(len(body))] = random.integers(256)
        headers = {b"inference-header-content-length": b"%d" % len(head)} if rest else JSON
        try:
            v2.decode(bytes(body), headers, deployment_of(THREE), THREE)
        except InferenceError as error:
            assert 400 <= error.status < 500


@pytest.mark.unit
def test_the_metadata_documents_name_what_clients_need() -> None:
    server = json.loads(v2.server_metadata())
    assert server["name"] == "signalbox"
    assert server["extensions"] == ["binary_tensor_data"]
    model = json.loads(v2.metadata(deployment_of(TWO), TWO))
    assert model["name"] == "toy-live"
    assert model["versions"] == ["7"]
    assert model["inputs"] == [
        {"name": "a", "datatype": "FP16", "shape": [-1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [-1]},
    ]


def _cast(datatype: Datatype) -> Array:
    if datatype is Datatype.BYTES:
        return np.array([["é", ""], ["x", "y"]], dtype=object)
    return np.array([[0, 1], [1, 0]]).astype(NUMPY_DTYPES[datatype])


@pytest.mark.unit
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", list(Datatype))
def test_tritonclients_requests_and_results_round_trip(datatype: Datatype, binary: bool) -> None:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

    version = version_of(spec("s", datatype, -1, 2), outputs=(spec("t", datatype, -1, 2),))
    given = _cast(datatype)
    tensor = InferInput("s", [2, 2], str(datatype))
    tensor.set_data_from_numpy(given, binary_data=binary)
    for wanted in (None, [InferRequestedOutput("t", binary_data=binary)]):
        body, length = InferenceServerClient.generate_request_body([tensor], outputs=wanted, request_id="r1")
        call = decode(body[:length], body[length:] if length else None, version)
        assert call.client_id == "r1"
        assert call.inputs["s"].dtype == given.dtype
        assert (call.inputs["s"] == given).all()
        _kind, headers, reply = v2.encode(call, {"t": given}, deployment_of(version), version, "p")
        size = dict(headers).get(b"inference-header-content-length")
        result = InferResult.from_response_body(reply, header_length=None if size is None else int(size))
        received = result.as_numpy("t")
        if datatype is Datatype.BYTES:
            received = np.array(
                [item.decode() if isinstance(item, bytes) else item for item in received.flat], dtype=object
            )
            received = received.reshape(2, 2)
        assert (received == given).all()


def _oracle() -> list[Path]:
    return sorted(OPERATORS.glob("*/test_data_set_0")) if OPERATORS.is_dir() else []


@pytest.mark.shared
@pytest.mark.skipif(not OPERATORS.is_dir(), reason="the folder of shared data is absent")
@pytest.mark.parametrize("case", _oracle(), ids=lambda path: path.parent.name)
def test_the_operator_cases_arrive_exactly_as_json_and_as_binary(case: Path) -> None:
    import onnx
    from onnx import numpy_helper

    datatypes = {dtype: datatype for datatype, dtype in NUMPY_DTYPES.items()}
    given: dict[str, Array] = {}
    for index, path in enumerate(sorted(case.glob("input_*.pb"))):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        given[f"input{index}"] = numpy_helper.to_array(tensor)
    version = version_of(
        *(spec(name, datatypes[array.dtype], *array.shape) for name, array in given.items()), batched=False
    )
    entries = [
        {"name": name, "datatype": str(datatypes[array.dtype]), "shape": list(array.shape)}
        for name, array in given.items()
    ]
    forms = [
        (
            [{**entry, "data": array.ravel().tolist()} for entry, array in zip(entries, given.values(), strict=True)],
            None,
        ),
        ([{**entry, "data": array.tolist()} for entry, array in zip(entries, given.values(), strict=True)], None),
        (
            [
                {**entry, "parameters": {"binary_data_size": array.nbytes}}
                for entry, array in zip(entries, given.values(), strict=True)
            ],
            b"".join(array.tobytes() for array in given.values()),
        ),
    ]
    for inputs, binary in forms:
        call = decode({"inputs": inputs}, binary, version)
        for name, array in given.items():
            assert call.inputs[name].dtype == array.dtype
            assert np.array_equal(call.inputs[name], array)
