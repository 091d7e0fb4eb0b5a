"""What is kept of a column of values once nothing is added to it any more: how many, their moments, evenly spaced
quantiles of the numbers, counts of the texts.

Digests merge as weighted points. Making one of a sorted column moves a rank by half a step at most: 1 / (2 points).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

# Half a step of 128 points is 0.4 % of the values; a reference set is kept finer, since there is one of it.
POINTS = 128
CATEGORIES = 200
CATEGORY_LENGTH = 200
FLOAT32_MAX = float(np.finfo(np.float32).max)
FORMAT = 1

# Rows that are held before they are thinned, over all columns: 64 MB.
_HELD_CELLS = 16_000_000
_PART_POINTS = 2_048
_PARTS = 32

Floats = npt.NDArray[np.float32]
Weighted = tuple[Floats, npt.NDArray[np.float64]]


class Digest(msgspec.Struct, array_like=True):
    """One column. `n` counts numbers and texts, `missing` null and non-finite ones. `points` (float32, little-endian,
    ascending) stand for the same share of the `numbers` each: all of them where they are few, else their quantiles at
    the middle of as many equal steps.
    """

    n: int = 0
    missing: int = 0
    numbers: int = 0
    total: float = 0.0
    squares: float = 0.0
    points: bytes = b""
    categories: dict[str, int] = {}
    other: int = 0

    def values(self) -> Floats:
        return np.frombuffer(self.points, "<f4")

    def weighted(self) -> Weighted:
        """The points, and how many numbers each stands for."""
        values = self.values()
        return values, np.full(len(values), self.numbers / max(1, len(values)))


def digest_of(values: Sequence[Any], points: int = POINTS) -> Digest:
    """Numbers and booleans count as numbers, texts as categories, None and what float32 cannot hold as missing."""
    column = Column(points)
    column.add(values)
    return column.digest()


def thinned(parts: Iterable[Weighted], points: int) -> Floats:
    """At most `points` values that stand for equal shares of what the weighted parts hold; ascending."""
    held = list(parts)
    if not held:
        return np.empty(0, np.float32)
    values = np.concatenate([part for part, _ in held])
    weights = np.concatenate([weight for _, weight in held])
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    if len(values) <= points and (weights == 1.0).all():
        return values
    ends = np.cumsum(weights)
    ranks = (np.arange(points) + 0.5) / points * ends[-1]
    found: Floats = values[np.minimum(np.searchsorted(ends, ranks), len(values) - 1)]
    return found


@dataclass(slots=True)
class Column:
    """Gathers one column of any length in bounded memory, and tells its digest."""

    points: int = POINTS
    held_rows: int = 65_536
    n: int = 0
    missing: int = 0
    numbers: int = 0
    total: float = 0.0
    squares: float = 0.0
    categories: dict[str, int] = field(default_factory=dict)
    other: int = 0
    _held: list[Floats] = field(default_factory=list)
    _rows: int = 0
    _parts: list[Weighted] = field(default_factory=list)

    def add(self, values: Sequence[Any]) -> None:
        numbers = []
        for value in values:
            if isinstance(value, str):
                self._count(value[:CATEGORY_LENGTH])
            elif isinstance(value, bool | int | float):
                numbers.append(_finite(value))
            else:
                self.missing += 1
        self.add_numbers(np.array(numbers, np.float64))

    def add_numbers(self, given: npt.NDArray[np.float64]) -> None:
        """Adds numbers alone; those that float32 cannot hold are missing."""
        known = given[np.abs(given) <= FLOAT32_MAX]
        self.missing += len(given) - len(known)
        if not len(known):
            return
        self.n += len(known)
        self.numbers += len(known)
        self.total += float(known.sum())
        self.squares += float(np.square(known).sum())
        self._held.append(known.astype(np.float32))
        self._rows += len(known)
        if self._rows >= self.held_rows:
            self._close_part()

    def _count(self, text: str) -> None:
        self.n += 1
        if text in self.categories or len(self.categories) < CATEGORIES:
            self.categories[text] = self.categories.get(text, 0) + 1
        else:
            self.other += 1

    def _close_part(self) -> None:
        part = np.concatenate(self._held)
        self._parts.append(_even(thinned([(part, np.ones(len(part)))], _PART_POINTS), len(part)))
        self._held, self._rows = [], 0
        if len(self._parts) >= _PARTS:
            count = sum(float(weights.sum()) for _, weights in self._parts)
            self._parts = [_even(thinned(self._parts, _PART_POINTS), count)]

    def digest(self) -> Digest:
        rest = [(part, np.ones(len(part))) for part in self._held]
        points = thinned([*self._parts, *rest], self.points)
        return Digest(
            n=self.n,
            missing=self.missing,
            numbers=self.numbers,
            total=self.total,
            squares=self.squares,
            points=points.astype("<f4").tobytes(),
            categories=self.categories,
            other=self.other,
        )


def _even(values: Floats, count: float) -> Weighted:
    return values, np.full(len(values), count / max(1, len(values)))


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def held_rows(columns: int) -> int:
    """How many rows of that many columns may be held at once."""
    return max(1_024, min(65_536, _HELD_CELLS // max(1, columns)))


def pack(digests: dict[str, Digest]) -> bytes:
    return msgspec.msgpack.encode((FORMAT, digests))


def unpack(packed: bytes | memoryview) -> dict[str, Digest]:
    """What `pack` packed. Raises ValueError for another format."""
    version, body = msgspec.msgpack.decode(packed, type=tuple[int, msgspec.Raw])
    if version != FORMAT:
        raise ValueError(f"digests of format {version}; this release reads {FORMAT}")
    return msgspec.msgpack.decode(body, type=dict[str, Digest])
