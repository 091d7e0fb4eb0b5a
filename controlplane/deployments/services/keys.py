"""API keys with grants to single deployments: what accounts cannot know."""

from collections.abc import Sequence
from datetime import datetime

from django.db import transaction

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.services import DEFAULT_SCOPES, issue_key
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment, KeyGrant
from controlplane.deployments.publishing import publish_access
from controlplane.errors import field_error


def issue_key_for(
    *,
    actor: Actor,
    team: Team,
    label: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    deployments: list[Deployment] | None = None,
    expires_at: datetime | None = None,
    test: bool = False,
    rate_per_minute: int | None = None,
    quota_per_day: int | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key for these deployments of the team, or for all of them with None, and publishes it.

    Returns the row and the key itself, which cannot be shown again. Raises DomainError as issue_key does, and
    `validation_error` for an empty list or a deployment of another team.
    """
    if deployments is not None and not deployments:
        raise field_error("validation_error", "deployments", "Name at least one deployment, or leave the list out.")
    for index, deployment in enumerate(deployments or ()):
        if deployment.team_id != team.pk:
            message = f"{deployment.name} does not belong to the team {team.name}."
            raise field_error("validation_error", ["deployments", index], message)
    with transaction.atomic():
        key, plain = issue_key(
            actor=actor,
            team=team,
            label=label,
            scopes=scopes,
            every_deployment=deployments is None,
            expires_at=expires_at,
            test=test,
            rate_per_minute=rate_per_minute,
            quota_per_day=quota_per_day,
        )
        granted = {deployment.pk: deployment for deployment in deployments or ()}
        KeyGrant.objects.bulk_create(KeyGrant(key=key, deployment=deployment) for deployment in granted.values())
        publish_access()
    return key, plain
