"""Studies: the worklist, one study with its suggestion, and what doctors say of it."""

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import user_of
from controlplane.dashboard.forms.studies import TypedVerdict
from controlplane.dashboard.pages.studies import StudyPage, study_page
from controlplane.dashboard.pages.worklist import Search, worklist_page
from controlplane.dashboard.views.drafts import draft_page
from controlplane.dashboard.views.frame import live_partial
from controlplane.dashboard.views.patients import find_study, kept_nowhere, own_study, require_readers
from controlplane.errors import DomainError
from controlplane.studies import queries
from controlplane.studies.models import StudyState
from controlplane.studies.services.drafts import audit
from controlplane.studies.services.erasing import erase_study
from controlplane.studies.services.verdicts import give_verdict, open_study, show_suggestion


@kept_nowhere
@require_http_methods(["GET", "HEAD", "POST"])
def worklist(request: HttpRequest) -> HttpResponse:
    """The form is posted, and answered with an address that says nothing of a case and can be gone back to."""
    require_readers(request)
    user = user_of(request)
    if request.method == "POST":
        asked = Search.typed(request.POST.dict()).query(user)
        return redirect(f"{reverse('pages:studies')}?{asked}" if asked else "pages:studies")
    context = {
        "page": worklist_page(user, Search.addressed(request.GET.dict(), user)),
        "may_study": user.has_right_anywhere(Right.STUDY),
    }
    return render(request, "studies/list.html", context)


@kept_nowhere
@require_safe
def study(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    found = find_study(request, study_id)
    if found.state == StudyState.ERASED:
        return render(request, "studies/erased.html", status=410)
    if found.state == StudyState.DRAFT:
        # Not yet a reading, by which it is told later who answered blinded.
        audit(person_actor(request), "study.view", found)
        return draft_page(request, found)
    open_study(actor=person_actor(request), study=found, user=user_of(request))
    chosen = request.GET.get("picture", "")
    number = int(chosen) if chosen.isascii() and chosen.isdigit() and len(chosen) < 3 else 1
    return _page(request, study_page(found, user_of(request), picture=number))


@kept_nowhere
@require_safe
def state(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    """The live part, while the suggestion is on its way. Audited is what tells something: not each poll before it."""
    found = find_study(request, study_id)
    if found.state in (StudyState.ERASED, StudyState.DRAFT):
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    user = user_of(request)
    page = study_page(found, user)
    if page.poll_s is None or (page.current and queries.reading_of(found, user) is None):
        open_study(actor=person_actor(request), study=found, user=user)
    _note_shown(request, page)
    return live_partial(request, "studies/_suggestion.html", {"page": page})


@kept_nowhere
@require_POST
def verdict(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    found = own_study(request, study_id)
    typed = TypedVerdict.read(request.POST.dict(), request.POST.getlist("labels"))
    try:
        given = give_verdict(actor=person_actor(request), study=found, user=user_of(request), **typed.verdict())
    except DomainError as error:
        if found.state in (StudyState.DRAFT, StudyState.ERASED):
            messages.error(request, str(error))
            return redirect("pages:study", study_id=found.pk)
        # What was typed stays; the number is the present one, so that sending it again is a decision.
        open_study(actor=person_actor(request), study=found, user=user_of(request))
        page = study_page(found, user_of(request), typed=typed, conflict=str(error))
        return _page(request, page, status=error.status)
    words = (
        "Your answer is kept." if given.number == 1 else "Your answer is changed; the earlier one stays in the history."
    )
    messages.success(request, words)
    return redirect("pages:study", study_id=found.pk)


@kept_nowhere
@require_POST
def erase(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    """A dangerous act: asks for the case reference."""
    found = own_study(request, study_id)
    if request.POST.get("reference", "").strip() != queries.reference_of(found):
        messages.error(request, "Nothing was done: to erase it, type its case reference exactly.")
        return redirect("pages:study", study_id=found.pk)
    try:
        erase_study(actor=person_actor(request), study=found)
    except DomainError as error:
        messages.error(request, str(error))
        return redirect("pages:study", study_id=found.pk)
    messages.success(request, "The study is erased.")
    return redirect("pages:studies")


def _page(request: HttpRequest, page: StudyPage, status: int = 200) -> HttpResponse:
    _note_shown(request, page)
    return render(request, "studies/study.html", {"page": page, "may_study": page.may_study}, status=status)


def _note_shown(request: HttpRequest, page: StudyPage) -> None:
    """What makes a later answer not blinded."""
    if page.shown:
        show_suggestion(actor=person_actor(request), study=page.study, user=user_of(request))
