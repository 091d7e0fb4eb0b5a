"""Asynchronous jobs. The row is the truth: whoever holds its lease works on it, and it is finished once."""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.db.models.functions import Now

from controlplane.accounts.models import ApiKey, User
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from inference.contracts import Source
from inference.errors import TABLE
from inference.routing import uuid7

ATTEMPTS = 3
# A worker that was not heard of for so long counts as gone.
WORKER_SILENT_S = 15


class JobStatus(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class PayloadKind(models.TextChoices):
    PICTURE = "picture", "One picture, identifiers removed"
    PICTURES = "pictures", "Several pictures, identifiers removed"
    TENSORS = "tensors", "Tensors by input name"


def new_id() -> uuid.UUID:
    """A UUIDv7: a job's id is also the id of the prediction it becomes, and says when it was asked."""
    return uuid.UUID(uuid7())


class JobQuerySet(models.QuerySet["Job"]):
    def of_deployments(self, deployments: "models.QuerySet[Deployment]") -> "JobQuerySet":
        """Jobs of these deployments only."""
        return self.filter(deployment__in=deployments)

    def asked_by(self, key: ApiKey) -> "JobQuerySet":
        """Jobs that this key asked for itself."""
        return self.filter(key=key)

    def private_among(self, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
        """Which of these jobs, or of the predictions that they became, are private. One query."""
        return set(self.filter(pk__in=list(ids), private=True).values_list("pk", flat=True))

    def unfinished(self) -> "JobQuerySet":
        return self.filter(status__in=[JobStatus.QUEUED, JobStatus.RUNNING])


class Job(models.Model):
    """One call that a worker answers. Its version was chosen by the split when it was admitted.

    `payload` names an encrypted file of jobs/vault.py whose key is `payload_key`, itself wrapped by the master key.
    `lease` is new at each claim: only its holder may finish the job. `result` and `error` read as in the API.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    deployment = models.ForeignKey(Deployment, on_delete=models.PROTECT, related_name="jobs")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    number = models.PositiveIntegerField(help_text="the version's number")
    revision = models.PositiveIntegerField()
    pinned = models.BooleanField(default=False)
    source = models.CharField(max_length=8, choices=[(s.value, s.value) for s in Source], default=Source.LIVE.value)
    # Part of something that has its own page and readers (a study): what it holds is told nowhere else.
    private = models.BooleanField(default=False, db_default=False)
    key = models.ForeignKey(ApiKey, on_delete=models.SET_NULL, null=True, related_name="+")
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    client_id = models.CharField(max_length=128, blank=True)
    context = models.JSONField(default=dict)
    request_id = models.CharField(max_length=64, blank=True)
    # "key:ID" or "user:ID": whose Idempotency-Key it is.
    asker = models.CharField(max_length=64)
    idempotency_key = models.CharField(max_length=255, blank=True)
    body_sha256 = models.CharField(max_length=64)

    status = models.CharField(max_length=10, choices=JobStatus, default=JobStatus.QUEUED)
    attempts = models.PositiveSmallIntegerField(default=0)
    lease = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)
    worker = models.CharField(max_length=200, blank=True)
    device = models.CharField(max_length=40, blank=True)
    progress = models.FloatField(default=0.0, help_text="0 to 1")

    payload_kind = models.CharField(max_length=10, choices=PayloadKind)
    payload = models.CharField(max_length=64, blank=True)
    payload_key = models.BinaryField(null=True)
    rows = models.PositiveIntegerField(default=1)
    warnings = models.JSONField(default=list)

    result = models.JSONField(null=True)
    error = models.JSONField(null=True)
    created_at = models.DateTimeField()
    dispatched_at = models.DateTimeField(help_text="when a message was last sent for it")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=models.Q(status__in=JobStatus.values), name="job_status_known"),
            models.CheckConstraint(condition=models.Q(attempts__lte=ATTEMPTS), name="job_attempts"),
            models.CheckConstraint(condition=models.Q(progress__gte=0, progress__lte=1), name="job_progress"),
            models.CheckConstraint(
                condition=~models.Q(status=JobStatus.RUNNING)
                | models.Q(lease__isnull=False, leased_until__isnull=False),
                name="job_running_is_leased",
            ),
            models.CheckConstraint(
                condition=~models.Q(status__in=list(FINAL)) | models.Q(finished_at__isnull=False),
                name="job_final_is_dated",
            ),
        ]
        indexes = [
            models.Index(fields=["id"], condition=models.Q(status="queued"), name="job_queued"),
            models.Index(fields=["leased_until"], condition=models.Q(status="running"), name="job_running"),
            models.Index(fields=["deployment", "-id"], name="job_deployment"),
            models.Index(
                fields=["asker", "deployment", "idempotency_key", "-id"],
                condition=~models.Q(idempotency_key=""),
                name="job_idempotency",
            ),
            models.Index(fields=["finished_at"], condition=~models.Q(payload=""), name="job_payload"),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.status}"

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def seconds_waiting(self, now: datetime) -> float:
        """How long it has been waiting for a worker, or waited."""
        return max(0.0, ((self.started_at or now) - self.created_at).total_seconds())

    def withheld_json(self) -> dict[str, Any]:
        """as_json for who may not see payloads: without the result; of a private job, without a word of its input."""
        document = {**self.as_json(), "result": None, "payload": "withheld"}
        if self.private:
            document["warnings"] = []
            if self.error:
                document["error"] = {**self.error, "detail": TABLE[self.error["code"]].meaning}
        return document

    def as_json(self) -> dict[str, Any]:
        """The job of the contract. Needs `deployment` joined."""
        return {
            "id": str(self.id),
            "status": self.status,
            "deployment": self.deployment.name,
            "version": self.number,
            "split_revision": self.revision,
            "pinned": self.pinned,
            "client_id": self.client_id,
            "prediction_id": str(self.id) if self.status == JobStatus.SUCCEEDED else None,
            "progress": self.progress,
            "attempts": self.attempts,
            "device": self.device,
            "warnings": self.warnings,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "result": self.result,
            "error": self.error,
        }


class WorkerQuerySet(models.QuerySet["Worker"]):
    def alive(self) -> "WorkerQuerySet":
        """Workers that beat lately, by the database's clock."""
        return self.filter(seen_at__gt=Now() - timedelta(seconds=WORKER_SILENT_S))


class Worker(models.Model):
    """A process that takes heavy jobs, as it reports itself every few seconds."""

    name = models.CharField(max_length=200, primary_key=True)
    seen_at = models.DateTimeField()

    objects = WorkerQuerySet.as_manager()

    def __str__(self) -> str:
        return self.name
