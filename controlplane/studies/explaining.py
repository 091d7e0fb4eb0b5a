"""Heat maps of pictures: asked for when the suggestion is there, drawn when a page wants them.

studies/mapping.py computes them, in workers alone; nothing here loads a runtime.
"""

from datetime import timedelta
from io import BytesIO

import msgspec
from django.db.models import QuerySet
from django.utils import timezone

from controlplane.catalog.models import ModelVersion
from controlplane.errors import DomainError
from controlplane.jobs.dispatch import send
from controlplane.jobs.models import Job, JobStatus
from controlplane.studies.models import StudyPicture, StudyState
from controlplane.studies.viewing import open_file
from inference.runtime.explain import HeatMap, overlay
from inference.runtime.preprocess import Pipeline

TASK, TASK_QUEUE = "studies.explain", "celery"
# A map that is not there by then has lost its message; what is not there in the end is given up.
RESEND_AFTER = timedelta(minutes=1)
RESEND_UNTIL = timedelta(minutes=5)
RESEND_MOST = 50
# By then the last one that was asked for has ended, however much stood in its way.
GIVEN_UP_AFTER = timedelta(minutes=10)
GIVEN_UP = (
    "The heat map of this picture could not be made, and is not tried again. The suggestion stands without it; to try "
    "again, send the picture as a new study. If that fails too, tell whoever runs this installation."
)


def follow(job: Job) -> None:
    """Asks for the heat map of a study's picture whose job has just succeeded; nothing for any other job."""
    if not job.private:
        return
    for picture_id in StudyPicture.objects.filter(job_id=job.pk).values_list("pk", flat=True):
        send(TASK, TASK_QUEUE, picture_id)


def resend() -> int:
    """Periodic: asks again for maps whose message was lost. Returns how many. One query."""
    now = timezone.now()
    missing = explicable().filter(job__finished_at__lt=now - RESEND_AFTER, job__finished_at__gt=now - RESEND_UNTIL)
    ids = list(missing.order_by("pk").values_list("pk", flat=True)[:RESEND_MOST])
    return sum(send(TASK, TASK_QUEUE, picture_id) for picture_id in ids)


def is_given_up(picture: StudyPicture) -> bool:
    """Whether its map is missing for good, though its suggestion is there. Needs `job` joined."""
    ended = picture.job.finished_at if picture.job is not None else None
    return not picture.heat_map and ended is not None and ended < timezone.now() - GIVEN_UP_AFTER


def heat_map_png(picture: StudyPicture, label: str) -> bytes:
    """The map of one label to be laid over the picture: a PNG with transparency of the picture's shape. One query.

    Needs `study` and `job` joined. Raises DomainError `not_found` until the map is there, or where it cannot be made,
    `unknown_label`, `gone`, `internal`.
    """
    if is_given_up(picture):
        raise DomainError("not_found", GIVEN_UP)
    if not picture.heat_map or picture.study.version_id is None:
        raise DomainError("not_found", "The heat map is not there yet.")
    heat = msgspec.msgpack.decode(open_file(picture, picture.heat_map), type=HeatMap)
    version = ModelVersion.objects.only("preprocessor").get(pk=picture.study.version_id)
    size = (picture.width, picture.height)
    try:
        drawn = overlay(heat.of(label), size, Pipeline.from_config(version.preprocessor or {}).box(*size))
    except ValueError as error:
        raise DomainError("unknown_label", f"The version has no label {label[:64]!r}.") from error
    out = BytesIO()
    drawn.save(out, "PNG", compress_level=3)
    return out.getvalue()


def explicable() -> "QuerySet[StudyPicture]":
    """Pictures with a suggestion and without a heat map."""
    return StudyPicture.objects.filter(
        heat_map="",
        job__status=JobStatus.SUCCEEDED,
        study__state__in=[StudyState.SENT, StudyState.READ],
    )
