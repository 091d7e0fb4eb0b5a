"""/api/models/: registered models, their versions, uploads and validation reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db.models import Count, Max, Q, QuerySet
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from drf_spectacular.utils import OpenApiParameter
from rest_framework import status
from rest_framework.generics import GenericAPIView
from rest_framework.parsers import BaseParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.accounts.models import Right
from controlplane.api.access import actor_of, require, require_anywhere, team_of, visible_models
from controlplane.api.catalog_serializers import (
    DescriptionSerializer,
    ModelChangesSerializer,
    ModelSerializer,
    NewModelSerializer,
    ReportSerializer,
    UploadSchemaSerializer,
    UploadSerializer,
    VersionDetailSerializer,
    VersionSerializer,
    version_rows,
)
from controlplane.api.pagination import CursorPagination
from controlplane.api.parsers import StrictJSONParser
from controlplane.api.schema import described
from controlplane.catalog.descriptions import describe
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.services import (
    Upload,
    add_golden,
    add_reference,
    archive_model,
    archive_version,
    edit_model,
    edit_version,
    register_model,
    upload_version,
)
from controlplane.catalog.uploads import DraftedFile, DraftUploadHandler
from controlplane.errors import DomainError, field_error

ARCHIVED = OpenApiParameter("archived", bool, description="true lists what was archived too")


class NewestFirst(CursorPagination):
    ordering = "-number"


class CatalogView(GenericAPIView[Any]):
    """Finds the model or version of the address among those that whoever asks may see."""

    queryset = RegisteredModel.objects.none()
    parser_classes: Sequence[type[BaseParser]] = (StrictJSONParser,)

    def model(self, request: Request, name: str) -> RegisteredModel:
        """Raises Http404 for what whoever asks may not see."""
        found = with_counts(visible_models(request)).filter(name=name).first()
        if found is None:
            raise Http404(f"There is no model “{name}”.")
        return found

    def version(self, request: Request, name: str, number: int) -> ModelVersion:
        """Raises Http404 for what whoever asks may not see."""
        visible = version_rows().filter(model__in=visible_models(request), model__name=name, number=number)
        found: ModelVersion | None = visible.first()
        if found is None:
            raise Http404(f"There is no version {number} of a model “{name}”.")
        return found

    def checked(self, request: Request, **options: Any) -> dict[str, Any]:
        """The request's fields. Raises ValidationError."""
        serializer = self.get_serializer(data=request.data, **options)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def page(self, rows: QuerySet[Any], serializer: type[Any]) -> Response:
        return self.get_paginated_response(serializer(self.paginate_queryset(rows), many=True).data)


class UploadView(CatalogView):
    """A view whose files stream into the store's drafts, and leave nothing behind when it ends."""

    _handler: DraftUploadHandler | None = None

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        # Before authentication: checking a form's CSRF token reads the body already.
        self._handler = DraftUploadHandler(request)
        request.upload_handlers = [self._handler]
        return super().initialize_request(request, *args, **kwargs)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            if self._handler is not None:
                self._handler.close()

    def drafted(self, request: Request, name: str) -> DraftedFile | None:
        """The file of a form field. Raises DomainError `validation_error` for two of them, or for a text."""
        files = request.FILES.getlist(name)
        if len(files) > 1 or (not files and name in request.data):
            raise field_error("validation_error", name, "Send one file in this field.")
        file = files[0] if files else None
        return file if isinstance(file, DraftedFile) else None


class ModelList(CatalogView):
    serializer_class = NewModelSerializer

    @described(parameters=[ARCHIVED], responses=ModelSerializer(many=True))
    def get(self, request: Request) -> Response:
        models = with_counts(visible_models(request)).select_related("team")
        if not _asked(request, "archived"):
            models = models.filter(archived_at=None)
        return self.page(models, ModelSerializer)

    @described(responses={201: ModelSerializer})
    def post(self, request: Request) -> Response:
        require_anywhere(request, Right.UPLOAD)
        fields = self.checked(request)
        team = team_of(request, fields["team"])
        require(request, Right.UPLOAD, team.pk)
        made = register_model(
            actor=actor_of(request), team=team, name=fields["name"], description=fields["description"]
        )
        address = reverse("model", args=[made.name])
        body = ModelSerializer(self.model(request, made.name)).data
        return Response(body, status=status.HTTP_201_CREATED, headers={"Location": address})


class ModelDetail(CatalogView):
    serializer_class = ModelChangesSerializer

    @described(responses=ModelSerializer)
    def get(self, request: Request, name: str) -> Response:
        return Response(ModelSerializer(self.model(request, name)).data)

    @described(responses=ModelSerializer)
    def patch(self, request: Request, name: str) -> Response:
        model = self.model(request, name)
        require(request, Right.UPLOAD, model.team_id)
        edit_model(actor=actor_of(request), model=model, **self.checked(request))
        return self.get(request, name)

    @described(request=None, responses={204: None})
    def delete(self, request: Request, name: str) -> Response:
        model = self.model(request, name)
        require(request, Right.UPLOAD, model.team_id)
        archive_model(actor=actor_of(request), model=model)
        return Response(status=status.HTTP_204_NO_CONTENT)


class VersionList(UploadView):
    serializer_class = UploadSerializer
    pagination_class = NewestFirst
    parser_classes = (MultiPartParser,)

    @described(parameters=[ARCHIVED], responses=VersionSerializer(many=True))
    def get(self, request: Request, name: str) -> Response:
        versions = version_rows().filter(model=self.model(request, name))
        if not _asked(request, "archived"):
            versions = versions.exclude(state=VersionState.ARCHIVED)
        return self.page(versions, VersionSerializer)

    @described(
        request={"multipart/form-data": UploadSchemaSerializer},
        responses={201: VersionDetailSerializer, 200: VersionDetailSerializer},
    )
    def post(self, request: Request, name: str) -> Response:
        """201 and the state `uploaded`: validation follows. 200 where the same file and settings are there already."""
        model = self.model(request, name)
        require(request, Right.UPLOAD, model.team_id)
        if not request.META.get("CONTENT_LENGTH"):
            raise DomainError("length_required")
        fields = self.checked(request)
        file = self.drafted(request, "file")
        if file is None:
            raise field_error("validation_error", "file", "Send the ONNX file in the field “file”.")
        golden, reference = self.drafted(request, "golden"), self.drafted(request, "reference")
        number = fields.pop("number", None)
        version, created = upload_version(
            actor=actor_of(request),
            model=model,
            upload=Upload(
                file.draft,
                file_name=file.name or "",
                golden=golden.draft if golden else None,
                reference=reference.draft if reference else None,
                reference_name=(reference.name or "") if reference else "",
            ),
            description=describe(_read_files(fields)),
            number=number,
        )
        return Response(
            VersionDetailSerializer(version_rows().get(pk=version.pk)).data,
            status=status.HTTP_201_CREATED if created else status.HTTP_200_OK,
            headers={"Location": reverse("version", args=[model.name, version.number])},
        )


class VersionDetail(UploadView):
    serializer_class = DescriptionSerializer
    parser_classes = (StrictJSONParser, MultiPartParser)

    @described(responses=VersionDetailSerializer)
    def get(self, request: Request, name: str, number: int) -> Response:
        return Response(VersionDetailSerializer(self.version(request, name, number)).data)

    @described(responses=VersionDetailSerializer)
    def patch(self, request: Request, name: str, number: int) -> Response:
        """Changes remarks at any time, meaning before the version is ready; files come as a multipart form."""
        version = self.version(request, name, number)
        require(request, Right.UPLOAD, version.model.team_id)
        actor, changes = actor_of(request), _read_files(self.checked(request))
        golden, reference = self.drafted(request, "golden"), self.drafted(request, "reference")
        if changes:
            version = edit_version(actor=actor, version=version, changes=changes)
        if reference is not None:
            version = add_reference(actor=actor, version=version, draft=reference.draft, name=reference.name or "")
        if golden is not None:
            add_golden(actor=actor, version=version, draft=golden.draft)
        return self.get(request, name, number)

    @described(request=None, responses={204: None})
    def delete(self, request: Request, name: str, number: int) -> Response:
        version = self.version(request, name, number)
        require(request, Right.UPLOAD, version.model.team_id)
        archive_version(actor=actor_of(request), version=version)
        return Response(status=status.HTTP_204_NO_CONTENT)


class VersionReport(CatalogView):
    serializer_class = ReportSerializer

    def get(self, request: Request, name: str, number: int) -> Response:
        """The validation's state and report; the report is null until validation has ended."""
        return Response(ReportSerializer(self.version(request, name, number)).data)


def with_counts(models: QuerySet[RegisteredModel]) -> QuerySet[RegisteredModel]:
    """Models with the number of their versions and the newest ready one, in the same query."""
    return models.select_related("team").annotate(
        version_count=Count("versions"),
        latest_ready=Max("versions__number", filter=Q(versions__state=VersionState.READY)),
    )


def _asked(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("1", "true", "yes")


def _read_files(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that came as small files (labels, columns, preprocessor) as their bytes."""
    return {name: value.read() if isinstance(value, UploadedFile) else value for name, value in fields.items()}


urlpatterns = [
    path("models/", ModelList.as_view(), name="models"),
    path("models/<slug:name>/", ModelDetail.as_view(), name="model"),
    path("models/<slug:name>/versions/", VersionList.as_view(), name="versions"),
    path("models/<slug:name>/versions/<int:number>/", VersionDetail.as_view(), name="version"),
    path("models/<slug:name>/versions/<int:number>/report/", VersionReport.as_view(), name="version-report"),
]
