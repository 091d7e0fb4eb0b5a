"""Brings feedback and predictions together, in whichever order they come, and counts each truth once."""

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError, field_error
from controlplane.predictions import tallies
from controlplane.predictions.models import Feedback, FeedbackState, Prediction
from controlplane.predictions.records import LogRow
from controlplane.predictions.rollups import FeedbackGatherer
from controlplane.predictions.truths import Statement, check_fits
from inference.contracts import Outcome, Task

logger = logging.getLogger(__name__)

LOCK_SPACE = 0x5B03
PENDING_KEPT = timedelta(days=2)
MATCH_ROWS = 1_000
# A truth is observed after its prediction; the clocks of two machines differ a little.
OBSERVED_SLACK = timedelta(seconds=2)
FACTS = (
    *("id", "at", "deployment_id", "version_id", "version", "revision", "role", "source", "rows", "scores", "counted"),
    *("key_id", "client_id", "outcome"),
)


def lock_deployments(ids: Iterable[uuid.UUID]) -> None:
    """Until the transaction ends, nobody else counts feedback on these deployments. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(id)) FROM unnest(%s::text[]) AS id",
            [LOCK_SPACE, sorted({str(identity) for identity in ids})],
        )


@dataclass(slots=True)
class Counting:
    """Counts feedback on predictions within one transaction: `prepare`, then `count` each, then `save`."""

    now: datetime
    versions: dict[uuid.UUID, ModelVersion] = field(default_factory=dict)
    latest: dict[uuid.UUID, Feedback] = field(default_factory=dict)
    new: list[Feedback] = field(default_factory=list)
    outdated: list[int] = field(default_factory=list)
    deltas: list[tuple[Prediction, Feedback, int]] = field(default_factory=list)

    def prepare(self, predictions: Sequence[Prediction]) -> None:
        """Locks, then reads what is known of these predictions. Three statements, however many there are."""
        lock_deployments(prediction.deployment_id for prediction in predictions)
        self.versions = ModelVersion.objects.in_bulk({prediction.version_id for prediction in predictions})
        known = Feedback.objects.filter(
            prediction_id__in=[prediction.id for prediction in predictions], latest=True, state=FeedbackState.COUNTED
        )
        self.latest = {found.prediction_id: found for found in known if found.prediction_id is not None}

    def check(self, statement: Statement, prediction: Prediction) -> None:
        """Raises DomainError where the statement cannot be true of this prediction."""
        if statement.observed_at is not None and statement.observed_at < prediction.at - OBSERVED_SLACK:
            raise field_error("validation_error", "observed_at", "This time lies before the prediction.")
        if prediction.outcome != Outcome.OK:
            raise DomainError("not_found", "This call failed: there is no prediction to speak of.")
        version = self.versions.get(prediction.version_id)
        if version is None:
            raise DomainError("gone", "The version that answered is no longer there.")
        check_fits(statement, version, prediction.rows, prediction.scores)

    def count(self, feedback: Feedback, prediction: Prediction) -> Feedback:
        """The feedback that holds now: the one given, or the earlier one where it says the same."""
        before = self.latest.get(prediction.id)
        if before is not None and _says(before) == _says(feedback):
            return before
        feedback.prediction_id, feedback.deployment_id = prediction.id, prediction.deployment_id
        feedback.state, feedback.latest = FeedbackState.COUNTED, True
        feedback.number = before.number + 1 if before is not None else 1
        if before is not None:
            before.latest = False
            if before.pk is not None:
                self.outdated.append(before.pk)
            self.deltas.append((prediction, before, -1))
        self.deltas.append((prediction, feedback, 1))
        self.latest[prediction.id] = feedback
        self.new.append(feedback)
        return feedback

    def save(self) -> None:
        """Writes what was counted: at most four statements."""
        if self.outdated:
            Feedback.objects.filter(pk__in=self.outdated).update(latest=False)
        fresh = [feedback for feedback in self.new if feedback.pk is None]
        waited = [feedback for feedback in self.new if feedback.pk is not None]
        Feedback.objects.bulk_create(fresh)
        if waited:
            Feedback.objects.bulk_update(
                waited, ["prediction_id", "deployment_id", "state", "latest", "number"], batch_size=500
            )
        gatherer = FeedbackGatherer(self.now)
        for prediction, feedback, sign in self.deltas:
            if prediction.counted:
                self._gather(gatherer, prediction, feedback, sign)
        gatherer.save()

    def _gather(self, gatherer: FeedbackGatherer, prediction: Prediction, feedback: Feedback, sign: int) -> None:
        version = self.versions[prediction.version_id]
        tally = tallies.tally_of(
            Task(version.task),
            feedback.truth,
            prediction.scores,
            version.labels,
            version.thresholds,
            ungradable=feedback.ungradable,
            blind=bool(feedback.blind),
            delay=feedback.given_at - prediction.at,
            sign=sign,
        )
        gatherer.add(
            deployment_id=prediction.deployment_id,
            version_id=prediction.version_id,
            version=prediction.version,
            revision=prediction.revision,
            role=prediction.role,
            source=prediction.source,
            at=prediction.at,
            tally=tally,
        )


def _says(feedback: Feedback) -> tuple[Any, bool, bool | None]:
    return feedback.truth, feedback.ungradable, feedback.blind


def match_arrived(rows: Sequence[LogRow]) -> int:
    """Counts pending feedback on rows that were written just now; one query where none is pending."""
    if not rows or not Feedback.objects.filter(state=FeedbackState.PENDING).exists():
        return 0
    clients = sorted({row.record.client_id for row in rows if row.record.client_id})
    waiting = Feedback.objects.filter(state=FeedbackState.PENDING)
    by_id = waiting.filter(prediction_id__in=[row.id for row in rows])
    by_client = waiting.filter(prediction_id=None, client_id__in=clients)
    return _match([*by_id[:MATCH_ROWS], *by_client[:MATCH_ROWS]])


def match_pending() -> int:
    """Periodic: counts feedback whose prediction came at the same moment; gives up on what waited too long."""
    now = timezone.now()
    Feedback.objects.filter(state=FeedbackState.PENDING, given_at__lt=now - PENDING_KEPT).update(
        state=FeedbackState.REJECTED, code="not_found", latest=False
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM feedback WHERE state = 'pending' AND ("
            "EXISTS (SELECT FROM prediction WHERE prediction.id = feedback.prediction_id) OR prediction_id IS NULL "
            "AND EXISTS (SELECT FROM prediction WHERE prediction.deployment_id = feedback.deployment_id "
            "AND prediction.client_id = feedback.client_id AND prediction.client_id <> '')) ORDER BY id LIMIT %s",
            [MATCH_ROWS],
        )
        ids = [identity for (identity,) in cursor.fetchall()]
    if not ids:
        return 0
    with transaction.atomic():
        return _match(list(Feedback.objects.filter(pk__in=ids, state=FeedbackState.PENDING)))


def _match(pending: list[Feedback]) -> int:
    """Counts or rejects pending feedback whose prediction is in the log, oldest first. Needs a transaction."""
    if not pending:
        return 0
    found = predictions_of(
        [feedback.prediction_id for feedback in pending if feedback.prediction_id is not None],
        [
            (feedback.deployment_id, feedback.client_id)
            for feedback in pending
            if feedback.prediction_id is None and feedback.deployment_id is not None
        ],
    )
    if not found:
        return 0
    counting = Counting(timezone.now())
    counting.prepare(list(found.values()))
    # Under the lock: another process may have matched some of them in the meantime.
    still = Feedback.objects.filter(pk__in=[feedback.pk for feedback in pending], state=FeedbackState.PENDING)
    deployments = Deployment.objects.in_bulk({prediction.deployment_id for prediction in found.values()})
    matched = 0
    for feedback in still.order_by("pk"):
        prediction = found.get(feedback.prediction_id or (feedback.deployment_id, feedback.client_id))
        if prediction is None:
            continue
        matched += 1
        deployment = deployments.get(prediction.deployment_id)
        code = _refused(feedback, prediction, deployment, counting)
        if not code and counting.count(feedback, prediction) is not feedback:
            code = "duplicate"
        if code:
            Feedback.objects.filter(pk=feedback.pk).update(state=FeedbackState.REJECTED, code=code, latest=False)
    counting.save()
    return matched


def _refused(feedback: Feedback, prediction: Prediction, deployment: Deployment | None, counting: Counting) -> str:
    """The code for which a pending feedback is refused now that its prediction is known; "" where it stands."""
    may = (
        deployment is not None
        and deployment.team_id == feedback.team_id
        and (feedback.deployments is None or str(deployment.pk) in feedback.deployments)
        and (not feedback.own_only or prediction.key_id == feedback.key_id)
    )
    if not may:
        return "not_found"
    statement = Statement(feedback.truth, ungradable=feedback.ungradable, observed_at=feedback.observed_at)
    try:
        counting.check(statement, prediction)
    except DomainError as error:
        return error.code
    return ""


def predictions_of(ids: Sequence[uuid.UUID], clients: Sequence[tuple[uuid.UUID | None, str]]) -> dict[Any, Prediction]:
    """Predictions by id, and the latest one by (deployment id, client id). At most two queries."""
    found: dict[Any, Prediction] = {}
    if ids:
        found.update((row.id, row) for row in Prediction.objects.filter(id__in=ids).only(*FACTS))
    if clients:
        latest = Prediction.objects.filter(
            deployment_id__in={deployment_id for deployment_id, _ in clients if deployment_id is not None},
            client_id__in={client_id for _, client_id in clients},
            role="live",
        )
        rows = latest.order_by("deployment_id", "client_id", "-id").distinct("deployment_id", "client_id").only(*FACTS)
        found.update(((row.deployment_id, row.client_id), row) for row in rows)
    return found
