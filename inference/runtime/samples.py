"""One real row of a version's own data, for the examples of its prediction API: of a reference set the most typical of
the first rows, of golden inputs the first.

`sample_in_sandbox` is what the control plane calls; `sample_bytes` runs in the throw-away child.
"""

import csv
import io
import itertools
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec
import numpy as np

from inference.contracts import Datatype, Signature, TensorSpec
from inference.errors import InferenceError
from inference.runtime.plans import NUMPY_DTYPES
from inference.runtime.reference_columns import MISSING, TARGET
from inference.runtime.sample_calls import MOST_CELLS, Sample
from inference.runtime.sandbox import Limits, Sandbox
from inference.runtime.sandbox_child import given_file

FUNCTION = "inference.runtime.samples:sample_bytes"
LIMITS = Limits(memory_bytes=1024**3, cpu_s=30, wall_s=30, file_bytes=1024**2)

MOST_ROWS = 1_000
# Cells that are looked at to find a typical row: about 20 ms.
MOST_LOOKED_AT = 50_000
MOST_GOLDEN_BYTES = 16 * 1024 * 1024
# A longer text is no help to a reader.
LONGEST_TEXT = 200
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

Row = list[Any]


class SampleRequest(msgspec.Struct, frozen=True):
    """Which inputs a row is for. `names`: of the one input's cells, where they have names; `nullable`: among them.
    `golden`: the file holds golden inputs, not a reference set."""

    signature: Signature
    names: tuple[str, ...] = ()
    nullable: frozenset[str] = frozenset()
    golden: bool = False


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one input: each row's cells in C order, to be read in the shape `tail`."""

    rows: Sequence[Row]
    tail: tuple[int, ...] = ()


def sample_in_sandbox(sandbox: Sandbox, path: Path, request: SampleRequest) -> Sample:
    """Values of one row by column name, or by input name where the cells have no names; {} where no row would do.

    Raises SandboxKilled, OSError where the file cannot be opened, RuntimeError where the sandbox does not start.
    """
    result = sandbox.call(FUNCTION, msgspec.msgpack.encode(request), LIMITS, file=path)
    return msgspec.msgpack.decode(result.output, type=dict[str, list[Any]])


def sample_bytes(argument: bytes) -> bytes:
    """The sandbox's function: a packed request in, a packed sample out; the file is the one handed in."""
    with given_file() as stream:
        return msgspec.msgpack.encode(sample_of(stream, msgspec.msgpack.decode(argument, type=SampleRequest)))


def sample_of(stream: BinaryIO, request: SampleRequest) -> Sample:
    """The row, read in this process; {} for a file that cannot be read, too."""
    try:
        blocks = _from_golden(stream, request.signature) if request.golden else _from_reference(stream, request)
    except (OSError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error, EOFError, InferenceError):
        return {}
    return _typical(blocks, request.signature, request.names, request.nullable)


def _from_reference(stream: BinaryIO, request: SampleRequest) -> dict[str, _Block]:
    head = stream.read(4)
    stream.seek(0)
    if head == b"PK\x03\x04":
        return _from_arrays(stream, request.signature, request.names)
    table = _from_parquet(stream) if head == b"PAR1" else _from_csv(stream)
    return _from_table(table, request.signature, request.names)


def _from_golden(stream: BinaryIO, signature: Signature) -> dict[str, _Block]:
    from inference.runtime import golden  # brings onnx, which a reference set does without

    data = stream.read(MOST_GOLDEN_BYTES + 1)
    if len(data) > MOST_GOLDEN_BYTES:
        return {}
    blocks = {}
    for name, array in golden.feed_of(golden.read(data, signature)[0], signature).items():
        row = array[:1] if array.ndim else array
        blocks[name] = _Block([row.ravel().tolist()], row.shape[1:])
    return blocks


def _from_csv(stream: BinaryIO) -> dict[str, Row]:
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    header = next(reader, [])
    rows = list(itertools.islice((row for row in reader if len(row) == len(header)), MOST_ROWS))
    return {name: [row[index] for row in rows] for index, name in enumerate(header) if name != TARGET}


def _from_parquet(stream: BinaryIO) -> dict[str, Row]:
    import pyarrow.parquet  # see reference.PRELOAD

    with pyarrow.parquet.ParquetFile(stream) as file:
        batch = next(file.iter_batches(batch_size=MOST_ROWS), None)
    return {name: values for name, values in batch.to_pydict().items() if name != TARGET} if batch is not None else {}


def _from_table(table: Mapping[str, Row], signature: Signature, names: tuple[str, ...]) -> dict[str, _Block]:
    """Columns by name as rows of the inputs: of the one input whose cells they are, or of inputs of single cells."""
    inputs = signature.inputs
    if not names and len(inputs) == 1 and len(inputs[0].shape) == 2 and inputs[0].shape[1] in (-1, len(table)):
        names = tuple(table)
    wanted = {inputs[0].name: names} if names else {spec.name: (spec.name,) for spec in inputs}
    if any(name not in table for columns in wanted.values() for name in columns):
        return {}
    tails = {spec.name: (len(wanted[spec.name]),) if len(spec.shape) > 1 else () for spec in inputs}
    return {
        name: _Block([list(row) for row in zip(*(table[column] for column in columns), strict=True)], tails[name])
        for name, columns in wanted.items()
    }


def _from_arrays(stream: BinaryIO, signature: Signature, names: tuple[str, ...]) -> dict[str, _Block]:
    blocks = {}
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if names and signature.inputs[0].name not in entries:
            if any(name not in entries for name in names):
                return {}
            table = {}
            for name in names:
                with archive.open(entries[name]) as member:
                    table[name] = _head_of(member).ravel().tolist()
            return _from_table(table, signature, names)
        for spec in signature.inputs:
            if spec.name not in entries:
                return {}
            with archive.open(entries[spec.name]) as member:
                array = _head_of(member)
            tail = (1,) if array.ndim == 1 and len(spec.shape) == 2 else array.shape[1:]
            blocks[spec.name] = _Block(array.reshape(len(array), -1).tolist(), tail)
    return blocks


def _head_of(stream: IO[bytes]) -> np.ndarray[Any, np.dtype[Any]]:
    """The first rows of an .npy file. Raises ValueError for one that cannot be read by rows, or has long rows."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    cells = prod(shape[1:])
    if dtype.hasobject or not shape or not 0 < cells <= MOST_CELLS or (fortran_order and len(shape) > 1):
        raise ValueError("not an array of short rows")
    rows = min(shape[0], MOST_ROWS)
    return np.frombuffer(stream.read(rows * cells * dtype.itemsize), dtype).reshape(rows, *shape[1:])


def _typical(
    blocks: Mapping[str, _Block], signature: Signature, names: tuple[str, ...], nullable: frozenset[str]
) -> Sample:
    """The most typical row among those that the API would take, the complete ones first."""
    inputs = signature.inputs
    if not blocks or not all(_fits(blocks[spec.name], spec, names) for spec in inputs):
        return {}
    width = sum(prod(blocks[spec.name].tail) for spec in inputs)
    if not 0 < width <= MOST_CELLS:
        return {}
    may_miss = [name in nullable for name in names] or [False] * width
    datatypes = [spec.datatype for spec in inputs for _ in range(prod(blocks[spec.name].tail))]
    rows: list[Row] = []
    for parts in itertools.islice(zip(*(blocks[spec.name].rows for spec in inputs), strict=False), MOST_ROWS):
        cells = [cell for part in parts for cell in part]
        try:
            rows.append([_cell(*each) for each in zip(cells, datatypes, may_miss, strict=True)])
        except (ValueError, TypeError, OverflowError):
            continue
        if len(rows) * width > MOST_LOOKED_AT:
            break
    if not rows:
        return {}
    chosen = _central([row for row in rows if None not in row] or rows)
    if names:
        return {name: [cell] for name, cell in zip(names, chosen, strict=True)}
    sample: Sample = {}
    for spec in inputs:
        tail = blocks[spec.name].tail
        taken, chosen = chosen[: prod(tail)], chosen[prod(tail) :]
        sample[spec.name] = np.array(taken, dtype=object).reshape(tail).tolist() if tail else taken
    return sample


def _fits(block: _Block, spec: TensorSpec, names: tuple[str, ...]) -> bool:
    expected = (len(names),) if names else spec.shape[1:]
    return len(block.tail) == len(expected) and all(
        size in (-1, have) for size, have in zip(expected, block.tail, strict=True)
    )


def _central(rows: list[Row]) -> Row:
    """The row nearest to the medians of its numbers, each measured in its own spread."""
    numbers = np.array([[_number(cell) for cell in row] for row in rows])
    middle = np.median(numbers, axis=0)
    away = np.abs(numbers - middle)
    spread = away.mean(axis=0)
    distance = (away / np.where(spread > 0, spread, 1.0)).sum(axis=1)
    return rows[int(distance.argmin())]


def _number(cell: Any) -> float:
    return 0.0 if cell is None or isinstance(cell, str) else float(cell)


def _cell(value: Any, datatype: Datatype, may_miss: bool) -> Any:
    """The value as JSON carries it. Raises ValueError, TypeError or OverflowError for what the API would refuse."""
    if datatype is Datatype.BYTES:
        text = value.decode() if isinstance(value, bytes) else str(value)
        if value is None or len(text) > LONGEST_TEXT or not text.isprintable():
            raise ValueError("no text to show")
        return text
    text = str(value).strip()
    if value is None or text.lower() in MISSING:
        if may_miss and datatype.startswith("FP"):
            return None
        raise ValueError("missing")
    if datatype is Datatype.BOOL:
        if text.lower() not in TRUTHS:
            raise ValueError("no truth value")
        return TRUTHS[text.lower()]
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not finite")
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        if abs(number) > float(np.finfo(dtype).max):
            raise OverflowError
        # By way of its text a 32-bit number reads as it was written: 0.1, not 0.10000000149011612.
        return float(str(dtype.type(number)))
    whole = int(text) if text.lstrip("+-").isdigit() else int(number)
    bounds = np.iinfo(dtype)
    if whole != number or not bounds.min <= whole <= bounds.max:
        raise ValueError("not a whole number of this width")
    return whole
