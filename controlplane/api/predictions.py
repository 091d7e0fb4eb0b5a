"""/api/predictions/ and /api/feedback/: the log, one prediction, and what really happened."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from django.db import transaction
from django.http import Http404
from django.urls import include, path
from django.utils import timezone
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.accounts.models import Right
from controlplane.api.access import (
    AFTER_ANSWER,
    actor_of,
    awaiting,
    key_of,
    require,
    require_anywhere,
    rights,
    team_scope,
    visible_deployments,
)
from controlplane.api.pagination import CursorPagination
from controlplane.api.predictions_serializers import (
    BulkFeedbackAnswerSerializer,
    BulkFeedbackSerializer,
    FeedbackSerializer,
    PredictionDetailSerializer,
    PredictionFilterSerializer,
    PredictionSerializer,
)
from controlplane.api.schema import described
from controlplane.audit.services import record
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError, field_error
from controlplane.jobs.models import Job
from controlplane.predictions import queries
from controlplane.predictions.feedback import BULK_ROWS, Asker, Given, give_feedback
from controlplane.predictions.models import Prediction
from controlplane.predictions.partitions import first_id, time_of
from controlplane.predictions.truths import Statement, parse_id, read_statement
from inference.contracts import Lane, Scope
from inference.errors import TABLE

# Payloads stay in no cache on the way.
UNCACHED = {"Cache-Control": "no-store"}
NO_SUCH_PREDICTION = "There is no such prediction."


class NewestFirst(CursorPagination):
    ordering = "-id"


def readable_deployments(request: Request) -> tuple[dict[uuid.UUID, Deployment], uuid.UUID | None]:
    """Deployments whose predictions whoever asks may read, and, for a key without `read`, the key that asked them.

    Raises PermissionDenied for a key that may neither read nor predict.
    """
    key = key_of(request)
    own_only = key is not None and Right.VIEW not in rights(request, key.team_id)
    found = visible_deployments(request, Right.PREDICT) if own_only else visible_deployments(request)
    return {deployment.pk: deployment for deployment in found}, key.pk if own_only and key is not None else None


def find_prediction(request: Request, text: str) -> tuple[Prediction, Deployment]:
    """The prediction of the address among those that whoever asks may read. Raises Http404. Two queries."""
    try:
        identity = parse_id(text)
    except DomainError:
        raise Http404(NO_SUCH_PREDICTION) from None
    deployments, key_id = readable_deployments(request)
    prediction = Prediction.objects.filter(id=identity, deployment_id__in=deployments).first()
    if prediction is None or (key_id is not None and prediction.key_id != key_id):
        raise Http404(NO_SUCH_PREDICTION)
    return prediction, deployments[prediction.deployment_id]


def withhold_private(
    request: Request, found: Sequence[Prediction], deployments: Mapping[uuid.UUID, Deployment]
) -> set[uuid.UUID]:
    """Takes out of these predictions what those of private jobs hold, where whoever asks may not see payloads, or not
    before their own answer.

    Returns the ids of those: nothing that was said of them may be shown either. Two queries at most.
    """
    jobs = [prediction for prediction in found if prediction.lane == Lane.JOB]
    unseen = [
        prediction.id
        for prediction in jobs
        if Right.VIEW_PAYLOAD not in rights(request, deployments[prediction.deployment_id].team_id)
    ]
    withheld = Job.objects.private_among(unseen) if unseen else set()
    withheld |= awaiting(request, [prediction.id for prediction in jobs])
    for prediction in jobs:
        if prediction.id in withheld:
            prediction.withhold()
    return withheld


class PredictionList(GenericAPIView[Any]):
    serializer_class = PredictionSerializer
    pagination_class = NewestFirst
    queryset = Prediction.objects.none()

    @described(operation_id="predictions_list", parameters=[PredictionFilterSerializer])
    def get(self, request: Request) -> Response:
        """Predictions, newest first, without inputs and outputs. `count` is exact up to a million; `?count=0`: none."""
        filters = PredictionFilterSerializer(data=request.query_params)
        filters.is_valid(raise_exception=True)
        given = dict(filters.validated_data)
        deployments, key_id = readable_deployments(request)
        name = given.pop("deployment", None)
        if name is not None:
            deployments = {pk: deployment for pk, deployment in deployments.items() if deployment.name == name}
            if not deployments:
                raise Http404(f"There is no deployment “{name}”.")
        with_count = given.pop("count", True)
        if key_id is not None:
            given["key_id"] = key_id
        found = queries.search(deployments, cast(queries.Filters, given))
        page = self.paginate_queryset(found) or []
        withheld = withhold_private(request, page, deployments)
        feedback = queries.latest_feedback(prediction.id for prediction in page)
        rows = [
            {
                **queries.prediction_json(prediction, deployments[prediction.deployment_id].name),
                "feedback": [queries.feedback_json(feedback[prediction.id])]
                if prediction.id in feedback and prediction.id not in withheld
                else [],
            }
            for prediction in page
        ]
        response = self.get_paginated_response(rows)
        if with_count:
            count, is_exact = queries.count_capped(found)
            response.data = {"count": count, "count_is_exact": is_exact, **response.data}
        return response


class PredictionDetail(GenericAPIView[Any]):
    serializer_class = PredictionDetailSerializer

    def get(self, request: Request, prediction_id: str) -> Response:
        """One prediction. Inputs and outputs need the right view_payload; each such view is audited."""
        prediction, deployment = find_prediction(request, prediction_id)
        may_see = Right.VIEW_PAYLOAD in rights(request, deployment.team_id)
        withheld = withhold_private(request, [prediction], {deployment.pk: deployment})
        feedback = [] if withheld else queries.feedback_of(prediction.id)
        if may_see and (prediction.inputs is not None or prediction.outputs is not None or prediction.scores):
            record(
                actor=actor_of(request),
                action="prediction.view_payload",
                target_type="prediction",
                target_id=prediction.pk,
                target_label=deployment.name,
                team_id=deployment.team_id,
            )
        # Shadow copies run after the answer, so the days before it need not be read.
        since = first_id(time_of(prediction.id))
        shadows = Prediction.objects.filter(shadow_of=prediction.id, id__gte=since).only("id", "version")[:20]
        return Response(
            {
                **queries.prediction_json(prediction, deployment.name),
                "payload": AFTER_ANSWER if may_see and withheld else "shown" if may_see else "withheld",
                "inputs": prediction.inputs if may_see else None,
                "outputs": prediction.outputs if may_see else None,
                "scores": prediction.scores if may_see else None,
                "pictures": prediction.pictures or [],
                "shadows": [{"id": str(shadow.id), "version": shadow.version} for shadow in shadows],
                "feedback": [queries.feedback_json(one) for one in feedback],
            },
            headers=UNCACHED,
        )


def feedback_asker(request: Request) -> Asker:
    """What whoever asks may give feedback on. Raises PermissionDenied where that is nothing."""
    key = key_of(request)
    if key is None:
        require_anywhere(request, Right.PREDICT)
        found = Deployment.objects.filter(team_scope(request, Right.PREDICT))
        return Asker(actor_of(request), {deployment.pk: deployment for deployment in found})
    may_all = key.has_scope(Scope.FEEDBACK) or key.has_scope(Scope.ADMIN)
    if not may_all and not key.has_scope(Scope.PREDICT):
        raise PermissionDenied("The key lacks the scope feedback.")
    deployments = {deployment.pk: deployment for deployment in Deployment.objects.for_key(key)}
    return Asker(actor_of(request), deployments, key, own_only=not may_all)


def status_of(given: Given) -> int:
    """201 counted, 200 said before, 202 waiting for its prediction; or the error's."""
    if given.error is not None:
        return given.error.status
    if given.is_pending:
        return 202
    return 201 if given.created else 200


def shown(given: Given) -> dict[str, Any]:
    if given.feedback is None:
        return {}
    prediction_id = given.feedback.prediction_id
    return {
        "prediction_id": str(prediction_id) if prediction_id else None,
        **queries.feedback_json(given.feedback),
    }


class PredictionFeedback(GenericAPIView[Any]):
    serializer_class = FeedbackSerializer

    def get(self, request: Request, prediction_id: str) -> Response:
        """What was said of a prediction, the word that counts first."""
        prediction, deployment = find_prediction(request, prediction_id)
        if withhold_private(request, [prediction], {deployment.pk: deployment}):
            return Response({"results": []})
        return Response({"results": [queries.feedback_json(one) for one in queries.feedback_of(prediction.id)]})

    def post(self, request: Request, prediction_id: str) -> Response:
        """Gives feedback: 201; 200 where the same was said before; 202 where the prediction has not arrived yet.

        Another value than before is a new version of the feedback, and the one that counts.
        """
        asker = feedback_asker(request)
        identity = parse_id(prediction_id)
        if identity in Job.objects.private_among([identity]):
            raise DomainError("not_found", NO_SUCH_PREDICTION)
        if key_of(request) is None:
            self._refuse_onlookers(request, identity)
        if isinstance(request.data, dict) and "prediction_id" in request.data:
            raise field_error("validation_error", "prediction_id", "The address names the prediction.")
        statement = read_statement(request.data, timezone.now(), identity)
        (given,) = give_feedback(asker=asker, statements=[statement])
        if given.error is not None:
            raise given.error
        return Response(shown(given), status=status_of(given))

    @staticmethod
    def _refuse_onlookers(request: Request, identity: uuid.UUID) -> None:
        """403 for a person who may see the prediction and may not speak of it."""
        prediction = Prediction.objects.filter(id=identity).only("id", "deployment_id").first()
        if prediction is not None:
            deployment = visible_deployments(request).filter(pk=prediction.deployment_id).first()
            if deployment is not None:
                require(request, Right.PREDICT, deployment.team_id)


class BulkFeedback(GenericAPIView[Any]):
    serializer_class = BulkFeedbackSerializer

    @described(responses=BulkFeedbackAnswerSerializer)
    def post(self, request: Request) -> Response:
        """Up to 1,000 rows, each by prediction_id, or by deployment and client_id (the latest). Each row by itself."""
        asker = feedback_asker(request)
        rows = request.data.get("feedback") if isinstance(request.data, dict) else request.data
        if not isinstance(rows, list) or not rows:
            raise field_error("validation_error", "feedback", "Send a list of feedback.")
        if len(rows) > BULK_ROWS:
            raise DomainError("batch_too_large", f"At most {BULK_ROWS} rows are accepted at once.")
        now = timezone.now()
        statements: list[Statement | DomainError] = []
        for row in rows:
            try:
                statements.append(read_statement(row, now))
            except DomainError as error:
                statements.append(error)
        named = [said.prediction_id for said in statements if isinstance(said, Statement) and said.prediction_id]
        private = Job.objects.private_among(named)
        statements = [
            DomainError("not_found", NO_SUCH_PREDICTION)
            if isinstance(said, Statement) and said.prediction_id in private
            else said
            for said in statements
        ]
        with transaction.atomic():
            answers = give_feedback(asker=asker, statements=statements)
        results = [_result(index, given) for index, given in enumerate(answers)]
        statuses = [result["status"] for result in results]
        return Response(
            {
                "counted": sum(status in (200, 201) for status in statuses),
                "pending": statuses.count(202),
                "failed": sum(status >= 400 for status in statuses),
                "results": results,
            }
        )


def _result(index: int, given: Given) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "status": status_of(given)}
    if given.error is not None:
        result |= {"code": given.error.code, "detail": given.error.message, "errors": given.error.errors}
        result["retryable"] = TABLE[given.error.code].retryable
    elif given.feedback is not None:
        prediction_id = given.feedback.prediction_id
        result |= {"state": given.feedback.state, "prediction_id": str(prediction_id) if prediction_id else None}
    return result


urlpatterns = [
    path("predictions/", PredictionList.as_view(), name="api-predictions"),
    path("predictions/<str:prediction_id>/", PredictionDetail.as_view(), name="api-prediction"),
    path("predictions/<str:prediction_id>/feedback/", PredictionFeedback.as_view(), name="api-prediction-feedback"),
    path("feedback/", BulkFeedback.as_view(), name="api-feedback"),
    path("", include("controlplane.api.metrics")),
]
