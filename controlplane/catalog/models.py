"""Registered models, their versions, and the files they are made of."""

import uuid
from typing import Any

import msgspec
from django.conf import settings
from django.db import models
from django.db.models.functions import Lower

from controlplane.accounts.models import Right, Team, User
from controlplane.audit.services import Target
from inference.contracts import Activation, Column, Signature, Task, ValidationReport, VersionRoute


class Artifact(models.Model):
    """A file under its sha256, written once. `kind` says what it was stored as; the bytes alone are its identity."""

    sha256 = models.CharField(max_length=64, primary_key=True)
    size_bytes = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(size_bytes__gt=0), name="artifact_not_empty")]

    def __str__(self) -> str:
        return self.sha256[:12]


class RegisteredModelQuerySet(models.QuerySet["RegisteredModel"]):
    def for_user(self, user: User) -> "RegisteredModelQuerySet":
        """Models of the teams in which this person may look around (a site admin: all)."""
        if user.is_superuser:
            return self
        return self.filter(team_id__in=[m.team_id for m in user._memberships() if Right.VIEW in m.rights])

    def for_team(self, team: Team) -> "RegisteredModelQuerySet":
        return self.filter(team=team)


class RegisteredModel(models.Model):
    """A name under which versions are uploaded; unique in the installation, ignoring case."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="registered_models")
    name = models.CharField(max_length=60)
    description = models.TextField(blank=True, max_length=2000)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    # Numbers are never used twice, so that a log row's version stays unambiguous.
    next_number = models.PositiveIntegerField(default=1)
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = RegisteredModelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(Lower("name"), name="registered_model_name")]

    def __str__(self) -> str:
        return self.name

    def audit_target(self) -> Target:
        return Target("model", self.pk, self.name, self.team_id)


class VersionState(models.TextChoices):
    UPLOADED = "uploaded", "Uploaded"
    VALIDATING = "validating", "Validating"
    READY = "ready", "Ready"
    REJECTED = "rejected", "Rejected"
    ARCHIVED = "archived", "Archived"


class ModelVersion(models.Model):
    """One uploaded ONNX file with all that says how to read it. Its meaning is frozen once it is ready.

    `uploaded_artifact` is what came in; `artifact` what is served (the same, or the file with its ZipMap tail cut).
    `signature` and `report` are the JSON of contracts.Signature and contracts.ValidationReport.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=12, choices=VersionState, default=VersionState.UPLOADED)
    file_name = models.CharField(max_length=255, blank=True, help_text="as the uploader called it; shown, never used")
    uploaded_artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+")
    artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+", null=True)
    golden_artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+", null=True, blank=True)
    reference_artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="+", null=True, blank=True)
    reference_name = models.CharField(max_length=255, blank=True)
    reference_summary = models.JSONField(null=True, help_text="reference.ReferenceSummary as JSON")
    # descriptions.Description.identity: the bytes and all that changes what the version answers, as it was asked.
    identity = models.CharField(max_length=64)
    task = models.CharField(max_length=30, blank=True)
    activation = models.CharField(max_length=10, blank=True)
    labels = models.JSONField(default=list)
    thresholds = models.JSONField(default=dict)
    columns = models.JSONField(default=list, help_text="contracts.Column as JSON, in the input's order")
    preprocessor = models.JSONField(null=True, blank=True)
    accepts_non_finite = models.BooleanField(default=False)
    signature = models.JSONField(null=True)
    report = models.JSONField(null=True)
    # Of the validation that runs, or of one that was lost; a report holds its own.
    progress = models.JSONField(default=list, help_text="contracts.ReportCheck as JSON: the checks done so far")
    latency_ms = models.FloatField(null=True)
    memory_bytes = models.BigIntegerField(null=True)
    code = models.CharField(max_length=40, blank=True, help_text="why it was rejected: a code of the error table")
    reason = models.TextField(blank=True)
    source_commit = models.CharField(max_length=64, blank=True)
    source_run_url = models.URLField(blank=True)
    source_data_sha256 = models.CharField(max_length=64, blank=True)
    intended_use = models.JSONField(default=dict, help_text="modality, body_part, view, age_range")
    # {"source": where it was measured, "labels": {label: {"threshold", "sensitivity", "specificity", "positives",
    # "negatives"}}}: what is on record about the version, never what was measured here.
    performance = models.JSONField(default=dict, blank=True)
    notes = models.TextField(blank=True, max_length=4000)
    attempts = models.PositiveSmallIntegerField(default=0)
    leased_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    validated_at = models.DateTimeField(null=True)
    archived_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["model", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["model", "number"], name="version_number"),
            models.UniqueConstraint(
                fields=["model", "identity"],
                # What was rejected or archived may be uploaded again, and becomes a new version.
                condition=~models.Q(state__in=["rejected", "archived"]),
                name="version_identity",
            ),
            models.CheckConstraint(condition=models.Q(state__in=VersionState.values), name="version_state_known"),
            models.CheckConstraint(
                condition=~models.Q(state=VersionState.READY)
                | models.Q(artifact__isnull=False, signature__isnull=False),
                name="version_ready_is_complete",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model.name} version {self.number}"

    def audit_target(self) -> Target:
        return Target("version", self.pk, str(self), self.model.team_id)

    @property
    def typed_report(self) -> ValidationReport | None:
        return msgspec.convert(self.report, ValidationReport) if self.report else None

    def route(self) -> VersionRoute:
        """What the data plane and the workers need of a ready version. Needs `model` and `artifact` joined."""
        if self.artifact is None or self.signature is None:
            raise ValueError(f"{self} is not ready")
        return VersionRoute(
            id=str(self.id),
            model=self.model.name,
            number=self.number,
            artifact_sha256=self.artifact.sha256,
            artifact_bytes=self.artifact.size_bytes,
            signature=msgspec.convert(self.signature, Signature),
            task=Task(self.task),
            activation=Activation(self.activation or "none"),
            labels=tuple(self.labels),
            thresholds=dict(self.thresholds),
            columns=msgspec.convert(self.columns, tuple[Column, ...]),
            preprocessor=self.preprocessor,
            cost_s=(self.latency_ms or 0.0) / 1000,
            memory_bytes=self.memory_bytes,
            accepts_non_finite=self.accepts_non_finite,
        )

    def as_json(self) -> dict[str, Any]:
        """What audit events say of a version."""
        return {"number": self.number, "state": self.state, "sha256": self.uploaded_artifact_id, "task": self.task}


class ReferenceDigests(models.Model):
    """What drift compares with, worked out once when a reference set is accepted: digests of its columns, packed by
    inference/runtime/digest.py. In a table of its own, since only drift reads it.
    """

    version = models.OneToOneField(
        ModelVersion, on_delete=models.CASCADE, primary_key=True, related_name="reference_digests"
    )
    packed = models.BinaryField()

    class Meta:
        db_table = "catalog_reference_digests"

    def __str__(self) -> str:
        return f"reference set of {self.version_id}"
