"""API keys: issue (shown once), look at their use and failed calls, revoke."""

import uuid
from datetime import timedelta

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from controlplane.accounts.models import ApiKey, Right, Team
from controlplane.accounts.queries import scopes_beyond
from controlplane.accounts.services import limit_key, revoke_key
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require, require_anywhere, teams_with, user_of
from controlplane.dashboard.forms.errors import show
from controlplane.dashboard.forms.keys import KeyForm, LimitsForm
from controlplane.dashboard.pages.keys import key_page, keys_page
from controlplane.deployments.services.keys import issue_key_for
from controlplane.errors import DomainError, field_error


@require_safe
def keys(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.MANAGE_KEYS)
    form = KeyForm(teams=teams_with(request, Right.MANAGE_KEYS))
    return render(request, "keys/list.html", {"page": keys_page(user_of(request), timezone.now()), "form": form})


@never_cache
@require_POST
def issue(request: HttpRequest) -> HttpResponse:
    """Answers with the page itself, not a redirect: the key is shown this once and kept nowhere."""
    require_anywhere(request, Right.MANAGE_KEYS)
    form = KeyForm(request.POST, teams=teams_with(request, Right.MANAGE_KEYS))
    plain = ""
    if form.is_valid():
        chosen = form.cleaned_data
        try:
            _refuse_scopes_beyond(request, chosen["team"], chosen["scopes"])
            _, plain = issue_key_for(
                actor=person_actor(request),
                team=chosen["team"],
                label=chosen["label"],
                scopes=chosen["scopes"],
                deployments=list(chosen["deployments"]) or None,
                expires_at=chosen["expires_at"],
                test=chosen["test"],
                rate_per_minute=chosen["rate_per_minute"],
                quota_per_day=chosen["quota_per_day"],
            )
        except DomainError as error:
            show(form, error)
    if plain:
        form = KeyForm(teams=teams_with(request, Right.MANAGE_KEYS))
    context = {"page": keys_page(user_of(request), timezone.now()), "form": form, "plain": plain}
    return render(request, "keys/list.html", context, status=200 if plain else 422)


@require_safe
def key(request: HttpRequest, key_id: uuid.UUID) -> HttpResponse:
    found = _find_key(request, key_id)
    return _page(request, found, LimitsForm.of(found))


@require_POST
def limit(request: HttpRequest, key_id: uuid.UUID) -> HttpResponse:
    found = _find_key(request, key_id)
    form = LimitsForm(request.POST)
    if form.is_valid():
        try:
            limit_key(actor=person_actor(request), key=found, **form.cleaned_data)
        except DomainError as error:
            show(form, error)
    if not form.is_valid():
        return _page(request, found, form, status=422)
    messages.success(request, f"The limits of “{found.label}” hold within five seconds.")
    return redirect("pages:key", key_id=key_id)


@require_POST
def revoke(request: HttpRequest, key_id: uuid.UUID) -> HttpResponse:
    found = _find_key(request, key_id)
    revoke_key(actor=person_actor(request), key=found)
    messages.success(request, f"“{found.label}” is revoked: within five seconds no call with it is answered.")
    return redirect("pages:key", key_id=key_id)


def _page(request: HttpRequest, found: ApiKey, form: LimitsForm, status: int = 200) -> HttpResponse:
    now = timezone.now()
    context = {"page": key_page(found, now - timedelta(days=1), now), "form": form}
    return render(request, "keys/detail.html", context, status=status)


def _find_key(request: HttpRequest, key_id: uuid.UUID) -> ApiKey:
    """Raises Http404 for another team's key, PermissionDenied without the right to manage keys."""
    teams = Team.objects.for_user(user_of(request))
    found = get_object_or_404(ApiKey.objects.select_related("team", "created_by").filter(team__in=teams), pk=key_id)
    require(request, Right.MANAGE_KEYS, found.team_id)
    return found


def _refuse_scopes_beyond(request: HttpRequest, team: Team, scopes: list[str]) -> None:
    """Raises DomainError for a scope beyond the person's own rights in the team: no key outranks its issuer."""
    beyond = scopes_beyond(scopes, user_of(request).rights_in(team.pk))
    if beyond:
        message = f"You cannot give a key rights that you do not hold: {', '.join(beyond)}."
        raise field_error("validation_error", "scopes", message)
