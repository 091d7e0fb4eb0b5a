"""Opens what comes packed: MLflow model folders, and golden inputs given as a folder."""

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import yaml
from django.conf import settings

from controlplane.catalog.storage import Draft, draft_from, draft_of
from controlplane.errors import DomainError, field_error
from inference.errors import InferenceError

MOST_MLMODEL_BYTES = 256 * 1024
MOST_FILES = 10_000
# A few lines of aliases to aliases stand for billions of elements.
# Both YAML loaders take time that grows with the square of what is open at once.
MOST_NESTED = 100
MOST_ALIASES = 8
ZIP = b"PK\x03\x04"
# Fields of ONNX's ModelProto by number with their wire types; a file that begins otherwise is no model.
FIRST_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


@dataclass(frozen=True, slots=True)
class MlflowModel:
    """What an MLflow folder says: its ONNX file as a draft, the columns of its signature, the run it came from."""

    draft: Draft
    columns: tuple[str, ...]
    run_id: str


def refuse_what_is_no_model(head: bytes) -> None:
    """Raises DomainError `not_onnx` by a file's first bytes, so that a mistake is told at once.

    A file that passes may still be anything: validation parses it in the sandbox.
    """
    if not head:
        _not_onnx("The file is empty.")
    for magic, kind in (
        (ZIP, "a zip archive (a PyTorch file, perhaps)"),
        (b"\x89HDF", "an HDF5 file (a Keras model, perhaps)"),
        (b"\x80", "a Python pickle"),
        (b"<", "a web page"),
        (b"\x1f\x8b", "a gzip file"),
    ):
        if head.startswith(magic) and not (magic == b"\x80" and head[1:2] > b"\x05"):
            _not_onnx(f"The file is {kind}, not an ONNX model.")
    number, wire_type = head[0] >> 3, head[0] & 7
    if len(head) > 1 and head[0] >= 0x80:
        number = (head[0] & 0x7F | (head[1] & 0x7F) << 7) >> 3
    if FIRST_FIELDS.get(number) != wire_type:
        _not_onnx("The file does not begin as an ONNX model does.")


def is_zip(head: bytes) -> bool:
    return head.startswith(ZIP)


def open_mlflow_zip(path: Path) -> MlflowModel:
    """Reads a zipped MLflow model folder. Raises DomainError `not_onnx`, `too_large` or `storage_full`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) > MOST_FILES:
                _not_onnx("The archive holds too many files to be an MLflow model.")
            described = next((name for name in sorted(names, key=len) if PurePosixPath(name).name == "MLmodel"), None)
            if described is None:
                _not_onnx("The file is a zip archive without an MLmodel file, not an ONNX model.")
            with archive.open(described) as stream:
                description = _read_mlmodel(stream.read(MOST_MLMODEL_BYTES + 1))
            # Only the archive's own list of names is looked up: nothing is ever unpacked to a path.
            model = str(PurePosixPath(described).parent / _model_path(description))
            if model not in names:
                _not_onnx(f"The MLflow folder has no “{PurePosixPath(model).name}”.")
            with archive.open(model) as stream:
                draft = draft_from(stream, most=settings.SIGNALBOX_MAX_MODEL_BYTES)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError):
        _not_onnx("The zip archive is damaged, encrypted or packed in a way that is not supported.")
    return MlflowModel(draft, _columns(description), _run_id(description))


def open_mlflow_folder(folder: Path) -> MlflowModel:
    """Reads an MLflow model folder on this machine, as `open_mlflow_zip` does."""
    try:
        with (folder / "MLmodel").open("rb") as stream:
            description = _read_mlmodel(stream.read(MOST_MLMODEL_BYTES + 1))
        draft = draft_of(folder / _model_path(description), most=settings.SIGNALBOX_MAX_MODEL_BYTES)
    except OSError as error:
        _not_onnx(f"The folder is not an MLflow model with an ONNX file: {error.strerror}.")
    return MlflowModel(draft, _columns(description), _run_id(description))


def pack_golden(path: Path, most: int) -> Draft:
    """A draft of golden inputs on this machine: an archive as it is, a folder's test_data_set_* zipped.

    Raises DomainError `bad_golden` where there are none.
    """
    from inference.runtime import golden  # loads ONNX, which web processes do without

    try:
        return draft_from(io.BytesIO(golden.pack(path)), most=most)
    except InferenceError as error:
        raise DomainError.from_inference(error) from None


def check_golden(path: Path) -> None:
    """Raises DomainError `bad_golden` where a file cannot be golden inputs at all."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise field_error("bad_golden", "golden", "Golden inputs are a zip of test_data_set_*, or .npz.") from None
    if len(names) > MOST_FILES or not any(name.endswith((".pb", ".npy")) for name in names):
        raise field_error("bad_golden", "golden", "The archive holds neither input_*.pb files nor arrays.")


def _read_mlmodel(content: bytes) -> dict[str, Any]:
    if len(content) > MOST_MLMODEL_BYTES:
        _not_onnx("The MLmodel file is too large.")
    if _nested(content) > MOST_NESTED:
        _not_onnx("The MLmodel file is nested too deeply.")
    try:
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.CSafeLoader)) > MOST_ALIASES:
            _not_onnx("The MLmodel file has too many aliases.")
        # libyaml's loader: the one in Python takes seconds for a few thousand open brackets.
        description = yaml.load(content, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        _not_onnx("The MLmodel file is not YAML.")
    if not isinstance(description, dict):
        _not_onnx("The MLmodel file is not an object.")
    return description


def _nested(content: bytes) -> int:
    """How many brackets, or dashes on one line, are open at once at most."""
    most = depth = 0
    for found in re.finditer(rb"[\[{]|[\]}]|(?:- ){20,}", content):
        mark = found.group()
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth = max(0, depth - 1)
        else:
            most = max(most, len(mark) // 2)
        most = max(most, depth)
    return most


def _model_path(description: dict[str, Any]) -> str:
    flavors = description.get("flavors")
    onnx = flavors.get("onnx") if isinstance(flavors, dict) else None
    if not isinstance(onnx, dict):
        _not_onnx("The MLflow model has no ONNX flavour.")
    path = onnx.get("data", "model.onnx")
    if not isinstance(path, str) or not re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,3}", path
    ):
        _not_onnx("The MLflow model names a file outside its folder.")
    return path


def _run_id(description: dict[str, Any]) -> str:
    run_id = description.get("run_id")
    return run_id[:100] if isinstance(run_id, str) else ""


def _columns(description: dict[str, Any]) -> tuple[str, ...]:
    """The signature's column names; none where it describes tensors."""
    signature = description.get("signature")
    inputs = signature.get("inputs") if isinstance(signature, dict) else None
    try:
        specs = json.loads(inputs) if isinstance(inputs, str) else []
    except (ValueError, RecursionError):
        return ()
    if not isinstance(specs, list) or not all(
        isinstance(spec, dict) and spec.get("type") != "tensor" for spec in specs
    ):
        return ()
    names = [spec.get("name") for spec in specs]
    return tuple(name for name in names if isinstance(name, str)) if all(isinstance(n, str) for n in names) else ()


def _not_onnx(message: str) -> NoReturn:
    raise DomainError("not_onnx", message, errors=[{"loc": ["file"], "msg": message}])
