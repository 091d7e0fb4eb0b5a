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
# Sketched numbers tell a share to about 1.4 %, as a sample of this many rows does; more rows make no test surer.
RESOLVED = 5_000


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
    def pearson(self) -> tuple[float, int, float]:
        """(Pearson's chi-squared over the bins, its degrees of freedom, the rows it rests on), where numbers count as
        at most RESOLVED rows; 0 degrees where there is one bin."""
        base, now = self.counts
        if self.is_numeric:
            base, now = (counts * min(1.0, RESOLVED / max(1.0, counts.sum())) for counts in (base, now))
        used = base + now > 0
        base, now = base[used], now[used]
        both, whole = base + now, float(base.sum() + now.sum())
        if len(both) < 2:
            return 0.0, 0, whole
        value = 0.0
        for counts in (base, now):
            expected = both * counts.sum() / whole
            value += float(((counts - expected) ** 2 / expected).sum())
        return value, len(both) - 1, whole

    @cached_property
    def steps(self) -> tuple[Floats, Floats, Floats]:
        """(points, share of then up to each, share of now): both distribution functions at every point of either."""
        points = np.unique(np.concatenate((self.base.values, self.now.values)))
        return points, self.base.share_up_to(points), self.now.share_up_to(points)


def _ordered(parts: Sequence[Digest]) -> tuple[Floats, Floats]:
    """The points of all parts in order, and the counts up to each; of many points those at even steps."""
    lengths = np.array([len(part.points) // 4 for part in parts], np.int64)
    weights = np.array([part.numbers for part in parts]) / np.maximum(lengths, 1)
    # A point's bits, which order as the number does once those of negative ones are turned over, and below them its
    # part: sorting these takes a third of what an argsort of the points and the picking by it take.
    bits = np.frombuffer(b"".join([part.points for part in parts]), "<i4")
    keys = (_turned(bits).astype(np.int64) << 32) | np.repeat(np.arange(len(parts)), lengths)
    keys.sort()
    ends = np.cumsum(weights[keys & 0xFFFF_FFFF])
    if len(keys) > POINTS:
        places = np.searchsorted(ends, (np.arange(POINTS) + 0.5) / POINTS * ends[-1])
        keys, ends = keys[places], np.arange(1, POINTS + 1) / POINTS * ends[-1]
    values = _turned((keys >> 32).astype(np.int32)).view(np.float32)
    return values.astype(np.float64), ends


def _turned(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Of a float32's bits and back: as integers they are in the order of the numbers."""
    turned: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & 0x7FFF_FFFF)
    return turned


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
