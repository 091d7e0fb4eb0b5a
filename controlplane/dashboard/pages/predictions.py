"""The prediction log as people search it, and one prediction with all that is known of it."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from controlplane.accounts.models import ApiKey, Right, User
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job
from controlplane.predictions.models import Feedback, Prediction
from controlplane.predictions.partitions import first_id
from controlplane.studies.queries import awaiting_answer
from inference.contracts import Lane, Outcome

PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class Search:
    """What a person asked for; text that makes no sense finds nothing rather than failing."""

    text: str
    version: int | None
    outcome: str
    code: str
    before: uuid.UUID | None

    @property
    def narrows(self) -> bool:
        return bool(self.text or self.version is not None or self.outcome or self.code)

    def query(self, **changed: str) -> str:
        """The query string of this search with `changed` put in."""
        asked = {"q": self.text, "version": str(self.version or ""), "outcome": self.outcome, "code": self.code}
        asked |= changed
        return urlencode({name: value for name, value in asked.items() if value})


@dataclass(frozen=True, slots=True)
class PredictionList:
    """A page of the log. `awaiting`: those of its rows whose scores are shown after the asker's own answer."""

    rows: list[Prediction]
    search: Search
    older: str
    outcomes: list[str]
    shows_scores: bool
    awaiting: set[uuid.UUID]


@dataclass(frozen=True, slots=True)
class PredictionPage:
    """One prediction. Scores, `inputs` and `outputs` are empty where the asker may not see payloads; `awaits_answer`:
    not before they have answered its study."""

    prediction: Prediction
    key_label: str
    feedback: list[Feedback]
    scores: list[tuple[str, Any]]
    may_see_payload: bool
    awaits_answer: bool
    inputs: dict[str, Any] | None
    outputs: dict[str, Any] | None


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def read_search(query: Mapping[str, str]) -> Search:
    version = query.get("version", "")
    outcome = query.get("outcome", "")
    return Search(
        text=query.get("q", "").replace("\x00", "").strip()[:128],
        version=int(version) if version.isascii() and version.isdigit() and len(version) < 9 else None,
        outcome=outcome if outcome in {each.value for each in Outcome} else "",
        code=query.get("code", "").replace("\x00", "").strip()[:40],
        before=_uuid(query.get("before", "")),
    )


def prediction_list(deployment: Deployment, search: Search, since: datetime, user: User) -> PredictionList:
    """One page, newest first. Two queries, bounded by the partitions since `since` and by the page."""
    may_see_payload = user.has_right(Right.VIEW_PAYLOAD, deployment.team_id)
    found = Prediction.objects.of_deployments([deployment.pk]).filter(id__gte=first_id(since))
    if search.text:
        identifier = _uuid(search.text)
        # An id is found at any age; a client's own id within the window.
        found = (
            Prediction.objects.of_deployments([deployment.pk]).filter(pk=identifier)
            if identifier
            else found.filter(client_id=search.text)
        )
    if search.version is not None:
        found = found.filter(version=search.version)
    if search.outcome:
        found = found.filter(outcome=search.outcome)
    if search.code:
        # No call that was answered has one; said, so that the index of failed calls is read.
        found = found.filter(code=search.code).exclude(outcome=Outcome.OK.value)
    if search.before is not None:
        found = found.filter(id__lt=search.before)
    hidden = ("inputs", "outputs", "context", "pictures", "warnings", *(() if may_see_payload else ("scores",)))
    rows = list(found.defer(*hidden).order_by("-id")[: PAGE_SIZE + 1])
    older = search.query(before=str(rows[PAGE_SIZE - 1].pk)) if len(rows) > PAGE_SIZE else ""
    awaiting = awaiting_answer(user, [row.pk for row in rows if row.lane == Lane.JOB]) if may_see_payload else set()
    for row in rows:
        if row.pk in awaiting:
            row.withhold()
    outcomes = [outcome.value for outcome in Outcome]
    return PredictionList(rows[:PAGE_SIZE], search, older, outcomes, may_see_payload, awaiting)


def prediction_page(prediction: Prediction, user: User, team_id: uuid.UUID) -> PredictionPage:
    """Three queries at most: the key's label, the feedback, whether it is hidden.

    Of a private job's prediction, who may not see payloads sees neither what it says of its pictures nor feedback; nor
    does a doctor who is to read its study first.
    """
    may_see_payload = user.has_right(Right.VIEW_PAYLOAD, team_id)
    awaits = may_see_payload and prediction.lane == Lane.JOB and bool(awaiting_answer(user, [prediction.pk]))
    private = not may_see_payload and prediction.lane == Lane.JOB and Job.objects.private_among([prediction.pk])
    hidden = awaits or bool(private)
    if hidden:
        prediction.withhold()
    key = ApiKey.objects.filter(pk=prediction.key_id).first() if prediction.key_id else None
    return PredictionPage(
        prediction=prediction,
        key_label=key.label if key else "–",
        feedback=[] if hidden else list(Feedback.objects.filter(prediction_id=prediction.pk).order_by("-number")),
        scores=sorted((prediction.scores or {}).items()) if may_see_payload else [],
        may_see_payload=may_see_payload,
        awaits_answer=awaits,
        inputs=prediction.inputs if may_see_payload else None,
        outputs=prediction.outputs if may_see_payload else None,
    )
