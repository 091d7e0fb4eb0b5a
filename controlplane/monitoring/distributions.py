"""One column over a stretch of time, or of a reference set, as drift looks at it; and two of them in the same bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from inference.runtime.digest import CATEGORIES, Digest

Floats = npt.NDArray[np.float64]

TENTHS = np.arange(1, 10) / 10
# What a column is compared by: half a step is 0.1 % of the values.
POINTS = 512
# The chi-squared test wants five in each bin (Cochran 1954).
LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class Distribution:
    """`values` ascend; `ends` are the counts up to and with each of them. Texts are in `categories`."""

    n: int
    missing: int
    numbers: int
    total: float
    squares: float
    values: Floats
    ends: Floats
    categories: dict[str, int]
    other: int

    @classmethod
    def of(cls, parts: Sequence[Digest]) -> "Distribution":
        """All of the parts together."""
        n = missing = numbers = other = 0
        total = squares = 0.0
        categories: dict[str, int] = {}
        # One pass: a column of a day is some seventy parts, and there are hundreds of columns.
        for part in parts:
            n += part.n
            missing += part.missing
            numbers += part.numbers
            total += part.total
            squares += part.squares
            other += part.other
            for name, count in part.categories.items():
                if name in categories or len(categories) < CATEGORIES:
                    categories[name] = categories.get(name, 0) + count
                else:
                    other += count
        return cls(n, missing, numbers, total, squares, *_ordered(parts), categories, other)

    @property
    def is_numeric(self) -> bool:
        """Whether it is numbers: more of them than texts."""
        return self.numbers * 2 > self.n

    @property
    def rows(self) -> int:
        return self.n + self.missing

    @property
    def missing_share(self) -> float | None:
        return self.missing / self.rows if self.rows else None

    @property
    def mean(self) -> float | None:
        return self.total / self.numbers if self.numbers else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the numbers (divided by n)."""
        mean = self.mean
        return None if mean is None else max(0.0, self.squares / self.numbers - mean * mean) ** 0.5

    def share_up_to(self, points: Floats) -> Floats:
        """The share of the numbers that is at most each point."""
        places = np.searchsorted(self.values, points, side="right")
        shares: Floats = np.concatenate(([0.0], self.ends))[places] / self.ends[-1]
        return shares

    def quantiles(self, ranks: Sequence[float] | Floats) -> Floats:
        """The least value that has at least each share of the numbers at or below it; nan where there are none."""
        if not len(self.values):
            return np.full(len(ranks), np.nan)
        places = np.searchsorted(self.ends, np.asarray(ranks) * self.ends[-1] - 1e-9)
        found: Floats = self.values[np.minimum(places, len(self.values) - 1)]
        return found


@dataclass(frozen=True)
class Pair:
    """A column then and now. What is compared is worked out once."""

    base: Distribution
    now: Distribution

    @property
    def is_numeric(self) -> bool:
        return self.base.is_numeric

    @property
    def comparable(self) -> bool:
        """Whether both are numbers, or both texts."""
        return self.base.is_numeric == self.now.is_numeric

    @cached_property
    def edges(self) -> Floats:
        """The upper ends of the bins of numbers: the baseline's tenths, equal ones joined; the last bin is open."""
        return np.unique(self.base.quantiles(TENTHS))

    @cached_property
    def counts(self) -> tuple[Floats, Floats]:
        """(then, now) in the same bins: tenths of the baseline, or categories; rare categories are one bin."""
        return _numeric_counts(self) if self.is_numeric else _category_counts(self.base, self.now)

    @cached_property
    def shares(self) -> tuple[Floats, Floats]:
        base, now = self.counts
        return base / max(1.0, base.sum()), now / max(1.0, now.sum())

    @cached_property
    def steps(self) -> tuple[Floats, Floats, Floats]:
        """(points, share of then up to each, share of now): both distribution functions at every point of either."""
        points = np.unique(np.concatenate((self.base.values, self.now.values)))
        return points, self.base.share_up_to(points), self.now.share_up_to(points)


def _ordered(parts: Sequence[Digest]) -> tuple[Floats, Floats]:
    """The points of all parts in order, and the counts up to each; of many points those at even steps."""
    values = np.frombuffer(b"".join([part.points for part in parts]), "<f4")
    lengths = np.array([len(part.points) // 4 for part in parts], np.int64)
    weights = np.repeat(np.array([part.numbers for part in parts]) / np.maximum(lengths, 1), lengths)
    order = np.argsort(values)
    values, ends = values[order], np.cumsum(weights[order])
    if len(values) > POINTS:
        places = np.searchsorted(ends, (np.arange(POINTS) + 0.5) / POINTS * ends[-1])
        values, ends = values[places], np.arange(1, POINTS + 1) / POINTS * ends[-1]
    return values.astype(np.float64), ends


def _numeric_counts(pair: Pair) -> tuple[Floats, Floats]:
    def counted(one: Distribution) -> Floats:
        return np.diff(np.concatenate(([0.0], one.share_up_to(pair.edges), [1.0]))) * one.numbers

    return counted(pair.base), counted(pair.now)


def _category_counts(base: Distribution, now: Distribution) -> tuple[Floats, Floats]:
    names = sorted(base.categories.keys() | now.categories.keys())
    table = np.array([[one.categories.get(name, 0) for name in names] + [one.other] for one in (base, now)], np.float64)
    smaller = min(base.n, now.n) / max(1, base.n + now.n)
    rare = table.sum(axis=0) * smaller < LEAST_EXPECTED
    pooled = np.column_stack((table[:, ~rare], table[:, rare].sum(axis=1)))
    return pooled[0], pooled[1]
