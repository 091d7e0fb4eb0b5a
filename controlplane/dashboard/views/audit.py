"""The audit log: who did what, when, from where, and what it changed."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from controlplane.accounts.models import Right
from controlplane.audit.models import AuditEvent
from controlplane.dashboard.access import require_anywhere, teams_with, user_of

PAGE_SIZE = 50


@require_safe
def audit(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.AUDIT)
    events = AuditEvent.objects.all()
    if not user_of(request).is_superuser:
        events = events.for_teams([team.pk for team in teams_with(request, Right.AUDIT)])
    wanted = request.GET.get("q", "").strip()[:100].replace("\x00", "")
    if wanted:
        events = (
            events.filter(target_label__icontains=wanted)
            | events.filter(action__icontains=wanted)
            | events.filter(actor__icontains=wanted)
        )
    before = request.GET.get("before", "")
    if before.isascii() and before.isdigit() and len(before) < 19:
        events = events.filter(pk__lt=int(before))
    # One row more than shown says whether there is an older page; no count over the whole log.
    rows = list(events[: PAGE_SIZE + 1])
    older = rows[PAGE_SIZE - 1].pk if len(rows) > PAGE_SIZE else None
    return render(request, "audit/list.html", {"events": rows[:PAGE_SIZE], "older": older, "wanted": wanted})
