"""What a deployment's studies are for, and how they are read: parts of its settings."""

from django.contrib import messages
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
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    form = PurposeForm(request.POST)
    if form.is_valid():
        try:
            set_purpose(actor=person_actor(request), deployment=deployment, **form.cleaned_data)
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, f"Studies of {name} are {form.cleaned_data['purpose']} from now on.")
            return redirect("pages:settings", name=name)
    return settings_page(request, deployment, SettingsForm.of(deployment), status=422, purpose=form)


@require_POST
def save_policy(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    form = PolicyForm(request.POST)
    if form.is_valid():
        try:
            set_policy(actor=person_actor(request), deployment=deployment, **form.cleaned_data)
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, f"Studies of {name} that are sent from now on are read so.")
            return redirect("pages:settings", name=name)
    return settings_page(request, deployment, SettingsForm.of(deployment), status=422, policy=form)
