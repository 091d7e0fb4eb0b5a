"""One row per deployment, worst first, and one line above that says whether all is well."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from urllib.parse import urlencode

from django.db.models import Count, Q

from controlplane.accounts.models import User
from controlplane.dashboard import charts
from controlplane.dashboard.pages.accuracy import metric_words, with_half_width
from controlplane.dashboard.pages.figures import Window
from controlplane.dashboard.pages.header import RECENT, Status, is_failing, status_of
from controlplane.dashboard.pages.split import Segment, segments
from controlplane.deployments.models import Deployment, DeploymentQuerySet, RevisionState, SplitRevision
from controlplane.monitoring.accuracy import ENOUGH, Headline, accuracies
from controlplane.monitoring.drift_state import DriftState, states
from controlplane.monitoring.traffic import OverviewRow as Figures
from controlplane.monitoring.traffic import overview as figures_of
from inference.contracts import Lane

MOST = 200
SPARK_POINTS = 60
# Named in the sentence; the rest are counted.
NAMED = 3


class Severity(IntEnum):
    """How urgently somebody should look: the order of the rows."""

    FAILING = 0
    DRIFTING = 1
    NOT_SERVING = 2
    WORSE = 3
    HEALTHY = 4


@dataclass(frozen=True, slots=True)
class Filters:
    """What a person looks for: part of a name of deployment, model or team, or of an id; and one team."""

    text: str = ""
    team: str = ""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The headline metric in words, `97.6 ± 0.3 %`; `name` is empty where nobody said what really happened."""

    words: str
    name: str
    labels: int
    worse: bool


@dataclass(frozen=True, slots=True)
class Light:
    """Whether what a deployment sees or says moved over the last day: in a word, with a tone, and what moved most."""

    words: str
    tone: str
    most: str
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """The newest split: what was done, by whom."""

    words: str
    by: str
    revision: SplitRevision


@dataclass(frozen=True, slots=True)
class OverviewRow:
    deployment: Deployment
    severity: Severity
    status: Status
    segments: list[Segment]
    shadows: list[Segment]
    spark: tuple[str, str]
    rate: float | None
    p95: float | None
    error_share: float | None
    accuracy: Accuracy
    drift: Light
    change: Change | None
    # What the sentence says of it.
    said: str

    @property
    def url(self) -> str:
        """Where what is wrong with it can be seen."""
        tab = {Severity.DRIFTING: "drift/", Severity.WORSE: "accuracy/"}.get(self.severity, "")
        return f"/deployments/{self.deployment.name}/{tab}"

    @property
    def kind(self) -> str:
        return "asynchronous" if self.deployment.lane == Lane.JOB else "real time"


@dataclass(frozen=True, slots=True)
class OverviewPage:
    """`total`: how many deployments the person may see; `teams`: (name, how many), where there are several."""

    rows: list[OverviewRow]
    rate: float
    sentence: str
    tone: str
    worst: OverviewRow | None
    filters: Filters
    teams: list[tuple[str, int]]
    total: int
    query: str

    @property
    def left_out(self) -> int:
        """Deployments beyond those that fit the page, where nothing is looked for."""
        return 0 if self.filters.text or self.filters.team else self.total - len(self.rows)


def read_filters(query: Mapping[str, str]) -> Filters:
    def text(name: str) -> str:
        return query.get(name, "").replace("\x00", "").strip()[:100]

    return Filters(text("q"), text("team"))


def overview(user: User, window: Window, filters: Filters) -> OverviewPage:
    """Six queries, however many deployments and predictions there are."""
    mine = Deployment.objects.for_user(user).current()
    teams = list(mine.order_by("team__name").values_list("team__name").annotate(count=Count("pk")))
    found = list(_matching(filters, user).select_related("model", "team").order_by("name")[:MOST])
    ids = [deployment.pk for deployment in found]
    revisions: dict[uuid.UUID, list[SplitRevision]] = {}
    wanted = [RevisionState.ACTIVE, RevisionState.PREPARING]
    for revision in SplitRevision.objects.filter(deployment_id__in=ids, state__in=wanted).order_by("number"):
        revisions.setdefault(revision.deployment_id, []).append(revision)
    figures = figures_of(ids, window.interval)
    known = accuracies(ids, window.interval)
    drifts = states(ids)
    rows = [
        _row(d, revisions.get(d.pk, []), figures[d.pk], known[d.pk], drifts[d.pk], window.interval.step_s)
        for d in found
    ]
    rows.sort(key=lambda row: (row.severity, row.deployment.name))
    sentence, tone, worst = _sentence(rows, bool(filters.text or filters.team))
    asked = {"range": window.key, "q": filters.text, "team": filters.team}
    return OverviewPage(
        rows=rows,
        rate=sum(row.rate or 0.0 for row in rows),
        sentence=sentence,
        tone=tone,
        worst=worst,
        filters=filters,
        teams=teams if len(teams) > 1 else [],
        total=sum(count for _, count in teams),
        query=urlencode({name: value for name, value in asked.items() if value}),
    )


def _matching(filters: Filters, user: User) -> DeploymentQuerySet:
    found = Deployment.objects.for_user(user).current()
    if filters.team:
        found = found.filter(team__name=filters.team)
    if filters.text:
        named = Q(name__icontains=filters.text) | Q(model__name__icontains=filters.text)
        found = found.filter(named | Q(team__name__icontains=filters.text) | Q(id__icontains=filters.text))
    return found


def _sentence(rows: Sequence[OverviewRow], filtered: bool) -> tuple[str, str, OverviewRow | None]:
    """What is not well, worst first, and how many are; the tone; the deployment to open."""
    troubled = [row for row in rows if row.severity < Severity.HEALTHY and row.status.tone != "busy"]
    which = "that match" if filtered else ""
    if not rows:
        return "", "", None
    if not troubled:
        loading = sum(row.status.tone == "busy" for row in rows)
        if loading:
            well = len(rows) - loading
            rest = f" {_counted(well, 'other')} healthy." if well else ""
            return f"{_counted(loading, 'deployment')} being loaded.{rest}", "", None
        words = f"All {len(rows)} deployments {which}".strip() + " are healthy."
        return "The one deployment is healthy." if len(rows) == 1 else words, "good", None
    named = "; ".join(f"{row.deployment.name}: {row.said}" for row in troubled[:NAMED])
    more = len(troubled) - NAMED
    also = f"; and {more} more" if more > 0 else ""
    well = sum(row.severity is Severity.HEALTHY for row in rows)
    rest = f" {_counted(well, 'other')} healthy." if well else ""
    return f"{named}{also}.{rest}", troubled[0].status.tone, troubled[0]


def _counted(count: int, noun: str) -> str:
    if noun == "other":
        return "The other one is" if count == 1 else f"The other {count} are"
    return f"One {noun} is" if count == 1 else f"{count} {noun}s are"


def _row(
    deployment: Deployment,
    revisions: list[SplitRevision],
    figures: Figures,
    headline: Headline,
    drift: DriftState,
    step_s: int,
) -> OverviewRow:
    serving = next((r for r in revisions if r.state == RevisionState.ACTIVE), None)
    preparing = any(r.state == RevisionState.PREPARING for r in revisions)
    status = status_of(deployment, serving, preparing, figures["error_share"])
    accuracy = _accuracy(headline)
    severity = Severity.HEALTHY
    said = status.words[:1].lower() + status.words[1:]
    if serving is None:
        severity = Severity.NOT_SERVING
    elif is_failing(figures["error_share"]):
        severity = Severity.FAILING
    elif drift.word == "moved":
        severity, status, said = Severity.DRIFTING, Status("Drifting", "warn"), _moved_words(drift)
    elif accuracy.worse:
        severity, status = Severity.WORSE, Status("Poor answers", "warn")
        said = "worse than a constant answer"
    return OverviewRow(
        deployment=deployment,
        severity=severity,
        status=status,
        segments=segments(serving.shares) if serving else [],
        shadows=segments(serving.shadow) if serving else [],
        spark=charts.sparkline(_thinned(figures["sparkline"])),
        rate=_recent_rate(figures["sparkline"], step_s),
        p95=figures["p95_ms"],
        error_share=figures["error_share"],
        accuracy=accuracy,
        drift=_light(drift),
        change=_change(revisions[-1]) if revisions else None,
        said=said,
    )


def _light(drift: DriftState) -> Light:
    if drift.word == "moved":
        words = f"{drift.moved} of {drift.compared} moved" if drift.moved else "answers moved"
        return Light(words, "warn", drift.most, drift.checked_at)
    if drift.word == "steady":
        return Light("steady", "good", "", drift.checked_at)
    if drift.checked_at is None:
        return Light("not looked at yet", "", "", None)
    return Light("not enough data" if drift.baseline else "no reference", "", "", drift.checked_at)


def _moved_words(drift: DriftState) -> str:
    """`drifting since 14:05 UTC: 3 of 30 features moved, amount most`."""
    since = f" since {drift.since:%H:%M} UTC" if drift.since is not None else ""
    if not drift.moved:
        return f"drifting{since}: its answers moved"
    most = f", {drift.most} most" if drift.most else ""
    return f"drifting{since}: {drift.moved} of {drift.compared} features moved{most}"


def _change(revision: SplitRevision) -> Change:
    live = segments(revision.shares)
    shares = " / ".join(f"{segment.points / 100:g}" for segment in live)
    words = f"version {live[0].number} at 100 %" if len(live) == 1 else f"split {shares}"
    if revision.returns_to_id is not None:
        words = "rolled back"
    kind, _, name = revision.actor.partition(":")
    return Change(words, name if kind == "user" else f"{kind} {name}".strip(), revision)


def _recent_rate(rates: list[float | None], step_s: int) -> float:
    """Calls a second over the last ten minutes, or over the last step where steps are longer."""
    recent = rates[-max(1, int(RECENT.total_seconds()) // step_s) :]
    return sum(rate or 0.0 for rate in recent) / len(recent) if recent else 0.0


def _accuracy(headline: Headline) -> Accuracy:
    name, metric, n = headline["name"], headline["metric"], headline["n"]
    if name is None or metric["value"] is None:
        return Accuracy("not labelled", "", 0, False)
    return Accuracy(
        with_half_width(name, metric), metric_words(name, metric).name, n, n >= ENOUGH and headline["worse"]
    )


def _thinned(rates: list[float | None]) -> list[float | None]:
    """At most SPARK_POINTS means of neighbouring steps; a stretch without any figure stays a gap."""
    step = max(1, len(rates) // SPARK_POINTS)
    found: list[float | None] = []
    for start in range(0, len(rates), step):
        known = [rate for rate in rates[start : start + step] if rate is not None]
        found.append(sum(known) / len(known) if known else None)
    return found
