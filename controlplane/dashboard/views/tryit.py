"""Try it: a form made from the signature; the call takes the route of any other, marked as a test."""

import json
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from controlplane.accounts.models import Right
from controlplane.dashboard import trial
from controlplane.dashboard.access import require
from controlplane.dashboard.pages.tryit import body_from_cells, read_answer, try_page
from controlplane.dashboard.views.deployments import find_deployment, header
from controlplane.deployments.documents import active_route
from controlplane.deployments.services.trial import trial_key

PICTURE_TYPES = {"image/png", "image/jpeg", "application/dicom"}


@require_http_methods(["GET", "HEAD", "POST"])
def try_it(request: HttpRequest, name: str) -> HttpResponse:
    """GET shows the form; POST asks the front door and shows the answer beside what was typed."""
    deployment = find_deployment(request, name)
    require(request, Right.PREDICT, deployment.team_id)
    route = active_route(deployment)
    wanted = request.POST.get("version", "") or request.GET.get("version", "")
    page = try_page(route, int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else None)
    context: dict[str, Any] = {"head": header(deployment, "try it"), "deployment": deployment, "page": page}
    if request.method != "POST" or page is None:
        return render(request, "deployments/try.html", context)
    path = f"/v1/models/{name}{f'/versions/{page.pinned}' if page.pinned else ''}:predict"
    picture = request.FILES.get("picture")
    if picture is not None:
        kind = picture.content_type if picture.content_type in PICTURE_TYPES else "application/dicom"
        body, content_type = picture.read(), str(kind)
    elif request.POST.get("json", "").strip():
        body, content_type = request.POST["json"].encode("utf-8", "surrogatepass"), "application/json"
    else:
        body, content_type = json.dumps(body_from_cells(page, request.POST)).encode(), "application/json"
    answer = trial.call(path, trial_key(deployment.team), body, content_type)
    context |= {"answer": answer, "reading": read_answer(answer), "typed": request.POST}
    template = "deployments/_answer.html" if request.headers.get("HX-Request") else "deployments/try.html"
    response = render(request, template, context)
    response["Cache-Control"] = "no-store"
    return response
