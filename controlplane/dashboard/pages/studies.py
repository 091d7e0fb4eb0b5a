"""What a study's page says: where it stands, the suggestion as far as this person may see it, the answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import timezone

from controlplane.accounts.models import Right, User
from controlplane.dashboard.forms.studies import CERTAINTIES, TypedVerdict
from controlplane.dashboard.pages.header import Status
from controlplane.monitoring.estimates import wilson
from controlplane.studies import queries, sealing
from controlplane.studies.models import Answer, Study, StudyPicture, Verdict
from controlplane.studies.suggestion import OnRecord, Score, Suggestion, suggestion
from inference.contracts import Task

SHOWN_AT_ONCE = 6
# A page asks again after so many seconds: often while the suggestion is due any moment, seldom where none can come.
POLL_SOON_S, POLL_S, POLL_SELDOM_S = 0.25, 1, 5
SOON = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class PictureLinks:
    """Where the page fetches a picture from."""

    pixels: str
    thumbnail: str
    large: str
    model_view: str
    heat_map: str
    current: bool


@dataclass(frozen=True, slots=True)
class ScoreBar:
    """A score and its threshold as they are drawn, in per cent of the bar."""

    label: str
    score: float
    threshold: float | None
    above: bool
    percent: float
    threshold_percent: float


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """A picture's scores, highest first: those to see at once, and the rest, none of which is above its threshold."""

    position: int
    scores: list[ScoreBar]
    rest: list[ScoreBar]


@dataclass(frozen=True, slots=True)
class RecordRow:
    """Shares with half their 95 % intervals, as text."""

    label: str
    threshold: float | None
    sensitivity: str
    specificity: str
    n: int | None


@dataclass(frozen=True, slots=True)
class VerdictRow:
    who: str
    words: str
    certainty: str
    comment: str
    blinded: bool
    part: str
    given_at: datetime


@dataclass(frozen=True, slots=True)
class StudyPage:
    """`hidden`: the suggestion may not be shown before this person's answer, and nothing of it is in here."""

    study: Study
    reference: str
    status: Status
    research: bool
    notice: str
    mismatches: list[str]
    warnings: list[str]
    pictures: list[PictureLinks]
    heat_labels: list[str]
    hidden: bool
    poll_s: float | None
    shown: bool
    sentence: str
    advice: str
    scores: list[ScoreGroup]
    thresholds: bool
    record: list[RecordRow]
    record_said: str
    record_source: str
    current: list[VerdictRow]
    history: list[VerdictRow]
    asks: str
    may_study: bool
    may_answer: bool
    may_agree: bool
    labels: list[str]
    one_label: bool
    number: int
    typed: TypedVerdict
    correcting: bool
    conflict: str
    certainties: Sequence[tuple[str, str]] = CERTAINTIES


def study_page(
    study: Study, user: User, *, picture: int = 1, typed: TypedVerdict | None = None, conflict: str = ""
) -> StudyPage:
    """The page of a sent study, for who may read it. About eight queries."""
    said = suggestion(study)
    may_study = user.has_right(Right.STUDY, study.team_id)
    hidden = not queries.shows_suggestion(study, user)
    verdicts = queries.visible_verdicts(study, user)
    own = queries.own_verdict(study, user) if may_study else None
    ready = said.state == "ready" and not hidden
    rows = [_record_row(each) for each in said.on_record]
    sentence, advice = _sentence(said, hidden)
    return StudyPage(
        study=study,
        reference=queries.reference_of(study),
        status=_status(study, said, hidden),
        research=study.purpose != "clinical",
        notice=_notice(study, said),
        mismatches=list(said.mismatches),
        warnings=_warnings(said),
        pictures=[_links(study, part.picture, at == picture) for at, part in enumerate(said.pictures, 1)],
        heat_labels=[] if hidden else _heat_labels(said),
        hidden=hidden,
        poll_s=None if hidden or said.is_final else _poll_s(study, said),
        shown=ready,
        sentence=sentence,
        advice=advice,
        scores=_groups(said) if ready else [],
        thresholds=any(score.threshold is not None for part in said.pictures for score in part.scores),
        record=rows if ready else [],
        record_said=_record_said(said, rows) if ready else "",
        record_source=said.record_source,
        current=[_verdict(study, each, user) for each in verdicts if each.latest],
        history=[_verdict(study, each, user) for each in verdicts if not each.latest],
        asks=_asks(study, own, may_study),
        may_study=may_study,
        may_answer=may_study and _is_wanted(study, said, own),
        may_agree=ready,
        labels=list(said.labels),
        one_label=said.task == Task.IMAGE_CLASSIFICATION,
        number=own.number if own is not None else 0,
        typed=typed or _typed(study, own),
        correcting=typed is not None or hidden,
        conflict=conflict,
    )


def _is_wanted(study: Study, said: Suggestion, own: Verdict | None) -> bool:
    """Whether an answer, or a change of it, would be taken: the rules are give_verdict's."""
    if not (study.read_first or said.is_final):
        return False
    return own is not None or getattr(study, "status", "") != queries.Status.READ


def _status(study: Study, said: Suggestion, hidden: bool) -> Status:
    status = getattr(study, "status", "")
    if status == queries.Status.READ:
        return Status("Read", "good")
    if status in (queries.Status.NEEDS_SECOND, queries.Status.NEEDS_ADJUDICATION):
        return Status(queries.STATUS_WORDS[queries.Status(status)], "warn")
    if hidden:
        return Status("Waits for your answer", "busy")
    if said.state == "ready":
        return Status(f"Ready in {_duration(said.seconds)}" if said.seconds is not None else "Ready", "good")
    if said.state == "failed":
        return Status("No suggestion", "bad")
    return Status("In the queue" if said.state == "queued" else "The model is at work", "busy")


def _poll_s(study: Study, said: Suggestion) -> float:
    if not said.worker_alive:
        return POLL_SELDOM_S
    return POLL_SOON_S if study.sent_at is not None and timezone.now() - study.sent_at < SOON else POLL_S


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _sentence(said: Suggestion, hidden: bool) -> tuple[str, str]:
    """The plain sentence, and what to know or do beside it."""
    if hidden:
        return "What do you see? Answer first: the suggestion is shown once you have.", ""
    if said.state == "ready":
        return said.sentence, ""
    if said.state == "failed":
        return said.sentence, said.failure
    if not said.worker_alive:
        return (
            "No worker is running, so the suggestion waits. Your pictures are safe.",
            "You need not stay on this page. Whoever runs this installation starts the worker.",
        )
    if said.state == "queued":
        return f"In the queue: place {said.place}.", "It goes on by itself; you may leave this page."
    return "The model is at work.", "It goes on by itself; you may leave this page."


def _notice(study: Study, said: Suggestion) -> str:
    version = study.version
    intended: Mapping[str, Any] = version.intended_use if version is not None else {}
    if study.purpose == "clinical":
        parts = [f"Clinical deployment, approved by {study.approver}."]
    else:
        parts = ["Research deployment."]
    told = ", ".join(_made_for({name: str(value) for name, value in intended.items() if value}))
    parts.append(f"Made for: {told}." if told else "This version does not say what it is for.")
    if said.unchecked:
        *most, last = said.unchecked
        listed = f"{', '.join(most)} or {last}" if most else last
        parts.append(f"The pictures do not all say their {listed}: see for yourself that they fit.")
    return " ".join(parts)


def _made_for(intended: Mapping[str, str]) -> Iterator[str]:
    if "body_part" in intended:
        yield intended["body_part"].lower()
    if "view" in intended:
        yield f"{intended['view']} view"
    if "modality" in intended:
        yield intended["modality"].replace(", ", " or ")
    if "age_range" in intended:
        ages = intended["age_range"]
        yield f"age {ages}" if ages[0].isdigit() else ages


def _warnings(said: Suggestion) -> list[str]:
    """In plain words, each once; the code that begins a warning is for machines."""
    found = dict.fromkeys(warning for part in said.pictures for warning in part.warnings)
    plain = (re.sub(r"^[a-z_]+: ", "", warning) for warning in found)
    return [text[:1].upper() + text[1:] for text in plain]


def _links(study: Study, picture: StudyPicture, current: bool) -> PictureLinks:
    def address(name: str) -> str:
        return reverse(f"pages:picture_{name}", args=[study.pk, picture.pk])

    return PictureLinks(
        pixels=address("pixels"),
        thumbnail=address("thumbnail"),
        large=address("thumbnail") + "?size=large",
        model_view=address("model_view"),
        heat_map=address("heat_map"),
        current=current,
    )


def _heat_labels(said: Suggestion) -> list[str]:
    """The label of the highest score first, once there are scores."""
    highest: dict[str, float] = {}
    for part in said.pictures:
        for score in part.scores:
            highest[score.label] = max(score.score, highest.get(score.label, score.score))
    return sorted(said.labels, key=lambda label: -highest.get(label, 0.0))


def _groups(said: Suggestion) -> list[ScoreGroup]:
    groups = []
    least = SHOWN_AT_ONCE if len(said.pictures) == 1 else SHOWN_AT_ONCE // 2
    for position, part in enumerate(said.pictures, 1):
        bars = [_bar(score) for score in part.scores]
        last_above = max((index for index, bar in enumerate(bars, 1) if bar.above), default=0)
        cut = max(least, last_above)
        # A fold for one more line would be longer than the line.
        cut = len(bars) if len(bars) <= cut + 1 else cut
        groups.append(ScoreGroup(position, bars[:cut], bars[cut:]))
    return groups


def _bar(score: Score) -> ScoreBar:
    return ScoreBar(
        label=score.label,
        score=score.score,
        threshold=score.threshold,
        above=score.above,
        percent=_per_cent(score.score),
        threshold_percent=_per_cent(score.threshold or 0.0),
    )


def _per_cent(share: float) -> float:
    return round(min(max(share, 0.0), 1.0) * 100, 1)


def _record_row(known: OnRecord) -> RecordRow:
    counts = [count for count in (known.positives, known.negatives) if count is not None]
    return RecordRow(
        label=known.label,
        threshold=known.threshold,
        sensitivity=_share(known.sensitivity, known.positives),
        specificity=_share(known.specificity, known.negatives),
        n=sum(counts) if counts else None,
    )


def _share(value: float | None, n: int | None) -> str:
    """A share with half its Wilson interval where its n is on record: `0.84 ± 0.06`."""
    if value is None:
        return "–"
    interval = wilson(value * n, n) if n else None
    if interval is None or interval["high"] is None or interval["low"] is None:
        return f"{value:.2f}"
    return f"{value:.2f} ± {(interval['high'] - interval['low']) / 2:.2f}"


def _record_said(said: Suggestion, rows: list[RecordRow]) -> str:
    """Of the findings above their threshold, or of the only one there is; else it points at the table."""
    if not rows:
        return "Nothing is on record of how often this version is right."
    known = {row.label: row for row in rows}
    told = [label for label in said.above if label in known] or (list(known) if len(known) == 1 else [])
    if not told:
        return "How often it is right at them is on record."
    parts = []
    for label in told[:3]:
        row = known[label]
        pictures = f", from {row.n:,} labelled pictures" if row.n else ""
        parts.append(f"{label}: sensitivity {row.sensitivity}, specificity {row.specificity}{pictures}")
    return f"On record at it, {'; '.join(parts)}."


def _verdict(study: Study, verdict: Verdict, user: User) -> VerdictRow:
    if verdict.answer == Answer.AGREE:
        words = "agreed with the suggestion"
    elif verdict.answer == Answer.UNGRADABLE:
        words = "answered that it cannot be graded"
    else:
        words = "answered: " + (", ".join(verdict.labels) or "none of these findings")
    return VerdictRow(
        who="You" if verdict.reader_id == user.pk else verdict.reader.get_username(),
        words=words,
        certainty=_certainty(verdict),
        comment=_comment(study, verdict),
        blinded=verdict.blinded,
        part=verdict.part,
        given_at=verdict.given_at,
    )


def _certainty(verdict: Verdict) -> str:
    if verdict.certainty is None:
        return ""
    return dict(CERTAINTIES).get(str(verdict.certainty), f"{verdict.certainty:.0%} certain")


def _comment(study: Study, verdict: Verdict) -> str:
    return sealing.open_text(study, verdict.comment, "comment") if verdict.comment else ""


def _typed(study: Study, own: Verdict | None) -> TypedVerdict:
    """The form as it opens: what the person answered before."""
    if own is None:
        return TypedVerdict()
    return TypedVerdict(
        labels=list(own.labels),
        ungradable=own.answer == Answer.UNGRADABLE,
        certainty=str(own.certainty) if own.certainty is not None else "",
        comment=_comment(study, own),
    )


def _asks(study: Study, own: Verdict | None, may_study: bool) -> str:
    """What is still wanted of this person, where that is not plain."""
    status = getattr(study, "status", "")
    if not may_study or own is not None:
        return ""
    if status == queries.Status.NEEDS_ADJUDICATION:
        return "The readers differ. Your answer decides."
    if status == queries.Status.NEEDS_SECOND:
        return "Another doctor has answered; you see that answer once you have given yours."
    return "Two doctors read each study, each without the other's answer." if study.readers == 2 else ""
