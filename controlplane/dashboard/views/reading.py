"""What a deployment's studies are for, and how they are read: parts of its settings."""

from collections.abc import Callable

from django.contrib import messages
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require
from controlplane.dashboard.forms.deployments import SettingsForm
from controlplane.dashboard.forms.errors import show
from controlplane.dashboard.forms.studies import PolicyForm, PurposeForm
from controlplane.dashboard.views.deployments import find_deployment, settings_page
from controlplane.errors import DomainError
from controlplane.studies.services.policy import set_policy, set_purpose


@require_POST
def save_purpose(request: HttpRequest, name: str) -> HttpResponse:
    form = PurposeForm(request.POST)
    return _save(request, name, "purpose", form, set_purpose, "Studies of {name} are {purpose} from now on.")


@require_POST
def save_policy(request: HttpRequest, name: str) -> HttpResponse:
    form = PolicyForm(request.POST)
    return _save(request, name, "policy", form, set_policy, "Studies of {name} that are sent from now on are read so.")


def _save(
    request: HttpRequest, name: str, part: str, form: Form, change: Callable[..., object], done: str
) -> HttpResponse:
    """Saves that part of the settings, or shows them with what is wrong with it."""
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    if form.is_valid():
        try:
            change(actor=person_actor(request), deployment=deployment, **form.cleaned_data)
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, done.format(name=name, **form.cleaned_data))
            return redirect("pages:settings", name=name)
    return settings_page(request, deployment, SettingsForm.of(deployment), status=422, **{part: form})
