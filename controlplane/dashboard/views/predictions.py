"""The prediction log: search it, open one. Who sees a payload is written down."""

import uuid
from datetime import timedelta
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.audit.models import AuditEvent
from controlplane.audit.requests import person_actor
from controlplane.audit.services import record
from controlplane.dashboard.access import user_of
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.pages.predictions import prediction_list, prediction_page, read_search
from controlplane.dashboard.views.deployments import find_deployment, header
from controlplane.dashboard.views.frame import live_partial
from controlplane.deployments.models import Deployment
from controlplane.predictions.models import Prediction
from inference.contracts import Lane

# A list that stays open is written down again so often while it shows new rows.
WATCHED_EACH = timedelta(minutes=1)
# A picture whose scores stay on such a list, likewise.
SEEN_FOR = timedelta(hours=1)


@require_safe
def predictions(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now())
    page = prediction_list(deployment, read_search(request.GET), window.since, user_of(request))
    context: dict[str, Any] = {"deployment": deployment, "page": page, "window": window}
    polled = bool(request.headers.get("HX-Request"))
    if page.shows_scores:
        _note_scores(request, deployment, [row for row in page.rows if row.scores], polled=polled)
    if polled:
        return live_partial(request, "deployments/_predictions.html", context)
    context["head"] = header(deployment, "predictions")
    response = render(request, "deployments/predictions.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _note_scores(request: HttpRequest, deployment: Deployment, rows: list[Prediction], *, polled: bool) -> None:
    """Writes down whose scores a person sees in the list: each opening of it; of polls, those that show a picture's
    scores for the first time, and one a minute while other rows come."""
    actor, now = person_actor(request), timezone.now()
    jobs = {str(row.pk) for row in rows if row.lane == Lane.JOB}
    due = bool(rows)
    if polled:
        noted = AuditEvent.objects.filter(target_type="deployment", target_id=str(deployment.pk), actor_id=actor.id)
        lately = list(noted.filter(action="payload.view", at__gte=now - SEEN_FOR).values_list("at", "after"))
        jobs -= {job for _, after in lately for job in (after or {}).get("predictions", ())}
        others = any(row.lane != Lane.JOB for row in rows)
        due = others and not any(at > now - WATCHED_EACH for at, _ in lately)
    if jobs or due:
        record(
            actor=actor,
            action="payload.view",
            target_type="deployment",
            target_id=deployment.pk,
            target_label=deployment.name,
            team_id=deployment.team_id,
            # By these it is told later who answered a study unseen (studies/services/verdicts.py).
            after={"predictions": sorted(jobs)},
            reason="scores in the list of predictions",
        )


@require_safe
def prediction(request: HttpRequest, name: str, prediction_id: uuid.UUID) -> HttpResponse:
    deployment = find_deployment(request, name)
    found = get_object_or_404(Prediction.objects.of_deployments([deployment.pk]), pk=prediction_id)
    page = prediction_page(found, user_of(request), deployment.team_id)
    if page.inputs is not None or page.outputs is not None or page.scores:
        record(
            actor=person_actor(request),
            action="payload.view",
            target_type="prediction",
            target_id=found.pk,
            target_label=deployment.name,
            team_id=deployment.team_id,
        )
    context = {"deployment": deployment, "head": header(deployment, "predictions"), "page": page}
    response = render(request, "deployments/prediction.html", context)
    response["Cache-Control"] = "no-store"
    return response
