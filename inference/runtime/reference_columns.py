"""What drift compares with: the columns of a reference set as digests, of pictures what can be said of each.

Only for the throw-away child, on a file that inference/runtime/reference.py has read through.
"""

import csv
import io
import itertools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from inference.errors import InferenceError
from inference.runtime.budget import begin_picture
from inference.runtime.digest import Column, Digest, held_rows
from inference.runtime.pictures import read_any
from inference.runtime.pixels import statistics, told_of
from inference.runtime.terms import known_tags

TARGET = "target"
MISSING = ("", "nan", "null", "none", "na")
PICTURES = (".png", ".jpg", ".jpeg", ".dcm")
# One is kept for each column: half a step is 0.1 %.
POINTS = 512
MOST_COLUMNS = 2_000
ROWS_AT_ONCE = 4_096
# Evenly spaced ones of a larger set: enough to tell a share to 1.3 %.
MOST_PICTURES = 1_500
MOST_PICTURE_BYTES = 64 * 1024**2


def digests(stream: BinaryIO, kind: str, columns: Sequence[str], *, texts: bool = False) -> dict[str, Digest]:
    """The digests by column, without the target. `columns`: the names of one tensor's columns; `texts`: every cell is
    one. Pictures that cannot be read are left out. At most MOST_COLUMNS columns."""
    read = {"csv": _csv, "parquet": _parquet, "npz": _npz, "pictures": _pictures}[kind]
    table = _Table(texts)
    read(stream, table, columns)
    return table.digests()


class _Table:
    def __init__(self, texts: bool) -> None:
        self._texts = texts
        self._columns: dict[str, Column] = {}

    def add(self, name: str, values: Sequence[Any], width: int) -> None:
        """Adds cells of a column, of a table of that width."""
        if name == TARGET:
            return
        column = self._columns.get(name)
        if column is None:
            if len(self._columns) >= MOST_COLUMNS:
                return
            column = self._columns[name] = Column(POINTS, held_rows(width))
        column.add(values)

    def add_text(self, name: str, values: Sequence[str], width: int) -> None:
        """As `add`, of cells that are text and may mean numbers."""
        self.add(name, values if self._texts else [_cell(value) for value in values], width)

    def digests(self) -> dict[str, Digest]:
        return {name: column.digest() for name, column in self._columns.items()}


def _cell(text: str) -> float | str | None:
    text = text.strip()
    if text.lower() in MISSING:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _csv(stream: BinaryIO, table: _Table, columns: Sequence[str]) -> None:
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    header = next(reader)
    while rows := [row for row in itertools.islice(reader, ROWS_AT_ONCE) if row]:
        for name, values in zip(header, zip(*rows, strict=True), strict=True):
            table.add_text(name, values, len(header))


def _parquet(stream: BinaryIO, table: _Table, columns: Sequence[str]) -> None:
    import pyarrow.parquet  # starts a thread

    with pyarrow.parquet.ParquetFile(stream) as file:
        width = len(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for name, values in batch.to_pydict().items():
                table.add(name, values, width)


def _npz(stream: BinaryIO, table: _Table, columns: Sequence[str]) -> None:
    with np.load(stream, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name] if name != TARGET else np.empty(0)
            if array.ndim not in (1, 2) or not array.size:
                continue
            flat = array.reshape(len(array), -1)
            width = flat.shape[1]
            # As capture.py names the columns of a tensor.
            names = (
                columns if len(columns) == width else [f"{name}[{j}]" for j in range(width)] if width > 1 else [name]
            )
            for one, values in zip(names, flat.T, strict=True):
                table.add(one, values.tolist(), width)


def _pictures(stream: BinaryIO, table: _Table, columns: Sequence[str]) -> None:
    with zipfile.ZipFile(stream) as archive:
        entries = [one for one in archive.infolist() if PurePosixPath(one.filename).suffix.lower() in PICTURES]
        step = -(-len(entries) // MOST_PICTURES)
        for entry in entries[::step]:
            if entry.file_size > MOST_PICTURE_BYTES:
                continue
            begin_picture()
            try:
                image, made, _ = read_any(archive.read(entry))
            except (InferenceError, zipfile.BadZipFile, zlib.error, OSError):
                continue
            for name, values in told_of(statistics(image, "", known_tags(made))).items():
                table.add(name, values, 16)
