"""How right a deployment's versions were, from feedback rollups, by the time of the predictions."""

import uuid
from typing import TypedDict

import msgspec
from django.db.models import F, Func, Sum, TextField

from controlplane.monitoring.estimates import Metric, Number, unknown, wilson
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.scoring import Scored, is_worse, scored
from controlplane.monitoring.traffic import SHOWN
from controlplane.predictions import tallies
from controlplane.predictions.histograms import Histogram, merge, quantile
from controlplane.predictions.models import FeedbackRollup, Rollup
from inference.contracts import Source

# A point of a chart rests on at least so many labels.
ENOUGH = 20
# A chart of labels has fewer, wider steps than one of calls: labels are rarer.
STEPS = 24
_tally = msgspec.json.Decoder(tallies.Tally)


class Delay(TypedDict):
    """From a prediction to its truth, ms."""

    median: Number
    p90: Number


class VersionAccuracy(Scored):
    """`coverage`: the share of answered predictions (`predictions`) that have a truth. `blind`: the same figures from
    truths alone that were said before the model's answer was seen; None where there are none."""

    version: int
    role: str
    predictions: int
    labelled: int
    coverage: Metric
    delay_ms: Delay
    ungradable: int
    blind: Scored | None
    series: list[Metric]
    series_n: list[int]


class Accuracy(TypedDict):
    """`at`: the starts of the steps of each version's `series`, which is its headline metric; gaps are None."""

    deployment: str
    since: str
    until: str
    n: int
    at: list[int]
    step_s: int
    versions: list[VersionAccuracy]


def accuracy(deployment_id: uuid.UUID, name: str, interval: Interval) -> Accuracy:
    """What feedback on the predictions of an interval says of each version. Two queries."""
    sources = [*SHOWN, Source.SHADOW.value]
    found = FeedbackRollup.objects.filter(
        deployment_id=deployment_id,
        bucket__gte=interval.since,
        bucket__lt=interval.until,
        source__in=sources,
    )
    rollups = list(found)
    steps = _steps(interval, max((rollup.width_s for rollup in rollups), default=0))
    count = len(steps.starts())
    sums: dict[tuple[str, int], tallies.Tally] = {}
    by_step: dict[tuple[str, int], list[tallies.Tally]] = {}
    for rollup in rollups:
        key = rollup.role, rollup.version
        tallies.merge(sums.setdefault(key, {"n": 0}), rollup.tally)
        step = steps.step_of(rollup.bucket)
        if 0 <= step < count:
            parts = by_step.setdefault(key, [{"n": 0} for _ in range(count)])
            tallies.merge(parts[step], _without(rollup.tally, "blind", "logits", "delay"))
    answered = _answered(deployment_id, interval, sources) if sums else {}
    versions = [
        _version(role, version, tally, by_step.get((role, version), []), answered.get((role, version), 0))
        for (role, version), tally in sorted(sums.items())
    ]
    return {
        "deployment": name,
        "since": interval.since.isoformat(),
        "until": interval.until.isoformat(),
        "n": sum(version["n"] for version in versions if version["role"] == "live"),
        "at": steps.starts(),
        "step_s": steps.step_s,
        "versions": versions,
    }


class Headline(TypedDict):
    """A deployment's one figure: the metric that stands for its task, and the `n` labels it rests on.

    `worse`: it is shown to be worse than the best constant answer. Merely not shown to be better is the rule for rare
    labels, and no alarm.
    """

    name: str | None
    metric: Metric
    n: int
    worse: bool


def accuracies(deployment_ids: list[uuid.UUID], interval: Interval) -> dict[uuid.UUID, Headline]:
    """The headline metric of many deployments over all their live versions, for the overview. One query."""
    found = FeedbackRollup.objects.filter(
        deployment_id__in=deployment_ids,
        bucket__gte=interval.since,
        bucket__lt=interval.until,
        role="live",
        source__in=SHOWN,
    )
    sums: dict[uuid.UUID, tallies.Tally] = {identity: {"n": 0} for identity in deployment_ids}
    for identity, tally in found.values_list("deployment_id", _counts_alone()):
        tallies.merge(sums[identity], _tally.decode(tally))
    return {identity: _headline(scored(tally)) for identity, tally in sums.items()}


def _counts_alone() -> Func:
    """A tally as JSON text without its histograms, which are most of it and no part of a headline."""
    left_out = "'{logits,delay,blind,items}'::text[]"
    return Func(F("tally"), template=f"(%(expressions)s - {left_out})::text", output_field=TextField())


def _headline(figures: Scored) -> Headline:
    name = figures["headline"]
    return {
        "name": name,
        "metric": figures["metrics"][name] if name is not None else unknown(),
        "n": figures["n"],
        "worse": is_worse(figures),
    }


def _steps(interval: Interval, width_s: int) -> Interval:
    """The interval in at most STEPS steps, none finer than the rollups."""
    wished = interval.seconds / STEPS
    step_s = next((step for step in (60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600) if step >= wished), 86_400)
    return Interval(interval.since, interval.until, max(step_s, width_s))


def _without(tally: tallies.Tally, *names: str) -> tallies.Tally:
    return {name: value for name, value in tally.items() if name not in names}


def _answered(deployment_id: uuid.UUID, interval: Interval, sources: list[str]) -> dict[tuple[str, int], int]:
    """Answered predictions by role and version. One query."""
    found = (
        Rollup.objects.filter(
            deployment_id=deployment_id, bucket__gte=interval.since, bucket__lt=interval.until, source__in=sources
        )
        .values_list("role", "version")
        .annotate(answered=Sum("calls") - Sum("failed"))
    )
    return {(role, version): answered for role, version, answered in found}


def _version(
    role: str, version: int, tally: tallies.Tally, parts: list[tallies.Tally], answered: int
) -> VersionAccuracy:
    figures = scored(tally)
    blind = tally.get("blind", {})
    delays: Histogram = merge({}, tally.get("delay", {}))
    labelled = tally.get("given", 0)
    steps = [scored(part) for part in parts]
    headline = figures["headline"] or ""
    return {
        **figures,
        "version": version,
        "role": role,
        "predictions": answered,
        "labelled": labelled,
        "coverage": wilson(min(labelled, answered), answered),
        "delay_ms": {"median": quantile(delays, 0.5), "p90": quantile(delays, 0.9)},
        "ungradable": tally.get("ungradable", 0),
        "blind": scored(blind) if blind.get("n", 0) > 0 else None,
        "series": [step["metrics"].get(headline, unknown()) if step["n"] >= ENOUGH else unknown() for step in steps],
        "series_n": [step["n"] for step in steps],
    }
