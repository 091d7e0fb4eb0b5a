"""Deployments, their immutable split revisions, key grants, and what is published to the data plane."""

import secrets
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.functions import Lower, Now

from controlplane.accounts.models import ApiKey, Right, Team, User
from controlplane.audit.services import Target
from controlplane.catalog.models import ModelVersion, RegisteredModel
from inference.contracts import CACHE_BYTES, MAX_BATCH_ROWS, MAX_IN_FLIGHT, MAX_WAIT_MS, Lane


def _new_salt() -> str:
    return secrets.token_hex(8)


class DeploymentQuerySet(models.QuerySet["Deployment"]):
    def for_user(self, user: User) -> "DeploymentQuerySet":
        """Deployments of the teams in which this person may look around (a site admin: all)."""
        if user.is_superuser:
            return self
        return self.filter(team_id__in=[m.team_id for m in user._memberships() if Right.VIEW in m.rights])

    def for_key(self, key: ApiKey) -> "DeploymentQuerySet":
        """Deployments of the key's team that the key was granted."""
        mine = self.filter(team_id=key.team_id)
        return mine if key.every_deployment else mine.filter(key_grants__key=key)

    def current(self) -> "DeploymentQuerySet":
        return self.filter(retired_at=None)


class Purpose(models.TextChoices):
    RESEARCH = "research", "Research"
    CLINICAL = "clinical", "Clinical"


class Deployment(models.Model):
    """A stable name that clients call; answers with versions of one registered model by its active split revision."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="deployments")
    # Never given twice, also after retirement: a log row's or a client's deployment stays unambiguous.
    name = models.CharField(max_length=60)
    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="deployments")
    description = models.TextField(blank=True, max_length=2000)
    lane = models.CharField(max_length=10, choices=[(lane.value, lane.value) for lane in Lane], default=Lane.AUTO.value)
    salt = models.CharField(max_length=32, default=_new_salt, editable=False)
    payload_share = models.FloatField(default=1.0)
    retention_days = models.PositiveIntegerField(default=30)
    column_policy = models.JSONField(default=dict, help_text="column name -> keep, hash or drop; absent means keep")
    hash_salt = models.CharField(max_length=32, default=_new_salt, editable=False)
    max_rows = models.PositiveIntegerField(default=4096)
    max_body_bytes = models.PositiveIntegerField(default=64 * 1024 * 1024)
    max_batch_rows = models.PositiveIntegerField(default=MAX_BATCH_ROWS, help_text="rows of a shared run; 1: none")
    max_wait_ms = models.FloatField(default=MAX_WAIT_MS, help_text="how long a call may be held back to share a run")
    max_in_flight = models.PositiveIntegerField(
        default=MAX_IN_FLIGHT, help_text="calls in progress in one serving process"
    )
    cache_ttl_s = models.FloatField(default=0.0, help_text="how long an answer may be given again; 0: never")
    cache_bytes = models.PositiveIntegerField(default=CACHE_BYTES, help_text="of answers kept by one process")
    demo = models.BooleanField(default=False)
    # What doctors' studies of it are for. Clinical needs who approved it, and thresholds and an intended use of every
    # version that answers; whatever explores (a bandit) must leave it alone.
    purpose = models.CharField(max_length=8, choices=Purpose, default=Purpose.RESEARCH)
    approver = models.CharField(max_length=200, blank=True, help_text="who approved clinical use, by name")
    approved_at = models.DateTimeField(null=True, blank=True)
    next_revision = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    retired_at = models.DateTimeField(null=True, blank=True)

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(Lower("name"), name="deployment_name"),
            models.CheckConstraint(
                condition=models.Q(payload_share__gte=0, payload_share__lte=1), name="deployment_payload_share"
            ),
            models.CheckConstraint(condition=models.Q(retention_days__gte=1), name="deployment_retention"),
            models.CheckConstraint(
                condition=models.Q(purpose="research") | models.Q(purpose="clinical", approved_at__isnull=False),
                name="deployment_clinical_is_approved",
            ),
            models.CheckConstraint(condition=models.Q(max_rows__gte=1), name="deployment_max_rows"),
            models.CheckConstraint(condition=models.Q(max_batch_rows__gte=1), name="deployment_max_batch_rows"),
            models.CheckConstraint(condition=models.Q(max_wait_ms__gte=0), name="deployment_max_wait_ms"),
            models.CheckConstraint(condition=models.Q(cache_ttl_s__gte=0), name="deployment_cache_ttl_s"),
            models.CheckConstraint(condition=models.Q(max_in_flight__gte=1), name="deployment_max_in_flight"),
            models.CheckConstraint(
                condition=models.Q(lane__in=[lane.value for lane in Lane]), name="deployment_lane_known"
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="deployment_created")]

    def __str__(self) -> str:
        return self.name

    def audit_target(self) -> Target:
        return Target("deployment", self.pk, self.name, self.team_id)

    def settings_json(self) -> dict[str, Any]:
        """What can be edited, as audit events and the API tell it."""
        return {
            "description": self.description,
            "lane": self.lane,
            "capture": {
                "payload_share": self.payload_share,
                "retention_days": self.retention_days,
                "columns": self.column_policy,
            },
            "max_rows": self.max_rows,
            "max_body_bytes": self.max_body_bytes,
            "max_batch_rows": self.max_batch_rows,
            "max_wait_ms": self.max_wait_ms,
            "cache_ttl_s": self.cache_ttl_s,
            "cache_bytes": self.cache_bytes,
            "max_in_flight": self.max_in_flight,
        }


class RevisionState(models.TextChoices):
    PREPARING = "preparing", "Preparing"
    ACTIVE = "active", "Active"
    FAILED = "failed", "Failed"
    SUPERSEDED = "superseded", "Superseded"


class SplitRevision(models.Model):
    """One split of a deployment's traffic, never edited. Shares are basis points by version number.

    Live shares total 10,000. A version at 0 is loaded and can be pinned, and gets no other call. `generation` is
    the routes generation that first carried the revision; later ones carry it until it ended. `activated_at` is set
    for every revision that ever served.
    """

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    shares = models.JSONField()
    shadow = models.JSONField(default=dict)
    state = models.CharField(max_length=12, choices=RevisionState, default=RevisionState.PREPARING)
    failure = models.TextField(blank=True)
    reason = models.TextField(blank=True, max_length=500)
    actor = models.CharField(max_length=200)
    actor_user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    returns_to = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    generation = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["deployment", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "number"], name="split_revision_number"),
            models.UniqueConstraint(
                fields=["deployment"],
                condition=models.Q(state=RevisionState.ACTIVE),
                name="split_revision_one_active",
            ),
            models.UniqueConstraint(
                fields=["deployment"],
                condition=models.Q(state=RevisionState.PREPARING),
                name="split_revision_one_preparing",
            ),
            models.CheckConstraint(condition=models.Q(state__in=RevisionState.values), name="split_revision_state"),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} revision {self.number}"

    @property
    def numbers(self) -> set[int]:
        """Every version number that the revision names, live or shadow, also at 0 %."""
        return {int(number) for number in (*self.shares, *self.shadow)}

    def percentages(self) -> dict[str, float]:
        """Live shares in per cent by version number."""
        return in_per_cent(self.shares)

    def as_json(self) -> dict[str, Any]:
        """What audit events and the API say of the revision; shares in per cent, as they were given."""
        return {
            "revision": self.number,
            "shares": in_per_cent(self.shares),
            "shadow": in_per_cent(self.shadow),
            "state": self.state,
        }


def in_per_cent(shares: Mapping[str, int]) -> dict[str, float]:
    """Basis points as per cent by version number, in the order of numbers; whole ones as whole numbers."""
    return {
        number: points // 100 if points % 100 == 0 else points / 100
        for number, points in sorted(shares.items(), key=lambda item: int(item[0]))
    }


class VersionLabel(models.Model):
    """A label such as `stable` or `canary` by which a V1 URL names a version of a deployment."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="version_labels")
    label = models.CharField(max_length=40)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="version_labels")

    class Meta:
        ordering = ["label"]
        constraints = [models.UniqueConstraint(fields=["deployment", "label"], name="version_label_once")]

    def __str__(self) -> str:
        return f"{self.deployment}/{self.label}"


class KeyGrant(models.Model):
    """Lets an API key call one deployment, where the key may not call every one of its team."""

    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="grants")
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="key_grants")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["key", "deployment"], name="key_grant_once")]

    def __str__(self) -> str:
        return f"{self.key} may call {self.deployment}"


class DocumentKind(models.TextChoices):
    ACCESS = "access", "access"
    ROUTES = "routes", "routes"


class DataplaneDocument(models.Model):
    """A signed document for the data plane; `body` is the JSON of contracts.Access or contracts.Routes.

    The data plane reads and activates these rows with plain SQL (inference/registry.py): keep names and states stable.
    `settled` and `failing` are the control plane's own: whether it has drawn the consequences of a failed generation,
    and the ids of the versions that did not load.
    """

    kind = models.CharField(max_length=8, choices=DocumentKind)
    generation = models.BigIntegerField()
    body = models.TextField()
    signature = models.CharField(max_length=64)
    state = models.CharField(max_length=12, choices=RevisionState)
    failure = models.TextField(blank=True, db_default="")
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True)
    settled = models.BooleanField(db_default=False)
    failing = models.JSONField(db_default=[])

    class Meta:
        db_table = "dataplane_document"
        constraints = [models.UniqueConstraint(fields=["kind", "generation"], name="dataplane_document_generation")]
        indexes = [models.Index(fields=["kind", "state", "-generation"], name="dataplane_document_state")]

    def __str__(self) -> str:
        return f"{self.kind} {self.generation}"


LIVE_FOR_S = 5


class DataplaneProcessQuerySet(models.QuerySet["DataplaneProcess"]):
    def live(self) -> "DataplaneProcessQuerySet":
        """Processes whose heartbeat is recent, by the database's clock."""
        return self.filter(heartbeat_at__gt=Now() - timedelta(seconds=LIVE_FOR_S))


class DataplaneProcess(models.Model):
    """A serving process as it reports itself each second; live while its heartbeat is at most five seconds old."""

    id = models.UUIDField(primary_key=True)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField(db_index=True)
    access_generation = models.BigIntegerField(db_default=0)
    prepared_generation = models.BigIntegerField(db_default=0)
    active_generation = models.BigIntegerField(db_default=0)
    failed_generation = models.BigIntegerField(null=True)
    failures = models.JSONField(db_default={})
    loaded = models.JSONField(db_default={})

    objects = DataplaneProcessQuerySet.as_manager()

    class Meta:
        db_table = "dataplane_process"

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"
