"""Traffic, latency and errors of deployments, read from rollups alone: their cost follows the time asked for."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from django.db.models import Max
from django.utils import timezone

from controlplane.monitoring.intervals import Interval
from controlplane.predictions.histograms import Histogram, merge, quantile
from controlplane.predictions.models import IngesterStatus, Rollup
from inference.contracts import Role, Source

# What guards, experiments and pages look at: real and demo traffic, never test traffic (which is not rolled up).
SHOWN = (Source.LIVE.value, Source.DEMO.value)
PARTS = ("total", "queue", "compute")
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
PLACES = 20
Number = float | None


class VersionSeries(TypedDict):
    """One version's figures: totals, and per step lists as long as `at`. None where nothing is known."""

    version: int
    role: str
    calls: int
    failed: int
    rows: int
    share: Number
    error_share: Number
    latency_ms: dict[str, dict[str, Number]]
    series: dict[str, list[Number]]


class Traffic(TypedDict):
    """The figures of one deployment. `at` are the starts of the steps; `rate` is calls per second."""

    deployment: str
    since: str
    until: str
    step_s: int
    at: list[str]
    calls: int
    failed: int
    rate: Number
    error_share: Number
    latency_ms: dict[str, dict[str, Number]]
    series: dict[str, list[Number]]
    versions: list[VersionSeries]
    errors: list[dict[str, Any]]
    data: dict[str, Any]


@dataclass(slots=True)
class _Cell:
    """What happened in one step, or in all of them."""

    calls: int = 0
    failed: int = 0
    rows: int = 0
    latency: dict[str, Histogram] = field(default_factory=lambda: {part: {} for part in PARTS})

    def add(self, rollup: Rollup) -> None:
        self.calls += rollup.calls
        self.failed += rollup.failed
        self.rows += rollup.rows
        for part, bins in rollup.latency.items():
            merge(self.latency[part], bins)

    def quantiles(self) -> dict[str, dict[str, Number]]:
        return {
            part: {name: _rounded(quantile(self.latency[part], p)) for name, p in QUANTILES.items()} for part in PARTS
        }


def _rounded(value: Number, digits: int = 4) -> Number:
    return None if value is None else float(f"{value:.{digits}g}")


def _ratio(part: float, whole: float) -> Number:
    return round(part / whole, 6) if whole else None


def _rollups(deployment_ids: Iterable[uuid.UUID], since: datetime, until: datetime) -> list[Rollup]:
    """Rollups without their sketches. A bucket belongs to the interval when it starts in it. One query."""
    found = Rollup.objects.filter(deployment_id__in=list(deployment_ids), bucket__gte=since, bucket__lt=until)
    return list(found.filter(source__in=[*SHOWN, Source.SHADOW.value]).defer("sketches").order_by("bucket"))


def traffic(deployment_id: uuid.UUID, name: str, interval: Interval) -> Traffic:
    """Everything the traffic and latency tabs show. Two queries."""
    # The bucket that holds `since` started before it.
    rollups = _rollups([deployment_id], datetime.fromtimestamp(interval.first, UTC), interval.until)
    interval = interval.coarsened(max((rollup.width_s for rollup in rollups), default=0))
    starts = interval.starts()
    whole, steps = _Cell(), [_Cell() for _ in starts]
    totals: dict[tuple[str, int], _Cell] = {}
    cells: dict[tuple[str, int], list[_Cell]] = {}
    codes: dict[str, int] = {}
    places: dict[str, int] = {}
    for rollup in rollups:
        step = min(len(starts) - 1, max(0, interval.step_of(rollup.bucket)))
        key = (rollup.role, rollup.version)
        if rollup.role == Role.LIVE:
            whole.add(rollup)
            steps[step].add(rollup)
            merge_counts(codes, rollup.codes)
            merge_counts(places, rollup.places)
        if rollup.version_id is None:
            continue
        if key not in cells:
            totals[key], cells[key] = _Cell(), [_Cell() for _ in starts]
        totals[key].add(rollup)
        cells[key][step].add(rollup)
    served = sum(cell.calls for (role, _), cell in totals.items() if role == Role.LIVE)
    served_steps = [
        sum(cells[key][index].calls for key in cells if key[0] == Role.LIVE) for index in range(len(starts))
    ]
    lengths = _lengths(starts, interval)
    return {
        "deployment": name,
        "since": interval.since.isoformat(),
        "until": interval.until.isoformat(),
        "step_s": interval.step_s,
        "at": [datetime.fromtimestamp(start, UTC).isoformat() for start in starts],
        "calls": whole.calls,
        "failed": whole.failed,
        "rate": _rounded(whole.calls / interval.seconds),
        "error_share": _ratio(whole.failed, whole.calls),
        "latency_ms": whole.quantiles(),
        "series": _series(steps, lengths, [cell.calls for cell in steps]),
        "versions": [
            {
                "version": version,
                "role": role,
                "calls": totals[role, version].calls,
                "failed": totals[role, version].failed,
                "rows": totals[role, version].rows,
                "share": _ratio(totals[role, version].calls, served) if role == Role.LIVE else None,
                "error_share": _ratio(totals[role, version].failed, totals[role, version].calls),
                "latency_ms": totals[role, version].quantiles(),
                "series": _series(cells[role, version], lengths, served_steps),
            }
            for role, version in sorted(cells)
        ],
        "errors": errors_of(codes, places, whole.calls),
        "data": freshness(),
    }


def _lengths(starts: Sequence[int], interval: Interval) -> list[float]:
    """How many seconds of each step have passed; the last one may be short. The first is whole, as its rollups are."""
    end = min(interval.until, timezone.now()).timestamp()
    return [max(0.0, min(start + interval.step_s, end) - start) for start in starts]


def _series(cells: Sequence[_Cell], lengths: Sequence[float], all_calls: Sequence[int]) -> dict[str, list[Number]]:
    """Lists over the steps. A step in which the whole deployment was silent is a gap, not a zero."""
    series: dict[str, list[Number]] = {
        "calls": [cell.calls if everyone else None for cell, everyone in zip(cells, all_calls, strict=True)],
        "rate": [
            _rounded(cell.calls / max(length, 1.0)) if everyone else None
            for cell, length, everyone in zip(cells, lengths, all_calls, strict=True)
        ],
        "share": [_ratio(cell.calls, everyone) for cell, everyone in zip(cells, all_calls, strict=True)],
        "error_share": [_ratio(cell.failed, cell.calls) for cell in cells],
    }
    for part in PARTS:
        for name, p in QUANTILES.items():
            series[f"{part}_{name}"] = [_rounded(quantile(cell.latency[part], p)) for cell in cells]
    return series


def merge_counts(into: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count


def errors_of(codes: dict[str, int], places: dict[str, int], calls: int) -> list[dict[str, Any]]:
    """Error codes, most frequent first, each with the places (columns) it was about."""
    by_code: dict[str, list[tuple[str, int]]] = {}
    for name, count in places.items():
        code, _, place = name.partition("|")
        by_code.setdefault(code, []).append((place, count))
    return [
        {
            "code": code,
            "calls": count,
            "share": _ratio(count, calls),
            "places": [
                {"place": place, "calls": number}
                for place, number in sorted(by_code.get(code, []), key=lambda item: -item[1])[:PLACES]
            ],
        }
        for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0]))
    ]


def freshness() -> dict[str, Any]:
    """How old the figures are: seconds that the slowest ingester is behind; None where none ever ran. One query."""
    known = list(IngesterStatus.objects.all())
    if not known:
        return {"lag_s": None, "quarantined": 0, "ingesters": []}
    now = timezone.now()
    # One that has not been seen for a day belongs to a host that is gone, unless it left records behind.
    current = [one for one in known if (now - one.seen_at).total_seconds() < 86_400 or one.spool_bytes]
    silent = [max(0.0, (now - one.seen_at).total_seconds()) for one in current]
    return {
        "lag_s": round(max((one.lag_s + quiet for one, quiet in zip(current, silent, strict=True)), default=0.0), 1),
        "quarantined": sum(one.quarantined for one in known),
        "ingesters": [
            {
                "host": one.host,
                "seen_at": one.seen_at.isoformat(),
                "lag_s": one.lag_s,
                "spool_bytes": one.spool_bytes,
                "shipped": one.shipped,
                "failure": one.failure,
            }
            for one in current
        ],
    }


class OverviewRow(TypedDict):
    """One deployment on the overview. `sparkline` is calls per second per step, None in gaps."""

    calls: int
    rate: Number
    sparkline: list[Number]
    p95_ms: Number
    error_share: Number
    last_call_at: str | None
    shares: dict[int, float]


def overview(deployment_ids: Sequence[uuid.UUID], interval: Interval) -> dict[uuid.UUID, OverviewRow]:
    """The overview's figures of many deployments; every id is in the answer. Two queries, however many there are."""
    rollups = _rollups(deployment_ids, datetime.fromtimestamp(interval.first, UTC), interval.until)
    interval = interval.coarsened(max((rollup.width_s for rollup in rollups), default=0))
    starts = interval.starts()
    lengths = _lengths(starts, interval)
    whole = {identity: _Cell() for identity in deployment_ids}
    steps = {identity: [0] * len(starts) for identity in deployment_ids}
    shares: dict[uuid.UUID, dict[int, int]] = {identity: {} for identity in deployment_ids}
    for rollup in rollups:
        identity = rollup.deployment_id
        if rollup.role != Role.LIVE or identity is None:
            continue
        whole[identity].add(rollup)
        steps[identity][min(len(starts) - 1, max(0, interval.step_of(rollup.bucket)))] += rollup.calls
        if rollup.version_id is not None:
            shares[identity][rollup.version] = shares[identity].get(rollup.version, 0) + rollup.calls
    last = dict(
        Rollup.objects.filter(
            deployment_id__in=list(deployment_ids),
            role=Role.LIVE.value,
            bucket__gte=interval.until - timedelta(days=30),
        )
        .order_by()
        .values_list("deployment_id")
        .annotate(last=Max("bucket"))
    )
    return {
        identity: {
            "calls": whole[identity].calls,
            "rate": _rounded(whole[identity].calls / interval.seconds),
            "sparkline": [
                _rounded(count / max(length, 1.0)) if count else None
                for count, length in zip(steps[identity], lengths, strict=True)
            ],
            "p95_ms": _rounded(quantile(whole[identity].latency["total"], 0.95)),
            "error_share": _ratio(whole[identity].failed, whole[identity].calls),
            "last_call_at": last[identity].isoformat() if identity in last else None,
            "shares": {
                version: count / sum(shares[identity].values()) for version, count in sorted(shares[identity].items())
            },
        }
        for identity in deployment_ids
    }
