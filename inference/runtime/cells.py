"""The exact walk over a value that did not convert: names every bad cell (the first 20), or converts it after all."""

import base64
import binascii
import math
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from inference.errors import InferenceError, Located
from inference.runtime.plans import Array, Locate, TensorPlan

MAX_ERRORS = 20
MAX_DEPTH = 64
# Items that are looked at together before any is looked at alone.
_BLOCK = 256


class _Bad(Exception):
    """A cell is wrong: code of the error table and a message without its place."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Full(Exception):
    """Enough errors were found."""


class _Refusal:
    """Collects what is wrong; the first thing gives the answer its code and sentence."""

    def __init__(self, tensor: TensorPlan, locate: Locate) -> None:
        self.tensor = tensor
        self.locate = locate
        self.code = ""
        self.errors: list[Located] = []

    def add(self, code: str, path: tuple[int, ...], message: str) -> None:
        self.code = self.code or code
        self.errors.append(Located(loc=self.locate(path), msg=message))
        if len(self.errors) >= MAX_ERRORS:
            raise _Full

    def error(self) -> InferenceError:
        first = self.errors[0]
        where = ".".join(map(str, first["loc"]))
        more = f" ({len(self.errors)} problems in all)" if len(self.errors) > 1 else ""
        if len(self.errors) >= MAX_ERRORS:
            more = f" (the first {MAX_ERRORS} problems are listed)"
        return InferenceError(self.code, f"{where}: {first['msg']}{more}", self.errors)


def explain(value: Any, tensor: TensorPlan, locate: Locate, shape: tuple[int, ...] | None = None) -> Array:
    """The array where every cell is right after all (3.0 for an integer, {"b64"} for a text), else raises.

    `shape` given: `value` is flat, `shape` fits and `locate` is asked for one index. Raises InferenceError.
    """
    if _depth(value) > MAX_DEPTH:
        raise InferenceError("too_deep", f"The JSON is nested deeper than {MAX_DEPTH} levels.")
    refusal = _Refusal(tensor, locate)
    cells: list[Any] = []
    sizes = list(tensor.shape if shape is None else shape)
    try:
        if shape is None:
            _walk(value, 0, (), sizes, cells, refusal)
        else:
            width = shape[-1] if shape else 1
            for start in range(0, len(value), _BLOCK):
                block = value[start : start + _BLOCK]
                if not _append_plain(block, (), tensor, cells):
                    for index, cell in enumerate(block, start):
                        _take(cell, (index,), index % width, cells, refusal)
    except _Full:
        pass
    if refusal.errors:
        raise refusal.error()
    array = np.empty(prod(sizes), dtype=tensor.dtype)
    array[:] = cells
    return array.reshape(sizes)


def _walk(value: Any, axis: int, path: tuple[int, ...], sizes: list[int], cells: list[Any], refusal: _Refusal) -> None:
    """Collect the cells below `path`. `sizes` starts as the expected shape; the first list met fixes a free size."""
    if axis == len(sizes):
        _take(value, path, path[-1] if path else 0, cells, refusal)
        return
    tensor = refusal.tensor
    if not isinstance(value, list | tuple):
        refusal.add(
            "wrong_shape", path, f"expected a list ({tensor.name} has shape {tensor.expected}), got {_name(value)}"
        )
        return
    free = sizes[axis] < 0
    if free and value:
        sizes[axis] = len(value)
    if not value and (free or sizes[axis] != 0):
        what = "at least one row is needed" if axis == 0 else "the list is empty"
        refusal.add("wrong_shape", path, f"{what}; {tensor.name} has shape {tensor.expected}")
        return
    if len(value) != sizes[axis]:
        wanted = str(sizes[axis]) if tensor.shape[axis] >= 0 else f"{sizes[axis]} as in the list before"
        refusal.add(
            "wrong_shape",
            path,
            f"has {len(value)} values, expected {wanted}; {tensor.name} has shape {tensor.expected}",
        )
        return
    below = tuple(sizes[axis + 1 :])
    for start in range(0, len(value), _BLOCK):
        block = value[start : start + _BLOCK]
        if _append_plain(block, below, tensor, cells):
            continue
        for index, item in enumerate(block, start):
            _walk(item, axis + 1, (*path, index), sizes, cells, refusal)
        below = tuple(sizes[axis + 1 :])


def _append_plain(block: Any, below: tuple[int, ...], tensor: TensorPlan, cells: list[Any]) -> bool:
    """Append the cells of items of shape `below` where nothing about them is wrong; False leaves them to the walk.

    One bad cell among millions is found in the time that a few conversions take.
    """
    flat: Any = block
    try:
        for _ in below:
            flat = chain.from_iterable(flat)
        found = list(flat)
        kinds = set(map(type, found))
        if not kinds <= tensor.kinds or type(None) in kinds:
            return False
        with np.errstate(over="ignore"):
            array = np.array(block, dtype=tensor.dtype)
    except (ValueError, TypeError, OverflowError):
        return False
    if array.shape != (len(block), *below):
        return False
    if tensor.dtype.kind == "O":
        if is_bad_text("".join(found)):
            return False
    elif tensor.dtype.kind == "f" and not np.isfinite(array).all():
        return False
    cells.extend(found)
    return True


def _take(cell: Any, path: tuple[int, ...], column: int, cells: list[Any], refusal: _Refusal) -> None:
    tensor = refusal.tensor
    try:
        cells.append(_READERS[tensor.dtype.kind](cell, tensor, column))
    except _Bad as bad:
        named = f"column {tensor.columns[column]}: " if column < len(tensor.columns) else ""
        refusal.add(bad.code, path, named + bad.message)


def _number(cell: Any, tensor: TensorPlan, column: int) -> float:
    mask = tensor.nullable
    nullable = mask is not None and bool(mask[column if mask.size > 1 else 0])
    if cell is None and nullable:
        return math.nan
    if type(cell) not in (int, float):
        raise _wrong("a number", cell, tensor)
    try:
        number = float(cell)
    except OverflowError:
        raise _Bad("out_of_range", f"the number does not fit {tensor.datatype}") from None
    if math.isnan(number):
        if nullable or tensor.accepts_non_finite:
            return number
        raise _Bad("non_finite", "NaN is not accepted by this model")
    if math.isinf(number):
        if tensor.accepts_non_finite:
            return number
        raise _Bad("non_finite", "an infinity is not accepted by this model")
    with np.errstate(over="ignore"):
        if np.isinf(tensor.dtype.type(number)):
            raise _Bad("out_of_range", f"{number!r} does not fit {tensor.datatype}")
    return number


def _integer(cell: Any, tensor: TensorPlan, column: int) -> int:
    if type(cell) is float:
        if not math.isfinite(cell):
            raise _Bad("non_finite", f"{tensor.datatype} has no NaN and no infinity")
        if not cell.is_integer():
            raise _Bad("wrong_type", f"expected a whole number ({tensor.datatype}), got {cell!r}")
        cell = int(cell)
    if type(cell) is not int:
        raise _wrong("a whole number", cell, tensor)
    limits = np.iinfo(tensor.dtype)
    if not limits.min <= cell <= limits.max:
        raise _Bad("out_of_range", f"{cell} does not fit {tensor.datatype} ({limits.min} to {limits.max})")
    return cell


def _boolean(cell: Any, tensor: TensorPlan, column: int) -> bool:
    if type(cell) is not bool:
        raise _wrong("true or false", cell, tensor)
    return cell


def _text(cell: Any, tensor: TensorPlan, column: int) -> str:
    if type(cell) is dict and cell.keys() == {"b64"}:
        try:
            cell = str(from_base64(cell["b64"]), "utf-8")
        except UnicodeDecodeError:
            raise _Bad("bad_text", "the bytes are not UTF-8") from None
        except ValueError:
            raise _Bad("wrong_type", "b64 is not base64") from None
    if type(cell) is not str:
        raise _wrong("a text", cell, tensor)
    if is_bad_text(cell):
        raise _Bad("bad_text", "the text contains U+0000 or half of a surrogate pair")
    return cell


_READERS = {"f": _number, "i": _integer, "u": _integer, "b": _boolean, "O": _text}


def is_bad_text(text: str) -> bool:
    """Whether a text holds U+0000 or half of a surrogate pair, which no database column can keep."""
    if "\0" in text:
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def from_base64(text: Any) -> bytes:
    """The bytes of a base64 text in the standard or the URL alphabet, padded or not; raises ValueError."""
    if type(text) is not str:
        raise ValueError("base64 must be a text")
    plain = text.translate(_STANDARD_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


_STANDARD_ALPHABET = str.maketrans("-_", "+/", "\r\n")


def _wrong(wanted: str, cell: Any, tensor: TensorPlan) -> _Bad:
    if isinstance(cell, list | tuple):
        return _Bad("wrong_shape", f"expected {wanted}, got a list; {tensor.name} has shape {tensor.expected}")
    hint = ""
    if type(cell) is str and tensor.dtype.kind in "fiu":
        hint = "; numbers are sent without quotes and with a decimal point"
    return _Bad("wrong_type", f"expected {wanted} ({tensor.datatype}), got {_name(cell)}{hint}")


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list | tuple):
        depth += 1
        if not value:
            break
        value = value[0]
    return depth


def _name(value: Any) -> str:
    """The value as an error message shows it: short, and never more than its start."""
    if value is None:
        return "null"
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, str):
        shown = value if len(value) <= 40 else value[:40] + "…"
        return "the text " + ascii(shown)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"the number {value!r:.40}"
