"""What the model suggests of a study, in figures and in one plain sentence that claims no more than they do.

A score is no probability; nothing is said of where a finding lies, of health, or of certainty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.catalog.models import ModelVersion
from controlplane.jobs.models import FINAL, Job, JobStatus, Worker
from controlplane.studies.models import Study, StudyPicture, StudyState
from controlplane.studies.queries import pictures_of
from inference.contracts import Task
from inference.runtime.scores import DEFAULT_THRESHOLD

# What a doctor can do about a failure, by its code; anything else is for whoever runs the installation.
TO_DO = {
    "attempts_exhausted": "Send it again as a new study; if that fails too, tell whoever runs this installation.",
    "worker_lost": "Send it again as a new study; if that fails too, tell whoever runs this installation.",
    "internal": "Send it again as a new study; if that fails too, tell whoever runs this installation.",
    "overloaded": "Send it again as a new study in some minutes.",
    "storage_full": "Tell whoever runs this installation that its disk is full; then send it again as a new study.",
    "cancelled": "Someone cancelled it. Send it again as a new study.",
    "corrupt_image": "The picture is damaged: export it again and send it as a new study.",
    "too_many_pixels": "The picture is too large: export it smaller and send it as a new study.",
}
OTHERWISE = (
    "Export the picture again and send it as a new study; if that fails too, tell whoever runs this installation."
)
AS_THEY_ARE = "Your pictures are safe, and you can read them without the suggestion."


@dataclass(frozen=True, slots=True)
class Score:
    """One label's score beside the threshold at which it counts; None where the version compares labels instead.

    `above`: it is at or above its threshold, or the one label that a version of single labels decides for.
    """

    label: str
    score: float
    threshold: float | None
    above: bool


@dataclass(frozen=True, slots=True)
class OnRecord:
    """What is on record of one label at its threshold, from elsewhere; None where it is not known."""

    label: str
    threshold: float | None
    sensitivity: float | None
    specificity: float | None
    positives: int | None
    negatives: int | None


@dataclass(frozen=True, slots=True)
class PictureSuggestion:
    """One picture's part. `scores` highest first, empty until it is ready; `failure` with what to do."""

    picture: StudyPicture
    status: str
    scores: tuple[Score, ...]
    mismatches: tuple[str, ...]
    warnings: tuple[str, ...]
    failure: str
    device: str

    @property
    def above(self) -> tuple[Score, ...]:
        return tuple(score for score in self.scores if score.above)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """State `draft | queued | running | ready | failed`, and what there is to say in it.

    `place`: how many jobs are before this study's in the queue, plus one; None where it does not wait. `worker_alive`:
    False says that no worker is running, and that the pictures are safe. `sentence` is "" until it is ready or failed.
    `mismatches` are to be said loudly; `unchecked`: parts of the intended use of which a picture says nothing.
    """

    state: str
    place: int | None
    worker_alive: bool
    pictures: tuple[PictureSuggestion, ...]
    sentence: str
    model: str
    version: int | None
    task: str
    labels: tuple[str, ...]
    on_record: tuple[OnRecord, ...]
    record_source: str
    mismatches: tuple[str, ...]
    unchecked: tuple[str, ...]
    failure: str
    device: str
    seconds: float | None

    @property
    def above(self) -> tuple[str, ...]:
        """Labels above their threshold in any picture, in the version's order: what "agree" agrees with."""
        found = {score.label for picture in self.pictures for score in picture.above}
        return tuple(label for label in self.labels if label in found)

    @property
    def is_final(self) -> bool:
        return self.state in ("ready", "failed")


def suggestion(study: Study) -> Suggestion:
    """The suggestion as it stands. Three queries at most; needs `version` and its model joined, else two more."""
    pictures = pictures_of(study)
    version = study.version
    jobs = [picture.job for picture in pictures if picture.job is not None]
    state = _state(study, jobs)
    waits = state in ("queued", "running")
    parts = tuple(_picture(picture, version) for picture in pictures)
    failed = [(number, part) for number, part in enumerate(parts, 1) if part.failure]
    finished = [job.finished_at for job in jobs if job.finished_at is not None]
    sentence = _sentence(parts, version) if state == "ready" else ""
    return Suggestion(
        state=state,
        place=_place(jobs) if state == "queued" else None,
        # A job that is being worked on says so itself.
        worker_alive=state == "running" or not waits or Worker.objects.alive().exists(),
        pictures=parts,
        sentence=f"The suggestion could not be made. {AS_THEY_ARE}" if state == "failed" else sentence,
        model=version.model.name if version else "",
        version=version.number if version else None,
        task=version.task if version else "",
        labels=tuple(version.labels) if version else (),
        on_record=_on_record(version) if version else (),
        record_source=str(version.performance.get("source", "")) if version else "",
        mismatches=_said_of(parts),
        unchecked=tuple(dict.fromkeys(part for picture in pictures for part in unchecked(picture.tags, version))),
        failure=_failures(failed, len(parts)),
        device=next((part.device for part in parts if part.device), ""),
        seconds=(max(finished) - study.sent_at).total_seconds() if finished and study.sent_at and not waits else None,
    )


def decided(version: ModelVersion, scores: Mapping[str, float], label: str | None, labels: Sequence[str] | None,
            ) -> tuple[Score, ...]:  # fmt: skip
    """A row's scores against their thresholds, highest first, as the runtime decided it."""
    multilabel = version.task == Task.IMAGE_MULTILABEL
    above = set(labels or ()) if multilabel else {label}
    default = DEFAULT_THRESHOLD if multilabel else None
    found = [
        Score(name, float(value), version.thresholds.get(name, default), name in above)
        for name, value in scores.items()
        if value is not None
    ]
    return tuple(sorted(found, key=lambda score: -score.score))


def mismatches(tags: Mapping[str, str], intended: Mapping[str, str]) -> list[str]:
    """Sentences in which a picture's tags contradict the intended use; what either does not state is no mismatch."""
    found = []
    names = {"modality": "modality", "body_part": "body part", "view": "view"}
    for name, words in names.items():
        wanted, is_ = _terms(intended.get(name, "")), tags.get(name, "").upper()
        if wanted and is_ and is_ not in wanted:
            found.append(
                f"Wrong {words}: the picture says {is_}; the model was made for {intended[name]}. "
                "Its suggestion means nothing here."
            )
    ages, age = _age_range(intended.get("age_range", "")), _years(tags.get("age", ""))
    if ages is not None and age is not None and not ages[0] <= age <= ages[1]:
        found.append(
            f"Wrong age: the picture says {_age_words(tags['age'])}; the model was made for {intended['age_range']}. "
            "Its suggestion means nothing here."
        )
    return found


def unchecked(tags: Mapping[str, str], version: ModelVersion | None) -> list[str]:
    """Parts of the intended use of which the picture says nothing, in words."""
    intended: Mapping[str, str] = version.intended_use if version is not None else {}
    words = {"modality": "modality", "body_part": "body part", "view": "view", "age_range": "age"}
    return [
        word for name, word in words.items()
        if intended.get(name) and not tags.get("age" if name == "age_range" else name)
    ]  # fmt: skip


def _state(study: Study, jobs: Sequence[Job]) -> str:
    if study.state == StudyState.DRAFT or not jobs:
        return "draft" if study.state == StudyState.DRAFT else "failed"
    if all(job.status in FINAL for job in jobs):
        return "ready" if all(job.status == JobStatus.SUCCEEDED for job in jobs) else "failed"
    return "queued" if all(job.status == JobStatus.QUEUED for job in jobs) else "running"


def _place(jobs: Sequence[Job]) -> int:
    first = min(job.pk for job in jobs)
    return 1 + Job.objects.filter(status=JobStatus.QUEUED, pk__lt=first).count()


def _picture(picture: StudyPicture, version: ModelVersion | None) -> PictureSuggestion:
    job = picture.job
    result: Mapping[str, Any] = (job.result or {}) if job is not None else {}
    scores: tuple[Score, ...] = ()
    if version is not None and result.get("scores"):
        scores = decided(version, result["scores"], result.get("label"), result.get("labels"))
    said = [*picture.warnings, *(job.warnings if job is not None else ())]
    return PictureSuggestion(
        picture=picture,
        status=job.status if job is not None else "",
        scores=scores,
        mismatches=tuple(picture.mismatches),
        warnings=tuple(dict.fromkeys(said)),
        failure=_failure(job),
        device=job.device if job is not None else "",
    )


def _failure(job: Job | None) -> str:
    if job is None or job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        return ""
    error: Mapping[str, Any] = job.error or {}
    return f"{error.get('detail', 'The job failed.')} {TO_DO.get(str(error.get('code', '')), OTHERWISE)}"


def _failures(failed: Sequence[tuple[int, PictureSuggestion]], count: int) -> str:
    if count == 1:
        return failed[0][1].failure if failed else ""
    return " ".join(f"Picture {number}: {part.failure}" for number, part in failed)


def _sentence(parts: Sequence[PictureSuggestion], version: ModelVersion | None) -> str:
    if version is not None and version.task == Task.IMAGE_CLASSIFICATION:
        return _classes(parts, version)
    if len(parts) == 1:
        return _findings(parts[0].above)
    said = [
        f"Picture {number}: {_listed(part.above)}." for number, part in enumerate(parts, 1) if part.above
    ]  # fmt: skip
    if not said:
        return f"Nothing is above its threshold in any of the {len(parts)} pictures."
    silent = [str(number) for number, part in enumerate(parts, 1) if not part.above]
    rest = f" Nothing is above its threshold in picture {', '.join(silent)}." if silent else ""
    return "Above their threshold: " + " ".join(said) + rest


def _findings(above: Sequence[Score]) -> str:
    if not above:
        return "Nothing is above its threshold."
    if len(above) == 1:
        return f"One finding is above its threshold: {_listed(above)}."
    return f"{_number(len(above))} findings are above their thresholds: {_listed(above)}."


def _classes(parts: Sequence[PictureSuggestion], version: ModelVersion) -> str:
    """One label a picture: the one that its threshold, or else the highest score, decides for."""
    said = []
    for number, part in enumerate(parts, 1):
        of_which = f"Picture {number}: " if len(parts) > 1 else ""
        if not part.above:
            said.append(f"{of_which}Nothing is above its threshold.")
            continue
        (score,) = part.above
        if score.label in version.thresholds:
            said.append(of_which + _findings(part.above))
        elif version.thresholds:
            # The label that is left when none reaches its threshold is no finding.
            said.append(f"{of_which}Nothing is above its threshold.")
        else:
            said.append(f"{of_which}The highest score is that of “{score.label}” ({score.score:.2f}).")
    return " ".join(said)


def _listed(scores: Sequence[Score]) -> str:
    return ", ".join(f"{score.label} (score {score.score:.2f})" for score in scores)


def _number(count: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[count] if count < len(words) else str(count)


def _said_of(parts: Sequence[PictureSuggestion]) -> tuple[str, ...]:
    if len(parts) == 1:
        return parts[0].mismatches
    return tuple(f"Picture {number}: {said}" for number, part in enumerate(parts, 1) for said in part.mismatches)


def _on_record(version: ModelVersion) -> tuple[OnRecord, ...]:
    labels: Mapping[str, Any] = version.performance.get("labels", {})
    return tuple(
        OnRecord(
            label=label,
            threshold=known.get("threshold"),
            sensitivity=known.get("sensitivity"),
            specificity=known.get("specificity"),
            positives=known.get("positives"),
            negatives=known.get("negatives"),
        )
        for label in version.labels
        if (known := labels.get(label))
    )


def _terms(text: str) -> set[str]:
    """The terms of an intended use: "CR, DX" or "PA or AP"."""
    words = text.upper().replace("/", ",").replace(";", ",").replace(" OR ", ",").replace(" AND ", ",")
    return {word.strip() for word in words.split(",") if word.strip()}


def _age_words(age: str) -> str:
    """A DICOM age string as people say it: 054Y -> 54 years."""
    unit = {"D": "days", "W": "weeks", "M": "months", "Y": "years"}[age[3]]
    return f"{int(age[:3])} {unit}"


def _years(age: str) -> float | None:
    """Years of a DICOM age string (034Y, 006M)."""
    if len(age) != 4 or not age[:3].isdecimal() or age[3] not in "DWMY":
        return None
    return int(age[:3]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age[3]]


def _age_range(text: str) -> tuple[float, float] | None:
    """(least, most) years of "18-90", "18–90 years", "18+" or "under 6"; None where it reads as none of these."""
    words = text.lower().replace("–", "-").replace("years", "").replace("year", "").replace(" to ", "-").strip()
    for prefix, of in (("under ", (0.0, -1e-9)), ("from ", (0.0, 0.0)), ("over ", (1e-9, 0.0))):
        if words.startswith(prefix) and words.removeprefix(prefix).strip().isdecimal():
            bound = float(words.removeprefix(prefix))
            return (0.0, bound + of[1]) if prefix == "under " else (bound + of[0], 200.0)
    if words.endswith("+") and words[:-1].strip().isdecimal():
        return float(words[:-1]), 200.0
    low, dash, high = (part.strip() for part in words.partition("-"))
    if dash and low.isdecimal() and high.isdecimal():
        # A range of whole years includes the last one.
        return float(low), float(high) + 1 - 1e-9
    return None
