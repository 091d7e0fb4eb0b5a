"""Models: register, upload versions, read validation reports, archive."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_POST, require_safe

from controlplane.accounts.models import Right
from controlplane.audit.requests import person_actor
from controlplane.catalog.descriptions import describe
from controlplane.catalog.models import ModelVersion, RegisteredModel
from controlplane.catalog.services import (
    Upload,
    add_golden,
    add_reference,
    archive_version,
    register_model,
    upload_version,
)
from controlplane.catalog.uploads import DraftedFile, DraftUploadHandler
from controlplane.dashboard.access import require, teams_with, user_of
from controlplane.dashboard.forms.errors import show
from controlplane.dashboard.forms.models import ModelForm, UploadForm
from controlplane.dashboard.pages.models import model_page, models_page, report_page
from controlplane.dashboard.views.frame import live_partial
from controlplane.errors import DomainError, field_error

View = Callable[..., HttpResponse]


def find_model(request: HttpRequest, name: str) -> RegisteredModel:
    return get_object_or_404(RegisteredModel.objects.for_user(user_of(request)).select_related("team"), name=name)


def find_version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    rows = ModelVersion.objects.select_related(
        "model", "model__team", "uploaded_artifact", "artifact", "created_by", "reference_artifact", "golden_artifact"
    )
    return get_object_or_404(rows, model=find_model(request, name), number=number)


def receiving_drafts(view: View) -> View:
    """Streams the form's files into the store's drafts, whatever becomes of them. The CSRF check reads the body, so it
    must come after the handler is in place."""

    def received(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        handler = DraftUploadHandler(request)
        request.upload_handlers = [handler]
        try:
            return csrf_protect(view)(request, *args, **kwargs)
        except DomainError as error:
            # Raised while the body was read: too large, or the disk is full.
            return _refused(request, error)
        finally:
            handler.close()

    return csrf_exempt(received)


@require_safe
def models(request: HttpRequest) -> HttpResponse:
    teams = teams_with(request, Right.UPLOAD)
    context = {"rows": models_page(user_of(request)), "form": ModelForm(teams=teams), "may_upload": bool(teams)}
    return render(request, "models/list.html", context)


@require_POST
def register(request: HttpRequest) -> HttpResponse:
    teams = teams_with(request, Right.UPLOAD)
    form = ModelForm(request.POST, teams=teams)
    if form.is_valid():
        chosen = form.cleaned_data
        try:
            made = register_model(
                actor=person_actor(request), team=chosen["team"], name=chosen["name"], description=chosen["description"]
            )
        except DomainError as error:
            show(form, error)
        else:
            messages.success(request, f"{made.name} is registered. Now upload its first version.")
            return redirect("pages:upload", name=made.name)
    context = {"rows": models_page(user_of(request)), "form": form, "may_upload": bool(teams)}
    return render(request, "models/list.html", context, status=422)


@require_safe
def model(request: HttpRequest, name: str) -> HttpResponse:
    found = find_model(request, name)
    context = {
        "page": model_page(found),
        "may_upload": user_of(request).has_right(Right.UPLOAD, found.team_id),
        "may_deploy": user_of(request).has_right(Right.DEPLOY, found.team_id),
    }
    if request.headers.get("HX-Request"):
        return live_partial(request, "models/_versions.html", context)
    return render(request, "models/detail.html", context)


@receiving_drafts
def upload(request: HttpRequest, name: str) -> HttpResponse:
    """GET shows the form. POST stores the version and leads to its report; a script's POST is answered as JSON."""
    found = find_model(request, name)
    require(request, Right.UPLOAD, found.team_id)
    if request.method != "POST":
        return render(request, "models/upload.html", {"model": found, "form": UploadForm()})
    form = UploadForm(request.POST, request.FILES)
    try:
        version, created = _upload(request, found)
    except DomainError as error:
        if request.headers.get("X-Requested-With") == "fetch":
            return _refused(request, error)
        form.is_valid()
        show(form, error)
        return render(request, "models/upload.html", {"model": found, "form": form}, status=error.status)
    if not created:
        messages.warning(request, f"These very bytes are version {version.number} already.")
    address = reverse("pages:version", args=[found.name, version.number])
    if request.headers.get("X-Requested-With") == "fetch":
        return JsonResponse({"address": address}, status=201 if created else 200)
    return redirect(address)


@require_safe
def version(request: HttpRequest, name: str, number: int) -> HttpResponse:
    found = find_version(request, name, number)
    page = report_page(found)
    if request.headers.get("HX-Request") and not page.busy:
        # Only a page that waits asks so. What may be done now stands outside the live region: have it loaded anew.
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    context = {
        "page": page,
        "may_upload": user_of(request).has_right(Right.UPLOAD, found.model.team_id),
        "may_deploy": user_of(request).has_right(Right.DEPLOY, found.model.team_id),
    }
    if request.headers.get("HX-Request"):
        return live_partial(request, "models/_report.html", context)
    return render(request, "models/version.html", context)


@receiving_drafts
def complete(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Adds a reference set or golden inputs to a version."""
    found = find_version(request, name, number)
    require(request, Right.UPLOAD, found.model.team_id)
    actor = person_actor(request)
    try:
        reference, golden = _drafted(request, "reference"), _drafted(request, "golden")
        if reference is not None:
            add_reference(actor=actor, version=found, draft=reference.draft, name=reference.name or "")
            messages.success(request, "The reference set is in place.")
        if golden is not None:
            add_golden(actor=actor, version=found, draft=golden.draft)
            messages.success(request, "The golden inputs reproduce.")
        if reference is None and golden is None:
            messages.warning(request, "Choose a file first.")
    except DomainError as error:
        messages.error(request, str(error))
    return redirect("pages:version", name=name, number=number)


@require_POST
def archive(request: HttpRequest, name: str, number: int) -> HttpResponse:
    found = find_version(request, name, number)
    require(request, Right.UPLOAD, found.model.team_id)
    try:
        archive_version(actor=person_actor(request), version=found)
    except DomainError as error:
        messages.error(request, str(error))
        return redirect("pages:version", name=name, number=number)
    messages.success(request, f"Version {number} of {name} is archived.")
    return redirect("pages:model", name=name)


def _drafted(request: HttpRequest, field: str) -> DraftedFile | None:
    file = request.FILES.get(field)
    return file if isinstance(file, DraftedFile) else None


def _upload(request: HttpRequest, found: RegisteredModel) -> tuple[ModelVersion, bool]:
    file = _drafted(request, "file")
    if file is None:
        raise field_error("validation_error", "file", "Choose the model's file.")
    golden, reference = _drafted(request, "golden"), _drafted(request, "reference")
    given: dict[str, Any] = {name: value for name, value in request.POST.items() if value != ""}
    preprocessor = request.FILES.get("preprocessor")
    if isinstance(preprocessor, UploadedFile):
        given["preprocessor"] = preprocessor.read()
    return upload_version(
        actor=person_actor(request),
        model=found,
        upload=Upload(
            model=file.draft,
            file_name=file.name or "",
            golden=golden.draft if golden else None,
            reference=reference.draft if reference else None,
            reference_name=(reference.name or "") if reference else "",
        ),
        description=describe(given),
    )


def _refused(request: HttpRequest, error: DomainError) -> HttpResponse:
    body = {"detail": str(error), "code": error.code, "errors": error.errors}
    return JsonResponse(body, status=error.status)
