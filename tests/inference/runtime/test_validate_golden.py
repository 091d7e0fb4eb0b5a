"""Golden inputs: a folder, a zip or an npz that the model must reproduce; what cannot be read is refused."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from inference.contracts import ValidationReport, ValidationRequest
from inference.errors import InferenceError
from inference.runtime import golden
from inference.runtime.onnx import load_model
from inference.runtime.validate import validate
from tests.inference import toys

pytestmark = pytest.mark.unit

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
Y = X @ toys.SLOPES + toys.INTERCEPT


def report_on(tmp_path: Path, golden_path: Path, data: bytes | None = None) -> ValidationReport:
    path = tmp_path / "model.onnx"
    path.write_bytes(toys.linear_regression() if data is None else data)
    return validate(ValidationRequest(model_path=str(path), golden_path=str(golden_path)))


def protobuf(array: np.ndarray, name: str = "") -> bytes:
    data: bytes = numpy_helper.from_array(array, name).SerializeToString()
    return data


def write_set(folder: Path, inputs: list[bytes], outputs: list[bytes]) -> None:
    folder.mkdir(parents=True)
    for index, content in enumerate(inputs):
        (folder / f"input_{index}.pb").write_bytes(content)
    for index, content in enumerate(outputs):
        (folder / f"output_{index}.pb").write_bytes(content)


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def good_members(prefix: str = "") -> dict[str, bytes]:
    folder = f"{prefix}test_data_set_0"
    return {f"{folder}/input_0.pb": protobuf(X), f"{folder}/output_0.pb": protobuf(Y)}


def test_a_folder_of_sets_is_reproduced(tmp_path: Path) -> None:
    for index in range(2):
        write_set(tmp_path / f"golden/test_data_set_{index}", [protobuf(X)], [protobuf(Y)])
    report = report_on(tmp_path, tmp_path / "golden")
    assert report.ok and report.golden_sets == 2
    assert report.golden_max_error is not None and report.golden_max_error < 1e-5


def test_one_set_may_be_named_itself(tmp_path: Path) -> None:
    write_set(tmp_path / "test_data_set_0", [protobuf(X)], [protobuf(Y)])
    assert report_on(tmp_path, tmp_path / "test_data_set_0").golden_sets == 1


@pytest.mark.parametrize("prefix", ["", "model/", "a/b/"])
def test_a_zip_of_sets_is_reproduced(tmp_path: Path, prefix: str) -> None:
    assert report_on(tmp_path, write_zip(tmp_path / "g.zip", good_members(prefix))).golden_sets == 1


def test_an_npz_is_reproduced(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=X.astype(np.float64), y=Y)
    assert report_on(tmp_path, tmp_path / "g.npz").golden_sets == 1


def test_values_are_taken_by_name_before_position(tmp_path: Path) -> None:
    left, right = np.array([[1, 5]], np.float32), np.array([[2, 3]], np.int64)
    outputs = load_model(toys.several()).run({"left": left, "right": right})
    write_set(
        tmp_path / "g/test_data_set_0",
        [protobuf(right, "right"), protobuf(left, "left")],
        [protobuf(outputs["larger"], "larger")],
    )
    assert report_on(tmp_path, tmp_path / "g", toys.several()).golden_sets == 1


def test_text_is_reproduced(tmp_path: Path) -> None:
    words = np.array(["one", "zwölf"])
    np.savez(tmp_path / "g.npz", words=words, numbers=np.array([1, -1]), echo=words)
    assert report_on(tmp_path, tmp_path / "g.npz", toys.text()).ok
    np.savez(tmp_path / "h.npz", words=words, echo=words[::-1])
    assert report_on(tmp_path, tmp_path / "h.npz", toys.text()).code == "golden_mismatch"


@pytest.mark.parametrize(("factor", "ok"), [(1 + 5e-4, True), (1 + 5e-3, False)])
def test_the_tolerance_is_a_thousandth(tmp_path: Path, factor: float, ok: bool) -> None:
    np.savez(tmp_path / "g.npz", x=X, y=(Y * factor).astype(np.float32))
    report = report_on(tmp_path, tmp_path / "g.npz")
    assert (report.ok, report.code) == (ok, "" if ok else "golden_mismatch")


def test_a_mismatch_says_where_and_how_far(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=X, y=Y + np.array([[0], [2]], np.float32))
    report = report_on(tmp_path, tmp_path / "g.npz")
    assert report.code == "golden_mismatch"
    assert "output y differs by up to 2 in 1 of 2 values" in report.reason


def test_another_shape_is_a_mismatch(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=X, y=Y[:, 0])
    assert report_on(tmp_path, tmp_path / "g.npz").code == "golden_mismatch"


def test_an_input_that_the_model_refuses_is_a_failed_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", index=np.array([9]), value=np.array([1.0], np.float32))
    report = report_on(tmp_path, tmp_path / "g.npz", toys.lookup())
    assert report.code == "sample_failed" and "idx=9" in report.reason


def _npz_of(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        for _ in range(600):
            member.write(bytes(1024**2))
    return buffer.getvalue()


def _lying_about_its_size() -> bytes:
    """An entry that unpacks to more than the archive's index says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test_data_set_0/input_0.pb", bytes(100_000))
    data = bytearray(buffer.getvalue())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    return bytes(data)


def _zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _external() -> bytes:
    made = TensorProto(data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value="/etc/passwd")
    data: bytes = made.SerializeToString()
    return data


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"a,b,c\n1,2,3\n", "not a readable zip"),
    "empty": (lambda: b"", "not a readable zip"),
    "truncated": (lambda: _zip_of(good_members())[:-30], "not a readable zip"),
    "no sets": (lambda: _zip_of({"readme.txt": b"x"}), "no test_data_set_0/input_0.pb"),
    "climbing": (lambda: _zip_of({"../test_data_set_0/input_0.pb": protobuf(X)}), "leaves it"),
    "absolute": (lambda: _zip_of({"/test_data_set_0/input_0.pb": protobuf(X)}), "leaves it"),
    "climbing with backslashes": (lambda: _zip_of({"..\\test_data_set_0\\input_0.pb": b""}), "leaves it"),
    "no tensor": (lambda: _zip_of({"test_data_set_0/input_0.pb": b"\xff\xff\xff"}), "does not hold a tensor"),
    "external": (lambda: _zip_of({"test_data_set_0/input_0.pb": _external()}), "outside the file"),
    "no output": (lambda: _zip_of({"test_data_set_0/input_0.pb": protobuf(X)}), "no expected output"),
    "no input": (lambda: _zip_of({"test_data_set_0/output_0.pb": protobuf(Y)}), "no value for input x"),
    "wrong shape": (lambda: _npz_of(x=X[:, :2], y=Y), "has the shape [2, 2]"),
    "unknown name": (lambda: _npz_of(x=X, z=Y), "no input or output 'z'"),
    "pickled": (lambda: _npz_of(x=np.array([{}], dtype=object), y=Y), "does not hold an array"),
    "text for numbers": (lambda: _npz_of(x=np.array([["a"]]), y=Y), "needs FP32"),
    "a bomb": (_bomb, "more than"),
    "too many files": (lambda: _zip_of({f"f{index}": b"" for index in range(2001)}), "more than"),
    "a lie about its size": (_lying_about_its_size, "golden inputs cannot be used"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used_is_refused(tmp_path: Path, kind: str) -> None:
    make, said = UNUSABLE[kind]
    (tmp_path / "golden").write_bytes(make())
    report = report_on(tmp_path, tmp_path / "golden")
    assert (report.ok, report.code) == (False, "bad_golden")
    assert said in report.reason
    assert str(tmp_path) not in report.reason


def test_links_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(protobuf(X))
    (tmp_path / "g/test_data_set_0").mkdir(parents=True)
    (tmp_path / "g/test_data_set_0/input_0.pb").symlink_to(tmp_path / "secret")
    with pytest.raises(InferenceError) as caught:
        golden.pack(tmp_path / "g")
    assert caught.value.code == "bad_golden"
