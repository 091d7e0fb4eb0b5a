"""Who may see and do what through the control API: the one place that knows both people and keys.

Queries are scoped first, so that an outsider gets 404; `require` then gives an insider who lacks the right 403.
"""

import uuid
from collections.abc import Iterable

from django.db.models import Q
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request

from controlplane.accounts.models import ApiKey, Right, Team, User
from controlplane.accounts.queries import rights_of_key, teams_where
from controlplane.api.authentication import KeyUser, actor_of
from controlplane.catalog.models import RegisteredModel, RegisteredModelQuerySet
from controlplane.deployments.models import Deployment, DeploymentQuerySet
from controlplane.errors import DomainError, field_error
from controlplane.studies.queries import awaiting_answer

__all__ = [
    "AFTER_ANSWER",
    "actor_of",
    "awaiting",
    "key_of",
    "person_of",
    "require",
    "require_anywhere",
    "rights",
    "team_of",
    "team_scope",
    "visible_deployments",
    "visible_models",
]

DEFAULT_TEAM = "default"
# What `payload` reads where the person is to answer the study first.
AFTER_ANSWER = "after_answer"


def key_of(request: Request) -> ApiKey | None:
    """The API key that asks, or None where a person does."""
    return request.user.key if isinstance(request.user, KeyUser) else None


def person_of(request: Request) -> User | None:
    """The signed-in person who asks, or None where a key does."""
    return request.user if isinstance(request.user, User) else None


def rights(request: Request, team_id: uuid.UUID) -> frozenset[Right]:
    """The rights that whoever asks holds in a team; empty for an outsider."""
    key = key_of(request)
    if key is not None:
        return rights_of_key(key) if key.team_id == team_id else frozenset()
    person = person_of(request)
    return person.rights_in(team_id) if person is not None else frozenset()


def awaiting(request: Request, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these jobs, or predictions, the person who asks is to answer before they see what they say."""
    person = person_of(request)
    return awaiting_answer(person, ids) if person is not None else set()


def require(request: Request, right: Right, team_id: uuid.UUID) -> None:
    """Raises PermissionDenied (403 `forbidden`) where whoever asks lacks the right in that team."""
    if right not in rights(request, team_id):
        raise PermissionDenied(_lacking(request, right))


def require_anywhere(request: Request, right: Right) -> None:
    """Raises PermissionDenied where whoever asks holds the right in no team at all."""
    key, person = key_of(request), person_of(request)
    held = right in rights_of_key(key) if key is not None else person is not None and person.has_right_anywhere(right)
    if not held:
        raise PermissionDenied(_lacking(request, right))


def team_scope(request: Request, *any_of: Right) -> Q:
    """A filter on `team_id`: the teams in which whoever asks holds one of these rights.

    Raises PermissionDenied for a key that holds none of them: whatever it names, it may not look.
    """
    key, person = key_of(request), person_of(request)
    if key is not None:
        if not rights_of_key(key) & set(any_of):
            raise PermissionDenied(_lacking(request, any_of[0]))
        return Q(team_id=key.team_id)
    team_ids: set[uuid.UUID] = set()
    for right in any_of if person is not None else ():
        found = teams_where(person, right) if person is not None else set()
        if found is None:
            return Q()
        team_ids |= found
    return Q(team_id__in=team_ids)


def visible_models(request: Request, *also: Right) -> RegisteredModelQuerySet:
    """Models that whoever asks may see, or reach by one of the rights `also`."""
    return RegisteredModel.objects.filter(team_scope(request, Right.VIEW, *also))


def visible_deployments(request: Request, *also: Right) -> DeploymentQuerySet:
    """Deployments that whoever asks may see, or reach by one of the rights `also` (PREDICT for jobs and feedback)."""
    scope = team_scope(request, Right.VIEW, *also)
    key = key_of(request)
    return Deployment.objects.for_key(key).filter(scope) if key is not None else Deployment.objects.filter(scope)


def team_of(request: Request, name: str | None = None) -> Team:
    """The team that something new will belong to: the key's, the named one, the person's only one, or `default`.

    Raises DomainError: `not_found` for a team that whoever asks does not belong to, `validation_error` where one has
    to be named.
    """
    key, person = key_of(request), person_of(request)
    if key is not None:
        if name and name != key.team.name:
            raise DomainError("not_found", "The key belongs to another team.")
        return key.team
    assert person is not None
    teams = {team.name: team for team in Team.objects.for_user(person).distinct()}
    if name:
        if name not in teams:
            raise DomainError("not_found", f"There is no team “{name}” that you belong to.")
        return teams[name]
    if DEFAULT_TEAM in teams:
        return teams[DEFAULT_TEAM]
    if len(teams) == 1:
        return next(iter(teams.values()))
    raise field_error("validation_error", "team", f"Name the team: {_listed(teams) or 'you belong to none yet'}.")


def _lacking(request: Request, right: Right) -> str:
    who = "The key" if key_of(request) is not None else "Your role"
    return f"{who} does not include the right to {right.label}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
