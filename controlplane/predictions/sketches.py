"""Mergeable sketches of features, scores and picture statistics, as the ingester adds to them.

Numbers go into a KLL sketch (Apache DataSketches; rank error about 1.3 % at k = 200), texts are counted exactly up to a
cap of distinct values and then as "other", missing values are counted beside both. A bundle is stored as MessagePack.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from datasketches import kll_floats_sketch

from controlplane.predictions.cleaning import clean_text
from inference.runtime.digest import CATEGORIES, CATEGORY_LENGTH, FLOAT32_MAX, POINTS, Digest

K = 200
FORMAT = 1
NUMBERS = {float, int, bool}


def new_kll() -> Any:
    return kll_floats_sketch(K)


@dataclass(slots=True)
class Sketch:
    """One column. `n` counts the numbers and texts that are there; `missing` the null, NaN and infinite ones."""

    n: int = 0
    missing: int = 0
    total: float = 0.0
    squares: float = 0.0
    kll: Any = None
    categories: dict[str, int] = field(default_factory=dict)
    other: int = 0

    def add(self, values: Sequence[Any]) -> None:
        """Counts values: numbers and booleans as numbers, texts as categories, None and non-finite ones as missing."""
        if set(map(type, values)) <= NUMBERS:
            self.add_numbers(values)
            return
        numbers: list[Any] = []
        for value in values:
            if isinstance(value, str):
                self._count(clean_text(value)[:CATEGORY_LENGTH], 1)
                self.n += 1
            elif isinstance(value, bool | int | float):
                numbers.append(value)
            else:
                self.missing += 1
        self.add_numbers(numbers)

    def add_numbers(self, numbers: Sequence[Any]) -> None:
        """Counts numbers alone, a list or an array of them."""
        try:
            given = np.array(numbers, dtype=np.float64)
        except OverflowError:
            given = np.array([float(n) if abs(n) <= FLOAT32_MAX else math.inf for n in numbers], dtype=np.float64)
        table = given[np.abs(given) <= FLOAT32_MAX]
        self.missing += len(given) - len(table)
        if not len(table):
            return
        self.n += len(table)
        self.total += float(table.sum())
        self.squares += float(np.square(table).sum())
        if self.kll is None:
            self.kll = new_kll()
        self.kll.update(table.astype(np.float32))

    def merge(self, other: "Sketch") -> None:
        self.n += other.n
        self.missing += other.missing
        self.total += other.total
        self.squares += other.squares
        self.other += other.other
        for name, count in other.categories.items():
            self._count(name, count)
        if other.kll is not None:
            if self.kll is None:
                self.kll = new_kll()
            self.kll.merge(other.kll)

    def _count(self, name: str, count: int) -> None:
        if name in self.categories or len(self.categories) < CATEGORIES:
            self.categories[name] = self.categories.get(name, 0) + count
        else:
            self.other += count

    @property
    def is_numeric(self) -> bool:
        return self.kll is not None

    @property
    def mean(self) -> float | None:
        """The mean of the numbers; None where there are none."""
        return self.total / self.kll.n if self.kll is not None and self.kll.n else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the numbers (divided by n)."""
        mean = self.mean
        if mean is None:
            return None
        return math.sqrt(max(0.0, self.squares / self.kll.n - mean * mean))

    def quantiles(self, ranks: list[float]) -> list[float] | None:
        return [float(x) for x in self.kll.get_quantiles(ranks)] if self.kll is not None else None

    def digest(self) -> Digest:
        """What is kept when nothing is added any more."""
        numbers = self.kll.n if self.kll is not None else 0
        count = min(numbers, POINTS)
        points = self.quantiles([(index + 0.5) / count for index in range(count)]) if count else []
        return Digest(
            n=self.n,
            missing=self.missing,
            numbers=numbers,
            total=self.total,
            squares=self.squares,
            points=np.array(points, "<f4").tobytes(),
            categories=self.categories,
            other=self.other,
        )


# What a bundle's sketches speak of.
FEATURES, SCORES, PICTURES = "features", "scores", "pictures"
Bundle = dict[str, dict[str, Sketch]]


def new_bundle() -> Bundle:
    return {FEATURES: {}, SCORES: {}, PICTURES: {}}


def add_columns(bundle: Bundle, kind: str, columns: Mapping[str, Sequence[Any]]) -> None:
    for name, values in columns.items():
        _sketch(bundle, kind, name).add(values)


def add_calls(bundle: Bundle, kind: str, calls: Iterable[Mapping[str, Sequence[Any]]]) -> None:
    """Adds the columns of many calls."""
    columns: dict[str, list[Any]] = {}
    for call in calls:
        for name, values in call.items():
            columns.setdefault(clean_text(name), []).extend(values)
    add_columns(bundle, kind, columns)


def add_table(bundle: Bundle, kind: str, names: Sequence[str], table: npt.NDArray[Any]) -> None:
    """Adds numbers [rows, columns] by the columns' names."""
    for name, numbers in zip(names, table.T, strict=True):
        _sketch(bundle, kind, clean_text(name)).add_numbers(numbers)


def _sketch(bundle: Bundle, kind: str, name: str) -> Sketch:
    return bundle.setdefault(kind, {}).setdefault(name, Sketch())


def merge_bundles(into: Bundle, other: Bundle) -> Bundle:
    """Adds `other` to `into`, and returns `into`."""
    for kind, columns in other.items():
        mine = into.setdefault(kind, {})
        for name, sketch in columns.items():
            mine.setdefault(name, Sketch()).merge(sketch)
    return into


def pack(bundle: Bundle) -> bytes:
    """The bundle as bytes; b"" where nothing was sketched."""
    if not any(bundle.values()):
        return b""
    body = {
        kind: {
            name: (s.n, s.missing, s.total, s.squares, s.other, s.categories, s.kll.serialize() if s.kll else b"")
            for name, s in columns.items()
        }
        for kind, columns in bundle.items()
        if columns
    }
    return msgspec.msgpack.encode((FORMAT, body))


def unpack(packed: bytes | memoryview) -> Bundle:
    """The bundle in bytes that `pack` made. Raises ValueError for another format."""
    bundle = new_bundle()
    if not len(packed):
        return bundle
    version, body = msgspec.msgpack.decode(packed)
    if version != FORMAT:
        raise ValueError(f"sketches of format {version}; this release reads {FORMAT}")
    for kind, columns in body.items():
        for name, (n, missing, total, squares, other, categories, kll) in columns.items():
            sketch = kll_floats_sketch.deserialize(kll) if kll else None
            bundle.setdefault(kind, {})[name] = Sketch(n, missing, total, squares, sketch, categories, other)
    return bundle
