"""Each deployment's drift in a word, for lists: worked out by the scheduler, one deployment at a time, and kept."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from django.db.models import F, Q
from django.utils import timezone

from controlplane.deployments.models import Deployment
from controlplane.monitoring.drift import Drift, drift
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.models import DriftVerdict

WINDOW = timedelta(hours=24)
FRESH = timedelta(minutes=5)
# Where there was too little to compare, which soon changes after a start.
FRESH_UNKNOWN = timedelta(seconds=45)

Word = Literal["moved", "steady", "unknown"]


@dataclass(frozen=True, slots=True)
class DriftState:
    """`unknown`: nothing to compare, too few rows, or not looked at yet (`checked_at` None). `moved` of `compared`
    columns drifted, `most` the most, `since` when; `prediction` says whether the answers did."""

    word: Word
    checked_at: datetime | None = None
    compared: int = 0
    moved: int = 0
    most: str = ""
    prediction: bool | None = None
    since: datetime | None = None
    baseline: str = ""


def states(deployment_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, DriftState]:
    """The last verdict on each; every id is in the answer. One query, however many there are."""
    found = {one.deployment_id: one for one in DriftVerdict.objects.filter(deployment_id__in=deployment_ids)}
    return {identity: _state(found.get(identity)) for identity in deployment_ids}


def refresh_one(now: datetime | None = None) -> bool:
    """Periodic: looks at the deployment whose verdict is oldest, where one is older than FRESH (where nothing
    could be compared, FRESH_UNKNOWN); False where none is.

    One that cannot be looked at keeps its last verdict and has its turn again after FRESH: it holds up no other.
    """
    now = now or timezone.now()
    stale = Deployment.objects.current().filter(
        Q(drift_verdict=None)
        | Q(drift_verdict__checked_at__lt=now - FRESH)
        | Q(drift_verdict__compared=0, drift_verdict__checked_at__lt=now - FRESH_UNKNOWN)
    )
    deployment = stale.order_by(F("drift_verdict__checked_at").asc(nulls_first=True), "pk").first()
    if deployment is None:
        return False
    DriftVerdict.objects.update_or_create(
        deployment=deployment,
        defaults={"checked_at": now},
        create_defaults={"checked_at": now, "compared": 0, "moved": 0},
    )
    keep(deployment, drift(deployment, Interval.of(now - WINDOW, now)), now)
    return True


def keep(deployment: Deployment, found: Drift, now: datetime) -> DriftVerdict:
    """Stores a verdict."""
    moved = [one for one in found["features"] if one["drifting"]]
    scores = found["prediction"]["scores"]
    known = any(one["enough"] for one in scores)
    verdict, _ = DriftVerdict.objects.update_or_create(
        deployment=deployment,
        defaults={
            "checked_at": now,
            "compared": sum(one["enough"] or one["drifting"] for one in found["features"]),
            "moved": len(moved),
            "most": moved[0]["name"] if moved else "",
            "prediction": found["prediction"]["drifting"] if known else None,
            "since": datetime.fromisoformat(found["moved_since"]) if found["moved_since"] else None,
            "baseline": found["baseline"] or "",
        },
    )
    return verdict


def _state(verdict: DriftVerdict | None) -> DriftState:
    if verdict is None:
        return DriftState("unknown")
    known = verdict.compared > 0 or verdict.prediction is not None
    word: Word = "moved" if verdict.moved or verdict.prediction else "steady" if known else "unknown"
    return DriftState(
        word=word,
        checked_at=verdict.checked_at,
        compared=verdict.compared,
        moved=verdict.moved,
        most=verdict.most,
        prediction=verdict.prediction,
        since=verdict.since,
        baseline=verdict.baseline,
    )
