"""The accuracy tab of a deployment."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.dashboard.pages.accuracy import accuracy_page
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.views.deployments import find_deployment, header
from controlplane.dashboard.views.frame import live_partial


@require_safe
def accuracy(request: HttpRequest, name: str) -> HttpResponse:
    deployment = find_deployment(request, name)
    window = read_window(request.GET, timezone.now(), "24h")
    context = {"deployment": deployment, "window": window, "page": accuracy_page(deployment, window)}
    if request.headers.get("HX-Request"):
        return live_partial(request, "deployments/_accuracy.html", context)
    return render(request, "deployments/accuracy.html", {**context, "head": header(deployment, "accuracy")})
