"""Traffic, latency and errors of deployments, read from rollups alone: their cost follows the time asked for."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypedDict

import msgspec
import numpy as np
from django.db import connection
from django.db.models import TextField
from django.db.models.functions import Cast
from django.utils import timezone

from controlplane.monitoring.failures import Failure, Failures, KindSeries
from controlplane.monitoring.intervals import Interval
from controlplane.predictions.histograms import Histogram, merge, quantile, summed
from controlplane.predictions.models import IngesterStatus, Rollup
from inference.contracts import Role, Source

# What guards, experiments and pages look at: real and demo traffic, never test traffic (which is not rolled up).
SHOWN = (Source.LIVE.value, Source.DEMO.value)
PARTS = ("total", "queue", "compute")
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
Number = float | None


class VersionSeries(TypedDict):
    """One version's figures: totals, and per step lists as long as `at`. None where nothing is known."""

    version: int
    role: str
    calls: int
    failed: int
    cached: int
    rows: int
    share: Number
    error_share: Number
    latency_ms: dict[str, dict[str, Number]]
    series: dict[str, list[Number]]


class Traffic(TypedDict):
    """The figures of one deployment. `at` are the starts of the steps; `rate` is calls per second.

    `cached`: calls answered with what an earlier one got. `errors` are of live calls; `shadow_errors` of shadows,
    which nobody else is told of.
    """

    deployment: str
    since: str
    until: str
    step_s: int
    at: list[str]
    calls: int
    failed: int
    cached: int
    rate: Number
    error_share: Number
    latency_ms: dict[str, dict[str, Number]]
    series: dict[str, list[Number]]
    versions: list[VersionSeries]
    errors: list[Failure]
    error_kinds: list[KindSeries]
    shadow_errors: list[Failure]
    data: dict[str, Any]


@dataclass(slots=True)
class _Cell:
    """What happened in one step, or in all of them."""

    calls: int = 0
    failed: int = 0
    cached: int = 0
    rows: int = 0
    latency: dict[str, Histogram] = field(default_factory=lambda: {part: {} for part in PARTS})

    def add(self, other: "_Row | _Cell") -> None:
        self.calls += other.calls
        self.failed += other.failed
        self.cached += other.cached
        self.rows += other.rows
        for part, bins in other.latency.items():
            merge(self.latency[part], bins)

    @classmethod
    def of(cls, parts: "Iterable[_Cell]") -> "_Cell":
        """All of the parts together."""
        found = cls()
        for part in parts:
            found.add(part)
        return found

    def quantiles(self) -> dict[str, dict[str, Number]]:
        return {
            part: {name: _rounded(quantile(self.latency[part], p)) for name, p in QUANTILES.items()} for part in PARTS
        }


def _rounded(value: Number, digits: int = 4) -> Number:
    return None if value is None else float(f"{value:.{digits}g}")


def _ratio(part: float, whole: float) -> Number:
    return round(part / whole, 6) if whole else None


class _Row(NamedTuple):
    """A rollup as the figures need it."""

    role: str
    version: int | None
    bucket: datetime
    width_s: int
    calls: int
    failed: int
    cached: int
    rows: int
    codes: dict[str, int]
    places: dict[str, int]
    latency: dict[str, Histogram]


# JSON is read as text by a typed decoder: a third of the time that rows of the model take.
_counts = msgspec.json.Decoder(dict[str, int])
_latency = msgspec.json.Decoder(dict[str, Histogram])


def _rollups(deployment_id: uuid.UUID, since: datetime, until: datetime) -> list[_Row]:
    """Rollups of live and shadow calls. A bucket belongs to the interval when it starts in it. One query."""
    found = (
        Rollup.objects.filter(deployment_id=deployment_id, bucket__gte=since, bucket__lt=until)
        .filter(source__in=[*SHOWN, Source.SHADOW.value])
        .annotate(**{f"{name}_text": Cast(name, TextField()) for name in ("codes", "places", "latency")})
        .values_list(
            *("role", "version_id", "version", "bucket", "width_s", "calls", "failed", "cached", "rows"),
            *("codes_text", "places_text", "latency_text"),
        )
        .order_by("bucket")
    )
    return [
        _Row(
            role,
            version if version_id is not None else None,
            bucket,
            width_s,
            calls,
            failed,
            cached,
            rows,
            _counts.decode(codes),
            _counts.decode(places),
            _latency.decode(latency),
        )
        for role, version_id, version, bucket, width_s, calls, failed, cached, rows, codes, places, latency in found
    ]


def traffic(deployment_id: uuid.UUID, name: str, interval: Interval) -> Traffic:
    """Everything the traffic and latency tabs show. Two queries."""
    # The bucket that holds `since` started before it.
    rows = _rollups(deployment_id, datetime.fromtimestamp(interval.first, UTC), interval.until)
    interval = interval.coarsened(max((row.width_s for row in rows), default=0))
    starts = interval.starts()
    failures = {Role.LIVE.value: Failures(len(starts)), Role.SHADOW.value: Failures(len(starts))}
    # Each rollup is added once, to its version's step; the rest are sums of these.
    routed: dict[tuple[str, int | None], list[_Cell]] = {}
    for row in rows:
        step = min(len(starts) - 1, max(0, interval.step_of(row.bucket)))
        failures[row.role].add(step, row.bucket, row.version, row.codes, row.places)
        if (row.role, row.version) not in routed:
            routed[row.role, row.version] = [_Cell() for _ in starts]
        routed[row.role, row.version][step].add(row)
    cells = {(role, version): mine for (role, version), mine in routed.items() if version is not None}
    totals = {key: _Cell.of(mine) for key, mine in cells.items()}
    live = [mine for (role, _), mine in routed.items() if role == Role.LIVE]
    steps = [_Cell.of(mine[index] for mine in live) for index in range(len(starts))]
    whole = _Cell.of(steps)
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
        "cached": whole.cached,
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
                "cached": totals[role, version].cached,
                "rows": totals[role, version].rows,
                "share": _ratio(totals[role, version].calls, served) if role == Role.LIVE else None,
                "error_share": _ratio(totals[role, version].failed, totals[role, version].calls),
                "latency_ms": totals[role, version].quantiles(),
                "series": _series(cells[role, version], lengths, served_steps),
            }
            for role, version in sorted(cells)
        ],
        "errors": failures[Role.LIVE].by_code(whole.calls),
        "error_kinds": failures[Role.LIVE].by_kind(whole.calls, [cell.calls for cell in steps]),
        "shadow_errors": failures[Role.SHADOW].by_code(
            sum(cell.calls for (role, _), cell in totals.items() if role == Role.SHADOW)
        ),
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


# One row per deployment: thousands of rollups cost more to bring over and to decode than to join to texts.
_OVERVIEW = """
SELECT deployment_id, max(width_s), sum(failed)::bigint,
    string_agg(concat_ws(' ', extract(epoch FROM bucket)::bigint, calls), ' '), string_agg(latency ->> 'total', ' ')
FROM prediction_rollup
WHERE deployment_id = ANY(%s) AND bucket >= %s AND bucket < %s AND role = %s AND source = ANY(%s)
GROUP BY deployment_id
"""


def overview(deployment_ids: Sequence[uuid.UUID], interval: Interval) -> dict[uuid.UUID, OverviewRow]:
    """The overview's figures of many deployments; every id is in the answer. One query, however many there are."""
    since = datetime.fromtimestamp(interval.first, UTC)
    with connection.cursor() as cursor:
        cursor.execute(_OVERVIEW, [list(deployment_ids), since, interval.until, Role.LIVE.value, list(SHOWN)])
        rows = cursor.fetchall()
    interval = interval.coarsened(max((width_s for _, width_s, *_ in rows), default=0))
    lengths = _lengths(interval.starts(), interval)
    known = {identity: (failed, buckets, latency or "") for identity, _, failed, buckets, latency in rows}
    nothing = 0, "", ""
    return {identity: _overview_row(*known.get(identity, nothing), interval, lengths) for identity in deployment_ids}


def _overview_row(failed: int, buckets: str, latency: str, interval: Interval, lengths: Sequence[float]) -> OverviewRow:
    """`buckets`: the start, in Unix seconds, and the calls of each rollup; `latency`: their histograms. As texts."""
    starts, counts = np.fromstring(buckets, np.int64, sep=" ").reshape(-1, 2).T
    steps = np.clip((starts - interval.first) // interval.step_s, 0, len(lengths) - 1)
    calls = [int(count) for count in np.bincount(steps, counts, len(lengths))]
    whole = sum(calls)
    return {
        "calls": whole,
        "rate": _rounded(whole / interval.seconds),
        "sparkline": [
            _rounded(count / max(length, 1.0)) if count else None for count, length in zip(calls, lengths, strict=True)
        ],
        "p95_ms": _rounded(quantile(summed(latency), 0.95)),
        "error_share": _ratio(failed, whole),
    }
