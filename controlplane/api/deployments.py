"""/api/deployments/: deployments, their splits, labels, and the description of their prediction API."""

import re
from typing import Any

from django.conf import settings
from django.db.models import Prefetch
from django.http import Http404
from django.urls import path
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.accounts.models import Right
from controlplane.api.access import actor_of, key_of, require, team_of, visible_deployments, visible_models
from controlplane.api.deployments_serializers import (
    DeploymentSerializer,
    ExactJSONParser,
    LabelsSerializer,
    RevisionSerializer,
    RollbackSerializer,
    SplitSerializer,
    current_revisions,
)
from controlplane.api.pagination import CursorPagination
from controlplane.api.schema import described
from controlplane.catalog.samples import sample_row
from controlplane.deployments.documents import active_route
from controlplane.deployments.models import (
    Deployment,
    DeploymentQuerySet,
    RevisionState,
    SplitRevision,
    VersionLabel,
)
from controlplane.deployments.services.deployments import create_deployment, edit_deployment, retire_deployment
from controlplane.deployments.services.labels import labels_of, set_labels
from controlplane.deployments.services.splits import apply_split, newest_split, roll_back
from controlplane.deployments.settling import settle, wait_until_settled
from controlplane.errors import DomainError, field_error
from inference.contracts import DeploymentRoute, VersionRoute
from inference.runtime.openapi import describe

LONGEST_WAIT_S = 30.0
ENTITY_TAG = re.compile(r'(?:W/)?"?(\d{1,9})"?')
WAIT = OpenApiParameter(
    "wait", float, description=f"seconds to wait for the split to serve, at most {LONGEST_WAIT_S:.0f}"
)
IF_MATCH = OpenApiParameter(
    "If-Match", str, OpenApiParameter.HEADER, description="the ETag of the split that the change was made from"
)


class HistoryPagination(CursorPagination):
    ordering = "-number"


def with_current(deployments: DeploymentQuerySet) -> DeploymentQuerySet:
    """Deployments with all that DeploymentSerializer reads: three queries, however many there are."""
    current = SplitRevision.objects.filter(state__in=[RevisionState.PREPARING, RevisionState.ACTIVE])
    return deployments.select_related("team", "model").prefetch_related(
        Prefetch("revisions", current.select_related("returns_to").order_by("-number"), to_attr="current_revisions"),
        Prefetch("version_labels", VersionLabel.objects.select_related("version").order_by("label")),
    )


class DeploymentView(GenericAPIView[Any]):
    """Finds the deployment of the address among those that whoever asks may see."""

    parser_classes = (ExactJSONParser,)
    queryset = Deployment.objects.none()

    def deployment(self, request: Request, name: str, *also: Right) -> Deployment:
        """Raises Http404 for what whoever asks may not see."""
        found = visible_deployments(request, *also).select_related("team", "model").filter(name=name).first()
        if found is None:
            raise Http404(f"There is no deployment “{name}”.")
        return found

    def deployment_to_change(self, request: Request, name: str) -> Deployment:
        """Raises Http404, or PermissionDenied without the right to deploy."""
        found = self.deployment(request, name)
        require(request, Right.DEPLOY, found.team_id)
        return found

    def checked(self, request: Request, **options: Any) -> dict[str, Any]:
        """The request's fields. Raises ValidationError."""
        serializer = self.get_serializer(data=request.data, **options)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)


def answer(deployment: Deployment, status: int = 200) -> Response:
    """The deployment as it is now, with the number of its newest split as entity tag."""
    fresh = with_current(Deployment.objects.filter(pk=deployment.pk)).get()
    newest = next(iter(current_revisions(fresh)), None)
    return Response(DeploymentSerializer(fresh).data, status=status, headers=entity_tag(newest))


def entity_tag(newest: SplitRevision | None) -> dict[str, str]:
    return {"ETag": f'"{newest.number if newest else 0}"'}


SETTINGS = (
    *("description", "lane", "payload_share", "retention_days", "column_policy"),
    *("cache_ttl_s", "cache_bytes"),
    *("max_rows", "max_body_bytes", "max_batch_rows", "max_wait_ms", "max_in_flight"),
)


def settings_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The editable settings among the fields; the capture policy is flat already (`source="*"`)."""
    return {name: fields[name] for name in SETTINGS if name in fields}


class DeploymentList(DeploymentView):
    serializer_class = DeploymentSerializer
    pagination_class = CursorPagination

    @described(responses=DeploymentSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Deployments, newest first; retired ones too with `?retired=1`."""
        found = visible_deployments(request)
        if request.query_params.get("retired") != "1":
            found = found.current()
        page = self.paginate_queryset(with_current(found))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @described(responses={201: DeploymentSerializer})
    def post(self, request: Request) -> Response:
        """Makes a deployment without a split."""
        fields = self.checked(request)
        team = team_of(request, fields.get("team", {}).get("name"))
        require(request, Right.DEPLOY, team.pk)
        key = key_of(request)
        if key is not None and not key.every_deployment:
            raise PermissionDenied("A key for single deployments cannot make another one.")
        model_name = fields["model"]["name"]
        model = visible_models(request).filter(name=model_name, team=team).first()
        if model is None:
            raise field_error("not_found", "model", f"The team {team.name} has no model “{model_name}”.")
        made = create_deployment(
            actor=actor_of(request), team=team, name=fields["name"], model=model, **settings_of(fields)
        )
        return answer(made, status=201)


class DeploymentDetail(DeploymentView):
    serializer_class = DeploymentSerializer

    def get(self, request: Request, name: str) -> Response:
        found = self.deployment(request, name)
        settle()
        return answer(found)

    def patch(self, request: Request, name: str) -> Response:
        """Edits settings; what is not named stays."""
        found = self.deployment_to_change(request, name)
        fields = self.checked(request, partial=True)
        for fixed in ("name", "model", "team"):
            if fixed in fields:
                raise field_error("validation_error", fixed, f"A deployment's {fixed} cannot be changed.")
        return answer(edit_deployment(actor=actor_of(request), deployment=found, **settings_of(fields)))

    def delete(self, request: Request, name: str) -> Response:
        """Retires the deployment: its calls answer 410."""
        retire_deployment(actor=actor_of(request), deployment=self.deployment_to_change(request, name))
        return Response(status=204)


class SplitList(DeploymentView):
    serializer_class = SplitSerializer
    pagination_class = HistoryPagination

    @described(responses=RevisionSerializer(many=True))
    def get(self, request: Request, name: str) -> Response:
        """The history, newest first."""
        found = self.deployment(request, name)
        settle()
        page = self.paginate_queryset(SplitRevision.objects.filter(deployment=found).select_related("returns_to"))
        response = self.get_paginated_response(RevisionSerializer(page, many=True).data)
        for header, value in entity_tag(newest_split(found)).items():
            response[header] = value
        return response

    @described(responses={201: RevisionSerializer}, parameters=[WAIT, IF_MATCH])
    def post(self, request: Request, name: str) -> Response:
        """Makes the next split. `?wait=S` answers once it serves or has failed, at most S seconds later."""
        found = self.deployment_to_change(request, name)
        wait_s = wait_of(request)
        fields = self.checked(request)
        revision = apply_split(
            actor=actor_of(request),
            deployment=found,
            shares=fields["shares"],
            shadow=fields.get("shadow", {}),
            reason=fields.get("reason", ""),
            expected_revision=expected(request, fields),
        )
        return made(revision, wait_s)


class Rollback(DeploymentView):
    serializer_class = RollbackSerializer

    @described(responses={201: RevisionSerializer}, parameters=[WAIT, IF_MATCH])
    def post(self, request: Request, name: str) -> Response:
        """Makes a split equal to one that served before."""
        found = self.deployment_to_change(request, name)
        wait_s = wait_of(request)
        fields = self.checked(request)
        revision = roll_back(
            actor=actor_of(request),
            deployment=found,
            to=fields.get("to"),
            reason=fields.get("reason", ""),
            expected_revision=expected(request, fields),
        )
        return made(revision, wait_s)


def made(revision: SplitRevision, wait_s: float) -> Response:
    """201 with the new revision, after waiting for the data plane where that was asked."""
    # At least one look, so that the answer tells the state of this moment.
    revision = wait_until_settled(revision, wait_s)
    return Response(RevisionSerializer(revision).data, status=201, headers=entity_tag(revision))


def wait_of(request: Request) -> float:
    """Seconds of `?wait=`, at most LONGEST_WAIT_S. Raises DomainError `validation_error`."""
    text = request.query_params.get("wait", "0")
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text, re.ASCII):
        raise field_error("validation_error", "wait", "The time to wait is a number of seconds.")
    return min(float(text), LONGEST_WAIT_S)


def expected(request: Request, fields: dict[str, Any]) -> int | None:
    """The revision that the change was made from: `expected_revision`, else If-Match; None checks nothing."""
    named: int | None = fields.get("expected_revision")
    header = request.headers.get("If-Match", "*").strip()
    if named is not None or header == "*":
        return named
    tag = ENTITY_TAG.fullmatch(header)
    if tag is None:
        raise DomainError("bad_header", "If-Match is the entity tag that a GET of the deployment gave.")
    return int(tag.group(1))


class Labels(DeploymentView):
    serializer_class = LabelsSerializer

    def get(self, request: Request, name: str) -> Response:
        return Response({"labels": labels_of(self.deployment(request, name))})

    def put(self, request: Request, name: str) -> Response:
        """Makes these the labels; one moves only to a version that is loaded."""
        found = self.deployment_to_change(request, name)
        labels = set_labels(actor=actor_of(request), deployment=found, labels=self.checked(request)["labels"])
        return Response({"labels": labels})


class PredictionApi(DeploymentView):
    """The OpenAPI document of one deployment's predict calls."""

    serializer_class = LabelsSerializer
    schema = None

    def get(self, request: Request, name: str) -> Response:
        """Made from the version with the most traffic, or `?version=N`; for whoever may see or call the deployment."""
        found = self.deployment(request, name, Right.PREDICT)
        if found.retired_at is not None:
            raise DomainError("gone", f"The deployment {name} was retired.")
        settle()
        route = active_route(found)
        version = described_version(route, request.query_params.get("version"))
        base_url = settings.SIGNALBOX_PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")
        return Response(describe(route, version, base_url, sample_row(version)))


def described_version(route: DeploymentRoute, number: str | None) -> VersionRoute:
    """Raises DomainError `not_found` or, while nothing serves, `not_ready`."""
    if number is not None:
        held = route.versions.get(int(number)) if number.isascii() and number.isdigit() and len(number) < 10 else None
        if held is None:
            raise DomainError("not_found", f"{route.name} holds no version {number[:40]}.")
        return held
    if not route.live:
        raise DomainError("not_ready", f"{route.name} has no split that serves yet.")
    return route.versions[max(route.live, key=lambda share: share.basis_points).number]


urlpatterns = [
    path("deployments/", DeploymentList.as_view(), name="deployments"),
    path("deployments/<slug:name>/", DeploymentDetail.as_view(), name="deployment"),
    path("deployments/<slug:name>/splits/", SplitList.as_view(), name="splits"),
    path("deployments/<slug:name>/rollback/", Rollback.as_view(), name="rollback"),
    path("deployments/<slug:name>/labels/", Labels.as_view(), name="labels"),
    path("deployments/<slug:name>/openapi.json", PredictionApi.as_view(), name="prediction-api"),
]
