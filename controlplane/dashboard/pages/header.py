"""The head of every tab of a deployment: its name, state and figures of the last minutes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import overview
from inference.contracts import BASIS_POINTS

RECENT = timedelta(minutes=10)
TABS = (
    ("traffic", "Traffic", ""),
    ("latency", "Latency", "latency/"),
    ("accuracy", "Accuracy", "accuracy/"),
    ("drift", "Drift", "drift/"),
    ("predictions", "Predictions", "predictions/"),
    ("try it", "Try it", "try/"),
    ("settings", "Settings", "settings/"),
)
# A share of failed calls above which a deployment is not healthy.
TROUBLED = 0.05


@dataclass(frozen=True, slots=True)
class Tab:
    words: str
    url: str
    current: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A word and a tone; the tone never stands alone."""

    words: str
    tone: str


@dataclass(frozen=True, slots=True)
class DeploymentHeader:
    deployment: Deployment
    status: Status
    rate: float | None
    p95: float | None
    error_share: float | None
    tabs: list[Tab]


def is_failing(error_share: float | None) -> bool:
    return error_share is not None and error_share > TROUBLED


def status_of(
    deployment: Deployment, serving: SplitRevision | None, preparing: bool, error_share: float | None
) -> Status:
    """The one word for a deployment: worst first."""
    if deployment.retired_at is not None:
        return Status("Retired", "")
    if serving is None:
        return Status("Preparing", "busy") if preparing else Status("No split yet", "warn")
    if error_share is not None and is_failing(error_share):
        return Status(f"{error_share:.0%} failing", "bad")
    if preparing:
        return Status("Changing", "busy")
    live = [points for points in serving.shares.values() if points]
    if len(live) > 1:
        smallest = min(live)
        if smallest <= BASIS_POINTS // 5:
            return Status(f"Canary {smallest / 100:g} %", "good")
        return Status("Split", "good")
    return Status("Healthy", "good")


def deployment_header(deployment: Deployment, tab: str, now: datetime) -> DeploymentHeader:
    """Three queries."""
    revisions = list(
        SplitRevision.objects.filter(
            deployment=deployment, state__in=[RevisionState.ACTIVE, RevisionState.PREPARING]
        ).order_by("number")
    )
    serving = next((r for r in revisions if r.state == RevisionState.ACTIVE), None)
    recent = overview([deployment.pk], Interval.of(now - RECENT, now))[deployment.pk]
    return DeploymentHeader(
        deployment=deployment,
        status=status_of(
            deployment, serving, any(r.state == RevisionState.PREPARING for r in revisions), recent["error_share"]
        ),
        rate=recent["rate"],
        p95=recent["p95_ms"],
        error_share=recent["error_share"],
        tabs=[Tab(words, f"/deployments/{deployment.name}/{path}", key == tab) for key, words, path in TABS],
    )
