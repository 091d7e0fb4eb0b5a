"""Reading a study: who opened it, whether the suggestion was shown, what each doctor said, and which word counts."""

import logging
import uuid
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone

from controlplane.accounts.models import Right, User
from controlplane.audit.models import AuditEvent
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.deployments import check_text
from controlplane.errors import DomainError, field_error
from controlplane.jobs.models import JobStatus
from controlplane.predictions.feedback import Asker as FeedbackAsker
from controlplane.predictions.feedback import give_feedback
from controlplane.predictions.models import Feedback
from controlplane.predictions.truths import Statement
from controlplane.studies import sealing
from controlplane.studies.models import Answer, Reading, Study, StudyPicture, StudyState, Verdict, VerdictPart
from controlplane.studies.queries import shows_suggestion
from controlplane.studies.services.drafts import audit
from controlplane.studies.suggestion import Suggestion, suggestion
from inference.contracts import Task

logger = logging.getLogger(__name__)

COMMENT_LENGTH = 2_000
LATE_MOST = 200
# What pages and the API write down when someone sees scores.
LOOKED = ("payload.view", "prediction.view_payload", "job.view_payload")
# A verdict may be given before the suggestion is there; its feedback follows once it is.
LATE_WITHIN = timedelta(days=7)


def open_study(*, actor: Actor, study: Study, user: User) -> Reading:
    """Notes that the person opened the study: audited each time, dated the first time."""
    with transaction.atomic():
        audit(actor, "study.view", study)
        reading, _ = Reading.objects.get_or_create(study=study, reader=user, defaults={"opened_at": timezone.now()})
    return reading


def open_picture(*, actor: Actor, picture: StudyPicture, shown_as: str = "pixels") -> None:
    """Notes that a picture, its thumbnail, heat map or the model's view of it is looked at. One INSERT."""
    audit(actor, "picture.view", picture.study, after={"picture": str(picture.pk), "as": shown_as})


def show_suggestion(*, actor: Actor, study: Study, user: User) -> Suggestion | None:
    """The suggestion, for a page that shows it now; None where it may not be shown to this person yet.

    Whose verdict is blinded is decided by this: once there was something to show, the moment is kept.
    """
    if not shows_suggestion(study, user):
        return None
    found = suggestion(study)
    if found.state in ("ready", "running", "failed") and any(part.scores for part in found.pictures):
        now = timezone.now()
        shown = Reading.objects.filter(study=study, reader=user, shown_at=None).update(shown_at=now)
        if not shown and not Reading.objects.filter(study=study, reader=user).exists():
            Reading.objects.get_or_create(study=study, reader=user, defaults={"opened_at": now, "shown_at": now})
    return found


def give_verdict(
    *,
    actor: Actor,
    study: Study,
    user: User,
    answer: str,
    labels: Sequence[str] = (),
    certainty: float | None = None,
    comment: str = "",
    expected_number: int,
) -> Verdict:
    """Keeps what a doctor says, as a new version of what they said before; returns what holds.

    `expected_number`: the number of their verdict that the form was made from, 0 for none. The same word again is the
    same verdict. Where all readers agree, or an adjudicator decides, the study is read and the word that counts becomes
    feedback on each picture's prediction.
    Raises DomainError `not_found` (no right to read it), `gone` (erased), `conflict` (a draft; another tab was quicker,
    with both values; the readers are complete; no suggestion yet), `unknown_label`, `validation_error`, `bad_text`.
    """
    if not user.has_right(Right.STUDY, study.team_id):
        raise DomainError("not_found", "There is no such study.")
    said = _Said.read(answer, labels, certainty, comment)
    with transaction.atomic():
        locked = Study.objects.select_for_update(of=("self",)).select_related("version__model", "deployment")
        current = locked.filter(pk=study.pk).first()
        if current is None:
            raise DomainError("not_found", "There is no such study.")
        if current.state == StudyState.ERASED:
            raise DomainError("gone", "The study was erased.")
        if current.state == StudyState.DRAFT:
            raise DomainError("conflict", "The study was not sent yet.")
        latest = {verdict.reader_id: verdict for verdict in current.verdicts.filter(latest=True)}
        before = latest.get(user.pk)
        said.labels = _meant(current, user, said)
        if before is not None and _same(current, before, said):
            return before
        _check_expected(before, expected_number)
        part = before.part if before is not None else _part(current, latest.values())
        verdict = _add(current, user, said, before, part)
        latest[user.pk] = verdict
        counts = _settle(current, latest.values())
        audit(actor, "study.verdict", current, after=verdict.as_json())
        if counts is not None:
            _give_feedback(actor, current, counts)
    study.state = current.state
    return verdict


class _Said:
    """What the form says, read for shape."""

    def __init__(self, answer: Answer, labels: list[str], certainty: float | None, comment: str) -> None:
        self.answer, self.labels, self.certainty, self.comment = answer, labels, certainty, comment

    @classmethod
    def read(cls, answer: str, labels: Sequence[str], certainty: float | None, comment: str) -> "_Said":
        if answer not in Answer.values:
            raise field_error("validation_error", "answer", f"An answer is one of {', '.join(Answer.values)}.")
        if certainty is not None and (
            isinstance(certainty, bool) or not isinstance(certainty, int | float) or not 0 <= certainty <= 1
        ):
            raise field_error("validation_error", "certainty", "A certainty is a number from 0 to 1.")
        if len(comment) > COMMENT_LENGTH:
            message = f"A comment has at most {COMMENT_LENGTH} characters."
            raise field_error("validation_error", "comment", message)
        check_text("comment", comment)
        return cls(Answer(answer), list(dict.fromkeys(labels)), certainty, comment.strip())


def _meant(study: Study, user: User, said: _Said) -> list[str]:
    """The labels that the answer stands for. Raises DomainError."""
    version = study.version
    assert version is not None
    now = suggestion(study)
    if not now.is_final and not study.read_first:
        raise DomainError("conflict", "The suggestion is not there yet; it comes before the answer here.")
    if said.answer == Answer.UNGRADABLE:
        return []
    if said.answer == Answer.AGREE:
        if now.state != "ready":
            raise field_error("conflict", "answer", "There is no suggestion to agree with: say what you see.")
        if not _was_shown(study, user):
            raise field_error("validation_error", "answer", "Look at the suggestion before you agree with it.")
        labels = list(now.above)
    else:
        for index, label in enumerate(said.labels):
            if label not in version.labels:
                some = ", ".join(version.labels[:20])
                message = f"“{label[:60]}” is none of the version's labels: {some}."
                raise field_error("unknown_label", ["labels", index], message)
        labels = [label for label in version.labels if label in said.labels]
    if version.task == Task.IMAGE_CLASSIFICATION and len(labels) != 1:
        if said.answer == Answer.AGREE and len(labels) > 1:
            message = "The suggestions of the pictures differ: choose one label instead."
            raise field_error("validation_error", "answer", message)
        if said.answer == Answer.CORRECT:
            raise field_error("validation_error", "labels", "The model tells labels apart: choose exactly one.")
    return labels


def _check_expected(before: Verdict | None, expected: int) -> None:
    number = before.number if before is not None else 0
    if expected == number:
        return
    extra: dict[str, Any] = {"expected_number": expected, "current_number": number}
    if before is not None:
        extra["current"] = {"answer": before.answer, "labels": list(before.labels), "certainty": before.certainty}
    message = "You answered in another tab in between: look at that answer before you change it."
    raise DomainError("conflict", message, extra=extra)


def _same(study: Study, before: Verdict, said: _Said) -> bool:
    return (before.answer, list(before.labels), before.certainty) == (said.answer, said.labels, said.certainty) and (
        sealing.open_text(study, before.comment, "comment") == said.comment
    )


def _part(study: Study, latest: Collection[Verdict]) -> VerdictPart:
    """As what a newcomer answers. Raises DomainError where nobody's answer is wanted any more."""
    readers = [verdict for verdict in latest if verdict.part == VerdictPart.READER]
    if len(readers) < study.readers:
        return VerdictPart.READER
    if study.state == StudyState.READ:
        raise DomainError("conflict", "The study has been read; those who answered may change their answer.")
    return VerdictPart.ADJUDICATOR


def _add(study: Study, user: User, said: _Said, before: Verdict | None, part: str) -> Verdict:
    now = timezone.now()
    if before is not None:
        before.latest = False
        before.save(update_fields=["latest"])
    reading, _ = Reading.objects.get_or_create(study=study, reader=user, defaults={"opened_at": now})
    return Verdict.objects.create(
        study=study,
        reader=user,
        part=part,
        number=before.number + 1 if before is not None else 1,
        answer=said.answer,
        labels=said.labels,
        certainty=said.certainty,
        blinded=reading.shown_at is None and not _saw_scores(study, user),
        comment=sealing.seal_text(study, said.comment, "comment"),
        opened_at=reading.opened_at,
        given_at=now,
    )


def _saw_scores(study: Study, user: User) -> bool:
    """Whether who may see payloads too has looked at the scores where jobs and predictions are shown, before they read
    studies: the audit log knows. One query, and none for whoever is a doctor alone."""
    if Right.VIEW_PAYLOAD not in user.rights_in(study.team_id):
        return False
    jobs = [str(job_id) for job_id in study.pictures.values_list("job_id", flat=True)]
    alone = Q(target_type__in=["job", "prediction"], target_id__in=jobs)
    listed = Q(target_type="deployment", target_id=str(study.deployment_id), at__gte=study.sent_at)
    # Earlier versions did not name what was listed.
    listed &= Q(after__isnull=True) | Q(after__predictions__has_any_keys=jobs)
    return AuditEvent.objects.filter(alone | listed, action__in=LOOKED, actor_id=str(user.pk)).exists()


def _was_shown(study: Study, user: User) -> bool:
    return Reading.objects.filter(study=study, reader=user, shown_at__isnull=False).exists()


def _settle(study: Study, latest: Collection[Verdict]) -> Verdict | None:
    """Sets the study's state by the verdicts that hold; returns the one that counts, None while there is none.

    An adjudicator's stands above the readers'. Where a reader's change ends an agreement, the study is open again, and
    the feedback that was given stands until the next word that counts.
    """
    counts = _counting(study, latest)
    state = StudyState.READ if counts is not None else StudyState.SENT
    if study.state != state:
        study.state = state
        study.save(update_fields=["state"])
    return counts


def _counting(study: Study, latest: Collection[Verdict]) -> Verdict | None:
    adjudicated = next((verdict for verdict in latest if verdict.part == VerdictPart.ADJUDICATOR), None)
    if adjudicated is not None:
        return adjudicated
    readers = sorted(
        (verdict for verdict in latest if verdict.part == VerdictPart.READER), key=lambda verdict: verdict.given_at
    )
    meant = {(verdict.answer == Answer.UNGRADABLE, tuple(verdict.labels)) for verdict in readers}
    return readers[-1] if len(readers) >= study.readers and len(meant) == 1 else None


def _give_feedback(actor: Actor, study: Study, verdict: Verdict) -> None:
    """Feedback on the predictions that are there; those of unfinished jobs follow (give_late_feedback)."""
    done = study.pictures.filter(job__status=JobStatus.SUCCEEDED).order_by("position")
    _tell(actor, study, verdict, [job_id for job_id in done.values_list("job_id", flat=True) if job_id is not None])


def _tell(actor: Actor, study: Study, verdict: Verdict, prediction_ids: Sequence[uuid.UUID]) -> None:
    truth = _truth(study, verdict)
    if truth is None or not prediction_ids:
        return
    deployment = Deployment.objects.get(pk=study.deployment_id)
    statements: list[Statement | DomainError] = [
        Statement(
            truth=truth,
            prediction_id=prediction_id,
            certainty=verdict.certainty,
            ungradable=verdict.answer == Answer.UNGRADABLE,
            blind=verdict.blinded,
        )
        for prediction_id in prediction_ids
    ]
    asker = FeedbackAsker(actor, {deployment.pk: deployment})
    # Kept, so that give_late_feedback asks once; a changed verdict is asked of anew as it is given.
    for given in give_feedback(asker=asker, statements=statements, keep_refused=True):
        if given.error is not None:
            # Past the log's retention there is no prediction to measure any more; the verdict stands all the same.
            logger.info("a verdict on study %s gave no feedback: %s", study.pk, given.error.code)


def _truth(study: Study, verdict: Verdict) -> dict[str, Any] | None:
    """What the verdict says as feedback; None where the task has no word for it (nothing, of a single label)."""
    if verdict.answer == Answer.UNGRADABLE:
        return {}
    assert study.version is not None
    if study.version.task == Task.IMAGE_MULTILABEL:
        return {"labels": list(verdict.labels)}
    return {"label": verdict.labels[0]} if len(verdict.labels) == 1 else None


def give_late_feedback() -> int:
    """Periodic: feedback on predictions that came after the verdict that counts. Returns of how many it was asked; of
    each once, whether it is refused or not."""
    told = Feedback.objects.filter(prediction_id=OuterRef("job_id"))
    late = (
        StudyPicture.objects.filter(
            study__state=StudyState.READ,
            study__sent_at__gt=timezone.now() - LATE_WITHIN,
            study__read_first=True,
            job__status=JobStatus.SUCCEEDED,
            job__finished_at__gte=F("study__verdicts__given_at"),
            study__verdicts__latest=True,
        )
        .exclude(Exists(told))
        .distinct()
        .order_by("pk")
        .values_list("study_id", "job_id")
    )
    by_study: dict[uuid.UUID, list[uuid.UUID]] = {}
    for study_id, job_id in late[:LATE_MOST]:
        if job_id is not None:
            by_study.setdefault(study_id, []).append(job_id)
    for study_id in by_study:
        with transaction.atomic():
            # Under the lock: a verdict that is changed meanwhile would else be overwritten by the one before it.
            found = Study.objects.select_for_update(of=("self",)).filter(pk=study_id, state=StudyState.READ)
            study = found.select_related("version__model").first()
            if study is None:
                continue
            counts = _counting(study, list(study.verdicts.filter(latest=True).select_related("reader")))
            if counts is not None:
                reader = Actor(f"user:{counts.reader.get_username()}", str(counts.reader_id), counts.reader_id)
                _tell(reader, study, counts, by_study[study.pk])
    return sum(map(len, by_study.values()))
