"""Deployments: the list, making one, and the tabs of one."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require, require_anywhere, teams_with, user_of
from controlplane.dashboard.forms.deployments import DeploymentForm, SettingsForm
from controlplane.dashboard.forms.errors import show
from controlplane.dashboard.forms.studies import PolicyForm, PurposeForm
from controlplane.dashboard.pages.figures import latency_figures, read_window, traffic_figures
from controlplane.dashboard.pages.header import DeploymentHeader, deployment_header
from controlplane.dashboard.pages.overview import overview, read_filters
from controlplane.dashboard.pages.split import split_editor
from controlplane.dashboard.views.frame import live_partial
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.deployments import create_deployment, edit_deployment, retire_deployment
from controlplane.deployments.services.labels import set_label
from controlplane.errors import DomainError
from controlplane.studies.queries import takes_pictures


def find_deployment(request: HttpRequest, name: str) -> Deployment:
    """The deployment, for a person who may see it; Http404 for anyone else."""
    found = Deployment.objects.for_user(user_of(request)).select_related("team", "model")
    return get_object_or_404(found, name=name)


def header(deployment: Deployment, tab: str) -> DeploymentHeader:
    return deployment_header(deployment, tab, timezone.now())


@require_safe
def deployments(request: HttpRequest) -> HttpResponse:
    window = read_window(request.GET, timezone.now())
    page = overview(user_of(request), window, read_filters(request.GET))
    if request.headers.get("HX-Request"):
        return live_partial(request, "overview/_rows.html", {"page": page, "window": window})
    may_deploy = bool(teams_with(request, Right.DEPLOY))
    return render(request, "deployments/list.html", {"page": page, "window": window, "may_deploy": may_deploy})


@require_safe
def new(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.DEPLOY)
    form = DeploymentForm(initial=request.GET.dict(), teams=teams_with(request, Right.DEPLOY), user=user_of(request))
    return render(request, "deployments/new.html", {"form": form})


@require_POST
def create(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.DEPLOY)
    form = DeploymentForm(request.POST, teams=teams_with(request, Right.DEPLOY), user=user_of(request))
    if form.is_valid():
        model = form.cleaned_data["model"]
        require(request, Right.DEPLOY, model.team_id)
        try:
            made = create_deployment(
                actor=person_actor(request),
                team=model.team,
                name=form.cleaned_data["name"],
                model=model,
                description=form.cleaned_data["description"],
                lane=form.cleaned_data["lane"],
            )
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, f"{made.name} is there. It answers once a split is applied.")
            return redirect("pages:traffic", name=made.name)
    return render(request, "deployments/new.html", {"form": form}, status=422)


@require_safe
def traffic(request: HttpRequest, name: str) -> HttpResponse:
    return traffic_page(request, find_deployment(request, name))


def traffic_page(
    request: HttpRequest,
    deployment: Deployment,
    refusal: DomainError | None = None,
    typed: Mapping[str, str] | None = None,
) -> HttpResponse:
    """The traffic tab; with a refusal the editor keeps what was typed and says what is wrong (its status)."""
    window = read_window(request.GET, timezone.now())
    applied = request.GET.get("applied", "")
    context: dict[str, Any] = {
        "head": header(deployment, "traffic"),
        "deployment": deployment,
        "window": window,
        "editor": split_editor(deployment, typed),
        "figures": traffic_figures(deployment, window),
        "may_deploy": user_of(request).has_right(Right.DEPLOY, deployment.team_id),
        "applied": int(applied) if applied.isascii() and applied.isdigit() and len(applied) < 10 else None,
        "refusal": refusal,
    }
    return render(request, "deployments/traffic.html", context, status=refusal.status if refusal else 200)


@require_safe
def traffic_live(request: HttpRequest, name: str) -> HttpResponse:
    """A live part of the traffic tab: the rates' chart and the comparison."""
    return _figures_live(request, name, "deployments/_traffic.html")


@require_safe
def errors_live(request: HttpRequest, name: str) -> HttpResponse:
    """A live part of the traffic tab: failed calls by kind and by code."""
    return _figures_live(request, name, "deployments/_errors.html")


def _figures_live(request: HttpRequest, name: str, template: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now())
    figures = traffic_figures(deployment, window)
    return live_partial(request, template, {"deployment": deployment, "window": window, "figures": figures})


@require_safe
def head_live(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    return live_partial(request, "deployments/_figures.html", {"head": header(deployment, "")})


@require_safe
def history_live(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    context = {
        "deployment": deployment,
        "editor": split_editor(deployment),
        "may_deploy": user_of(request).has_right(Right.DEPLOY, deployment.team_id),
    }
    return live_partial(request, "deployments/_history.html", context)


@require_safe
def latency(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now())
    context = {
        "head": header(deployment, "latency"),
        "deployment": deployment,
        "window": window,
        "figures": latency_figures(deployment, window),
    }
    if request.headers.get("HX-Request"):
        return live_partial(request, "deployments/_latency.html", context)
    return render(request, "deployments/latency.html", context)


@require_safe
def settings(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    return settings_page(request, deployment, SettingsForm.of(deployment))


@require_POST
def save_settings(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    form = SettingsForm(request.POST)
    if form.is_valid():
        try:
            edit_deployment(actor=person_actor(request), deployment=deployment, **form.settings())
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, f"The settings of {deployment.name} are saved.")
            return redirect("pages:settings", name=name)
    return settings_page(request, deployment, form, status=422)


@require_POST
def save_label(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    version, label = request.POST.get("version", ""), request.POST.get("label", "").strip()
    try:
        number = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else None
        set_label(actor=person_actor(request), deployment=deployment, label=label, version=number)
    except DomainError as error:
        messages.error(request, str(error))
    else:
        said = f"now names version {number}" if number is not None else "is taken away"
        messages.success(request, f"The label “{label}” {said}.")
    return redirect("pages:settings", name=name)


@require_POST
def retire(request: HttpRequest, name: str) -> HttpResponse:
    """A dangerous act: asks for the deployment's name."""
    deployment = find_deployment(request, name)
    require(request, Right.DEPLOY, deployment.team_id)
    if request.POST.get("name") != deployment.name:
        messages.error(request, f"Nothing was done: to retire it, type its name, {deployment.name}.")
        return redirect("pages:settings", name=name)
    try:
        retire_deployment(actor=person_actor(request), deployment=deployment)
    except DomainError as error:
        messages.error(request, str(error))
        return redirect("pages:settings", name=name)
    messages.success(request, f"{deployment.name} is retired: its calls are answered 410.")
    return redirect("pages:deployments")


def settings_page(
    request: HttpRequest, deployment: Deployment, form: SettingsForm, status: int = 200, **reading: forms.Form
) -> HttpResponse:
    """The settings tab; `reading` replaces the forms `purpose` and `policy` that deployments for pictures have."""
    may_deploy = user_of(request).has_right(Right.DEPLOY, deployment.team_id)
    reading_forms = {"purpose": PurposeForm.of(deployment), "policy": PolicyForm.of(deployment), **reading}
    context = {
        "head": header(deployment, "settings"),
        "deployment": deployment,
        "form": form,
        "reading": reading_forms if takes_pictures(deployment) else None,
        "editor": split_editor(deployment),
        "may_deploy": may_deploy,
    }
    return render(request, "deployments/settings.html", context, status=status)
