"""How the installation itself does: serving processes, the ingester, artifacts."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.accounts.models import Right
from controlplane.dashboard.access import require_anywhere
from controlplane.dashboard.pages.system import system_page
from controlplane.dashboard.views.frame import live_partial


@require_safe
def system(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.AUDIT)
    context = {"page": system_page(timezone.now())}
    if request.headers.get("HX-Request"):
        return live_partial(request, "system/_state.html", context)
    return render(request, "system/page.html", context)
