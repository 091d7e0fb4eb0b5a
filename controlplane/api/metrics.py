"""/api/deployments/{d}/metrics|accuracy|drift/ and the use of keys: every figure of the pages, as JSON."""

from typing import Any

from django.http import Http404
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer

from controlplane.accounts.models import ApiKey, Right
from controlplane.api.access import require_anywhere, team_scope, visible_deployments
from controlplane.api.schema import described
from controlplane.deployments.models import Deployment
from controlplane.monitoring.accuracy import accuracy
from controlplane.monitoring.drift import drift, read_baseline
from controlplane.monitoring.intervals import Interval, read_interval
from controlplane.monitoring.traffic import traffic
from controlplane.predictions import queries

BETWEEN = [
    OpenApiParameter("since", OpenApiTypes.STR, description="An ISO time, or 24h, 7d, 30m before now. Default 24h."),
    OpenApiParameter("until", OpenApiTypes.STR, description="As since. Default now."),
]
BASELINE = OpenApiParameter(
    "baseline", OpenApiTypes.STR, description="reference (where there is one, the default) or earlier."
)


class FiguresView(GenericAPIView[Any]):
    """Finds the deployment and the interval of the address. Figures need the right to look around."""

    serializer_class = Serializer

    def deployment(self, request: Request, name: str) -> Deployment:
        found = visible_deployments(request).filter(name=name).first()
        if found is None:
            raise Http404(f"There is no deployment “{name}”.")
        return found

    def interval(self, request: Request) -> Interval:
        return read_interval(request.query_params.get("since"), request.query_params.get("until"))


class DeploymentMetrics(FiguresView):
    @described(parameters=BETWEEN, responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, name: str) -> Response:
        """Traffic, latency and errors over time, by version. null where nothing is known."""
        found = self.deployment(request, name)
        return Response(traffic(found.pk, found.name, self.interval(request)))


class DeploymentAccuracy(FiguresView):
    @described(parameters=BETWEEN, responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, name: str) -> Response:
        """How right each version was, from feedback, by the time of the predictions."""
        found = self.deployment(request, name)
        return Response(accuracy(found.pk, found.name, self.interval(request)))


class DeploymentDrift(FiguresView):
    @described(parameters=[*BETWEEN, BASELINE], responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, name: str) -> Response:
        """How far inputs and predictions moved from the reference set, or from earlier serving; moved most first."""
        found = self.deployment(request, name)
        return Response(drift(found, self.interval(request), read_baseline(request.query_params.get("baseline"))))


class KeyUseView(FiguresView):
    @described(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, key_id: str) -> Response:
        """Calls of a key by hour over 30 days, and its last hundred failed calls (no payload)."""
        require_anywhere(request, Right.MANAGE_KEYS)
        key = ApiKey.objects.filter(team_scope(request, Right.MANAGE_KEYS), pk=key_id).first()
        if key is None:
            raise Http404("There is no such key.")
        return Response(
            {
                "hours": [
                    {"hour": use.hour.isoformat(), "calls": use.calls, "failed": use.failed}
                    for use in queries.key_use(key.pk)
                ],
                "failed_calls": [
                    {
                        "at": call.at.isoformat(),
                        "status": call.status,
                        "code": call.code,
                        "loc": call.loc,
                        "request_id": call.request_id,
                    }
                    for call in queries.failed_calls(key.pk)
                ],
            }
        )


urlpatterns = [
    path("deployments/<slug:name>/metrics/", DeploymentMetrics.as_view(), name="api-deployment-metrics"),
    path("deployments/<slug:name>/accuracy/", DeploymentAccuracy.as_view(), name="api-deployment-accuracy"),
    path("deployments/<slug:name>/drift/", DeploymentDrift.as_view(), name="api-deployment-drift"),
    path("keys/<uuid:key_id>/use/", KeyUseView.as_view(), name="api-key-use"),
]
