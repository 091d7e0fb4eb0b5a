"""Charts and comparisons of a deployment's tabs, made from the rollups' series."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from controlplane.dashboard import charts
from controlplane.deployments.models import Deployment, SplitRevision
from controlplane.monitoring.series import Cell, Series, series
from inference.contracts import Role

WINDOWS: dict[str, tuple[str, timedelta]] = {
    "1h": ("Last hour", timedelta(hours=1)),
    "6h": ("Last 6 hours", timedelta(hours=6)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}
DEFAULT_WINDOW = "6h"


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch of time that a page shows."""

    key: str
    words: str
    since: datetime
    until: datetime

    @property
    def choices(self) -> list[tuple[str, str]]:
        return [(key, words) for key, (words, _) in WINDOWS.items()]


def read_window(query: Mapping[str, str], now: datetime) -> Window:
    """The window named by `?range=`; an unknown name is the default."""
    key = query.get("range", DEFAULT_WINDOW)
    key = key if key in WINDOWS else DEFAULT_WINDOW
    words, length = WINDOWS[key]
    return Window(key, words, now - length, now)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version in a comparison over the window."""

    number: int
    calls: int
    share: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    error_share: float | None
    queue_p95: float | None
    compute_p95: float | None


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    rate: charts.Figure
    errors: charts.Figure
    rows: list[VersionRow]
    shadow_rows: list[VersionRow]
    codes: list[tuple[str, int]]
    calls: int
    empty: bool


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    quantiles: charts.Figure
    split: charts.Figure
    rows: list[VersionRow]
    empty: bool


def _marks(deployment: Deployment, window: Window) -> list[charts.Mark]:
    changed = SplitRevision.objects.filter(
        deployment=deployment, activated_at__gte=window.since, activated_at__lt=window.until
    ).order_by("number")
    return [
        charts.Mark(
            revision.activated_at,
            f"revision {revision.number}: "
            + " / ".join(f"v{number} {share:g} %" for number, share in revision.percentages().items())
            + f" by {revision.actor.removeprefix('user:')}",
        )
        for revision in changed
        if revision.activated_at is not None
    ]


def version_row(number: int, cell: Cell, calls: int) -> VersionRow:
    return VersionRow(
        number=number,
        calls=cell.calls,
        share=cell.calls / calls if calls else None,
        p50=cell.p(0.5),
        p95=cell.p(0.95),
        p99=cell.p(0.99),
        error_share=cell.error_share,
        queue_p95=cell.p(0.95, "queue"),
        compute_p95=cell.p(0.95, "compute"),
    )


def _rows(found: Series) -> list[VersionRow]:
    cells = {number: found.total(number) for number in found.versions}
    calls = sum(cell.calls for cell in cells.values())
    return [version_row(number, cell, calls) for number, cell in cells.items()]


def traffic_figures(deployment: Deployment, window: Window) -> TrafficFigures:
    """Three queries: the live series, the shadows', the split changes."""
    found = series(deployment.pk, window.since, window.until, window.until)
    shadows = series(deployment.pk, window.since, window.until, window.until, Role.SHADOW)
    marks = _marks(deployment, window)
    names = {number: f"version {number}" for number in found.versions}
    colours = {name: charts.version_colour(number) for number, name in names.items()}
    whole = found.total()
    return TrafficFigures(
        rate=charts.lines(
            found.times,
            {name: found.rates(number) for number, name in names.items()},
            colours,
            unit="/s",
            since=window.since,
            until=window.until,
            marks=marks,
        ),
        errors=charts.lines(
            found.times,
            {"errors": [None if share is None else share * 100 for share in found.error_shares()]},
            {"errors": "--bad"},
            unit="%",
            since=window.since,
            until=window.until,
        ),
        rows=_rows(found),
        shadow_rows=_rows(shadows),
        codes=sorted(whole.codes.items(), key=lambda item: -item[1])[:8],
        calls=whole.calls,
        empty=whole.calls == 0,
    )


def latency_figures(deployment: Deployment, window: Window) -> LatencyFigures:
    """Two queries: the live series, the split changes."""
    found = series(deployment.pk, window.since, window.until, window.until)
    lines: dict[str, list[float | None]] = {}
    split: dict[str, list[float | None]] = {}
    colours: dict[str, str] = {}
    dashes: dict[str, str] = {}
    for number in found.versions:
        for share, dash in ((0.5, "dot"), (0.95, "solid"), (0.99, "dash")):
            name = f"v{number} p{share * 100:g}"
            lines[name] = found.quantiles(number, share)
            colours[name], dashes[name] = charts.version_colour(number), dash
        for part, dash in (("queue", "dot"), ("compute", "solid")):
            name = f"v{number} {part} p95"
            split[name] = found.quantiles(number, 0.95, part)
            colours[name], dashes[name] = charts.version_colour(number), dash
    marks = _marks(deployment, window)

    def chart(values: dict[str, list[float | None]]) -> charts.Figure:
        return charts.lines(
            found.times,
            values,
            colours,
            unit="ms",
            since=window.since,
            until=window.until,
            marks=marks,
            dashes=dashes,
        )

    return LatencyFigures(
        quantiles=chart(lines),
        split=chart(split),
        rows=_rows(found),
        empty=found.total().calls == 0,
    )
