"""Where the model looked: a heat map of each picture, computed by a worker after the suggestion is there."""

import logging
import time
import uuid
from datetime import timedelta
from io import BytesIO

import msgspec
import numpy as np
from django.db import models, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from controlplane.catalog.models import ModelVersion
from controlplane.catalog.storage import path_of
from controlplane.celery import app
from controlplane.errors import DomainError
from controlplane.jobs.dispatch import QUEUE
from controlplane.jobs.models import Job, JobStatus
from controlplane.jobs.running import RUN_S, run_batch, runtime_host
from controlplane.jobs.vault import VaultError
from controlplane.studies import sealing
from controlplane.studies.models import Study, StudyPicture, StudyState
from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.explain import HeatMap, Predict, grid_for, occlusion, overlay
from inference.runtime.pictures import decode_each
from inference.runtime.preprocess import Pipeline
from inference.runtime.scores import scores_of
from inference.runtime.tensors import NUMPY_DTYPES
from inference.worker import WorkItem

logger = logging.getLogger(__name__)

TASK, TASK_QUEUE = "studies.explain", "celery"
# A suggestion waits for one batch of runs at most; so long may the batch take.
BATCH_S = 0.25
BATCH_MOST = 16
# While another worker of the machine computes a suggestion, each batch lets it go ahead for so long.
GIVE_WAY_S = 1.0
LOOK_EVERY_S = 0.05
# A map that is not there by then has lost its message; after the second time it is given up.
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
    missing = _explicable().filter(job__finished_at__lt=now - RESEND_AFTER, job__finished_at__gt=now - RESEND_UNTIL)
    return sum(map(_ask, list(missing.order_by("pk").values_list("pk", flat=True)[:RESEND_MOST])))


def explain(picture_id: uuid.UUID) -> bool:
    """Computes and stores the heat map of a picture; False where it is there already, or cannot be had.

    Blocks, and works on waiting jobs in between: a map never makes a suggestion wait.
    """
    picture = _explicable().select_related("study").filter(pk=picture_id).first()
    if picture is None:
        return False
    version = ModelVersion.objects.select_related("model", "artifact").get(pk=picture.study.version_id).route()
    try:
        heat = heat_map(sealing.open_file(picture.study, picture.name), version)
        name = sealing.seal_file(picture.study, msgspec.msgpack.encode(heat))
    except (InferenceError, DomainError, VaultError) as error:
        logger.warning("no heat map of picture %s: %s", picture_id, getattr(error, "code", type(error).__name__))
        return False
    with transaction.atomic():
        # Against an erasure that goes on meanwhile.
        Study.objects.select_for_update().filter(pk=picture.study_id).first()
        kept = _explicable().filter(pk=picture_id).update(heat_map=name) == 1
    if not kept:
        sealing.remove_files([name])
    return kept


def heat_map(content: bytes, version: VersionRoute) -> HeatMap:
    """The maps of one picture for all labels of a version. Blocks. Raises InferenceError, as the decoder or the model."""
    (decoded,) = decode_each([content], version)
    if isinstance(decoded, InferenceError):
        raise decoded
    _, height, width = decoded.tensor.shape
    maps, scores = occlusion(
        decoded.tensor,
        _scores(version),
        grid=grid_for(version.cost_s, height, width),
        batch=_batch(version),
    )
    labels = version.labels or tuple(str(index) for index in range(len(scores)))
    return HeatMap(
        labels=list(labels),
        scores=[float(score) for score in scores],
        grid=maps.shape[1],
        values=np.ascontiguousarray(maps, "<f4").tobytes(),
    )


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


def _explicable() -> "models.QuerySet[StudyPicture]":
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


def _batch(version: VersionRoute) -> int:
    """Runs between which waiting jobs have their turn."""
    if not version.signature.batched:
        return 1
    return max(1, min(BATCH_MOST, int(BATCH_S / version.cost_s) if version.cost_s > 0 else BATCH_MOST))


def _scores(version: VersionRoute) -> Predict:
    """The version's scores of a batch of tensors, by this process's runtime."""
    taken = version.signature.inputs[0]
    path = str(path_of(version.artifact_sha256))

    def predict(batch: np.ndarray) -> np.ndarray:
        _give_way()
        item = WorkItem(inputs={taken.name: batch.astype(NUMPY_DTYPES[taken.datatype], copy=False)})
        (result,) = runtime_host().predict(version, path, [item], timeout_s=RUN_S)
        if result.outputs is None:
            raise result.error or InferenceError("internal")
        scores = scores_of(version, result.outputs)
        if scores is None or len(scores) != len(batch) or not np.isfinite(scores).all():
            raise InferenceError("internal", "The model gives no scores to explain.")
        return scores

    return predict


def _give_way() -> None:
    """Jobs first: those that wait are run here, and those that run elsewhere get a moment of the machine."""
    if QUEUE in app.amqp.queues.consume_from:
        while Job.objects.filter(status=JobStatus.QUEUED).exists() and run_batch("(before a heat map)"):
            pass
    until = time.monotonic() + GIVE_WAY_S
    while time.monotonic() < until and Job.objects.filter(status=JobStatus.RUNNING).exists():
        time.sleep(LOOK_EVERY_S)
