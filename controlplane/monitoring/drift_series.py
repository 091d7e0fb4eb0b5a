"""Drift over time: PSI of a column in coarse steps, and since when it has moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.monitoring.distributions import Distribution, Pair
from controlplane.monitoring.drift_columns import compare
from controlplane.monitoring.drift_tests import ENOUGH
from controlplane.monitoring.intervals import Interval
from controlplane.predictions.sketch_rollups import Stretch

# Steps that a window is cut into at most; sketches are kept in ten minutes, then hours, then days.
POINTS = 30
STEPS_S = (600, 1800, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400)
# Columns for which it is told since when they moved: the most moved ones.
COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Series:
    """Over steps that begin at `at` (Unix seconds): PSI, None where there are too few rows; whether it was drifting."""

    at: list[int]
    psi: list[float | None]
    drifting: list[bool | None]

    @property
    def since(self) -> int | None:
        """The start of the first step of the last unbroken run in which the column was drifting; None where it is not
        drifting in the last step that has enough rows."""
        found = None
        for start, moved in zip(self.at, self.drifting, strict=True):
            if moved is not None:
                found = (found or start) if moved else None
        return found


def step_of(interval: Interval, stretches: Sequence[Stretch]) -> int:
    """The finest step, in seconds, that gives at most POINTS of them and is no finer than what is kept."""
    finest = max((stretch.width_s for stretch in stretches), default=STEPS_S[0])
    return next((step for step in STEPS_S if step >= finest and interval.seconds / step <= POINTS), STEPS_S[-1])


def series(
    names: Sequence[str],
    base: Mapping[str, Distribution],
    stretches: Sequence[Stretch],
    interval: Interval,
    columns: int,
) -> dict[str, Series]:
    """The steps of each named column, decided as one of that many columns."""
    step_s = step_of(interval, stretches)
    # The oldest bucket reaches into the interval from before it.
    first = min((stretch.start for stretch in stretches), default=int(interval.since.timestamp())) // step_s * step_s
    starts = list(range(first, int(interval.until.timestamp()), step_s))
    found = {}
    for name in names:
        parts: list[list[Stretch]] = [[] for _ in starts]
        for stretch in stretches:
            place = (stretch.start - first) // step_s
            if name in stretch.columns and 0 <= place < len(starts):
                parts[place].append(stretch)
        one = Series(starts, [], [])
        for mine in parts:
            now = Distribution.of([stretch.columns[name] for stretch in mine])
            moved = compare(name, "", Pair(base[name], now), columns) if now.rows >= ENOUGH and name in base else None
            one.psi.append(moved["psi"] if moved else None)
            one.drifting.append(moved["drifting"] if moved else None)
        found[name] = one
    return found


def moved_since(
    drifting: Sequence[str],
    base: Mapping[str, Distribution],
    stretches: Sequence[Stretch],
    interval: Interval,
    columns: int,
) -> str | None:
    """Since when (ISO) one of the first few of these columns has been drifting without a break; None where no step
    shows it."""
    found = series(drifting[:COLUMNS], base, stretches, interval, columns).values()
    starts = [one.since for one in found if one.since is not None]
    return datetime.fromtimestamp(min(starts), UTC).isoformat() if starts else None
