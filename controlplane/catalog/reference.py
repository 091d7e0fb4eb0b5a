"""Checks reference sets: CSV, Parquet or NPZ whose names are the columns, or a zip of pictures. Each with `target` or
`labels.csv` if the truth is known. Nothing is kept in memory but a line or a header.
"""

import csv
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np

from controlplane.errors import field_error

TARGET = "target"
MOST_ROWS = 5_000_000
MOST_COLUMNS = 10_000
MOST_CELL = 64 * 1024
MOST_ENTRIES = 100_000
MOST_UNPACKED_BYTES = 4 * 1024**3
# Every digit can be read in one way only: else a long cell that ends badly would take minutes.
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z")
MISSING = ("", "nan", "null", "none", "na")
PICTURES = (".png", ".jpg", ".jpeg", ".dcm")
SHOWN = 5

csv.field_size_limit(min(sys.maxsize, MOST_CELL))


@dataclass(frozen=True, slots=True)
class ReferenceSummary:
    """What a reference set holds. `names`: columns, input names, or nothing for pictures; without the target."""

    kind: Literal["csv", "parquet", "npz", "pictures"]
    names: tuple[str, ...]
    rows: int
    has_target: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"names": list(self.names)}


def summarise(
    path: Path, *, columns: Sequence[str] = (), numeric: bool = False, nullable: Sequence[str] = ()
) -> ReferenceSummary:
    """Reads a reference set through. Raises DomainError `bad_reference` with the line or the name that is wrong.

    `columns`: the names it must have, where they are known. `numeric`: every cell but the target's must be a number,
    or missing in a column of `nullable`.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
    if head[:4] == b"PAR1":
        return _parquet(path, columns, numeric)
    if head[:4] == b"PK\x03\x04":
        return _zip(path)
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\xd0\xcf\x11\xe0":
        _refuse("The file is compressed or a spreadsheet; save it as plain CSV.")
    if not head:
        _refuse("The file is empty.")
    return _csv(path, columns, numeric, nullable)


def _csv(path: Path, columns: Sequence[str], numeric: bool, nullable: Sequence[str]) -> ReferenceSummary:
    with path.open("rb") as stream:
        reader = csv.reader(_lines(stream), strict=True)
        header = _next(reader)
        if header is None:
            _refuse("The file is empty.")
        names = _header(header, columns)
        nullable_at = {header.index(name) for name in nullable if name in header}
        checked = [index for index, name in enumerate(header) if name != TARGET] if numeric else []
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


def _parquet(path: Path, columns: Sequence[str], numeric: bool) -> ReferenceSummary:
    import pyarrow.parquet  # 50 MB of memory that web processes mostly do without

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError):
        _refuse("The Parquet file is damaged.")
    names = _check_names(schema.names, columns)
    if numeric:
        for name in names:
            kind = schema.field(name).type
            if not (
                pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
            ):
                _refuse(f"Column “{name}” has the type {kind}; numbers are expected.")
    if not 0 < rows <= MOST_ROWS:
        _refuse(f"The file has {rows} rows; 1 to {MOST_ROWS} are accepted.")
    return ReferenceSummary("parquet", names, rows, TARGET in schema.names)


def _zip(path: Path) -> ReferenceSummary:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = safe_entries(archive)
            arrays = [entry for entry in entries if entry.filename.endswith(".npy")]
            return _npz(archive, arrays) if arrays and len(arrays) == len(entries) else _pictures(archive, entries)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError):
        _refuse("The zip or NPZ file is damaged, encrypted or packed in a way that is not supported.")


def safe_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The archive's files. Raises DomainError `bad_reference` where there are too many or they unpack to too much."""
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
    labels = next((entry for entry in entries if Path(entry.filename).name == "labels.csv"), None)
    if labels is not None:
        _check_picture_labels(archive, labels, {Path(name).name for name in pictures})
    return ReferenceSummary("pictures", (), len(pictures), labels is not None)


def _check_picture_labels(archive: zipfile.ZipFile, labels: zipfile.ZipInfo, pictures: set[str]) -> None:
    with archive.open(labels) as stream:
        reader = csv.reader(_lines(stream), strict=True)
        if _next(reader) != ["file", "label"]:
            _refuse("labels.csv must have the header file,label.", 1)
        while (row := _next(reader)) is not None:
            if row and (len(row) != 2 or Path(row[0]).name not in pictures):
                _refuse(f"labels.csv, line {reader.line_num}: this is not a picture of the archive and its label.")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _naming(columns: Sequence[str]) -> str:
    return f": {_first(list(columns))}" if columns else ""


def _refuse(message: str, line: int | None = None) -> NoReturn:
    raise field_error("bad_reference", ["reference"] if line is None else ["reference", line], message)
