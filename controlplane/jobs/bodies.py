"""A job's body: one picture as it is, or TensorFlow Serving's JSON with rows, columns or pictures."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from inference.contracts import VersionRoute
from inference.errors import InferenceError, Located
from inference.runtime.plans import Locate, VersionPlan, plan_of
from inference.runtime.tensors import from_json

PICTURE_TYPES = ("image/png", "image/jpeg", "application/dicom")
OCTETS = "application/octet-stream"
DEEPEST = 64


@dataclass(slots=True)
class Asked:
    """What a job asks: pictures as they were sent, or tensors by input name. `rows`: how many answers there will be."""

    rows: int
    pictures: list[bytes] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


def read_body(body: bytes, media_type: str, version: VersionRoute) -> Asked:
    """Raises InferenceError with the code that the prediction API gives for the same body."""
    if not body:
        raise InferenceError("empty_body")
    if media_type in PICTURE_TYPES or (media_type == OCTETS and version.task.takes_pictures):
        if not version.task.takes_pictures:
            message = f"This deployment takes no pictures; send JSON, not {media_type}."
            raise InferenceError("unsupported_media_type", message)
        return Asked(1, pictures=[body])
    if media_type.startswith("multipart/") or media_type.endswith(("/xml", "+xml")):
        raise InferenceError("unsupported_media_type", "Send a picture, or a JSON document with instances or inputs.")
    plan = plan_of(version)
    document = _parse(body)
    if not isinstance(document, dict) or ("instances" in document) == ("inputs" in document):
        raise InferenceError("bad_request", "The body must be a JSON object with either instances or inputs.")
    return _rows(document["instances"], plan) if "instances" in document else _columns(document["inputs"], plan)


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InferenceError("bad_encoding", f"The body is not UTF-8: the byte at {error.start} is wrong.") from error
    if not text.strip():
        raise InferenceError("empty_body")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise InferenceError("too_deep") from error
    except json.JSONDecodeError as error:
        message = f"The body is not one well-formed JSON document (character {error.pos})."
        raise InferenceError("bad_json", message) from error
    except ValueError as error:
        raise InferenceError("bad_json", "The body holds a number with too many digits.") from error
    _check_depth(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = dict(pairs)
    if len(kept) != len(pairs):
        raise InferenceError("duplicate_key")
    return kept


def _check_depth(document: Any) -> None:
    level, depth = [document], 0
    while level := [
        item
        for value in level
        if isinstance(value, list | dict)
        for item in (value.values() if isinstance(value, dict) else value)
        if isinstance(item, list | dict)
    ]:
        depth += 1
        if depth > DEEPEST:
            raise InferenceError("too_deep")


def _refuse(code: str, message: str, *location: str | int) -> NoReturn:
    raise InferenceError(code, message, [Located(loc=list(location), msg=message)])


def _under(*start: str | int) -> Locate:
    """Places the cells of a tensor below `start` in the document."""
    return lambda path: [*start, *path]


def _rows(rows: Any, plan: VersionPlan) -> Asked:
    if not isinstance(rows, list) or not rows:
        _refuse("wrong_shape", "instances must be a list with at least one row.", "instances")
    if plan.version.task.takes_pictures and isinstance(rows[0], dict):
        return _pictures(rows, "instances", plan)
    if isinstance(rows[0], dict) and rows[0].keys() != {"b64"}:
        return _objects(rows, plan)
    if len(plan.inputs) != 1:
        names = ", ".join(tensor.name for tensor in plan.inputs)
        _refuse("wrong_shape", f"The model has several inputs: each row must be an object with {names}.", "instances")
    tensor = plan.inputs[0]
    return _asked({tensor.name: from_json(rows, tensor, _under("instances"))})


def _objects(rows: list[Any], plan: VersionPlan) -> Asked:
    """Rows as objects: cells by column name where the columns have names, else values by input name."""
    names = plan.columns or tuple(plan.by_name)
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != set(names):
            given = set(row) if isinstance(row, dict) else set()
            wrong = (sorted(set(names) - given) or sorted(given - set(names)) or ["an object"])[0][:60]
            message = f"Row {index} must have exactly {', '.join(names)}: see {wrong}."
            _refuse("unknown_feature", message, "instances", index, wrong)
    if plan.columns:
        tensor = plan.inputs[0]

        def locate(path: tuple[int, ...]) -> list[str | int]:
            return ["instances", *path[:1], *(names[column] for column in path[1:2])]

        return _asked({tensor.name: from_json([[row[name] for name in names] for row in rows], tensor, locate)})
    return _asked(
        {
            name: from_json([row[name] for row in rows], tensor, _under("instances", name))
            for name, tensor in plan.by_name.items()
        }
    )


def _columns(value: Any, plan: VersionPlan) -> Asked:
    files = value if isinstance(value, list) else [value]
    if plan.version.task.takes_pictures and files and _is_file(files[0]):
        return _pictures(files, "inputs", plan)
    if isinstance(value, dict) and not _is_file(value):
        if plan.columns and value.keys() == set(plan.columns):
            columns = list(value.values())
            if any(not isinstance(column, list) or len(column) != len(columns[0]) for column in columns):
                _refuse("wrong_shape", "Every column must be a list of the same length.", "inputs")
            return _objects([dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)], plan)
        if value.keys() != set(plan.by_name):
            _refuse("unknown_feature", f"inputs must have exactly {', '.join(plan.by_name)}.", "inputs")
        return _asked(
            {name: from_json(value[name], tensor, _under("inputs", name)) for name, tensor in plan.by_name.items()}
        )
    if len(plan.inputs) != 1:
        _refuse("unknown_feature", f"inputs must be an object with {', '.join(plan.by_name)}.", "inputs")
    tensor = plan.inputs[0]
    return _asked({tensor.name: from_json(value, tensor, _under("inputs"))})


def _asked(inputs: dict[str, np.ndarray]) -> Asked:
    lengths = {len(array) for array in inputs.values() if array.ndim}
    if len(lengths) > 1:
        _refuse("wrong_shape", "All inputs must have the same number of rows.", "inputs")
    return Asked(next(iter(lengths), 1), inputs=inputs)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _pictures(rows: Sequence[Any], key: str, plan: VersionPlan) -> Asked:
    name = plan.inputs[0].name
    pictures: list[bytes] = []
    for index, row in enumerate(rows):
        value = row[name] if isinstance(row, dict) and row.keys() == {name} else row
        if not _is_file(value) or not isinstance(value["b64"], str):
            _refuse("wrong_type", 'A picture reads {"b64": "..."}.', key, index)
        try:
            pictures.append(base64.b64decode(value["b64"], validate=True))
        except (binascii.Error, ValueError):
            _refuse("wrong_type", "b64 is not base64.", key, index, "b64")
    return Asked(len(pictures), pictures=pictures)
