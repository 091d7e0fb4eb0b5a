"""The prediction log: search it, open one. Who sees a payload is written down."""

import uuid
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.audit.services import record
from controlplane.dashboard.access import user_of
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.pages.predictions import prediction_list, prediction_page, read_search
from controlplane.dashboard.views.deployments import find_deployment, header
from controlplane.dashboard.views.frame import live_partial
from controlplane.predictions.models import Prediction


@require_safe
def predictions(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now())
    may_see = user_of(request).has_right(Right.VIEW_PAYLOAD, deployment.team_id)
    page = prediction_list(deployment, read_search(request.GET), window.since, may_see_payload=may_see)
    context: dict[str, Any] = {"deployment": deployment, "page": page, "window": window}
    if request.headers.get("HX-Request"):
        return live_partial(request, "deployments/_predictions.html", context)
    if may_see and any(row.scores for row in page.rows):
        # Once for the page that is opened, not for each poll of it.
        record(
            actor=person_actor(request),
            action="payload.view",
            target_type="deployment",
            target_id=deployment.pk,
            target_label=deployment.name,
            team_id=deployment.team_id,
            reason="scores in the list of predictions",
        )
    context["head"] = header(deployment, "predictions")
    response = render(request, "deployments/predictions.html", context)
    response["Cache-Control"] = "no-store"
    return response


@require_safe
def prediction(request: HttpRequest, name: str, prediction_id: uuid.UUID) -> HttpResponse:
    deployment = find_deployment(request, name)
    found = get_object_or_404(Prediction.objects.of_deployments([deployment.pk]), pk=prediction_id)
    may_see = user_of(request).has_right(Right.VIEW_PAYLOAD, deployment.team_id)
    if may_see and (found.inputs is not None or found.outputs is not None or found.scores):
        record(
            actor=person_actor(request),
            action="payload.view",
            target_type="prediction",
            target_id=found.pk,
            target_label=deployment.name,
            team_id=deployment.team_id,
        )
    context = {
        "deployment": deployment,
        "head": header(deployment, "predictions"),
        "page": prediction_page(found, may_see),
    }
    response = render(request, "deployments/prediction.html", context)
    response["Cache-Control"] = "no-store"
    return response
