"""Writes audit events. Call it inside the transaction of the change, so that neither is kept without the other."""

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from django.utils import timezone

from controlplane.audit.models import AuditEvent


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a person, an API key, a command, or the system itself; and from where.

    `label` reads `user:NAME`, `key:LABEL`, `command` or `system`. `user_id` is set for a person alone.
    """

    label: str
    id: str = ""
    user_id: uuid.UUID | None = None
    address: str | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What an event is about. `team_id`: whose members may read the event; None leaves it to site admins."""

    type: str
    id: object
    label: str
    team_id: uuid.UUID | None


class Audited(Protocol):
    """A row that knows how events name it."""

    def audit_target(self) -> Target: ...


COMMAND = Actor("command")
SYSTEM = Actor("system")


def record(
    *,
    actor: Actor,
    action: str,
    target_type: str,
    target_id: object,
    target_label: str,
    team_id: uuid.UUID | None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
) -> AuditEvent:
    """Appends one event and returns it. One INSERT."""
    return AuditEvent.objects.create(
        at=timezone.now(),
        actor=actor.label[:200],
        actor_id=actor.id,
        team_id=team_id,
        action=action,
        target_type=target_type,
        target_id=str(target_id)[:64],
        target_label=target_label[:200],
        before=before,
        after=after,
        reason=reason,
        address=actor.address,
        request_id=actor.request_id,
    )


def record_change(
    *,
    actor: Actor,
    action: str,
    of: Audited,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
) -> AuditEvent:
    """`record` for a row that names itself."""
    target = of.audit_target()
    return record(
        actor=actor,
        action=action,
        target_type=target.type,
        target_id=target.id,
        target_label=target.label,
        team_id=target.team_id,
        before=before,
        after=after,
        reason=reason,
    )
