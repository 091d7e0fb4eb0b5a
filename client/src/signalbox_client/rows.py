"""Rows and pictures as V1 bodies."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from signalbox_client.errors import InvalidInput

Picture = bytes | bytearray | memoryview | str | Path | BinaryIO

_SIGNATURES = ((0, b"\x89PNG\r\n\x1a\n", b"image/png"), (0, b"\xff\xd8\xff", b"image/jpeg"),
               (128, b"DICM", b"application/dicom"))  # fmt: skip


def rows_of(rows: Any) -> list[Any]:
    """A list of rows: of dicts or lists, of one dict, of a NumPy array, of a pandas or polars table or series."""
    if isinstance(rows, Mapping):
        return [rows]
    if isinstance(rows, np.ndarray):
        listed = rows.tolist()
        return listed if isinstance(listed, list) else [listed]
    if hasattr(rows, "to_dicts"):
        return list(rows.to_dicts())
    if hasattr(rows, "to_dict"):
        # A pandas series is one row, a table as many as it has.
        return list(rows.to_dict(orient="records")) if getattr(rows, "ndim", 2) == 2 else [rows.to_dict()]
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Sequence):
        raise InvalidInput("Rows are a list of dicts or lists, or a table.", code="invalid_input")
    return list(rows)


def document(**parts: Any) -> bytes:
    """A JSON body. Bytes become {"b64"}, NumPy's scalars and arrays what they hold, pandas' NA null; NaN stays NaN.

    Raises InvalidInput for what JSON cannot say.
    """
    try:
        return json.dumps(parts, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(str(error), code="wrong_type") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"b64": base64.b64encode(value).decode()}
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"A cell is {type(value).__name__}, which JSON cannot say.")


def picture_bytes(picture: Picture) -> bytes:
    """The picture's file, read where a path or an open file was given. Raises OSError."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, (str, Path)):
        return Path(picture).read_bytes()
    content = picture.read()
    if not isinstance(content, bytes):
        raise TypeError("The picture's file must be open for reading bytes.")
    return content


def picture_body(content: bytes) -> tuple[bytes, bytes]:
    """(content type, body): the file as it is, or in base64 where its kind is not known; then the server judges."""
    for start, signature, kind in _SIGNATURES:
        if content[start : start + len(signature)] == signature:
            return kind, content
    return b"application/json", document(instances=[content])
