"""Pictures of a study, as its pages fetch them. Each view of one is audited; no cache keeps it."""

import uuid
from collections.abc import Callable

from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import user_of
from controlplane.dashboard.views.patients import find_picture, kept_nowhere, refused
from controlplane.errors import DomainError
from controlplane.studies import explaining, queries, viewing
from controlplane.studies.models import StudyPicture
from controlplane.studies.services.verdicts import open_picture

SIDES = {"": 192, "large": 1024}


@kept_nowhere
@require_safe
def pixels(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> HttpResponse:
    """The values in full depth, for the viewer."""
    picture = find_picture(request, study_id, picture_id)
    return _shown(request, picture, "pixels", "application/octet-stream", lambda: viewing.pixels(picture))


@kept_nowhere
@require_safe
def thumbnail(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> HttpResponse:
    """Small, or `?size=large` for pages without script."""
    picture = find_picture(request, study_id, picture_id)
    side = SIDES.get(request.GET.get("size", ""), SIDES[""])
    return _shown(request, picture, "thumbnail", "image/png", lambda: viewing.thumbnail(picture, side))


@kept_nowhere
@require_safe
def model_view(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> HttpResponse:
    picture = find_picture(request, study_id, picture_id)
    return _shown(request, picture, "model", "image/png", lambda: viewing.model_view(picture))


@kept_nowhere
@require_safe
def heat_map(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> HttpResponse:
    """Where the model looked for `?label=`; 202 until it is computed, 404 with the reason where that failed, and while
    the suggestion may not be shown."""
    picture = find_picture(request, study_id, picture_id)
    if not queries.shows_suggestion(picture.study, user_of(request)):
        raise Http404
    if not picture.heat_map and not explaining.is_given_up(picture):
        return HttpResponse(status=202)
    label = request.GET.get("label", "")
    return _shown(request, picture, "heat map", "image/png", lambda: explaining.heat_map_png(picture, label))


def _shown(
    request: HttpRequest, picture: StudyPicture, what: str, media_type: str, content: Callable[[], bytes]
) -> HttpResponse:
    try:
        body = content()
    except DomainError as error:
        return refused(error)
    open_picture(actor=person_actor(request), picture=picture, shown_as=what)
    response = HttpResponse(body, content_type=media_type)
    response["Content-Disposition"] = f'inline; filename="picture-{picture.position}"'
    return response
