"""Jobs: what waits, what runs, what failed and why."""

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.audit.services import record
from controlplane.dashboard.access import require, require_anywhere, user_of
from controlplane.dashboard.pages.jobs import jobs_page, read_job_search, visible_jobs
from controlplane.dashboard.views.frame import live_partial
from controlplane.errors import DomainError
from controlplane.jobs.models import Job
from controlplane.jobs.services.claiming import cancel as cancel_job
from controlplane.studies.queries import awaiting_answer


@require_safe
def jobs(request: HttpRequest) -> HttpResponse:
    require_anywhere(request, Right.VIEW)
    context = {"page": jobs_page(user_of(request), read_job_search(request.GET), timezone.now())}
    if request.headers.get("HX-Request"):
        return live_partial(request, "jobs/_rows.html", context)
    return render(request, "jobs/list.html", context)


@require_safe
def job(request: HttpRequest, job_id: uuid.UUID) -> HttpResponse:
    found = get_object_or_404(visible_jobs(user_of(request)), pk=job_id)
    awaits = found.private and bool(awaiting_answer(user_of(request), [found.pk]))
    context = {
        "job": found,
        "awaits_answer": awaits,
        "waited_s": found.seconds_waiting(timezone.now()),
        "may_see_result": not awaits
        and ((found.result is None and not found.private) or _may_see_result(request, found)),
    }
    if request.headers.get("HX-Request"):
        return live_partial(request, "jobs/_job.html", context)
    response = render(request, "jobs/detail.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _may_see_result(request: HttpRequest, found: Job) -> bool:
    """A result is payload: who asked sees it; others with view_payload do, and that is written down.

    A private job is told of where it belongs (a study): its asker sees no more of it here than others.
    """
    if found.user_id == user_of(request).pk and not found.private:
        return True
    if not user_of(request).has_right(Right.VIEW_PAYLOAD, found.deployment.team_id):
        return False
    record(
        actor=person_actor(request),
        action="payload.view",
        target_type="job",
        target_id=found.pk,
        target_label=found.deployment.name,
        team_id=found.deployment.team_id,
    )
    return True


@require_POST
def cancel(request: HttpRequest, job_id: uuid.UUID) -> HttpResponse:
    found = get_object_or_404(visible_jobs(user_of(request)), pk=job_id)
    require(request, Right.DEPLOY, found.deployment.team_id)
    try:
        cancel_job(actor=person_actor(request), job=found)
    except DomainError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "The job is cancelled.")
    return redirect("pages:job", job_id=job_id)
