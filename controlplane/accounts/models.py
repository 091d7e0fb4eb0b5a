"""Users, teams, memberships with roles, API keys."""

import uuid
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Lower

from controlplane.audit.services import Target
from inference.contracts import Scope


class Right(models.TextChoices):
    """What a role may do within its team. A site admin holds every right of every team but VIEW_PAYLOAD and STUDY."""

    VIEW = "view", "see models, deployments, figures"
    VIEW_PAYLOAD = "view_payload", "see inputs, outputs and pictures"
    UPLOAD = "upload", "register models and upload versions"
    DEPLOY = "deploy", "deploy and move traffic"
    MANAGE_KEYS = "manage_keys", "issue and revoke API keys"
    MANAGE_TEAM = "manage_team", "change members and roles"
    AUDIT = "audit", "read the audit log"
    PREDICT = "predict", "ask a deployment and give feedback"
    STUDY = "study", "upload X-ray studies and review them"


class Role(models.TextChoices):
    ADMIN = "admin", "Admin"
    DATA_SCIENTIST = "data_scientist", "Data scientist"
    DEVELOPER = "developer", "Developer"
    DOCTOR = "doctor", "Doctor"
    VIEWER = "viewer", "Viewer"


RIGHTS_OF_ROLE: dict[str, frozenset[Right]] = {
    Role.ADMIN: frozenset(Right) - {Right.VIEW_PAYLOAD, Right.STUDY},
    Role.DATA_SCIENTIST: frozenset({Right.VIEW, Right.VIEW_PAYLOAD, Right.UPLOAD, Right.DEPLOY, Right.PREDICT}),
    Role.DEVELOPER: frozenset({Right.VIEW, Right.MANAGE_KEYS, Right.PREDICT}),
    Role.DOCTOR: frozenset({Right.STUDY, Right.PREDICT}),
    Role.VIEWER: frozenset({Right.VIEW}),
}


class User(AbstractUser):
    """A person who signs in. `is_superuser` marks a site admin."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)

    class Meta:
        ordering = ["username"]
        constraints = [models.UniqueConstraint(Lower("username"), name="user_name_ignoring_case")]

    def rights_in(self, team_id: uuid.UUID) -> frozenset[Right]:
        """The rights this person holds in a team; empty for an outsider. One query per person and request."""
        granted: frozenset[Right] = frozenset()
        if self.is_superuser:
            granted = frozenset(Right) - {Right.VIEW_PAYLOAD, Right.STUDY}
        for membership in self._memberships():
            if membership.team_id == team_id:
                granted |= membership.rights
        return granted

    def has_right(self, right: Right, team_id: uuid.UUID) -> bool:
        return right in self.rights_in(team_id)

    def has_right_anywhere(self, right: Right) -> bool:
        if self.is_superuser and right not in (Right.VIEW_PAYLOAD, Right.STUDY):
            return True
        return any(right in membership.rights for membership in self._memberships())

    def _memberships(self) -> "list[Membership]":
        cached: list[Membership] | None = getattr(self, "_membership_cache", None)
        if cached is None:
            cached = list(self.memberships.all())
            self._membership_cache = cached
        return cached


class TeamQuerySet(models.QuerySet["Team"]):
    def for_user(self, user: User) -> "TeamQuerySet":
        """The teams that a person belongs to; every team for a site admin."""
        return self if user.is_superuser else self.filter(memberships__user=user)


class Team(models.Model):
    """Owns models, deployments, keys, studies and alerts."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(max_length=60, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TeamQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=20, choices=Role)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "team", "role"], name="membership_once"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.team}"

    def audit_target(self) -> Target:
        """A change of roles is about the person."""
        return Target("user", self.user_id, self.user.username, self.team_id)

    @property
    def rights(self) -> frozenset[Right]:
        return RIGHTS_OF_ROLE[self.role]


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def for_user(self, user: User) -> "ApiKeyQuerySet":
        """Keys of the teams in which this person may manage keys (a site admin: all)."""
        if user.is_superuser:
            return self
        teams = [m.team_id for m in user._memberships() if Right.MANAGE_KEYS in m.rights]
        return self.filter(team_id__in=teams)

    def usable(self, at: datetime) -> "ApiKeyQuerySet":
        return self.filter(revoked_at=None).exclude(expires_at__lte=at)


def _default_scopes() -> list[str]:
    return [Scope.PREDICT.value, Scope.PIN.value, Scope.FEEDBACK.value]


class ApiKey(models.Model):
    """A bearer key, shown once and kept as a sha256 digest (128 bits and more of randomness need no slow hash)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="api_keys")
    label = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16, help_text="the first characters, to recognise it by")
    digest = models.CharField(max_length=64, unique=True)
    scopes = ArrayField(models.CharField(max_length=20), default=_default_scopes)
    # Grants to single deployments live in deployments.KeyGrant: accounts knows no deployment.
    every_deployment = models.BooleanField(default=True)
    test = models.BooleanField(default=False)
    rate_per_minute = models.PositiveIntegerField(null=True, blank=True)
    quota_per_day = models.PositiveBigIntegerField(null=True, blank=True, help_text="calls a day of UTC")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["team", "-created_at"], name="api_key_team")]

    def __str__(self) -> str:
        return f"{self.label} ({self.prefix}…)"

    def state(self, at: datetime) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= at else "active"

    def audit_target(self) -> Target:
        return Target("key", self.pk, self.label, self.team_id)

    def has_scope(self, scope: Scope) -> bool:
        return scope.value in self.scopes

    def as_json(self) -> dict[str, Any]:
        """What audit events and the API say of the key; never the key or its digest."""
        return {
            "id": str(self.id),
            "label": self.label,
            "prefix": self.prefix,
            "scopes": list(self.scopes),
            "every_deployment": self.every_deployment,
            "test": self.test,
            "rate_per_minute": self.rate_per_minute,
            "quota_per_day": self.quota_per_day,
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
        }


class QuotaUse(models.Model):
    """The calls of a key with a quota in a day of UTC, as all front doors (within a second) and the jobs' address tell.

    Written in SQL: inference.server.usage, controlplane.accounts.limits.
    """

    key_id = models.UUIDField()
    day = models.DateField()
    calls = models.BigIntegerField()

    class Meta:
        db_table = "quota_use"
        constraints = [models.UniqueConstraint(fields=["key_id", "day"], name="quota_use_day")]

    def __str__(self) -> str:
        return f"{self.key_id} {self.day}: {self.calls}"
