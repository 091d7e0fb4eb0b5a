"""A study before it is sent: the draft, its pictures one by one, and the sending.

Scripts of ours get JSON; a plain form does it all in one post. Both name the study's id in advance, so that a double
click, or going back and sending again, ends at the same study.
"""

import uuid
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.dashboard.access import require, require_anywhere, user_of
from controlplane.dashboard.forms.studies import StudyForm, read_blackouts
from controlplane.dashboard.views.patients import is_script, kept_nowhere, own_study, refused
from controlplane.errors import DomainError, field_error
from controlplane.studies import queries
from controlplane.studies.models import Study, StudyPicture, StudyState, new_id
from controlplane.studies.services.drafts import PICTURES_MOST, add_picture, discard_draft, open_draft, remove_picture
from controlplane.studies.services.sending import send_study
from inference.errors import InferenceError
from inference.runtime.viewing import display_frame


@kept_nowhere
@require_http_methods(["GET", "HEAD", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """The form; posted by a script it opens the draft, by a browser alone it adds the files and sends them too."""
    require_anywhere(request, Right.STUDY)
    if request.method != "POST":
        form = StudyForm(deployments=queries.image_deployments(user_of(request)))
        return _form(request, form, str(new_id()))
    try:
        study = _draft(request)
    except _Unfit as unfit:
        if is_script(request):
            return refused(unfit.error())
        return _form(request, unfit.form, request.POST.get("study", ""), status=422)
    except DomainError as error:
        return refused(error) if is_script(request) else _refused_form(request, error)
    if study.state != StudyState.DRAFT:
        return _sent(request, study)
    if is_script(request):
        return JsonResponse(
            {
                "address": reverse("pages:study", args=[study.pk]),
                "add": reverse("pages:study_add", args=[study.pk]),
                "send": reverse("pages:study_send", args=[study.pk]),
            },
            status=201,
        )
    return _add_and_send(request, study)


def draft_page(request: HttpRequest, study: Study) -> HttpResponse:
    """The draft with what it holds so far; it survives a reload and a session that ended."""
    context = {
        "study": study,
        "reference": queries.reference_of(study),
        "identity": study.pk,
        "pictures": queries.pictures_of(study),
        "form": StudyForm(deployments=[]),
        "most": PICTURES_MOST,
        "may_study": True,
    }
    return render(request, "studies/new.html", context)


@kept_nowhere
@require_POST
def preview(request: HttpRequest) -> HttpResponse:
    """A chosen file's pixels, for the person to look at before it is sent. Nothing of it is kept."""
    require_anywhere(request, Right.STUDY)
    try:
        frame = display_frame(_one_file(request))
    except InferenceError as error:
        return refused(DomainError.from_inference(error))
    except DomainError as error:
        return refused(error)
    return HttpResponse(frame, content_type="application/octet-stream")


@kept_nowhere
@require_POST
def add(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    """Adds one picture to the draft; areas in `blackouts` are black in what is kept."""
    study = own_study(request, study_id)
    try:
        blackouts = read_blackouts(request.POST.get("blackouts", ""))
        picture = add_picture(actor=person_actor(request), study=study, content=_one_file(request), blackouts=blackouts)
    except DomainError as error:
        return _refused(request, study, error)
    if is_script(request):
        return JsonResponse({"picture": str(picture.pk), "warnings": picture.warnings}, status=201)
    return redirect("pages:study", study_id=study.pk)


@kept_nowhere
@require_POST
def remove(request: HttpRequest, study_id: uuid.UUID, picture_id: uuid.UUID) -> HttpResponse:
    study = own_study(request, study_id)
    picture = StudyPicture.objects.filter(study=study, pk=picture_id).first()
    try:
        if picture is not None:
            remove_picture(actor=person_actor(request), study=study, picture=picture)
    except DomainError as error:
        return _refused(request, study, error)
    return redirect("pages:study", study_id=study.pk)


@kept_nowhere
@require_POST
def send(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    study = own_study(request, study_id)
    try:
        sent = send_study(actor=person_actor(request), study=study)
    except DomainError as error:
        return _refused(request, study, error)
    return _sent(request, sent)


@kept_nowhere
@require_POST
def discard(request: HttpRequest, study_id: uuid.UUID) -> HttpResponse:
    study = own_study(request, study_id)
    try:
        discard_draft(actor=person_actor(request), study=study)
    except DomainError as error:
        return _refused(request, study, error)
    messages.success(request, "The draft and its pictures are gone.")
    return redirect("pages:studies")


class _Unfit(Exception):
    """The form does not say enough to open a draft."""

    def __init__(self, form: StudyForm) -> None:
        super().__init__(form)
        self.form = form

    def error(self) -> DomainError:
        located: list[Any] = [
            {"loc": [name], "msg": str(text)} for name, texts in self.form.errors.items() for text in texts
        ]
        first = f"{self.form.fields[located[0]['loc'][0]].label}: {located[0]['msg']}"
        return DomainError("validation_error", first, errors=located)


def _draft(request: HttpRequest) -> Study:
    """The study that the form names, opened where there is none yet. Raises _Unfit, DomainError."""
    user = user_of(request)
    try:
        identity = uuid.UUID(request.POST.get("study", ""))
    except ValueError:
        raise field_error("validation_error", "study", "The form is not whole. Reload the page.") from None
    existing = Study.objects.filter(pk=identity, created_by=user).select_related("deployment", "team").first()
    if existing is not None:
        # The person may have left its team since.
        require(request, Right.STUDY, existing.team_id)
        return existing
    deployments = queries.image_deployments(user)
    form = StudyForm(request.POST, deployments=deployments)
    if not form.is_valid():
        raise _Unfit(form)
    chosen = next(each for each in deployments if each.name == form.cleaned_data["deployment"])
    return open_draft(
        actor=person_actor(request),
        user=user,
        deployment=chosen,
        reference=form.cleaned_data["reference"],
        identity=identity,
    )


def _add_and_send(request: HttpRequest, study: Study) -> HttpResponse:
    """What a form without script does. A refused file keeps the study a draft, with the pictures that were fit."""
    actor = person_actor(request)
    files = request.FILES.getlist("file")
    if not files and _is_too_large(request):
        words = (
            f"All pictures of one form have at most {settings.SIGNALBOX_MAX_PICTURE_BYTES // 1024**2} MB: send fewer."
        )
        return _refused(request, study, DomainError("too_large", words))
    fit = True
    for position, file in enumerate(files, 1):
        try:
            add_picture(actor=actor, study=study, content=_content(file))
        except DomainError as error:
            if error.code == "conflict":
                # The other click of a double one has sent it.
                return _sent(request, study)
            messages.error(request, f"File {position}: {error}")
            fit = False
    if not fit:
        return redirect("pages:study", study_id=study.pk)
    try:
        return _sent(request, send_study(actor=actor, study=study))
    except DomainError as error:
        return _refused(request, study, error)


def _one_file(request: HttpRequest) -> bytes:
    """The one file of the request. Raises DomainError for none, and for several."""
    files = [file for name in request.FILES for file in request.FILES.getlist(name)]
    if not files and _is_too_large(request):
        raise DomainError("too_large", f"A picture has at most {settings.SIGNALBOX_MAX_PICTURE_BYTES // 1024**2} MB.")
    if len(files) != 1:
        said = "Choose a picture." if not files else "Send one picture at a time."
        raise field_error("validation_error", "file", said)
    return _content(files[0])


def _is_too_large(request: HttpRequest) -> bool:
    """Whether the memory-only handler takes no file of the body."""
    return int(request.META.get("CONTENT_LENGTH") or 0) > settings.SIGNALBOX_MAX_PICTURE_BYTES


def _content(file: "UploadedFile[Any]") -> bytes:
    content: bytes = file.read()
    return content


def _sent(request: HttpRequest, study: Study) -> HttpResponse:
    address = reverse("pages:study", args=[study.pk])
    return JsonResponse({"address": address}) if is_script(request) else redirect(address)


def _refused(request: HttpRequest, study: Study, error: DomainError) -> HttpResponse:
    if is_script(request):
        return refused(error)
    messages.error(request, str(error))
    return redirect("pages:study", study_id=study.pk)


def _refused_form(request: HttpRequest, error: DomainError) -> HttpResponse:
    form = StudyForm(request.POST, deployments=queries.image_deployments(user_of(request)))
    form.is_valid()
    form.add_error(None, str(error))
    return _form(request, form, str(new_id()), status=error.status)


def _form(request: HttpRequest, form: StudyForm, identity: str, status: int = 200) -> HttpResponse:
    context = {"form": form, "identity": identity, "pictures": [], "most": PICTURES_MOST, "may_study": True}
    return render(request, "studies/new.html", context, status=status)
