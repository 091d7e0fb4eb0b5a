"""Feedback: someone says what really happened, singly or in bulk, before or after the prediction is in the log."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import models, transaction
from django.utils import timezone

from controlplane.accounts.models import ApiKey
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.predictions.matching import Counting, predictions_of
from controlplane.predictions.models import Feedback, FeedbackState, IngesterStatus, Prediction
from controlplane.predictions.partitions import first_id, is_uuid7, time_of
from controlplane.predictions.truths import CLOCK_SLACK, Statement

# An unknown id younger than this may still lie in a spool; the time that ingesters are behind is added.
ARRIVAL = timedelta(hours=1)
PENDING_MOST = 100_000
BULK_ROWS = 1_000

# (prediction id, deployment id, client id): what a pending feedback waits for.
Place = tuple[uuid.UUID | None, uuid.UUID | None, str]


@dataclass(frozen=True, slots=True)
class Asker:
    """Who gives feedback: what they may speak of. `own_only`: only of predictions that this key asked for."""

    actor: Actor
    deployments: Mapping[uuid.UUID, Deployment]
    key: ApiKey | None = None
    own_only: bool = False

    @property
    def team_ids(self) -> set[uuid.UUID]:
        return {deployment.team_id for deployment in self.deployments.values()}

    def named(self, name: str) -> Deployment | None:
        return next((deployment for deployment in self.deployments.values() if deployment.name == name), None)

    def owns(self, prediction: Prediction) -> bool:
        return prediction.deployment_id in self.deployments and (
            not self.own_only or (self.key is not None and prediction.key_id == self.key.pk)
        )


@dataclass(frozen=True, slots=True)
class Given:
    """What became of one statement: the feedback that holds now, or why it was refused."""

    feedback: Feedback | None = None
    created: bool = False
    error: DomainError | None = None

    @property
    def is_pending(self) -> bool:
        return self.feedback is not None and self.feedback.state == FeedbackState.PENDING


def give_feedback(
    *, asker: Asker, statements: Sequence[Statement | DomainError], keep_refused: bool = False
) -> list[Given]:
    """Counts each statement by itself; one that is refused does not hold the others up. A constant number of queries.

    A word that repeats the last one changes nothing; another word is a new version of it, and counts instead of it.
    `keep_refused`: keeps what is refused, of an asker of one team, as rejected, for who would else say it for ever.
    Errors (in `Given.error`): not_found, feedback_window_closed, validation_error, unknown_label, overloaded.
    """
    now = timezone.now()
    with transaction.atomic():
        batch = _Batch(asker, now)
        given = batch.run(statements)
        if keep_refused:
            batch.keep_refused(statements, given)
        return given


class _Batch:
    def __init__(self, asker: Asker, now: datetime) -> None:
        self.asker = asker
        self.now = now
        self.counting = Counting(now)
        self.found: dict[object, Prediction] = {}
        self.foreign: set[object] = set()
        self.waiting: dict[Place, Feedback] = {}
        self.new_waiting: list[Feedback] = []
        self._arrival: timedelta | None = None
        self._room: int | None = None

    def run(self, statements: Sequence[Statement | DomainError]) -> list[Given]:
        sound = [statement for statement in statements if isinstance(statement, Statement)]
        clients = [
            (deployment.pk, statement.client_id)
            for statement in sound
            if statement.client_id and (deployment := self.asker.named(statement.deployment)) is not None
        ]
        ids = [statement.prediction_id for statement in sound if statement.prediction_id is not None]
        known = predictions_of(ids, clients)
        self.found = {name: prediction for name, prediction in known.items() if self.asker.owns(prediction)}
        self.foreign = set(known.keys() - self.found.keys())
        self.counting.prepare(list(self.found.values()))
        if len(known) < len(ids) + len(clients):
            self._already_waiting(ids, clients)
        given: list[Given] = []
        for statement in statements:
            try:
                given.append(Given(error=statement) if isinstance(statement, DomainError) else self._give(statement))
            except DomainError as error:
                given.append(Given(error=error))
        self.counting.save()
        Feedback.objects.bulk_create(self.new_waiting)
        return given

    def keep_refused(self, statements: Sequence[Statement | DomainError], given: Sequence[Given]) -> None:
        rejected = []
        for statement, answer in zip(statements, given, strict=True):
            if isinstance(statement, Statement) and answer.error is not None:
                feedback = self._feedback(statement, self._team_id())
                feedback.prediction_id, feedback.client_id = statement.prediction_id, statement.client_id
                feedback.state, feedback.latest = FeedbackState.REJECTED, False
                feedback.code = answer.error.code
                rejected.append(feedback)
        Feedback.objects.bulk_create(rejected)

    def _give(self, statement: Statement) -> Given:
        deployment: Deployment | None = None
        name: object = statement.prediction_id
        if statement.prediction_id is None:
            deployment = self.asker.named(statement.deployment)
            if deployment is None:
                raise DomainError("not_found", f"There is no deployment “{statement.deployment}”.")
            name = (deployment.pk, statement.client_id)
        prediction = self.found.get(name)
        if prediction is None:
            return self._wait(statement, name, deployment)
        kept_days = self.asker.deployments[prediction.deployment_id].retention_days
        if time_of(prediction.id) < self.now - timedelta(days=kept_days):
            raise DomainError("feedback_window_closed")
        self.counting.check(statement, prediction)
        feedback = self._feedback(statement, self.asker.deployments[prediction.deployment_id].team_id)
        feedback.client_id = statement.client_id
        holds = self.counting.count(feedback, prediction)
        return Given(holds, created=holds is feedback)

    def _wait(self, statement: Statement, name: object, deployment: Deployment | None) -> Given:
        """Keeps a statement whose prediction may still be on its way. Raises DomainError where it cannot be."""
        if statement.prediction_id is not None:
            self._refuse_unknown(statement.prediction_id)
        elif name in self.foreign:
            raise DomainError("not_found", "There is no such prediction.")
        team_id = deployment.team_id if deployment is not None else self._team_id()
        place = (statement.prediction_id, deployment.pk if deployment is not None else None, statement.client_id)
        waiting = self.waiting.get(place)
        if waiting is not None and (waiting.truth, waiting.ungradable) == (statement.truth, statement.ungradable):
            return Given(waiting)
        if self._room is None:
            pending = Feedback.objects.filter(team_id__in=self.asker.team_ids, state=FeedbackState.PENDING)
            self._room = PENDING_MOST - pending.count()
        if self._room <= 0:
            raise DomainError("overloaded", "Too much feedback waits for predictions that have not arrived.")
        self._room -= 1
        feedback = self._feedback(statement, team_id)
        feedback.prediction_id, feedback.deployment_id, feedback.client_id = place
        if self.asker.key is not None and not self.asker.key.every_deployment:
            feedback.deployments = [str(pk) for pk in self.asker.deployments]
        self.waiting[place] = feedback
        self.new_waiting.append(feedback)
        return Given(feedback, created=True)

    def _already_waiting(self, ids: list[uuid.UUID], clients: list[tuple[uuid.UUID, str]]) -> None:
        """Reads what waits for the same predictions already. One query."""
        pending = Feedback.objects.filter(team_id__in=self.asker.team_ids, state=FeedbackState.PENDING)
        same = models.Q(prediction_id__in=ids) | models.Q(
            prediction_id=None, client_id__in={client_id for _, client_id in clients}
        )
        for feedback in pending.filter(same).order_by("pk"):
            self.waiting[feedback.prediction_id, feedback.deployment_id, feedback.client_id] = feedback

    def _refuse_unknown(self, prediction_id: uuid.UUID) -> None:
        """Raises where an id that is not in the log is none that could still arrive."""
        unknown = DomainError("not_found", "There is no such prediction.")
        if prediction_id in self.foreign or not is_uuid7(prediction_id):
            raise unknown
        kept_days = max((deployment.retention_days for deployment in self.asker.deployments.values()), default=0)
        if prediction_id < first_id(self.now - timedelta(days=kept_days)):
            raise DomainError("feedback_window_closed")
        if not first_id(self.now - self._arrival_window()) <= prediction_id <= first_id(self.now + CLOCK_SLACK):
            raise unknown
        if not self.asker.deployments:
            raise unknown

    def _arrival_window(self) -> timedelta:
        if self._arrival is None:
            behind = [
                (self.now - status.seen_at).total_seconds() + status.lag_s for status in IngesterStatus.objects.all()
            ]
            self._arrival = ARRIVAL + timedelta(seconds=max(0.0, *behind) if behind else 0.0)
        return self._arrival

    def _team_id(self) -> uuid.UUID:
        if self.asker.key is not None:
            return self.asker.key.team_id
        teams = self.asker.team_ids
        if len(teams) != 1:
            # A person of several teams: which of them the id belongs to is known once it arrives.
            raise DomainError("not_found", "There is no such prediction yet.")
        return next(iter(teams))

    def _feedback(self, statement: Statement, team_id: uuid.UUID) -> Feedback:
        asker = self.asker
        return Feedback(
            team_id=team_id,
            state=FeedbackState.PENDING,
            truth=statement.truth,
            certainty=statement.certainty,
            ungradable=statement.ungradable,
            blind=statement.blind,
            comment=statement.comment,
            observed_at=statement.observed_at,
            given_at=statement.given_at or self.now,
            given_by=asker.actor.label[:200],
            user_id=asker.actor.user_id,
            key=asker.key,
            own_only=asker.own_only,
        )
