"""JSON values and binary buffers to tensors, and tensors back to JSON.

A valid value costs one pass over the types of its cells and one conversion. Floats of a document without booleans cost
the conversion alone, which refuses whatever else is no number. Only when that finds something wrong is the value walked
cell by cell (`inference.runtime.cells`), to name every bad cell exactly.
"""

from functools import lru_cache
from itertools import chain
from math import prod
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import orjson

from inference.contracts import Datatype
from inference.errors import InferenceError, Located
from inference.runtime.cells import explain, is_bad_text
from inference.runtime.plans import NUMBERS, Array, Locate, TensorPlan
from inference.runtime.plans import NUMPY_DTYPES as NUMPY_DTYPES

# Whole numbers sent as 3.0 are exact up to here; above it a double no longer tells neighbours apart.
_EXACT_DOUBLE = 2.0**53
_LISTS = (list, tuple)
# A packed cell is an argument for a while, which takes 8 bytes more than its number and its place in the list.
_PACKED_CELLS = 262_144
_FINITE_CELLS = 65_536
# Up to here the sum of cells is had sooner than the mask of the array.
_SUMMED_CELLS = 256


def fits(shape: tuple[int, ...], tensor: TensorPlan) -> bool:
    """Whether an array of this shape may be given to the model: right rank and sizes, and nothing of it empty."""
    if tensor.tail is not None:
        return shape[1:] == tensor.tail and len(shape) > 0 and shape[0] > 0
    return len(shape) == len(tensor.shape) and all(map(_size_fits, shape, tensor.shape))


def _size_fits(size: int, wanted: int) -> bool:
    return size == wanted or (wanted < 0 and size > 0)


def from_json(value: Any, tensor: TensorPlan, locate: Locate, *, booleans: bool = True) -> Array:
    """Nested lists of the tensor's shape as an array of its dtype. `booleans`: a cell may be one.

    Raises InferenceError wrong_shape, wrong_type, out_of_range, non_finite, bad_text or too_deep; `errors` names the
    first 20 bad cells.
    """
    if tensor.vector is not None and type(value) is list and value and type(value[0]) not in _LISTS:
        return from_json(value, tensor.vector, locate).reshape(-1, 1)
    cells: Any = value if tensor.shape else (value,)
    if tensor.width and type(value) is list and (table := pack_table(value, tensor, booleans=booleans)) is not None:
        return table
    try:
        for _ in range(len(tensor.shape) - 1):
            cells = chain.from_iterable(cells)
        kinds = set(map(type, cells))
    except TypeError:
        return explain(value, tensor, locate)
    array = _convert(value, kinds, tensor)
    if array is None or not fits(array.shape, tensor) or not _all_fine(array, tensor, kinds):
        return explain(value, tensor, locate)
    return array


def from_flat(
    values: list[Any], shape: tuple[int, ...], tensor: TensorPlan, locate: Locate, *, booleans: bool = True
) -> Array:
    """A flat list in row-major order as an array of `shape`, which fits and whose product is the list's length.

    `booleans`: a cell may be one. Raises as `from_json`; `locate` is asked for one index.
    """
    if tensor.dtype.kind == "f" and (packed := _pack(values, shape, tensor, booleans)) is not None:
        return packed
    kinds = set(map(type, values))
    array = _convert(values, kinds, tensor)
    if array is None or array.ndim != 1:
        return explain(values, tensor, locate, shape)
    array = array.reshape(shape)
    return array if _all_fine(array, tensor, kinds) else explain(values, tensor, locate, shape)


def from_buffer(buffer: memoryview, shape: tuple[int, ...], tensor: TensorPlan, locate: Locate) -> Array:
    """Little-endian elements in row-major order as an array; BYTES have 4-byte lengths before them.

    The array is a read-only view of the buffer where that is aligned to its elements, a copy elsewhere.
    Raises InferenceError wrong_shape where the buffer's length is not that of `shape`, else as `from_flat`.
    """
    if tensor.datatype is Datatype.BYTES:
        return from_flat(_split_texts(buffer, prod(shape), tensor, locate), shape, tensor, locate)
    wanted = prod(shape) * tensor.dtype.itemsize
    if len(buffer) != wanted:
        message = f"The binary data of {tensor.name} has {len(buffer)} bytes; its shape and datatype make {wanted}."
        raise InferenceError("wrong_shape", message, [Located(loc=locate(()), msg=message)])
    if tensor.datatype is Datatype.BOOL and wanted and np.frombuffer(buffer, np.uint8).max() > 1:
        message = f"A BOOL of {tensor.name} is neither 0 nor 1."
        raise InferenceError("wrong_type", message, [Located(loc=locate(()), msg=message)])
    array: Array = np.ndarray(shape, tensor.dtype.newbyteorder("<"), buffer.toreadonly())
    if array.dtype != tensor.dtype or not array.flags.aligned:
        array = array.astype(tensor.dtype)
    if not _all_fine(array, tensor, set()):
        return explain(array.ravel().tolist(), tensor, locate, shape)
    return array


def split_elements(buffer: memoryview, count: int) -> list[memoryview] | None:
    """The elements of a BYTES buffer, or None where it is not exactly `count` of them."""
    elements: list[memoryview] = []
    offset, end = 0, len(buffer)
    while offset < end and len(elements) < count:
        start = offset + 4
        offset = start + int.from_bytes(buffer[offset:start], "little")
        if offset > end:
            return None
        elements.append(buffer[start:offset])
    return elements if offset == end and len(elements) == count else None


def _split_texts(buffer: memoryview, count: int, tensor: TensorPlan, locate: Locate) -> list[str]:
    elements = split_elements(buffer, count)
    if elements is None:
        message = f"The binary data of {tensor.name} is not {count} texts, each after its length in 4 bytes."
        raise InferenceError("wrong_shape", message, [Located(loc=locate(()), msg=message)])
    texts: list[str] = []
    for element in elements:
        try:
            texts.append(str(element, "utf-8"))
        except UnicodeDecodeError as error:
            message = f"Element {len(texts)} of {tensor.name} is not UTF-8."
            raise InferenceError("bad_text", message, [Located(loc=locate((len(texts),)), msg=message)]) from error
    return texts


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> Struct:
    return Struct(f"={count}{code}")


def pack_table(rows: list[Any], tensor: TensorPlan, *, booleans: bool = True) -> Array | None:
    """Rows of the tensor's width as a read-only table, or None where that is for the full conversion to judge.

    `booleans`: a cell may be one.
    """
    if len(rows) == 1 and type(row := rows[0]) is list:
        return _pack(row, (1, tensor.width), tensor, booleans) if len(row) == tensor.width else None
    try:
        if len(rows) * tensor.width > _PACKED_CELLS or {tensor.width} != set(map(len, rows)):
            return None
        cells: list[Any] = []
        for row in rows:
            cells += row
    except TypeError:
        return None
    return _pack(cells, (len(rows), tensor.width), tensor, booleans)


def _pack(cells: list[Any], shape: tuple[int, ...], tensor: TensorPlan, booleans: bool) -> Array | None:
    """Not too many finite numbers as a float tensor, or None where that is for the full conversion to judge.

    A row of 30 takes 3 us here and 6 us there; 64 of them 65 us and 110 us, 25 us where there are no `booleans`, since
    packing itself refuses what overflows and all else that JSON knows, so that no cell need be asked for its type.
    """
    count = len(cells)
    if count > _PACKED_CELLS or (booleans and not {*map(type, cells)} <= NUMBERS):
        return None
    few = count <= _SUMMED_CELLS
    try:
        # A sum is finite only where every cell is.
        if few and (total := sum(cells)) - total:
            return None
        array: Array = np.ndarray(shape, tensor.dtype, _packer(tensor.code, count).pack(*cells))
    except (OverflowError, TypeError, StructError):
        return None
    return array if few or _finite(array) else None


def _convert(value: Any, kinds: set[type], tensor: TensorPlan) -> Array | None:
    """The array, or None where a cell has the wrong type, a number does not fit or the lists are ragged."""
    try:
        if kinds <= tensor.kinds:
            if tensor.dtype.kind != "f":
                return np.array(value, dtype=tensor.dtype)
            # NumPy warns of numbers that overflow float32; they are found, and named, afterwards.
            with np.errstate(over="ignore"):
                return np.array(value, dtype=tensor.dtype)
        if tensor.dtype.kind in "iu" and kinds <= NUMBERS:
            numbers = np.array(value, dtype=np.float64)
            whole = (np.abs(numbers) <= _EXACT_DOUBLE) & (np.rint(numbers) == numbers)
            limits = np.iinfo(tensor.dtype)
            if whole.all() and numbers.min() >= limits.min and numbers.max() <= limits.max:
                return numbers.astype(tensor.dtype)
    except (ValueError, TypeError, OverflowError):
        return None
    return None


def _all_fine(array: Array, tensor: TensorPlan, kinds: set[type]) -> bool:
    """Whether every number is finite or allowed not to be. False may still prove right: the cell walk decides."""
    kind = tensor.dtype.kind
    if kind == "O":
        return not is_bad_text("".join(array.ravel().tolist()))
    if kind != "f" or _finite(array):
        return True
    if np.isinf(array).any():
        return False
    if tensor.accepts_non_finite and type(None) not in kinds:
        return True
    return tensor.nullable is not None and not (np.isnan(array) & ~tensor.nullable).any()


def _finite(array: Array) -> bool:
    """Whether no cell is NaN or infinite, asked block by block: the mask of a large array would be a quarter of it."""
    if array.size <= _FINITE_CELLS:
        return bool(np.count_nonzero(np.isfinite(array)) == array.size)
    cells = array.reshape(-1)
    blocks = (cells[start : start + _FINITE_CELLS] for start in range(0, cells.size, _FINITE_CELLS))
    return all(bool(np.isfinite(block).all()) for block in blocks)


def to_json(array: Array) -> Any:
    """The array as something `dumps` writes: itself where orjson can, else nested lists. float32 0.1 is written 0.1."""
    if array.dtype.kind == "O":
        return _texts(array.tolist())
    if array.dtype.char in "qQ":
        # ONNX Runtime's 64-bit integers are `long long`, whose scalars orjson does not know; `long` is the same here.
        array = array.view(np.int64 if array.dtype.kind == "i" else np.uint64)
    if array.ndim == 0:
        return array[()]
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def row_to_json(array: Array) -> Any:
    """As `to_json`, of the one row that the array has; of all of it where its first dimension counts no rows."""
    if array.shape[:1] != (1,):
        return to_json(array)
    return array.item() if array.ndim == 1 and array.dtype.kind in "iub" else to_json(array)[0]


def rows_to_json(columns: dict[str, Array]) -> Any:
    """As `to_json`, of arrays with as many rows each: a list of objects, one a row, with a value of every array.

    Numbers are written array by array and told apart at the commas between rows, in a fifth of the time that as many
    small arrays take.
    """
    forms: list[bytes] = []
    texts: list[list[bytes]] = []
    for name, array in columns.items():
        if array.dtype.kind not in "fiub" or not array.size:
            values = map(to_json, columns.values())
            return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        depth = array.ndim
        opening, closing = b"[" * (depth - 1), b"]" * (depth - 1)
        texts.append(dumps(to_json(array))[depth:-depth].split(closing + b"," + opening))
        forms.append(dumps(name).replace(b"%", b"%%") + b":" + opening + b"%b" + closing)
    form = b"{" + b",".join(forms) + b"}"
    return orjson.Fragment(b"[" + b",".join([form % row for row in zip(*texts, strict=True)]) + b"]")


def _texts(value: Any) -> Any:
    if type(value) is list:
        return [_texts(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def dumps(document: Any) -> bytes:
    """JSON of a document that may hold arrays. NaN and infinities are written as null, never bare."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def non_finite_warnings(outputs: dict[str, Array]) -> list[str]:
    """One sentence for each output with NaN or infinities, which JSON can't carry and which are sent as null."""
    warnings = []
    for name, array in outputs.items():
        if array.dtype.kind == "f" and (bad := array.size - int(np.count_nonzero(np.isfinite(array)))):
            warnings.append(f"{bad} of {array.size} values of output {name} are not finite and are sent as null.")
    return warnings
