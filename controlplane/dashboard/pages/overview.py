"""One row per deployment, worst first, and one line above that says whether all is well."""

import uuid
from dataclasses import dataclass

from controlplane.accounts.models import User
from controlplane.dashboard import charts
from controlplane.dashboard.pages.figures import Window
from controlplane.dashboard.pages.header import RECENT, Status, status_of
from controlplane.dashboard.pages.split import Segment, segments
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.monitoring.accuracy import accuracies
from controlplane.monitoring.estimates import Metric
from controlplane.monitoring.traffic import OverviewRow as Figures
from controlplane.monitoring.traffic import overview as figures_of
from inference.contracts import Lane

MOST = 200
WORST = {"bad": 0, "warn": 1, "busy": 2, "good": 3, "": 4}
SPARK_POINTS = 60


@dataclass(frozen=True, slots=True)
class OverviewRow:
    deployment: Deployment
    status: Status
    segments: list[Segment]
    shadows: list[Segment]
    spark: tuple[str, str]
    rate: float | None
    p95: float | None
    error_share: float | None
    accuracy: str
    last_change: SplitRevision | None

    @property
    def kind(self) -> str:
        return "asynchronous" if self.deployment.lane == Lane.JOB else "real time"


@dataclass(frozen=True, slots=True)
class OverviewPage:
    rows: list[OverviewRow]
    rate: float
    sentence: str
    tone: str
    worst: Deployment | None


def overview(user: User, window: Window) -> OverviewPage:
    """Five queries, however many deployments and predictions there are."""
    found = list(Deployment.objects.for_user(user).current().select_related("model", "team")[:MOST])
    ids = [deployment.pk for deployment in found]
    revisions: dict[uuid.UUID, list[SplitRevision]] = {}
    wanted = [RevisionState.ACTIVE, RevisionState.PREPARING]
    for revision in SplitRevision.objects.filter(deployment_id__in=ids, state__in=wanted).order_by("number"):
        revisions.setdefault(revision.deployment_id, []).append(revision)
    figures = figures_of(ids, window.interval)
    known = accuracies(ids, window.interval)
    rows = [_row(d, revisions.get(d.pk, []), figures[d.pk], known.get(d.pk), window.interval.step_s) for d in found]
    rows.sort(key=lambda row: (WORST[row.status.tone], row.deployment.name))
    troubled = [row for row in rows if row.status.tone in ("bad", "warn")]
    rate = sum(row.rate or 0.0 for row in rows)
    if not troubled:
        count = len(rows)
        sentence = "The one deployment is healthy." if count == 1 else f"All {count} deployments are healthy."
        return OverviewPage(rows, rate, sentence if count else "", "good", None)
    names = ", ".join(f"{row.deployment.name}: {row.status.words.lower()}" for row in troubled[:3])
    others = len(rows) - len(troubled)
    rest = f" The other {others} {'is' if others == 1 else 'are'} healthy." if others else ""
    return OverviewPage(rows, rate, f"{names}.{rest}", troubled[0].status.tone, troubled[0].deployment)


def _row(
    deployment: Deployment,
    revisions: list[SplitRevision],
    figures: Figures,
    accuracy: Metric | None,
    step_s: int,
) -> OverviewRow:
    serving = next((r for r in revisions if r.state == RevisionState.ACTIVE), None)
    preparing = any(r.state == RevisionState.PREPARING for r in revisions)
    return OverviewRow(
        deployment=deployment,
        status=status_of(deployment, serving, preparing, figures["error_share"]),
        segments=segments(serving.shares) if serving else [],
        shadows=segments(serving.shadow) if serving else [],
        spark=charts.sparkline(_thinned(figures["sparkline"])),
        rate=_recent_rate(figures["sparkline"], step_s),
        p95=figures["p95_ms"],
        error_share=figures["error_share"],
        accuracy=_accuracy_words(accuracy),
        last_change=revisions[-1] if revisions else None,
    )


def _recent_rate(rates: list[float | None], step_s: int) -> float:
    """Calls a second over the last ten minutes, or over the last step where steps are longer."""
    recent = rates[-max(1, int(RECENT.total_seconds()) // step_s) :]
    return sum(rate or 0.0 for rate in recent) / len(recent) if recent else 0.0


def _accuracy_words(accuracy: Metric | None) -> str:
    """A share with half the width of its interval, `97.6 ± 0.3 %`; or that nobody has said what really happened."""
    if accuracy is None or accuracy["value"] is None:
        return "not labelled"
    low, high = accuracy["low"], accuracy["high"]
    half = f" ± {(high - low) * 50:.1f}" if low is not None and high is not None else ""
    return f"{accuracy['value'] * 100:.1f}{half} %"


def _thinned(rates: list[float | None]) -> list[float | None]:
    """At most SPARK_POINTS means of neighbouring steps; a stretch without any figure stays a gap."""
    step = max(1, len(rates) // SPARK_POINTS)
    found: list[float | None] = []
    for start in range(0, len(rates), step):
        known = [rate for rate in rates[start : start + step] if rate is not None]
        found.append(sum(known) / len(known) if known else None)
    return found
