"""Charts and comparisons of a deployment's tabs, made from the rollups' series."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from controlplane.dashboard import charts
from controlplane.deployments.models import Deployment, SplitRevision
from controlplane.monitoring.failures import Column, Failure, FailureKind
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import Traffic, VersionSeries, traffic
from inference.contracts import Role

WINDOWS: dict[str, tuple[str, timedelta]] = {
    "1h": ("Last hour", timedelta(hours=1)),
    "6h": ("Last 6 hours", timedelta(hours=6)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}
DEFAULT_WINDOW = "6h"
# Who can mend it: the kind's colour in charts, its tone as a chip, and what it means.
KINDS: dict[str, tuple[str, str, str]] = {
    FailureKind.CLIENT: ("--ink-3", "", "what was sent is wrong: its sender can mend it"),
    FailureKind.MODEL: ("--accent", "busy", "the model could not compute with what was sent"),
    FailureKind.SERVER: ("--bad", "bad", "something failed inside"),
    FailureKind.OVERLOAD: ("--warn", "warn", "more was asked than there is room for"),
}
# Columns named beside a code.
PLACES = 4


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch of time that a page shows."""

    key: str
    words: str
    since: datetime
    until: datetime

    @property
    def interval(self) -> Interval:
        return Interval.of(self.since, self.until)

    @property
    def choices(self) -> list[tuple[str, str]]:
        return [(key, words) for key, (words, _) in WINDOWS.items()]


def read_window(query: Mapping[str, str], now: datetime, default: str = DEFAULT_WINDOW) -> Window:
    """The window named by `?range=`; an unknown name is the default."""
    key = query.get("range", default)
    key = key if key in WINDOWS else default
    words, length = WINDOWS[key]
    return Window(key, words, now - length, now)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version in a comparison over the window; latencies in ms."""

    number: int
    calls: int
    share: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    error_share: float | None
    queue_p50: float | None
    queue_p95: float | None
    compute_p50: float | None
    compute_p95: float | None
    cached: int
    computed: int

    @classmethod
    def of(cls, version: VersionSeries) -> "VersionRow":
        latency = version["latency_ms"]
        return cls(
            number=version["version"],
            calls=version["calls"],
            share=version["share"],
            p50=latency["total"]["p50"],
            p95=latency["total"]["p95"],
            p99=latency["total"]["p99"],
            error_share=version["error_share"],
            queue_p50=latency["queue"]["p50"],
            queue_p95=latency["queue"]["p95"],
            compute_p50=latency["compute"]["p50"],
            compute_p95=latency["compute"]["p95"],
            cached=version["cached"],
            computed=version["calls"] - version["failed"] - version["cached"],
        )


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    rate: charts.Figure
    errors: charts.Figure
    rows: list[VersionRow]
    shadow_rows: list[VersionRow]
    failures: list["FailureRow"]
    kinds: list[tuple[str, str, int, float | None]]
    calls: int
    failed: int
    empty: bool


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One error code. `rows_query` finds its rows in the log: only shadows' failed calls have any."""

    failure: Failure
    tone: str
    is_shadow: bool
    first_at: datetime
    last_at: datetime
    columns: list[Column]
    versions: str
    rows_query: str

    @classmethod
    def of(cls, failure: Failure, window: Window, *, is_shadow: bool) -> "FailureRow":
        named = [
            ("before routing" if one["version"] is None else f"v{one['version']}") + f" {one['calls']:,}"
            for one in failure["versions"]
        ]
        return cls(
            failure=failure,
            tone=KINDS[failure["kind"]][1],
            is_shadow=is_shadow,
            first_at=datetime.fromisoformat(failure["first_at"]),
            last_at=datetime.fromisoformat(failure["last_at"]),
            columns=failure["columns"][:PLACES],
            versions=" · ".join(named),
            rows_query=urlencode({"range": window.key, "code": failure["code"]}) if is_shadow else "",
        )


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    quantiles: charts.Figure
    split: charts.Figure
    rows: list[VersionRow]
    shows_cache: bool
    empty: bool


def change_marks(deployment: Deployment, window: Window) -> list[charts.Mark]:
    """The split changes within a window, as marks for its charts. One query."""
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


def _of_role(found: Traffic, role: Role) -> list[VersionSeries]:
    return [version for version in found["versions"] if version["role"] == role]


def _percent_of(parts: list[float | None], wholes: list[float | None]) -> list[float | None]:
    return [
        part / whole * 100 if part is not None and whole else None for part, whole in zip(parts, wholes, strict=True)
    ]


def traffic_figures(deployment: Deployment, window: Window) -> TrafficFigures:
    """The same figures as /api/deployments/{d}/metrics/, as charts and rows. Three queries."""
    found = traffic(deployment.pk, deployment.name, window.interval)
    live = _of_role(found, Role.LIVE)
    frame = charts.Frame(window.since, window.until, change_marks(deployment, window))
    return TrafficFigures(
        rate=charts.lines(
            found["at"],
            [
                charts.Line(f"version {v['version']}", v["series"]["rate"], charts.version_colour(v["version"]))
                for v in live
            ],
            unit="/s",
            frame=frame,
        ),
        errors=charts.stacked(
            found["at"],
            [
                charts.Line(kind["kind"], _percent_of(kind["series"], found["series"]["calls"]), KINDS[kind["kind"]][0])
                for kind in found["error_kinds"]
            ],
            unit="%",
            frame=charts.Frame(window.since, window.until, frame.marks),
        ),
        rows=[VersionRow.of(version) for version in live],
        shadow_rows=[VersionRow.of(version) for version in _of_role(found, Role.SHADOW)],
        failures=[FailureRow.of(failure, window, is_shadow=False) for failure in found["errors"]]
        + [FailureRow.of(failure, window, is_shadow=True) for failure in found["shadow_errors"]],
        kinds=[(kind["kind"], KINDS[kind["kind"]][2], kind["calls"], kind["share"]) for kind in found["error_kinds"]],
        calls=found["calls"],
        failed=found["failed"],
        empty=found["calls"] == 0,
    )


def latency_figures(deployment: Deployment, window: Window) -> LatencyFigures:
    """The latency tab's share of the same figures. Three queries."""
    found = traffic(deployment.pk, deployment.name, window.interval)
    live = _of_role(found, Role.LIVE)
    frame = charts.Frame(window.since, window.until, change_marks(deployment, window))

    def drawn(parts: dict[str, str]) -> charts.Figure:
        return charts.lines(
            found["at"],
            [
                charts.Line(
                    f"v{v['version']} {name.replace('total_', '').replace('_', ' ')}",
                    v["series"][name],
                    charts.version_colour(v["version"]),
                    dash,
                )
                for v in live
                for name, dash in parts.items()
            ],
            unit="ms",
            frame=frame,
        )

    return LatencyFigures(
        quantiles=drawn({"total_p50": "dot", "total_p95": "solid", "total_p99": "dash"}),
        split=drawn({"queue_p95": "dot", "compute_p95": "solid"}),
        rows=[VersionRow.of(version) for version in live],
        shows_cache=deployment.cache_ttl_s > 0 or found["cached"] > 0,
        empty=found["calls"] == 0,
    )
