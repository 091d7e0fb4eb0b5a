"""Checks reference sets: CSV, Parquet or NPZ whose names are the columns, or a zip of pictures. Each with `target` or
`labels.csv` if the truth is known. Nothing is kept in memory but a line or a header.

`read_in_sandbox` is what the control plane calls; `read_bytes` runs in the throw-away child.
"""

import csv
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Literal, NoReturn

import msgspec
import numpy as np

from inference.errors import InferenceError
from inference.runtime.digest import pack, unpack
from inference.runtime.reference_columns import MISSING, PICTURES, TARGET, digests
from inference.runtime.sandbox import Limits, Sandbox, SandboxKilled
from inference.runtime.sandbox_child import given_file

# Modules that a sandbox should import before its first child. Not pyarrow: it starts a thread, and takes 36 MB.
PRELOAD = ("inference.runtime.reference",)
FUNCTION = "inference.runtime.reference:read_bytes"

MOST_ROWS = 5_000_000
MOST_COLUMNS = 10_000
MOST_CELL = 64 * 1024
MOST_ENTRIES = 100_000
MOST_UNPACKED_BYTES = 4 * 1024**3
# Every digit can be read in one way only: else a long cell that ends badly would take minutes.
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z")
SHOWN = 5

csv.field_size_limit(min(sys.maxsize, MOST_CELL))


class ReferenceSummary(msgspec.Struct, frozen=True):
    """What a reference set holds. `names`: columns, input names, or nothing for pictures; without the target."""

    kind: Literal["csv", "parquet", "npz", "pictures"]
    names: tuple[str, ...]
    rows: int
    has_target: bool

    def as_json(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self) | {"names": list(self.names)}


class Reference(msgspec.Struct, frozen=True):
    """A reference set that was read. `digests`: of its columns, packed as inference/runtime/digest.py does."""

    summary: ReferenceSummary
    digests: bytes


class ReferenceRequest(msgspec.Struct, frozen=True):
    """What is known of a reference set. `columns`: the names that it must have, where they are known. `numeric`: every
    cell but the target's must be a number, or missing in a column of `nullable`. `named`: the names of one tensor's
    columns. `texts`: every cell is a text, whatever it looks like."""

    columns: tuple[str, ...] = ()
    numeric: bool = False
    nullable: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    texts: bool = False


def limits_for(size_bytes: int) -> Limits:
    """1 GB; a minute and a second per MB, seven times what CSV takes when idle, since a busy machine is no crime."""
    wall_s = 60 + size_bytes / 1024**2
    return Limits(memory_bytes=1024**3, cpu_s=wall_s, wall_s=wall_s, file_bytes=1024**2)


def read_in_sandbox(sandbox: Sandbox, path: Path, request: ReferenceRequest, limits: Limits | None = None) -> Reference:
    """Read a reference set through in a child of `sandbox`.

    Raises InferenceError `bad_reference` with the line or the name that is wrong, also where the child was killed;
    OSError where the file cannot be opened, RuntimeError where the sandbox does not start.
    """
    limits = limits or limits_for(path.stat().st_size)
    try:
        result = sandbox.call(FUNCTION, msgspec.msgpack.encode(request), limits, file=path)
    except SandboxKilled as killed:
        _refuse(
            {
                "memory": f"The file needs more than {limits.memory_bytes / 1024**2:,.0f} MB of memory to be read.",
                "timeout": f"The file could not be read within {limits.wall_s:,.0f} seconds.",
                "crash": "The file is damaged: it made its reader crash.",
            }[killed.reason]
        )
    try:
        reference = msgspec.msgpack.decode(result.output, type=Reference)
        for column in unpack(reference.digests).values():
            column.values()
    except (msgspec.MsgspecError, ValueError):
        # A child that a file took over may answer anything; what is stored must be readable.
        _refuse("The file is damaged: it made its reader say nonsense.")
    return reference


def read_bytes(argument: bytes) -> bytes:
    """The sandbox's function: a packed request in, a packed Reference out; the file is the one handed in."""
    request = msgspec.msgpack.decode(argument, type=ReferenceRequest)
    with given_file() as stream:
        summary = summarise(stream, request)
        stream.seek(0)
        columns = digests(stream, summary.kind, request.named, texts=request.texts)
    return msgspec.msgpack.encode(Reference(summary, pack(columns)))


def summarise(stream: BinaryIO, request: ReferenceRequest) -> ReferenceSummary:
    """Read a reference set through, in this process. Raises InferenceError `bad_reference` with what is wrong."""
    head = stream.read(8)
    stream.seek(0)
    if head[:4] == b"PAR1":
        return _parquet(stream, request)
    if head[:4] == b"PK\x03\x04":
        return _zip(stream)
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\xd0\xcf\x11\xe0":
        _refuse("The file is compressed or a spreadsheet; save it as plain CSV.")
    if not head:
        _refuse("The file is empty.")
    return _csv(stream, request)


def _csv(stream: BinaryIO, request: ReferenceRequest) -> ReferenceSummary:
    reader = csv.reader(_lines(stream), strict=True)
    header = _next(reader)
    if header is None:
        _refuse("The file is empty.")
    names = _header(header, request.columns)
    nullable_at = {header.index(name) for name in request.nullable if name in header}
    checked = [index for index, name in enumerate(header) if name != TARGET] if request.numeric else []
    rows = 0
    while (row := _next(reader)) is not None:
        if not row:
            continue
        rows += 1
        if len(row) != len(header):
            _refuse(f"Line {reader.line_num} has {len(row)} fields, the header has {len(header)}.", reader.line_num)
        for index in checked:
            _check_number(row[index], header[index], index in nullable_at, reader.line_num)
        if rows > MOST_ROWS:
            _refuse(f"The file has more than {MOST_ROWS} rows.")
    if not rows:
        _refuse("The file has a header but no rows.")
    return ReferenceSummary("csv", names, rows, TARGET in header)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as text. Refuses what is not UTF-8 and what cannot be in a table; a byte order mark is dropped."""
    number = 0
    while line := stream.readline(MOST_CELL * 64):
        number += 1
        if number == 1:
            if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                _refuse("The file is UTF-16; save it as UTF-8.", 1)
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\x00" in line:
            _refuse(f"Line {number} has a NUL byte; is this a CSV file in UTF-8?", number)
        try:
            yield line.decode()
        except UnicodeDecodeError:
            _refuse(f"Line {number} is not UTF-8 (Latin-1 perhaps); save the file as UTF-8.", number)


def _next(reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        line = reader.line_num
        if "field larger" in str(error):
            _refuse(f"Line {line} has a field of more than {MOST_CELL} characters, or a quote is not closed.", line)
        _refuse(f"Line {line} is not CSV: a quote is not closed or followed by something else.", line)


def _header(header: list[str], columns: Sequence[str]) -> tuple[str, ...]:
    if len(header) == 1 and len(columns) != 1:
        for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in header[0]:
                _refuse(f"The fields are separated by {name}; use commas, and points in decimal numbers.", 1)
    if all(NUMBER.match(name.strip()) for name in header):
        _refuse(f"The first line is numbers; it must be a header{_naming(columns)}.", 1)
    return _check_names(header, columns, 1)


def _check_names(found: Sequence[str], columns: Sequence[str], line: int | None = None) -> tuple[str, ...]:
    """The names without the target. Refuses empty, duplicate, missing and extra ones."""
    if len(found) > MOST_COLUMNS:
        _refuse(f"There are {len(found)} columns; at most {MOST_COLUMNS} are accepted.", line)
    if any(not name.strip() for name in found):
        _refuse("A column has no name.", line)
    if twice := _first(sorted(name for name, count in Counter(found).items() if count > 1)):
        _refuse(f"Columns are there twice: {twice}.", line)
    names = tuple(name for name in found if name != TARGET)
    if not names:
        _refuse("There is no column beside the target.", line)
    if columns:
        given, wanted = set(names), set(columns)
        missing, extra = _first([n for n in columns if n not in given]), _first([n for n in names if n not in wanted])
        if missing or extra:
            sentences = [f"Missing columns: {missing}."] * bool(missing) + [f"Unknown columns: {extra}."] * bool(extra)
            _refuse(" ".join([*sentences, f"Expected{_naming(columns)}, and {TARGET} if the truth is known."]), line)
    return names


def _check_number(cell: str, name: str, may_be_missing: bool, line: int) -> None:
    text = cell.strip()
    if NUMBER.match(text):
        return
    if text.lower() in MISSING:
        if not may_be_missing:
            _refuse(f"Line {line}, column “{name}”: the value is missing, and the column is not nullable.", line)
        return
    hint = " (use a point, not a comma)" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""
    _refuse(f"Line {line}, column “{name}”: “{text[:40]}” is not a finite number{hint}.", line)


def _parquet(stream: BinaryIO, request: ReferenceRequest) -> ReferenceSummary:
    import pyarrow.parquet  # see PRELOAD

    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError):
        _refuse("The Parquet file is damaged.")
    names = _check_names(schema.names, request.columns)
    if request.numeric:
        for name in names:
            kind = schema.field(name).type
            if not (
                pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
            ):
                _refuse(f"Column “{name}” has the type {kind}; numbers are expected.")
    if not 0 < rows <= MOST_ROWS:
        _refuse(f"The file has {rows} rows; 1 to {MOST_ROWS} are accepted.")
    return ReferenceSummary("parquet", names, rows, TARGET in schema.names)


def _zip(stream: BinaryIO) -> ReferenceSummary:
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = _safe_entries(archive)
            arrays = [entry for entry in entries if entry.filename.endswith(".npy")]
            return _npz(archive, arrays) if arrays and len(arrays) == len(entries) else _pictures(archive, entries)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError):
        _refuse("The zip or NPZ file is damaged, encrypted or packed in a way that is not supported.")


def _safe_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The archive's files. Raises InferenceError where there are too many, or they unpack to too much."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > MOST_UNPACKED_BYTES:
        _refuse("The archive holds too many files, or unpacks to too many bytes.")
    return entries


def _npz(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> ReferenceSummary:
    """Reads the arrays' headers alone."""
    lengths: dict[str, int] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        with archive.open(entry) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
            except ValueError:
                _refuse(f"“{name}” is not an array.")
        if dtype.hasobject:
            _refuse(f"“{name}” holds Python objects; numbers or texts are expected.")
        if not shape:
            _refuse(f"“{name}” has no rows.")
        lengths[name] = int(shape[0])
    if len(set(lengths.values())) > 1:
        _refuse("The arrays have different numbers of rows: " + ", ".join(f"{n} {c}" for n, c in lengths.items()) + ".")
    names = _check_names(list(lengths), ())
    rows = next(iter(lengths.values()))
    if not 0 < rows <= MOST_ROWS:
        _refuse(f"The arrays have {rows} rows; 1 to {MOST_ROWS} are accepted.")
    return ReferenceSummary("npz", names, rows, TARGET in lengths)


def _pictures(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> ReferenceSummary:
    names = [entry.filename for entry in entries]
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    if not pictures:
        _refuse("The archive holds neither arrays (.npy) nor pictures (.png, .jpg, .dcm).")
    labels = next((entry for entry in entries if PurePosixPath(entry.filename).name == "labels.csv"), None)
    if labels is not None:
        _check_picture_labels(archive, labels, {PurePosixPath(name).name for name in pictures})
    return ReferenceSummary("pictures", (), len(pictures), labels is not None)


def _check_picture_labels(archive: zipfile.ZipFile, labels: zipfile.ZipInfo, pictures: set[str]) -> None:
    with archive.open(labels) as stream:
        reader = csv.reader(_lines(stream), strict=True)
        if _next(reader) != ["file", "label"]:
            _refuse("labels.csv must have the header file,label.", 1)
        while (row := _next(reader)) is not None:
            if row and (len(row) != 2 or PurePosixPath(row[0]).name not in pictures):
                _refuse(f"labels.csv, line {reader.line_num}: this is not a picture of the archive and its label.")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _naming(columns: Sequence[str]) -> str:
    return f": {_first(list(columns))}" if columns else ""


def _refuse(message: str, line: int | None = None) -> NoReturn:
    location: list[str | int] = ["reference"] if line is None else ["reference", line]
    raise InferenceError("bad_reference", message, [{"loc": location, "msg": message}])
