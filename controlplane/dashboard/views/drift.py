"""The drift tab of a deployment."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.dashboard.pages.drift import Asked, drift_page
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.views.deployments import find_deployment, header
from controlplane.dashboard.views.frame import live_partial


@require_safe
def drift(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now(), "24h")
    page = drift_page(deployment, Asked.read(request.GET.dict(), window))
    context = {"deployment": deployment, "window": window, "page": page}
    if request.headers.get("HX-Request"):
        return live_partial(request, "deployments/_drift.html", context)
    return render(request, "deployments/drift.html", {**context, "head": header(deployment, "drift")})
