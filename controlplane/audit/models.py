from typing import Any

from django.db import models


class AuditEventQuerySet(models.QuerySet["AuditEvent"]):
    def for_teams(self, team_ids: "models.QuerySet[Any] | list[Any]") -> "AuditEventQuerySet":
        """Events of these teams only."""
        return self.filter(team_id__in=team_ids)


class AuditEvent(models.Model):
    """Who did what, when, from where, and what it changed. Append-only: a trigger refuses UPDATE and DELETE.

    Names are copied, not referenced, so that an event outlives the person and the thing it speaks of.
    """

    at = models.DateTimeField(db_index=True)
    actor = models.CharField(max_length=200, help_text="user:NAME, key:LABEL, command or system")
    actor_id = models.CharField(max_length=64, blank=True)
    team_id = models.UUIDField(null=True, blank=True)
    action = models.CharField(max_length=80, help_text="a verb and a noun, for example split.apply")
    target_type = models.CharField(max_length=40)
    target_id = models.CharField(max_length=64)
    target_label = models.CharField(max_length=200)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    reason = models.TextField(blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["team_id", "-id"], name="audit_event_team"),
            models.Index(fields=["target_type", "target_id", "-id"], name="audit_event_target"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor} {self.action} {self.target_label}"
