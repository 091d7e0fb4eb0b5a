"""Moving traffic: apply a split, undo it, return to an earlier one."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require
from controlplane.dashboard.forms.split import read_revision, read_shares
from controlplane.dashboard.views.deployments import find_deployment, traffic_page
from controlplane.deployments.models import RevisionState, SplitRevision
from controlplane.deployments.services.splits import apply_split, roll_back
from controlplane.deployments.settling import data_plane_is_up, wait_until_settled
from controlplane.errors import DomainError

# A change serves within two seconds as a rule; the page then shows it as done. Else it shows it as preparing.
WAIT_S = 3.0


@require_POST
def apply(request: HttpRequest, name: str) -> HttpResponse:
    """A refused split answers with the editor as it was typed, and what is wrong with it."""
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    try:
        revision = apply_split(
            actor=person_actor(request),
            deployment=deployment,
            shares=read_shares(request.POST, "share_"),
            shadow=read_shares(request.POST, "shadow_"),
            reason=request.POST.get("reason", "").strip(),
            expected_revision=read_revision(request.POST),
        )
    except DomainError as error:
        return traffic_page(request, deployment, refusal=error, typed=request.POST)
    return _told(request, revision)


@require_POST
def return_to(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    wanted = request.POST.get("to", "")
    try:
        revision = roll_back(
            actor=person_actor(request),
            deployment=deployment,
            to=int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else None,
            reason=request.POST.get("reason", "").strip(),
            expected_revision=read_revision(request.POST),
        )
    except DomainError as error:
        return traffic_page(request, deployment, refusal=error)
    return _told(request, revision)


def _told(request: HttpRequest, revision: SplitRevision) -> HttpResponse:
    """Says what became of the change once that is known, and returns to the page with an Undo."""
    name = revision.deployment.name
    if data_plane_is_up():
        revision = wait_until_settled(revision, WAIT_S)
    shares = revision.percentages().items()
    words = " and ".join(f"version {n} {share:g} %" for n, share in shares if share)
    if revision.state == RevisionState.FAILED:
        messages.error(request, f"No traffic has moved. {revision.failure}")
        return redirect("pages:traffic", name=name)
    if revision.state == RevisionState.ACTIVE:
        messages.success(request, f"Done: of {name}, {words} answers now.")
    else:
        messages.warning(request, f"Revision {revision.number} is recorded ({words}) and takes over once it is loaded.")
    response = redirect("pages:traffic", name=name)
    response["Location"] += f"?applied={revision.number}"
    return response
