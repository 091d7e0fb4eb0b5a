"""What a page may do for the person who asks: queries are scoped first (outsiders get 404), then rights required."""

import uuid

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from controlplane.accounts.models import Right, Team, User


def user_of(request: HttpRequest) -> User:
    """The signed-in person; LoginRequiredMiddleware has seen to it that there is one."""
    assert isinstance(request.user, User)
    return request.user


def require(request: HttpRequest, right: Right, team_id: uuid.UUID) -> None:
    """Raises PermissionDenied (403) where the person lacks the right in that team."""
    if not user_of(request).has_right(right, team_id):
        raise PermissionDenied


def require_anywhere(request: HttpRequest, right: Right) -> None:
    """Raises PermissionDenied (403) where the person holds the right in no team."""
    if not user_of(request).has_right_anywhere(right):
        raise PermissionDenied


def teams_with(request: HttpRequest, right: Right) -> list[Team]:
    """The teams in which the person holds a right, `default` first: what a form may choose from."""
    user = user_of(request)
    teams = [team for team in Team.objects.for_user(user).distinct() if user.has_right(right, team.pk)]
    return sorted(teams, key=lambda team: (team.name != "default", team.name))
