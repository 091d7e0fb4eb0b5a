"""Runs claimed jobs on this worker process's runtime, and writes what came of each."""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
from celery.signals import worker_process_shutdown, worker_shutdown
from django.conf import settings
from django.db import connection
from django.utils import timezone

from controlplane.catalog.storage import path_of
from controlplane.jobs import vault
from controlplane.jobs.models import Job
from controlplane.jobs.payloads import Payload, unpack
from controlplane.jobs.services.claiming import LEASE, claim_batch, fail, finish, renew
from controlplane.predictions.cleaning import clean
from inference.capture import fill
from inference.contracts import CapturePolicy, Lane, Source, SpoolRecord, VersionRoute
from inference.errors import InferenceError
from inference.runtime.picture_child import close_children
from inference.runtime.tensors import dumps, non_finite_warnings, to_json
from inference.worker import RuntimeHost, WorkItem, WorkResult

logger = logging.getLogger(__name__)

# Tries with another worker, where the failure was ours and may not come again.
AGAIN = ("worker_lost", "internal", "storage_full", "overloaded")
RUN_S = 300.0

_host: RuntimeHost | None = None
_host_lock = threading.Lock()


def run_batch(job_id: str) -> int:
    """Claims a batch, whichever waits longest (the message's own job is only the occasion), and ends each job of it."""
    jobs = claim_batch(_worker_name(), settings.SIGNALBOX_JOB_BATCH)
    if not jobs:
        logger.debug("nothing waits any more; the message of job %s was late", job_id)
        return 0
    lease = jobs[0].lease
    assert lease is not None
    with _Heartbeat(lease):
        _run(jobs)
    return len(jobs)


def _run(jobs: Sequence[Job]) -> None:
    version = jobs[0].version.route()
    ready: list[tuple[Job, Payload]] = []
    for job in jobs:
        try:
            ready.append((job, unpack(vault.unseal(job.payload, bytes(job.payload_key or b"")))))
        except (vault.VaultError, msgspec.MsgspecError, ValueError) as error:
            logger.error("job %s: its input cannot be read: %s", job.pk, error)
            fail(job, code="internal", detail="The job's input cannot be read any more.")
    if not ready:
        return
    items = [WorkItem(pictures=payload.pictures, inputs=payload.inputs) for _, payload in ready]
    results = runtime_host().predict(version, str(path_of(version.artifact_sha256)), items, timeout_s=RUN_S)
    for (job, payload), result in zip(ready, results, strict=True):
        _end(job, payload, result, version)


def _end(job: Job, payload: Payload, result: WorkResult, version: VersionRoute) -> None:
    if result.outputs is None:
        error = result.error or InferenceError("internal")
        fail(job, code=error.code, detail=error.message, again=error.code in AGAIN)
        return
    record = _record(job, result)
    deployment = job.deployment
    columns = tuple(
        msgspec.structs.replace(column, keep=deployment.column_policy.get(column.name, column.keep))
        for column in version.columns
    )
    policy = CapturePolicy(
        payload_share=deployment.payload_share,
        retention_days=deployment.retention_days,
        hash_salt=deployment.hash_salt,
    )
    fill(record, msgspec.structs.replace(version, columns=columns), policy, payload.inputs, result.outputs)
    warnings = [*job.warnings]
    for found in [*result.warnings, non_finite_warnings(result.outputs)]:
        warnings += [warning for warning in found if warning not in warnings]
    record.warnings = [*record.warnings, *warnings]
    if not finish(job, result=_result(result), device=result.device, warnings=warnings, prediction=record):
        logger.info("job %s was cancelled or taken over; its result is dropped", job.pk)


def _record(job: Job, result: WorkResult) -> SpoolRecord:
    """The job as a prediction of its own id; it is inserted where the job is finished, so once."""
    now = timezone.now()
    waited_ms = ((job.started_at or now) - job.created_at).total_seconds() * 1000
    return SpoolRecord(
        id=str(job.pk),
        at=job.created_at.timestamp(),
        source=Source(job.source),
        deployment_id=str(job.deployment_id),
        version_id=str(job.version_id),
        version=job.number,
        key_id=str(job.key_id) if job.key_id else "",
        client_id=job.client_id,
        revision=job.revision,
        pinned=job.pinned,
        lane=Lane.JOB,
        queue_ms=waited_ms + result.queue_ms,
        compute_ms=result.compute_ms,
        total_ms=(now - job.created_at).total_seconds() * 1000,
        rows=job.rows,
        context=dict(job.context),
        pictures=[dict(stats) for stats in result.stats],
    )


def _result(result: WorkResult) -> dict[str, Any]:
    """What the contract shows: the scores of the first row, every row's under `predictions`, the model's outputs."""
    first: dict[str, Any] = dict(result.labelled[0]) if result.labelled else {}
    document = {
        **first,
        "outputs": {name: to_json(array) for name, array in (result.outputs or {}).items()},
        "predictions": [dict(row) for row in result.labelled],
        "device": result.device,
    }
    # NaN becomes null, and text of the model's becomes what PostgreSQL can store.
    shown: dict[str, Any] = clean(orjson.loads(dumps(document)))
    return shown


class _Heartbeat:
    """Renews a lease from a thread of its own while the runtime computes."""

    def __init__(self, lease: uuid.UUID) -> None:
        self._lease = lease
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        try:
            while not self._ended.wait(LEASE.total_seconds() / 3):
                renew(self._lease)
        except Exception:  # a boundary: without its lease the batch is repeated elsewhere, which is safe
            logger.exception("the lease %s could not be renewed", self._lease)
        finally:
            connection.close()


def runtime_host() -> RuntimeHost:
    """The runtime of this process; made at its first batch."""
    global _host
    with _host_lock:
        if _host is None:
            _host = RuntimeHost(settings.SIGNALBOX_WORKER_DEVICE)
        return _host


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # Celery carries no types
@worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery carries no types
def close_runtime(**_: Any) -> None:
    """Ends the runtime's child, and the picture decoder's, with the process that holds them."""
    global _host
    with _host_lock:
        if _host is not None:
            _host.close()
            _host = None
    close_children()


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
