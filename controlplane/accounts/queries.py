"""Reads of people and keys."""

import hashlib
import re
import uuid
from collections.abc import Iterable

from django.utils import timezone

from controlplane.accounts.models import ApiKey, Right, User
from inference.contracts import Scope

TOKEN = re.compile(r"sb_(?:test_)?[0-9A-Za-z]{32,100}")

RIGHTS_OF_SCOPE: dict[Scope, frozenset[Right]] = {
    Scope.PREDICT: frozenset({Right.PREDICT}),
    Scope.PIN: frozenset(),
    Scope.FEEDBACK: frozenset(),
    Scope.READ: frozenset({Right.VIEW}),
    # Who uploads or deploys has to see what became of it.
    Scope.UPLOAD: frozenset({Right.UPLOAD, Right.VIEW}),
    Scope.DEPLOY: frozenset({Right.DEPLOY, Right.VIEW}),
    # Runs the team; to ask or to pin takes the scopes of those names, here as on the data plane.
    Scope.ADMIN: frozenset(Right) - {Right.VIEW_PAYLOAD, Right.STUDY, Right.PREDICT},
}


def digest_of(token: str) -> str:
    """The hex sha256 under which a key is kept."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_usable_key(token: str) -> ApiKey | None:
    """The usable key with its team; None where it is malformed, unknown, revoked or expired. One query at most."""
    if not token.isascii() or TOKEN.fullmatch(token) is None:
        return None
    return ApiKey.objects.usable(timezone.now()).select_related("team").filter(digest=digest_of(token)).first()


def rights_of_key(key: ApiKey) -> frozenset[Right]:
    """What a key may do within its team. No key sees payloads or studies of others."""
    return rights_of_scopes(key.scopes)


def rights_of_scopes(scopes: Iterable[str]) -> frozenset[Right]:
    known = {scope.value for scope in Scope}
    return frozenset().union(*(RIGHTS_OF_SCOPE[Scope(scope)] for scope in scopes if scope in known))


def scopes_beyond(scopes: Iterable[str], held: frozenset[Right]) -> list[str]:
    """The scopes whose rights are not all among those held: what whoever holds these may not hand out."""
    return [scope for scope in scopes if not rights_of_scopes([scope]) <= held]


def teams_where(user: User, right: Right) -> set[uuid.UUID] | None:
    """Ids of the teams in which a person holds a right; None where that is every team (a site admin)."""
    if user.is_superuser and right not in (Right.VIEW_PAYLOAD, Right.STUDY):
        return None
    return {membership.team_id for membership in user._memberships() if right in membership.rights}
