"""Golden inputs and outputs: what a model's owner says that it must reproduce.

Three forms: a folder with ONNX's test_data_set_N/{input,output}_K.pb, a zip of such a folder, or an .npz with one array
per input and output name. Nothing is unpacked to disk; what an archive may hold is bounded before it is read.
"""

import encodings.cp437  # noqa: F401 — what zipfile asks for when it opens an archive, too late in a confined child
import io
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from inference.contracts import Datatype, Signature, TensorSpec
from inference.errors import InferenceError
from inference.runtime.plans import NUMPY_DTYPES

Array = np.ndarray[Any, np.dtype[Any]]

RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-5

MAX_FILES = 2000
MAX_BYTES = 512 * 1024 * 1024

_MEMBER = re.compile(r"(?:^|/)(test_data_set_\d+)/(input|output)_(\d+)\.pb$")


@dataclass(frozen=True, slots=True)
class _Value:
    """One tensor: the name that its file gives it ("" where none) and its position among its side's files."""

    name: str
    position: int
    array: Array


@dataclass(slots=True)
class GoldenSet:
    """One set of inputs with the outputs that they must give."""

    name: str
    inputs: list[_Value] = field(default_factory=list)
    outputs: list[_Value] = field(default_factory=list)


def pack(path: Path) -> bytes:
    """The golden inputs at `path` as the bytes of one archive; a folder's .pb files are put into a zip.

    Links in a folder are passed over. Raises InferenceError bad_golden where there are none or too many.
    """
    if not path.is_dir():
        if path.stat().st_size > MAX_BYTES:
            raise _too_large()
        return path.read_bytes()
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path.rglob("*.pb")):
            name = file.relative_to(path.parent).as_posix()
            if file.is_symlink() or not file.is_file() or _MEMBER.search(name) is None:
                continue
            total += file.stat().st_size
            if total > MAX_BYTES or len(archive.filelist) >= MAX_FILES:
                raise _too_large()
            archive.write(file, name)
        if not archive.filelist:
            raise _bad("The folder has no test_data_set_0/input_0.pb.")
    return buffer.getvalue()


def read(data: bytes | memoryview, signature: Signature) -> list[GoldenSet]:
    """The sets in an archive; raises InferenceError bad_golden for what is no archive, too large or unreadable."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_archive(members)
            if any(member.filename.endswith(".npy") for member in members):
                return [_from_npz(archive, members, signature)]
            return _from_protobufs(archive, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _bad("The file is not a readable zip or npz archive.") from error


def _check_archive(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
        raise _too_large()
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise _bad("The archive holds a path that leaves it.")


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """At most what the archive's index says, which was checked: an entry that unpacks to more is refused."""
    with archive.open(member) as stream:
        content = stream.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise _bad("The archive's index does not match its content.")
    return content


def _from_protobufs(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> list[GoldenSet]:
    sets: dict[str, GoldenSet] = {}
    for member in sorted(members, key=lambda member: member.filename):
        match = _MEMBER.search(member.filename.replace("\\", "/"))
        if match is None:
            continue
        folder, side, position = match.groups()
        golden = sets.setdefault(folder, GoldenSet(folder))
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(_content(archive, member))
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise _bad(f"{folder}/{side}_{position}.pb keeps its values outside the file.")
            array = numpy_helper.to_array(tensor)
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            raise _bad(f"{folder}/{side}_{position}.pb does not hold a tensor.") from error
        values = golden.inputs if side == "input" else golden.outputs
        values.append(_Value(tensor.name, int(position), _plain(array)))
    if not sets:
        raise _bad("The archive has no test_data_set_0/input_0.pb.")
    return list(sets.values())


def _from_npz(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], signature: Signature) -> GoldenSet:
    golden = GoldenSet("npz")
    inputs = {spec.name for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name not in inputs | outputs:
            raise _bad(f"The model has no input or output {name!r}.")
        try:
            array = np.lib.format.read_array(io.BytesIO(_content(archive, member)), allow_pickle=False)
        except (ValueError, SyntaxError, TypeError, KeyError) as error:
            raise _bad(f"{name}.npy does not hold an array of numbers or text.") from error
        (golden.inputs if name in inputs else golden.outputs).append(_Value(name, -1, _plain(array)))
    return golden


def _plain(array: Array) -> Array:
    """Text as object arrays of str, as the runtime gives it."""
    if array.dtype.kind not in "USO":
        return array
    cells = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in array.flat]
    return np.array(cells, dtype=object).reshape(array.shape)


def _value_for(values: list[_Value], specs: tuple[TensorSpec, ...], position: int) -> Array | None:
    """The value that has the spec's name, else the one at its position unless that has another spec's name."""
    names = {spec.name for spec in specs}
    for value in values:
        if value.name == specs[position].name:
            return value.array
    for value in values:
        if value.position == position and value.name not in names:
            return value.array
    return None


def feed_of(golden: GoldenSet, signature: Signature) -> dict[str, Array]:
    """The set's inputs by the model's names; numbers of another width become the input's datatype."""
    feed: dict[str, Array] = {}
    for position, spec in enumerate(signature.inputs):
        array = _value_for(golden.inputs, signature.inputs, position)
        if array is None:
            raise _bad(f"{golden.name} has no value for input {spec.name}.")
        feed[spec.name] = array
        if (array.dtype.kind == "O") != (spec.datatype is Datatype.BYTES):
            raise _bad(f"{golden.name}: input {spec.name} needs {spec.datatype}.")
        if spec.datatype is not Datatype.BYTES:
            feed[spec.name] = array.astype(NUMPY_DTYPES[spec.datatype], copy=False)
    return feed


def expected_of(golden: GoldenSet, signature: Signature) -> dict[str, Array]:
    """The set's outputs by the model's names; not every output needs one, but one there must be."""
    expected: dict[str, Array] = {}
    for position, spec in enumerate(signature.outputs):
        array = _value_for(golden.outputs, signature.outputs, position)
        if array is not None:
            expected[spec.name] = array
    if not expected:
        raise _bad(f"{golden.name} has no expected output.")
    return expected


def largest_error(golden: str, got: dict[str, Array], expected: dict[str, Array]) -> float:
    """The largest absolute difference; raises InferenceError golden_mismatch beyond rtol 1e-3 and atol 1e-5."""
    largest = 0.0
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape:
            raise InferenceError(
                "golden_mismatch",
                f"{golden}: output {name} has the shape {list(have.shape)}, expected {list(want.shape)}.",
            )
        if have.dtype.kind == "O" or want.dtype.kind == "O":
            if have.astype(object).tolist() != want.astype(object).tolist():
                raise InferenceError("golden_mismatch", f"{golden}: output {name} has other texts than expected.")
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            left, right = have.astype(np.float64), want.astype(np.float64)
            same = np.isclose(left, right, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)
            distances = np.abs(left - right)
        finite = distances[np.isfinite(distances)]
        error = float(finite.max()) if finite.size else 0.0
        largest = max(largest, error)
        if not same.all():
            raise InferenceError(
                "golden_mismatch",
                f"{golden}: output {name} differs by up to {error:.3g} in {int((~same).sum())} of {same.size} values "
                f"(allowed: {RELATIVE_TOLERANCE:g} relative, {ABSOLUTE_TOLERANCE:g} absolute).",
            )
    return largest


def _bad(sentence: str) -> InferenceError:
    return InferenceError("bad_golden", f"The golden inputs cannot be used: {sentence}")


def _too_large() -> InferenceError:
    return _bad(f"they hold more than {MAX_FILES:,} files or {MAX_BYTES // 1024**2} MB.")
