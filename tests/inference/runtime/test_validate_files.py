"""Files that must be refused at upload, each under its code and in words: table B, rows 24, 25, 27, 28, 29, 31."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.contracts import Datatype, ValidationReport, ValidationRequest
from inference.runtime.validate import validate
from tests.inference import toys
from tests.inference.toys import FLOAT, constant, model_of, node, tensor

pytestmark = pytest.mark.unit

LEAKS = ("/onnxruntime", "::", "ONNXRuntimeError", "Traceback", ".py", ".cc:")


def report_on(tmp_path: Path, data: bytes) -> ValidationReport:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return validate(ValidationRequest(model_path=str(path)))


def assert_refused(report: ValidationReport, *codes: str) -> None:
    assert not report.ok
    assert report.code in codes, (report.code, report.reason)
    assert len(report.reason) > 10
    assert not any(leak in report.reason for leak in (*LEAKS, str(Path.cwd())))
    assert report.checks[-1].ok is False


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<!doctype html><title>Sign in</title>", "HTML"),
        (b"\xef\xbb\xbf  <html></html>", "HTML"),
        (pickle.dumps({"weights": [1.0]}), "pickle"),
        (_zip(), "zip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b'{"format": "json"}', "text"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x7fELF" + bytes(60), "program"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(60), "TensorFlow Lite"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG"),
        (bytes(200), "not an ONNX model"),
        (np.random.default_rng(3).bytes(4096), "not an ONNX model"),
    ],
)
def test_a_file_that_is_not_onnx_is_named_for_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    report = report_on(tmp_path, data)
    assert_refused(report, "not_onnx")
    assert said in report.reason


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model_is_corrupt(tmp_path: Path, share: float) -> None:
    data = toys.picture_classifier(channels=3, labels=100)
    assert_refused(report_on(tmp_path, data[: int(len(data) * share)]), "corrupt_model")


def test_flipped_bits_give_a_report_and_never_a_crash(tmp_path: Path) -> None:
    """A flip in a weight or a name cannot be told from another model; every other one is refused by a code of ours."""
    data = bytearray(toys.classifier())
    codes: set[str] = set()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position * 5 % 8)
        report = report_on(tmp_path, bytes(flipped))
        codes.add(report.code)
        if not report.ok:
            assert_refused(report, report.code)
    assert "corrupt_model" in codes
    assert codes <= {
        "",
        "corrupt_model",
        "not_onnx",
        "invalid_graph",
        "unsupported_operator",
        "unsupported_opset",
        "unsupported_type",
        "load_failed",
        "sample_failed",
        "external_data_not_allowed",
    }


@pytest.mark.parametrize(("opset", "ir_version", "said"), [(999, 9, "up to opset"), (17, 99, "up to IR version")])
def test_a_newer_opset_or_ir_version_is_refused_with_what_is_supported(
    tmp_path: Path, opset: int, ir_version: int, said: str
) -> None:
    model = model_of(
        [node("Relu", ["x"], ["y"])],
        [tensor("x", FLOAT, ["n", 2])],
        [tensor("y", FLOAT, ["n", 2])],
        opset=opset,
        ir_version=ir_version,
    )
    report = report_on(tmp_path, model.SerializeToString())
    assert_refused(report, "unsupported_opset")
    assert said in report.reason
    assert report.opset == {"ai.onnx": opset} and report.ir_version == ir_version


def _plain(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), domains: dict[str, int] | None = None) -> bytes:
    return toys.saved(
        nodes,
        [tensor("x", FLOAT, ["n", 2])],
        [tensor(name, FLOAT, ["n", 2]) for name in outputs],
        domains=domains,
    )


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (
            _plain(node("Dream", ["x"], ["y"], domain="com.acme"), domains={"com.acme": 1}),
            "unsupported_operator",
            "acme",
        ),
        (_plain(node("Dream", ["x"], ["y"])), "unsupported_operator", "'Dream'"),
        (_plain(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), outputs=("b",)), "invalid_graph", "cycle"),
        (_plain(node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"])), "invalid_graph", "two values"),
        (_plain(node("Relu", ["x"], ["x"]), outputs=("x",)), "invalid_graph", "two values"),
        (_plain(node("Relu", ["x"], ["y"]), outputs=()), "invalid_graph", "no outputs"),
        (_plain(node("Relu", ["nowhere"], ["y"])), "invalid_graph", "nowhere"),
    ],
)
def test_an_invalid_graph_is_refused_in_words(tmp_path: Path, data: bytes, code: str, said: str) -> None:
    report = report_on(tmp_path, data)
    assert_refused(report, code)
    assert said in report.reason


def test_a_cycle_through_a_subgraph_is_found(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Neg", ["y"], ["z"])], "branch", [], [tensor("z", FLOAT, None)])
    data = toys.saved(
        [node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)],
        [tensor("go", TensorProto.BOOL, [])],
        [tensor("y", FLOAT, None)],
    )
    assert_refused(report_on(tmp_path, data), "invalid_graph")


def _external(location: str = "weights.bin", *, offset: str = "0", length: str = "24") -> onnx.TensorProto:
    weights = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weights.external_data.add(key=key, value=value)
    return weights


def _with_weights(weights: onnx.TensorProto) -> onnx.ModelProto:
    return model_of(
        [node("MatMul", ["x", "w"], ["y"])], [tensor("x", FLOAT, ["n", 3])], [tensor("y", FLOAT, ["n", 2])], [weights]
    )


def _constant_attribute() -> onnx.ModelProto:
    return model_of(
        [node("Constant", [], ["w"], value=_external()), node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", FLOAT, ["n", 3])],
        [tensor("y", FLOAT, ["n", 2])],
    )


def _sparse() -> onnx.ModelProto:
    model = _with_weights(constant("w", np.zeros((3, 2), np.float32)))
    del model.graph.initializer[:]
    sparse = model.graph.sparse_initializer.add(dims=[3, 2])
    sparse.values.CopyFrom(_external())
    sparse.indices.CopyFrom(constant("", [0, 1, 2, 3, 4, 5], np.int64))
    return model


def _sparse_indices_in_an_attribute() -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(dims=[3, 2])
    sparse.values.CopyFrom(constant("w", np.ones(6, np.float32)))
    sparse.indices.CopyFrom(_external())
    model = _constant_attribute()
    del model.graph.node[0].attribute[:]
    attribute = model.graph.node[0].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse)
    return model


def _subgraph() -> onnx.ModelProto:
    branch = helper.make_graph([node("Identity", ["w"], ["z"])], "b", [], [tensor("z", FLOAT, None)], [_external()])
    return model_of(
        [node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)],
        [tensor("go", TensorProto.BOOL, [])],
        [tensor("y", FLOAT, None)],
    )


def _function() -> onnx.ModelProto:
    model = _with_weights(constant("w", np.ones((3, 2), np.float32)))
    body = [node("Constant", [], ["c"], value=_external()), node("MatMul", ["a", "c"], ["b"])]
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    return model


def _training() -> onnx.ModelProto:
    model = _with_weights(constant("w", np.ones((3, 2), np.float32)))
    model.training_info.add().initialization.initializer.append(_external())
    return model


def _location_without_marker() -> onnx.ModelProto:
    weights = _external()
    weights.ClearField("data_location")
    return _with_weights(weights)


EXTERNAL: dict[str, Callable[[], onnx.ModelProto]] = {
    "in the same folder": lambda: _with_weights(_external()),
    "relative": lambda: _with_weights(_external("data/weights.bin")),
    "absolute": lambda: _with_weights(_external("/etc/passwd")),
    "climbing": lambda: _with_weights(_external("a/../../../etc/passwd")),
    "a symlink": lambda: _with_weights(_external("link.bin")),
    "a hardlink": lambda: _with_weights(_external("hard.bin")),
    "a memory marker": lambda: _with_weights(_external("*/_ORT_MEM_ADDR_/*", offset="140737488355328")),
    "a huge length": lambda: _with_weights(_external(length=str(2**62))),
    "a negative offset": lambda: _with_weights(_external(offset="-8")),
    "sparse values": _sparse,
    "sparse indices": _sparse_indices_in_an_attribute,
    "a Constant's attribute": _constant_attribute,
    "a subgraph": _subgraph,
    "a function": _function,
    "training": _training,
    "a location without the marker": _location_without_marker,
}


@pytest.mark.parametrize("kind", EXTERNAL)
def test_external_data_is_refused_wherever_it_hides(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(24))
    (tmp_path / "weights.bin").write_bytes(bytes(24))
    (tmp_path / "link.bin").symlink_to(secret)
    (tmp_path / "hard.bin").hardlink_to(secret)
    assert_refused(report_on(tmp_path, EXTERNAL[kind]().SerializeToString()), "external_data_not_allowed")


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.COMPLEX128])
def test_numbers_that_cannot_be_served_are_refused(tmp_path: Path, kind: int) -> None:
    report = report_on(tmp_path, toys.identity(kind))
    assert_refused(report, "unsupported_type")
    assert TensorProto.DataType.Name(kind).lower() in report.reason


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (helper.make_sequence_type_proto, "a sequence"),
        (helper.make_optional_type_proto, "an optional value"),
    ],
)
def test_containers_of_tensors_are_refused(
    tmp_path: Path, wrap: Callable[[onnx.TypeProto], onnx.TypeProto], said: str
) -> None:
    kind = wrap(helper.make_tensor_type_proto(FLOAT, ["n"]))
    model = model_of([node("Identity", ["x"], ["y"])], [], [])
    model.graph.input.append(helper.make_value_info("x", kind))
    model.graph.output.append(helper.make_value_info("y", kind))
    report = report_on(tmp_path, model.SerializeToString())
    assert_refused(report, "unsupported_type")
    assert said in report.reason


def test_text_and_dynamic_dimensions_are_accepted_with_their_schema(tmp_path: Path) -> None:
    report = report_on(tmp_path, toys.text())
    assert report.ok and report.signature is not None
    assert report.signature.inputs[0].datatype is Datatype.BYTES
    report = report_on(tmp_path, toys.dynamic())
    assert report.ok and report.signature is not None
    assert report.signature.inputs[0].shape == (-1, -1)
    assert report.signature.inputs[0].dims == ("n", "length")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\u202egnp", "x" * 300, ""])
def test_names_that_cannot_be_shown_or_stored_are_refused(tmp_path: Path, name: str) -> None:
    for data in (
        toys.saved([node("Relu", ["x"], [name])], [tensor("x", FLOAT, ["n"])], [tensor(name, FLOAT, ["n"])]),
        toys.saved([node("Relu", ["x"], ["y"])], [tensor("x", FLOAT, [name or "n"])], [tensor("y", FLOAT, None)]),
    ):
        report = report_on(tmp_path, data)
        if name or not report.ok:
            assert_refused(report, "invalid_graph")


def test_nothing_in_a_report_breaks_a_database(tmp_path: Path) -> None:
    """Postgres takes no U+0000 in text or JSON."""
    model = model_of(
        [node("No\0Op", ["x"], ["y"], domain="a\0b")], [tensor("x", FLOAT, ["n"])], [tensor("y", FLOAT, ["n"])]
    )
    model.producer_name = "made\0by"
    model.opset_import.add(domain="a\0b", version=1)
    model.graph.initializer.append(onnx.TensorProto(name="w\0", data_type=FLOAT, dims=[2**62, 2**62]))
    report = report_on(tmp_path, model.SerializeToString())
    assert_refused(report, "unsupported_operator")
    assert b"\\u0000" not in msgspec.json.encode(report)


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    for mark in (b"MatMul", b"features", b"probabilities", b"weights", b"toys"):
        data = toys.classifier().replace(mark, b"\xff" + mark[1:])
        assert report_on(tmp_path, data).code in ("corrupt_model", "not_onnx")


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    length, encoded = len(content), b""
    while length > 127:
        encoded += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + content


def test_a_file_nested_beyond_reason_is_corrupt(tmp_path: Path) -> None:
    """Subgraph in subgraph: written by hand, for the library that writes ONNX refuses to."""
    graph = _field(2, b"innermost")
    for _ in range(10_000):
        # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = _field(1, _field(5, _field(6, graph)))
    assert_refused(report_on(tmp_path, b"\x08\x09" + _field(7, graph)), "corrupt_model")
