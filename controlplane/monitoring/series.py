"""Traffic, latency and errors by version and time, out of the rollups: the cost grows with the window, not with use."""

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from controlplane.predictions.histograms import Histogram, merge, quantile
from controlplane.predictions.models import Rollup
from inference.contracts import Role, Source

# (longest window, step in s): a step is never narrower than the rollups of that age are.
STEPS = (
    (timedelta(minutes=10), 10),
    (timedelta(hours=6), 60),
    (timedelta(hours=24), 300),
    (timedelta(days=35), 3600),
)
WIDEST_STEP_S = 86_400
# A bucket that has hardly begun says nothing about a rate yet.
YOUNGEST_S = 10.0
# What people see as traffic. Test traffic is in no rollup; the demo's history is marked, and shown.
SHOWN = [Source.LIVE.value, Source.DEMO.value]


@dataclass(slots=True)
class Cell:
    """Calls of one version in one stretch of time. `failed`: outcome not ok; latencies in ms are of served calls."""

    calls: int = 0
    failed: int = 0
    rows: int = 0
    total: Histogram = field(default_factory=dict)
    queue: Histogram = field(default_factory=dict)
    compute: Histogram = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Cell") -> None:
        self.calls += other.calls
        self.failed += other.failed
        self.rows += other.rows
        for mine, theirs in ((self.total, other.total), (self.queue, other.queue), (self.compute, other.compute)):
            merge(mine, theirs)
        for counts, more in ((self.codes, other.codes), (self.places, other.places)):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count

    def p(self, quantile_of_one: float, part: str = "total") -> float | None:
        """A latency quantile in ms of `total`, `queue` or `compute`; None where nothing was served."""
        bins: Histogram = getattr(self, part)
        return quantile(bins, quantile_of_one)

    @property
    def error_share(self) -> float | None:
        return self.failed / self.calls if self.calls else None


@dataclass(slots=True)
class Series:
    """Cells by version number (0: refused before routing) over equal steps; None where nothing is known."""

    step_s: int
    times: list[datetime]
    until: datetime
    cells: dict[int, list[Cell | None]]

    @property
    def versions(self) -> list[int]:
        """The versions that answered, in order."""
        return sorted(number for number in self.cells if number)

    def total(self, number: int | None = None) -> Cell:
        """Everything of one version, or of all."""
        found = Cell()
        for version, cells in self.cells.items():
            if number is None or version == number:
                for cell in cells:
                    if cell is not None:
                        found.add(cell)
        return found

    def rates(self, number: int | None = None) -> list[float | None]:
        """Calls a second per step: 0 where others called, None where nobody did or the step has hardly begun."""
        found: list[float | None] = []
        for index, start in enumerate(self.times):
            elapsed = min(float(self.step_s), (self.until - start).total_seconds())
            here = [cells[index] for cells in self.cells.values()]
            if elapsed < YOUNGEST_S or all(cell is None for cell in here):
                found.append(None)
                continue
            chosen = here if number is None else [self.cells.get(number, [None] * len(self.times))[index]]
            found.append(sum(cell.calls for cell in chosen if cell is not None) / elapsed)
        return found

    def quantiles(self, number: int, share: float, part: str = "total") -> list[float | None]:
        """A latency quantile in ms per step of one version."""
        return [cell.p(share, part) if cell is not None else None for cell in self.cells.get(number, [])]

    def error_shares(self) -> list[float | None]:
        """Failed calls as a share of all, per step over every version."""
        found: list[float | None] = []
        for index in range(len(self.times)):
            here = [cell for cells in self.cells.values() if (cell := cells[index]) is not None]
            calls = sum(cell.calls for cell in here)
            found.append(sum(cell.failed for cell in here) / calls if calls else None)
        return found


def step_for(since: datetime, until: datetime, now: datetime) -> int:
    """The step in seconds for a window: by its length, and by how wide rollups of that age have become."""
    age = max(until - since, now - since)
    return next((step for longest, step in STEPS if age <= longest + timedelta(minutes=1)), WIDEST_STEP_S)


def series(deployment_id: uuid.UUID, since: datetime, until: datetime, now: datetime, role: Role = Role.LIVE) -> Series:
    """One deployment's cells. One query."""
    return series_of([deployment_id], since, until, now, role)[deployment_id]


def series_of(
    deployment_ids: Sequence[uuid.UUID],
    since: datetime,
    until: datetime,
    now: datetime,
    role: Role = Role.LIVE,
) -> dict[uuid.UUID, Series]:
    """The same for several deployments. One query."""
    step_s = step_for(since, until, now)
    first = int(since.timestamp()) // step_s * step_s
    steps = max(1, math.ceil((until.timestamp() - first) / step_s))
    times = [datetime.fromtimestamp(first + step_s * index, UTC) for index in range(steps)]
    found = {each: Series(step_s, times, until, {}) for each in deployment_ids}
    sources = SHOWN if role is Role.LIVE else [Source.SHADOW.value]
    rows = Rollup.objects.filter(
        deployment_id__in=deployment_ids, bucket__gte=times[0], bucket__lt=until, source__in=sources
    ).values_list(
        "deployment_id", "version", "bucket", "calls", "failed", "rows", "latency", "codes", "places", named=True
    )
    for row in rows.iterator(chunk_size=2000):
        index = (int(row.bucket.timestamp()) - first) // step_s
        assert row.deployment_id is not None  # the filter names deployments
        cells = found[row.deployment_id].cells.setdefault(row.version, [None] * steps)
        cell = cells[index]
        if cell is None:
            cell = cells[index] = Cell()
        cell.calls += row.calls
        cell.failed += row.failed
        cell.rows += row.rows
        for bins, part in ((cell.total, "total"), (cell.queue, "queue"), (cell.compute, "compute")):
            merge(bins, row.latency.get(part, {}))
        _add_counts(cell.codes, row.codes.items())
        _add_counts(cell.places, row.places.items())
    return found


def _add_counts(into: dict[str, int], counts: Iterable[tuple[str, int]]) -> None:
    for name, count in counts:
        into[name] = into.get(name, 0) + count
