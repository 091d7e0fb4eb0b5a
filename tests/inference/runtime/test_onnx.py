"""Models in ONNX Runtime: signatures, runs over every datatype, and refusals that can be read."""

import numpy as np
import pytest
from onnx import TensorProto

from inference.contracts import Datatype
from inference.errors import InferenceError
from inference.runtime.onnx import feed_error, load_model
from tests.inference import toys

pytestmark = pytest.mark.unit

KINDS = {
    TensorProto.BOOL: Datatype.BOOL,
    TensorProto.UINT8: Datatype.UINT8,
    TensorProto.UINT16: Datatype.UINT16,
    TensorProto.UINT32: Datatype.UINT32,
    TensorProto.UINT64: Datatype.UINT64,
    TensorProto.INT8: Datatype.INT8,
    TensorProto.INT16: Datatype.INT16,
    TensorProto.INT32: Datatype.INT32,
    TensorProto.INT64: Datatype.INT64,
    TensorProto.FLOAT16: Datatype.FP16,
    TensorProto.FLOAT: Datatype.FP32,
    TensorProto.DOUBLE: Datatype.FP64,
    TensorProto.STRING: Datatype.BYTES,
}


def test_it_computes_a_linear_regression() -> None:
    model = load_model(toys.linear_regression())
    x = np.array([[1, 2, 3], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], x @ toys.SLOPES + toys.INTERCEPT)
    assert model.device == "cpu"


def test_the_signature_names_types_and_shapes() -> None:
    signature = load_model(toys.linear_regression()).signature
    assert [(spec.name, spec.datatype, spec.shape, spec.dims) for spec in signature.inputs] == [
        ("x", Datatype.FP32, (-1, 3), ("n", ""))
    ]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("y", (-1, 1))]
    assert signature.batched


def test_a_model_of_fixed_rows_is_not_batched() -> None:
    assert not load_model(toys.identity(TensorProto.FLOAT, [1, 2])).signature.batched
    assert not load_model(toys.identity(TensorProto.FLOAT, [])).signature.batched


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: KINDS[kind])
def test_every_datatype_passes_unchanged(kind: int) -> None:
    model = load_model(toys.identity(kind))
    assert model.signature.inputs[0].datatype is KINDS[kind]
    given = model.sample_inputs(2)
    result = model.run(given)["y"]
    assert result.dtype == given["x"].dtype
    assert result.tolist() == given["x"].tolist()


def test_text_is_taken_as_str_and_as_utf8_bytes() -> None:
    model = load_model(toys.text())
    result = model.run({"words": np.array(["two", b"one", "zwölf", "zwölf".encode()], dtype=object)})
    assert result["numbers"].tolist() == [2, 1, -1, -1]
    assert result["echo"].tolist() == ["two", "one", "zwölf", "zwölf"]


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(InferenceError) as caught:
        load_model(toys.text()).run({"words": np.array([b"\xff"], dtype=object)})
    assert caught.value.code == "bad_text"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InferenceError) as caught:
        load_model(toys.text()).run({"words": np.array(["\ud800"], dtype=object)})
    assert caught.value.code == "model_rejected_input"


def test_several_inputs_and_outputs_and_a_choice_of_outputs() -> None:
    model = load_model(toys.several())
    feed = {"left": np.array([[1, 5]], np.float32), "right": np.array([[2, 3]], np.int64)}
    result = model.run(feed)
    assert result["sum"].tolist() == [[3, 8]]
    assert result["larger"].tolist() == [[False, True]]
    assert list(model.run(feed, ["larger"])) == ["larger"]


def test_dynamic_dimensions_take_any_size() -> None:
    model = load_model(toys.dynamic())
    assert model.signature.inputs[0].shape == (-1, -1)
    for length in (1, 7):
        assert model.run({"x": np.ones((2, length), np.float32)})["total"].tolist() == [[length], [length]]


@pytest.mark.parametrize(
    ("data", "feed"),
    [
        (toys.lookup(), {"index": np.array([99])}),
        (toys.lookup(), {"index": np.array([1.5])}),
        (toys.lookup(), {"index": np.array([[1]])}),
        (toys.lookup(), {}),
        (toys.linear_regression(), {"x": np.ones((1, 4), np.float32)}),
        (toys.memory_bomb(), {"x": np.ones(1, np.float32)}),
        (toys.text(), {"words": np.array([None], dtype=object)[:, None]}),
    ],
)
def test_what_the_model_cannot_compute_is_a_readable_refusal(data: bytes, feed: dict[str, np.ndarray]) -> None:
    model = load_model(data)
    with pytest.raises(InferenceError) as caught:
        model.run(feed)
    assert caught.value.code == "model_rejected_input"
    assert not any(
        leak in caught.value.message for leak in ("onnxruntime", "/", "::", ".cc", ".h:", "ONNXRuntimeError")
    )


def test_the_node_and_the_reason_are_named() -> None:
    with pytest.raises(InferenceError, match=r"Gather node: indices element out of data bounds, idx=99"):
        load_model(toys.lookup()).run({"index": np.array([99])})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "corrupt_model"),
        (b"<html>", "corrupt_model"),
        (toys.linear_regression()[:-20], "corrupt_model"),
        (toys.identity(TensorProto.BFLOAT16), "unsupported_type"),
        (toys.identity(TensorProto.COMPLEX64), "unsupported_type"),
        (toys.zipmap_classifier(), "unsupported_type"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_code(data: bytes, code: str) -> None:
    with pytest.raises(InferenceError) as caught:
        load_model(data)
    assert caught.value.code == code
    assert "/onnxruntime_src" not in caught.value.message


def test_a_provider_that_is_not_installed_is_passed_over() -> None:
    assert load_model(toys.linear_regression(), providers=("CUDAExecutionProvider",)).device in ("cpu", "cuda")


def test_a_run_is_measured_in_seconds() -> None:
    assert 0 < load_model(toys.linear_regression()).measure() < 1


def test_a_feed_is_checked_against_the_signature() -> None:
    signature = load_model(toys.linear_regression()).signature
    assert feed_error(signature, {"x": np.ones((2, 3), np.float32)}) is None
    assert feed_error(signature, {}) == "Input x is missing."
    assert "no input z" in str(feed_error(signature, {"x": np.ones((2, 3), np.float32), "z": np.ones(1)}))
    assert "expected [-1, 3]" in str(feed_error(signature, {"x": np.ones((2, 4), np.float32)}))
    assert "datatype float64" in str(feed_error(signature, {"x": np.ones((2, 3))}))
