"""Reads of the log, of feedback, and of what a key did."""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypedDict

from django.db.models import QuerySet
from django.utils import timezone

from controlplane.predictions.models import FailedCall, Feedback, FeedbackState, KeyUse, Prediction
from controlplane.predictions.partitions import first_id

# A count beyond this is given as "at least".
COUNTED = 1_000_000
PAYLOAD = ("inputs", "outputs", "scores")


class Filters(TypedDict, total=False):
    since: datetime
    until: datetime
    version: int
    client_id: str
    outcome: str
    role: str
    source: str
    pinned: bool
    key_id: uuid.UUID


def search(deployment_ids: Iterable[uuid.UUID], filters: Filters) -> QuerySet[Prediction]:
    """Predictions without their payload, newest first. Times are found by id, so that only their days are read."""
    found = Prediction.objects.of_deployments(list(deployment_ids)).defer(*PAYLOAD)
    if "since" in filters:
        found = found.filter(id__gte=first_id(filters["since"]))
    if "until" in filters:
        found = found.filter(id__lt=first_id(filters["until"]))
    exact = {name: value for name, value in filters.items() if name not in ("since", "until")}
    return found.filter(**exact).order_by("-id")


def count_capped(predictions: QuerySet[Prediction]) -> tuple[int, bool]:
    """(how many, whether that is exact): counting stops at COUNTED. One query."""
    count = predictions.order_by()[: COUNTED + 1].count()
    return min(count, COUNTED), count <= COUNTED


def feedback_of(prediction_id: uuid.UUID) -> list[Feedback]:
    """What was said of a prediction, the word that counts first."""
    found = Feedback.objects.filter(prediction_id=prediction_id).exclude(state=FeedbackState.REJECTED)
    return list(found.order_by("-number", "-id")[:100])


def latest_feedback(prediction_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Feedback]:
    """The feedback that counts, by prediction; one query for a page of them."""
    found = Feedback.objects.filter(prediction_id__in=list(prediction_ids), latest=True, state=FeedbackState.COUNTED)
    return {feedback.prediction_id: feedback for feedback in found if feedback.prediction_id is not None}


def failed_calls(key_id: uuid.UUID) -> list[FailedCall]:
    """The last calls of a key that failed, newest first; at most 100."""
    return list(FailedCall.objects.filter(key_id=key_id)[:100])


def key_use(key_id: uuid.UUID, days: int = 30) -> list[KeyUse]:
    """Calls of a key by hour, oldest first."""
    since = timezone.now() - timedelta(days=days)
    return list(KeyUse.objects.filter(key_id=key_id, hour__gte=since).order_by("hour"))


def feedback_json(feedback: Feedback) -> dict[str, Any]:
    return {
        **feedback.truth,
        "state": feedback.state,
        "number": feedback.number,
        "latest": feedback.latest,
        "ungradable": feedback.ungradable,
        "certainty": feedback.certainty,
        "comment": feedback.comment,
        "observed_at": feedback.observed_at.isoformat() if feedback.observed_at else None,
        "given_at": feedback.given_at.isoformat(),
        "given_by": feedback.given_by,
    }


def prediction_json(prediction: Prediction, deployment: str) -> dict[str, Any]:
    """What lists show of a prediction: everything but its payload."""
    return {
        "id": str(prediction.id),
        "client_id": prediction.client_id,
        "deployment": deployment,
        "version": prediction.version,
        "split_revision": prediction.revision,
        "pinned": prediction.pinned,
        "cached": prediction.cached,
        "role": prediction.role,
        "source": prediction.source,
        "lane": prediction.lane,
        "at": prediction.at.isoformat(),
        "rows": prediction.rows,
        "status": prediction.status,
        "outcome": prediction.outcome,
        "code": prediction.code,
        "counted": prediction.counted,
        "retry_of": str(prediction.retry_of) if prediction.retry_of else None,
        "shadow_of": str(prediction.shadow_of) if prediction.shadow_of else None,
        "timings_ms": {
            "queue": round(prediction.queue_ms, 4),
            "compute": round(prediction.compute_ms, 4),
            "total": round(prediction.total_ms, 4),
        },
        "context": prediction.context or {},
        "warnings": prediction.warnings or [],
    }
