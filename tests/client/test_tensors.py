"""Arrays become the bytes of the protocol, and come back the same."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from signalbox_client import InvalidInput, ServerError, TensorSpec
from signalbox_client.tensors import DTYPES, decode, encode

pytestmark = pytest.mark.unit


def spec(datatype: str, name: str = "x") -> TensorSpec:
    return TensorSpec(name, datatype, (-1, 2))


def answer(head: dict[str, Any], *buffers: bytes) -> httpx.Response:
    content = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))} if buffers else {}
    return httpx.Response(200, headers=headers, content=content + b"".join(buffers))


def echoed(array: np.ndarray, datatype: str) -> np.ndarray:
    """What comes back of an input that the model gives as it is."""
    size, parts = encode({"x": array}, [spec(datatype)])
    document = json.loads(bytes(parts[0]))
    assert (size, document["parameters"]) == (len(parts[0]), {"binary_data_output": True})
    outputs, _ = decode(answer({"outputs": document["inputs"]}, bytes(parts[1])))
    return outputs["x"]


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_comes_back_the_same(datatype: str) -> None:
    array = np.array([[0, 1], [1, 0], [100, 7]]).astype(DTYPES[datatype])
    back = echoed(array, datatype)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert (back == array).all()


@pytest.mark.parametrize("array", [np.array(["a", "", "größer\0"]), np.array([b"a", b"\xff"], dtype=object)])
def test_texts_come_back_as_texts(array: np.ndarray) -> None:
    wanted = [each if isinstance(each, str) else each.decode("utf-8", "replace") for each in array.tolist()]
    assert echoed(array, "BYTES").tolist() == wanted


def test_an_array_that_is_right_already_is_sent_from_its_own_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    _, parts = encode({"x": array}, [spec("FP32")])
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), array)


def test_outputs_are_views_of_the_answer() -> None:
    response = answer(
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}]},
        np.arange(4, dtype=np.float32).tobytes(),
    )
    outputs, _ = decode(response)
    assert np.shares_memory(outputs["y"], np.frombuffer(response.content, np.uint8))
    assert not outputs["y"].flags.writeable


@pytest.mark.parametrize(
    "array", [np.arange(12.0).reshape(2, 6).T, np.arange(12, dtype=">f4").reshape(6, 2), [[1, 2]], np.float64(3)]
)
def test_other_layouts_and_types_are_converted(array: Any) -> None:
    back = echoed(array, "FP32")
    assert back.dtype == np.float32
    assert (back == np.asarray(array)).all()


def test_integers_change_their_width_only_where_all_fit() -> None:
    assert echoed(np.array([[1, -128]]), "INT8").tolist() == [[1, -128]]
    with pytest.raises(InvalidInput, match="x takes INT8"):
        encode({"x": np.array([[1, 128]])}, [spec("INT8")])


@pytest.mark.parametrize("array", [np.array([1.5]), np.array([1j]), np.array(["2026-01-01"], "M8[D]")])
def test_what_would_lose_values_is_refused_before_it_is_sent(array: np.ndarray) -> None:
    with pytest.raises(InvalidInput) as refused:
        encode({"x": array}, [spec("INT64")])
    assert refused.value.code == "wrong_type"


def test_outputs_can_be_asked_for_by_name() -> None:
    _, parts = encode({"x": np.ones((1, 2), np.float32)}, [spec("FP32")], ["y"])
    assert json.loads(bytes(parts[0]))["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def test_outputs_in_json_are_read_too() -> None:
    told = [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, None]},
        {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["a"]},
    ]
    outputs, _ = decode(answer({"outputs": told}))
    assert outputs["y"][0, 0] == 1.5
    assert np.isnan(outputs["y"][0, 1])
    assert outputs["t"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("entry", "buffer"),
    [
        ({"datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 4}}, b"1234"),
        ({"datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}, b"1234"),
        ({"datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}, b"12345678"),
        ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}, b"\xff\0\0\0a"),
        ({"datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 5}}, b"\1\0\0\0a"),
        ({"datatype": "FP99", "shape": [1], "parameters": {"binary_data_size": 4}}, b"1234"),
        ({"shape": [1], "parameters": {"binary_data_size": 4}}, b"1234"),
        ({"datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": -4}}, b"1234"),
    ],
)
def test_an_answer_of_another_form_is_a_server_error(entry: dict[str, Any], buffer: bytes) -> None:
    with pytest.raises(ServerError) as wrong:
        decode(answer({"outputs": [{"name": "y", **entry}]}, buffer))
    assert wrong.value.code == "unexpected_answer"
