"""How a deployment's studies are read, and what they are for."""

from django.db import transaction

from controlplane.audit.services import Actor, record_change
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.purpose import set_purpose
from controlplane.errors import field_error
from controlplane.studies.models import ReadingPolicy
from controlplane.studies.services.sending import policy_of

__all__ = ["policy_of", "set_policy", "set_purpose"]

RETENTION_MOST = 3650


def set_policy(
    *, actor: Actor, deployment: Deployment, read_first: bool, readers: int, retention_days: int
) -> ReadingPolicy:
    """Says how studies sent from now on are read. Raises DomainError `validation_error`."""
    if isinstance(readers, bool) or readers not in (1, 2):
        raise field_error("validation_error", "readers", "A study is read by 1 or 2 doctors.")
    if isinstance(retention_days, bool) or not 1 <= retention_days <= RETENTION_MOST:
        message = f"Pictures are kept from 1 to {RETENTION_MOST} days."
        raise field_error("validation_error", "retention_days", message)
    after = {"read_first": bool(read_first), "readers": readers, "retention_days": retention_days}
    with transaction.atomic():
        # The deployment's row is the lock: there may be no policy yet.
        Deployment.objects.select_for_update(of=("self",)).get(pk=deployment.pk)
        policy = policy_of(deployment)
        before = {name: getattr(policy, name) for name in after}
        if policy.pk is not None and before == after:
            return policy
        for name, value in after.items():
            setattr(policy, name, value)
        policy.save()
        record_change(actor=actor, action="deployment.reading", of=deployment, before=before, after=after)
    return policy
