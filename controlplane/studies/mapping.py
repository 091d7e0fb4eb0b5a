"""Computes heat maps in a worker, on its runtime, and steps back for whoever waits for a suggestion."""

import logging
import time
import uuid

import msgspec
import numpy as np
from django.db import transaction

from controlplane.catalog.models import ModelVersion
from controlplane.catalog.storage import path_of
from controlplane.celery import app
from controlplane.errors import DomainError
from controlplane.jobs.dispatch import QUEUE, send
from controlplane.jobs.models import Job, JobStatus
from controlplane.jobs.running import RUN_S, run_batch, runtime_host
from controlplane.studies import sealing
from controlplane.studies.explaining import TASK, TASK_QUEUE, explicable
from controlplane.studies.models import Study
from controlplane.studies.viewing import open_file
from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.explain import HeatMap, Predict, grid_for, occlusion
from inference.runtime.pictures import decode_each
from inference.runtime.scores import scores_of
from inference.runtime.tensors import NUMPY_DTYPES
from inference.worker import WorkItem

logger = logging.getLogger(__name__)

# A suggestion waits for one batch of runs at most; so long may the batch take.
BATCH_S = 0.1
BATCH_MOST = 16
# While another worker computes a suggestion, each batch leaves it the machine for so long.
GIVE_WAY_S = 1.0
LOOK_EVERY_S = 0.05
# Well within Celery's time limit, the longest run of a job included.
PATIENCE_S = 300.0


class _TooBusy(Exception):
    """So much was waiting that the map has to begin again later."""


def explain(picture_id: uuid.UUID) -> bool:
    """Computes and stores the heat map of a picture; False where it is there already, or cannot be had.

    Blocks, and works on waiting jobs in between: a map never makes a suggestion wait. Where that goes on for minutes it
    is put back at the end of its queue.
    """
    picture = explicable().select_related("study").filter(pk=picture_id).first()
    if picture is None:
        return False
    assert picture.study.version_id is not None
    version = ModelVersion.objects.select_related("model", "artifact").get(pk=picture.study.version_id).route()
    try:
        heat = heat_map(open_file(picture, picture.name), version)
        name = sealing.seal_file(picture.study, msgspec.msgpack.encode(heat))
    except _TooBusy:
        send(TASK, TASK_QUEUE, picture_id)
        return False
    except (InferenceError, DomainError) as error:
        logger.warning("no heat map of picture %s: %s", picture_id, error.code)
        return False
    with transaction.atomic():
        # Against an erasure that goes on meanwhile.
        Study.objects.select_for_update().filter(pk=picture.study_id).first()
        kept = explicable().filter(pk=picture_id).update(heat_map=name) == 1
    if not kept:
        sealing.remove_files([name])
    return kept


def heat_map(content: bytes, version: VersionRoute) -> HeatMap:
    """The maps of one picture for all labels of a version. Blocks. Raises InferenceError as decoder and model do."""
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


def _batch(version: VersionRoute) -> int:
    """Runs between which waiting jobs have their turn."""
    if not version.signature.batched:
        return 1
    return max(1, min(BATCH_MOST, int(BATCH_S / version.cost_s) if version.cost_s > 0 else BATCH_MOST))


def _scores(version: VersionRoute) -> Predict:
    """The version's scores of a batch of tensors, by this process's runtime."""
    taken = version.signature.inputs[0]
    path = str(path_of(version.artifact_sha256))
    until = time.monotonic() + PATIENCE_S

    def predict(batch: np.ndarray) -> np.ndarray:
        _give_way(until)
        item = WorkItem(inputs={taken.name: batch.astype(NUMPY_DTYPES[taken.datatype], copy=False)})
        (result,) = runtime_host().predict(version, path, [item], timeout_s=RUN_S)
        if result.outputs is None:
            raise result.error or InferenceError("internal")
        scores = scores_of(version, result.outputs)
        if scores is None or len(scores) != len(batch) or not np.isfinite(scores).all():
            raise InferenceError("internal", "The model gives no scores to explain.")
        return scores

    return predict


def _give_way(until: float) -> None:
    """Jobs first: those that wait or come meanwhile are run here, those that run elsewhere get a moment of peace."""
    takes_jobs = QUEUE in app.amqp.queues.consume_from
    moment = time.monotonic() + GIVE_WAY_S
    while True:
        if takes_jobs and Job.objects.filter(status=JobStatus.QUEUED).exists() and run_batch("(before a heat map)"):
            if time.monotonic() > until:
                raise _TooBusy
            moment = time.monotonic() + GIVE_WAY_S
        elif time.monotonic() > moment or not Job.objects.filter(status=JobStatus.RUNNING).exists():
            return
        else:
            time.sleep(LOOK_EVERY_S)
