"""Who works on a job, and how it ends. A lease is held by one worker; only its holder finishes, and once."""

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import DurationField, ExpressionWrapper, F, Value
from django.utils import timezone

from controlplane.audit.services import Actor, record
from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.jobs.dispatch import send_later, send_now
from controlplane.jobs.models import ATTEMPTS, FINAL, Job, JobQuerySet, JobStatus
from controlplane.predictions.ingest import record_predictions
from inference.contracts import Lane, Outcome, Source, SpoolRecord
from inference.errors import TABLE

logger = logging.getLogger(__name__)

# A worker that dies is noticed after this time; a living one renews its lease three times within it.
LEASE = timedelta(seconds=15)
# A job without a worker for so long gets another message.
RESEND_AFTER = timedelta(seconds=10)
RESEND_MOST = 200
# A finished job's input is kept so long for whoever asks why; then it is erased.
PAYLOAD_KEPT = timedelta(hours=1)
CLEAN_MOST = 1_000
CANCELLED = {"code": "cancelled", "detail": "The job was cancelled.", "retryable": False}

# Rooms above this one add what gives the jobs that they still show: those outlive their deployment's retention.
keepers: list[Callable[[], JobQuerySet]] = []
# And what they do, quickly, once a job has succeeded and that is committed.
followers: list[Callable[[Job], object]] = []


def claim_batch(worker: str, limit: int) -> list[Job]:
    """Takes the oldest waiting job, and up to `limit` - 1 more of its version; [] where none waits. Two queries.

    A job that a worker died on already is taken alone: it may be what killed it.
    """
    now = timezone.now()
    with transaction.atomic():
        waiting = Job.objects.select_for_update(skip_locked=True, of=("self",)).filter(status=JobStatus.QUEUED)
        first = waiting.order_by("id").first()
        if first is None:
            return []
        jobs = [first]
        if first.attempts == 0 and limit > 1:
            alike = waiting.filter(version_id=first.version_id, attempts=0).exclude(pk=first.pk)
            jobs += alike.order_by("id")[: limit - 1]
        lease = uuid.uuid4()
        Job.objects.filter(pk__in=[job.pk for job in jobs]).update(
            status=JobStatus.RUNNING,
            attempts=F("attempts") + 1,
            lease=lease,
            leased_until=now + LEASE,
            worker=worker[:200],
            started_at=now,
        )
    claimed = Job.objects.filter(lease=lease).order_by("id")
    return list(claimed.select_related("deployment", "version__model", "version__artifact"))


def renew(lease: uuid.UUID) -> int:
    """Keeps a batch's lease; returns how many of its jobs are still ours."""
    held = Job.objects.filter(lease=lease, status=JobStatus.RUNNING)
    return held.update(leased_until=timezone.now() + LEASE)


def finish(job: Job, *, result: dict[str, Any], device: str, warnings: Sequence[str], prediction: SpoolRecord) -> bool:
    """Ends a job well and logs its prediction, in one transaction. False where it was cancelled, or is another's."""
    with transaction.atomic():
        ended = _end(job, JobStatus.SUCCEEDED, result=result, device=device[:40], warnings=list(warnings), progress=1.0)
        if ended:
            landed = record_predictions([prediction])
            if landed.bad:
                raise ValueError(f"the record of job {job.pk} cannot be logged")
            for follow in followers:
                transaction.on_commit(partial(follow, job), robust=True)
    return ended


def fail(job: Job, *, code: str, detail: str, again: bool = False) -> bool:
    """Ends a job with an error of the table and counts it, or (`again`) lets another worker try, three times in all.

    False where it was cancelled, or is another's by now.
    """
    if again and job.attempts < ATTEMPTS:
        return _requeue(job)
    if again:
        code, detail = "attempts_exhausted", f"The job failed {job.attempts} times: {detail}"
    with transaction.atomic():
        ended = _end(job, JobStatus.FAILED, error={"code": code, "detail": detail, "retryable": TABLE[code].retryable})
        if ended:
            record_predictions([_failure(job, code)])
    return ended


def _failure(job: Job, code: str) -> SpoolRecord:
    """A failed job as the log counts it: a call that got an error, with no payload."""
    status = TABLE[code].status
    return SpoolRecord(
        id=str(job.pk),
        at=job.created_at.timestamp(),
        source=Source(job.source),
        deployment_id=str(job.deployment_id),
        version_id=str(job.version_id),
        version=job.number,
        revision=job.revision,
        key_id=str(job.key_id) if job.key_id else "",
        pinned=job.pinned,
        lane=Lane.JOB,
        outcome=Outcome.SERVER_ERROR if status >= 500 else Outcome.CLIENT_ERROR,
        status=status,
        code=code,
        context={"request_id": job.request_id} if job.request_id else {},
    )


def cancel(*, actor: Actor, job: Job) -> Job:
    """Stops a job that has not ended; what a worker makes of it is thrown away. Raises DomainError conflict."""
    now = timezone.now()
    with transaction.atomic():
        stopped = (
            Job.objects.unfinished()
            .filter(pk=job.pk)
            .update(
                status=JobStatus.CANCELLED,
                finished_at=now,
                lease=None,
                leased_until=None,
                error=CANCELLED,
            )
        )
        job.refresh_from_db()
        if not stopped:
            if job.status == JobStatus.CANCELLED:
                return job
            raise DomainError("conflict", f"The job has {job.status} already.")
        record(
            actor=actor,
            action="job.cancel",
            target_type="job",
            target_id=job.pk,
            target_label=job.deployment.name,
            team_id=job.deployment.team_id,
        )
        transaction.on_commit(lambda: _erase([job]))
    return job


def _end(job: Job, status: JobStatus, **fields: Any) -> bool:
    held = Job.objects.filter(pk=job.pk, status=JobStatus.RUNNING, lease=job.lease)
    ended = held.update(status=status, finished_at=timezone.now(), lease=None, leased_until=None, **fields)
    return ended == 1


def _requeue(job: Job) -> bool:
    with transaction.atomic():
        held = Job.objects.filter(pk=job.pk, status=JobStatus.RUNNING, lease=job.lease)
        back = held.update(
            status=JobStatus.QUEUED, lease=None, leased_until=None, progress=0.0, dispatched_at=timezone.now()
        )
        if back:
            send_later(job.pk)
    return back == 1


def sweep() -> int:
    """Periodic: jobs whose worker died go back or fail; jobs whose message was lost get another. Returns how many."""
    now = timezone.now()
    lost = list(Job.objects.filter(status=JobStatus.RUNNING, leased_until__lt=now)[:RESEND_MOST])
    for job in lost:
        logger.warning("job %s lost its worker %s in attempt %s", job.pk, job.worker, job.attempts)
        fail(job, code="worker_lost", detail=TABLE["worker_lost"].meaning, again=True)
    silent = Job.objects.filter(status=JobStatus.QUEUED, dispatched_at__lt=now - RESEND_AFTER).order_by("id")
    ids = list(silent.values_list("pk", flat=True)[:RESEND_MOST])
    sent = 0
    for pk in ids:
        if not send_now(pk):
            break
        sent += 1
    if sent:
        Job.objects.filter(pk__in=ids[:sent], status=JobStatus.QUEUED).update(dispatched_at=now)
    return len(lost) + sent


def clean() -> int:
    """Periodic: erases inputs of jobs that ended, files without a job, and jobs past their deployment's retention."""
    now = timezone.now()
    ended = Job.objects.filter(status__in=FINAL, finished_at__lt=now - PAYLOAD_KEPT).exclude(payload="")
    erased = _erase(list(ended[:CLEAN_MOST]))
    old = vault.names_older_than((now - timedelta(days=1)).timestamp())[:CLEAN_MOST]
    if old:
        known = set(Job.objects.filter(payload__in=old).values_list("payload", flat=True))
        for name in set(old) - known:
            vault.remove(name)
            erased += 1
    kept_for = ExpressionWrapper(F("deployment__retention_days") * timedelta(days=1), output_field=DurationField())
    expired = Job.objects.filter(status__in=FINAL, payload="", finished_at__lt=Value(now) - kept_for)
    for held in keepers:
        expired = expired.exclude(pk__in=held().values("pk"))
    deleted, _ = Job.objects.filter(pk__in=list(expired.values_list("pk", flat=True)[:CLEAN_MOST])).delete()
    return erased + deleted


def forget(ids: Sequence[uuid.UUID]) -> None:
    """Cancels those of the jobs that have not ended, and erases inputs and results of all. Needs a transaction."""
    jobs = Job.objects.filter(pk__in=ids)
    jobs.unfinished().update(
        status=JobStatus.CANCELLED, finished_at=timezone.now(), lease=None, leased_until=None, error=CANCELLED
    )
    names = list(jobs.exclude(payload="").values_list("payload", flat=True))
    jobs.update(payload="", payload_key=None, result=None, warnings=[])
    transaction.on_commit(lambda: _remove(names))


def _erase(jobs: list[Job]) -> int:
    """Forgets the keys first: without its key a file is erased, whether its deletion succeeds or not."""
    names = [job.payload for job in jobs if job.payload]
    Job.objects.filter(pk__in=[job.pk for job in jobs]).update(payload="", payload_key=None)
    _remove(names)
    return len(names)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        vault.remove(name)
