"""Heat maps of pictures: asked for when the suggestion is there, drawn when a page wants them.

studies/mapping.py computes them, in workers alone; nothing here loads a runtime.
"""

import logging
import uuid
from datetime import timedelta
from io import BytesIO

import msgspec
from django.db.models import QuerySet
from django.utils import timezone
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from controlplane.catalog.models import ModelVersion
from controlplane.celery import app
from controlplane.errors import DomainError
from controlplane.jobs.models import Job, JobStatus
from controlplane.studies import sealing
from controlplane.studies.models import StudyPicture, StudyState
from inference.runtime.explain import HeatMap, overlay
from inference.runtime.preprocess import Pipeline

logger = logging.getLogger(__name__)

TASK, TASK_QUEUE = "studies.explain", "celery"
# A map that is not there by then has lost its message; what is not there in the end is given up.
RESEND_AFTER = timedelta(minutes=1)
RESEND_UNTIL = timedelta(minutes=5)
RESEND_MOST = 50


def follow(job: Job) -> None:
    """Asks for the heat map of a study's picture whose job has just succeeded; nothing for any other job."""
    if not job.private:
        return
    for picture_id in StudyPicture.objects.filter(job_id=job.pk).values_list("pk", flat=True):
        _ask(picture_id)


def resend() -> int:
    """Periodic: asks again for maps whose message was lost. Returns how many. One query."""
    now = timezone.now()
    missing = explicable().filter(job__finished_at__lt=now - RESEND_AFTER, job__finished_at__gt=now - RESEND_UNTIL)
    return sum(map(_ask, list(missing.order_by("pk").values_list("pk", flat=True)[:RESEND_MOST])))


def heat_map_png(picture: StudyPicture, label: str) -> bytes:
    """The map of one label to be laid over the picture: a PNG with transparency of the picture's shape. One query.

    Needs `study` joined. Raises DomainError `not_found` until the map is there, `unknown_label`, `gone`.
    """
    if not picture.heat_map or picture.study.version_id is None:
        raise DomainError("not_found", "The heat map is not there yet.")
    heat = msgspec.msgpack.decode(sealing.open_file(picture.study, picture.heat_map), type=HeatMap)
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


def _ask(picture_id: uuid.UUID) -> bool:
    """Whether the broker took the message."""
    try:
        app.send_task(TASK, args=[str(picture_id)], queue=TASK_QUEUE)
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("the broker took no message (%s); it is sent again later", type(error).__name__)
        return False
    return True
