"""Reads of studies: the worklist, one study with its pictures, who may see what of it."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from django.db.models import Case, Count, Exists, F, IntegerField, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce

from controlplane.accounts.models import Right, Team, User
from controlplane.audit.services import Actor, record
from controlplane.catalog.models import ModelVersion, VersionState
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs.models import JobStatus
from controlplane.studies import sealing
from controlplane.studies.models import Reading, Study, StudyPicture, StudyState, Verdict, VerdictPart
from inference.contracts import Task

PAGE_SIZE = 50
PICTURE_TASKS = [task.value for task in Task if task.takes_pictures]


class Status(StrEnum):
    """Where a study stands, as people are told."""

    DRAFT = "draft"
    WAITING = "waiting"
    READY = "ready"
    FAILED = "failed"
    NEEDS_SECOND = "needs_second"
    NEEDS_ADJUDICATION = "needs_adjudication"
    READ = "read"
    ERASED = "erased"


STATUS_WORDS = {
    Status.DRAFT: "Draft",
    Status.WAITING: "Waiting for the suggestion",
    Status.READY: "Unread",
    Status.FAILED: "No suggestion",
    Status.NEEDS_SECOND: "Needs a second reader",
    Status.NEEDS_ADJUDICATION: "Readers differ",
    Status.READ: "Read",
    Status.ERASED: "Erased",
}


@dataclass(frozen=True, slots=True)
class WorklistRow:
    """One study of the list. `readers`: user names of those who have answered, and nothing of what they said."""

    study: Study
    reference: str
    status: Status
    pictures: int
    readers: list[str]

    @property
    def status_word(self) -> str:
        return STATUS_WORDS[self.status]


@dataclass(frozen=True, slots=True)
class Worklist:
    """A page of it; `next_page` is what to ask the next one with, "" on the last."""

    rows: list[WorklistRow]
    next_page: str


def worklist(
    user: User,
    *,
    team: Team | None = None,
    status: str | None = None,
    mine: bool = False,
    reference: str = "",
    page: str = "",
) -> Worklist:
    """Studies that the person may read, newest first; three queries, however many there are.

    `status` is one of Status (anything else finds all but the erased); `mine`: those the person made or answered;
    `reference`: an exact case reference; `page`: the `next_page` of the page before. Drafts are shown to who made them.
    """
    found = with_status(Study.objects.for_user(user)).filter(~Q(state=StudyState.DRAFT) | Q(created_by=user))
    if team is not None:
        found = found.filter(team=team)
    if status in Status._value2member_map_:
        found = found.filter(Q(("status", status)))
    else:
        found = found.exclude(state=StudyState.ERASED)
    if mine:
        own = Verdict.objects.filter(study=OuterRef("pk"), reader=user)
        found = found.filter(Q(created_by=user) | Exists(own))
    if reference.strip():
        teams = [team.pk] if team is not None else [membership.team_id for membership in user._memberships()]
        found = found.filter(reference_digest__in=[sealing.reference_digest(pk, reference) for pk in teams])
    before = _uuid(page)
    if before is not None:
        found = found.filter(pk__lt=before)
    pictures = StudyPicture.objects.filter(study=OuterRef("pk")).order_by().values("study").annotate(n=Count("pk"))
    found = found.annotate(picture_count=Coalesce(Subquery(pictures.values("n")), 0))
    studies = list(found.select_related("deployment", "team", "created_by", "version").order_by("-id")[: PAGE_SIZE + 1])
    shown = studies[:PAGE_SIZE]
    readers: dict[uuid.UUID, list[str]] = {}
    latest = Verdict.objects.filter(study__in=[study.pk for study in shown], latest=True)
    for verdict in latest.select_related("reader").order_by("given_at"):
        readers.setdefault(verdict.study_id, []).append(verdict.reader.get_username())
    return Worklist(
        rows=[
            WorklistRow(
                study=study,
                reference=reference_of(study),
                status=Status(study.status),  # type: ignore[attr-defined]  # annotated by with_status
                pictures=study.picture_count,
                readers=readers.get(study.pk, []),
            )
            for study in shown
        ],
        next_page=str(shown[-1].pk) if len(studies) > PAGE_SIZE else "",
    )


def with_status(studies: "QuerySet[Study]") -> "QuerySet[Study]":
    """Each study with its `status` (Status), in SQL, so that lists can be filtered by it."""
    pictures = StudyPicture.objects.filter(study=OuterRef("pk"))
    unfinished = pictures.filter(job__status__in=[JobStatus.QUEUED, JobStatus.RUNNING])
    failed = pictures.filter(job__status__in=[JobStatus.FAILED, JobStatus.CANCELLED])
    verdicts = (
        Verdict.objects.filter(study=OuterRef("pk"), latest=True, part=VerdictPart.READER)
        .order_by()
        .values("study")
        .annotate(n=Count("pk"))
    )
    # Annotated in the order in which they decide; a sent study with all its readers' verdicts is one where they differ.
    answered = Coalesce(Subquery(verdicts.values("n"), output_field=IntegerField()), 0)
    return studies.annotate(answered=answered).annotate(
        status=Case(
            When(state=StudyState.DRAFT, then=Value(Status.DRAFT.value)),
            When(state=StudyState.READ, then=Value(Status.READ.value)),
            When(state=StudyState.ERASED, then=Value(Status.ERASED.value)),
            When(answered__gte=F("readers"), then=Value(Status.NEEDS_ADJUDICATION.value)),
            When(answered__gte=1, then=Value(Status.NEEDS_SECOND.value)),
            When(Exists(unfinished), then=Value(Status.WAITING.value)),
            When(Exists(failed), then=Value(Status.FAILED.value)),
            default=Value(Status.READY.value),
        )
    )


def find_study(user: User, study_id: uuid.UUID, *, actor: Actor) -> Study:
    """The study with its status, deployment, team and version joined, for who may read it. Two queries at most.

    A draft is found by who made it alone. Raises DomainError `not_found`; where the study exists, the attempt is
    audited as `study.denied`.
    """
    found = with_status(Study.objects.filter(pk=study_id)).select_related(
        "deployment", "team", "version__model", "created_by"
    )
    study = found.first()
    if study is not None and may_read(user, study):
        return study
    if study is not None:
        record(
            actor=actor,
            action="study.denied",
            target_type="study",
            target_id=study.pk,
            target_label="study",
            team_id=study.team_id,
        )
    raise DomainError("not_found", "There is no such study.")


def find_picture(user: User, study_id: uuid.UUID, picture_id: uuid.UUID, *, actor: Actor) -> StudyPicture:
    """A picture of a study that the person may read, its study joined. Raises DomainError as find_study."""
    study = find_study(user, study_id, actor=actor)
    picture = study.pictures.select_related("job").filter(pk=picture_id).first()
    if picture is None:
        raise DomainError("not_found", "There is no such picture.")
    picture.study = study
    return picture


def may_read(user: User, study: Study) -> bool:
    """Studies and payloads of the team; of drafts, those that the person made."""
    if not {Right.STUDY, Right.VIEW_PAYLOAD} & user.rights_in(study.team_id):
        return False
    return study.state != StudyState.DRAFT or study.created_by_id == user.pk


def pictures_of(study: Study) -> list[StudyPicture]:
    """In their order, with their jobs. One query."""
    return list(study.pictures.select_related("job").order_by("position"))


def reference_of(study: Study) -> str:
    """The case reference as the doctor typed it; "" once erased."""
    return sealing.open_text(study, study.reference) if study.wrapped_key else ""


def image_deployments(user: User) -> list[Deployment]:
    """Deployments that take pictures, of the teams in which the person may make studies, by name. One query."""
    teams = [membership.team_id for membership in user._memberships() if Right.STUDY in membership.rights]
    versions = ModelVersion.objects.filter(model=OuterRef("model"), state=VersionState.READY, task__in=PICTURE_TASKS)
    found = Deployment.objects.current().filter(Exists(versions), team_id__in=teams)
    return list(found.select_related("team", "model").order_by("name"))


def reading_of(study: Study, user: User) -> Reading | None:
    return Reading.objects.filter(study=study, reader=user).first()


def takes_pictures(deployment: Deployment) -> bool:
    """Whether a version of its model reads pictures, so that doctors may ask it. One query."""
    ready = ModelVersion.objects.filter(model=deployment.model_id, state=VersionState.READY)
    return ready.filter(task__in=PICTURE_TASKS).exists()


def has_several_views(deployment: Deployment) -> bool:
    """Whether a study that was sent to it has more than one picture, for all of which a verdict speaks. One query."""
    second = StudyPicture.objects.filter(study__deployment=deployment, position__gt=1)
    return second.exclude(study__state=StudyState.DRAFT).exists()


def own_verdict(study: Study, user: User) -> Verdict | None:
    """The person's verdict that holds; its `number` is what the next one is expected to follow."""
    return Verdict.objects.filter(study=study, reader=user, latest=True).first()


def shows_suggestion(study: Study, user: User) -> bool:
    """Whether the suggestion may be shown: in the read-first mode only after one's own answer, or once it is read."""
    if not study.read_first or study.state == StudyState.READ or Right.STUDY not in user.rights_in(study.team_id):
        return True
    return own_verdict(study, user) is not None


def awaiting_answer(user: User, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these jobs, or of the predictions that they became, this person is to answer before any page or address
    shows what they say: as `shows_suggestion`. One query; none for who reads no studies."""
    asked = list(ids)
    teams = [membership.team_id for membership in user._memberships() if Right.STUDY in membership.rights]
    if not (asked and teams):
        return set()
    own = Verdict.objects.filter(study=OuterRef("study"), reader=user, latest=True)
    found = StudyPicture.objects.filter(job__in=asked, study__read_first=True, study__team__in=teams)
    hidden = found.exclude(study__state=StudyState.READ).exclude(Exists(own)).values_list("job_id", flat=True)
    return {job_id for job_id in hidden if job_id is not None}


def visible_verdicts(study: Study, user: User) -> list[Verdict]:
    """The history of verdicts as this person may see it, newest first, readers joined. Two queries.

    While a study lacks a reader's verdict, who may still give it sees nobody's but their own.
    """
    verdicts = list(study.verdicts.select_related("reader").order_by("-given_at", "-id"))
    if study.state == StudyState.READ or Right.STUDY not in user.rights_in(study.team_id):
        return verdicts
    own = [verdict for verdict in verdicts if verdict.reader_id == user.pk]
    if own or count_readers(verdicts) >= study.readers:
        return verdicts
    return own


def count_readers(verdicts: Iterable[Verdict]) -> int:
    """How many readers (adjudicators aside) have answered."""
    return len({verdict.reader_id for verdict in verdicts if verdict.part == VerdictPart.READER and verdict.latest})


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
