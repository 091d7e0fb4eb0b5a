"""What every answer about a patient's pictures has in common: who may ask, and that no cache keeps it."""

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require, user_of
from controlplane.errors import DomainError
from controlplane.studies import queries
from controlplane.studies.models import Study, StudyPicture

Given = ParamSpec("Given")


def kept_nowhere(
    view: Callable[Concatenate[HttpRequest, Given], HttpResponse],
) -> Callable[Concatenate[HttpRequest, Given], HttpResponse]:
    """A view whose answers no cache keeps, and no browser guesses the type of."""

    @wraps(view)
    def answered(request: HttpRequest, /, *args: Given.args, **kwargs: Given.kwargs) -> HttpResponse:
        response = view(request, *args, **kwargs)
        response["Cache-Control"] = "no-store"
        response["X-Content-Type-Options"] = "nosniff"
        return response

    return answered


def find_study(request: HttpRequest, study_id: uuid.UUID) -> Study:
    """The study, for who may read it; Http404 for anyone else, audited where it exists."""
    try:
        return queries.find_study(user_of(request), study_id, actor=person_actor(request))
    except DomainError as error:
        raise Http404 from error


def find_picture(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> StudyPicture:
    """The picture, its study joined, for who may read it; Http404 for anyone else, audited where the study exists."""
    try:
        return queries.find_picture(user_of(request), study_id, picture_id, actor=person_actor(request))
    except DomainError as error:
        raise Http404 from error


def own_study(request: HttpRequest, study_id: uuid.UUID) -> Study:
    """The study, for who may work on it: Http404 as `find_study`, PermissionDenied for who may only look."""
    study = find_study(request, study_id)
    require(request, Right.STUDY, study.team_id)
    return study


def require_readers(request: HttpRequest) -> None:
    """Raises PermissionDenied for who may read studies in no team."""
    user = user_of(request)
    if not (user.has_right_anywhere(Right.STUDY) or user.has_right_anywhere(Right.VIEW_PAYLOAD)):
        raise PermissionDenied


def is_script(request: HttpRequest) -> bool:
    """Whether a script of ours asks, which wants JSON."""
    return request.headers.get("X-Requested-With") == "fetch"


def refused(error: DomainError) -> JsonResponse:
    """A refusal as our scripts read it."""
    return JsonResponse({"detail": str(error), "code": error.code, "errors": error.errors}, status=error.status)
