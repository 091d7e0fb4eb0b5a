"""The overview: in two seconds whether all is well, in ten what is wrong."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.accounts.models import Right
from controlplane.dashboard.access import user_of
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.pages.overview import overview as overview_page
from controlplane.dashboard.pages.overview import read_filters
from controlplane.dashboard.views.frame import live_partial


@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    user = user_of(request)
    if not user.has_right_anywhere(Right.VIEW) and user.has_right_anywhere(Right.STUDY):
        # A doctor's day begins at the worklist.
        return redirect("pages:studies")
    window = read_window(request.GET, timezone.now())
    context = {"page": overview_page(user, window, read_filters(request.GET)), "window": window}
    if request.headers.get("HX-Request"):
        return live_partial(request, "overview/_rows.html", context)
    return render(request, "overview/page.html", context)
