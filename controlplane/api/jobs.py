"""/api/deployments/{d}/jobs/ and /api/jobs/: asynchronous predictions."""

import hmac
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connection
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponseBase
from django.urls import path, reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.accounts.limits import take
from controlplane.accounts.models import Right
from controlplane.api.access import (
    AFTER_ANSWER,
    actor_of,
    awaiting,
    key_of,
    person_of,
    require,
    rights,
    team_scope,
    visible_deployments,
)
from controlplane.api.pagination import CursorPagination
from controlplane.api.schema import described
from controlplane.audit.services import record
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError, field_error
from controlplane.jobs.bodies import OCTETS
from controlplane.jobs.models import Job, JobQuerySet, JobStatus
from controlplane.jobs.refusals import count_refusal
from controlplane.jobs.services.claiming import cancel
from controlplane.jobs.services.submitting import Asker, Submission, submit_job
from controlplane.jobs.waiting import LONGEST_WAIT_S, wait_for
from inference.contracts import Scope
from inference.errors import Located
from inference.limits import ADMITTED_HEADER, Allowance, admitted_mark

# Results are payload, and stay in no cache on the way.
UNCACHED = {"Cache-Control": "no-store"}
NO_SUCH_JOB = "There is no such job."
PRINTABLE = re.compile(r"[\x20-\x7e\x80-\U0010ffff]+")
KEY_LENGTH = 255
CLIENT_ID_LENGTH = 128
CONTEXT_PAIRS = 8
CONTEXT_NAME = 64
CONTEXT_VALUE = 256
WAIT = OpenApiParameter("wait", OpenApiTypes.FLOAT, description="Seconds to wait for the end, at most 60.")


class NewestFirst(CursorPagination):
    ordering = "-id"


class JobSerializer(serializers.Serializer[Any]):
    """A job. `result` has the scores by label and the model's outputs by name; `error` the code and a sentence."""

    id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=JobStatus.choices)
    deployment = serializers.CharField()
    version = serializers.IntegerField()
    split_revision = serializers.IntegerField()
    pinned = serializers.BooleanField()
    client_id = serializers.CharField()
    prediction_id = serializers.UUIDField(allow_null=True)
    progress = serializers.FloatField()
    attempts = serializers.IntegerField()
    device = serializers.CharField()
    warnings = serializers.ListField(child=serializers.CharField())
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    result = serializers.JSONField(allow_null=True)
    error = serializers.JSONField(allow_null=True)


def asker_of(request: Request) -> Asker:
    return Asker(key_of(request), person_of(request))


def readable_jobs(request: Request) -> JobQuerySet:
    """Jobs of the deployments that whoever asks may look at, and their own. Raises PermissionDenied."""
    own = Q(key=key_of(request)) if key_of(request) is not None else Q(user=person_of(request))
    key = key_of(request)
    if key is not None and Right.VIEW not in rights(request, key.team_id):
        found = Job.objects.filter(own, deployment__in=visible_deployments(request, Right.PREDICT))
    else:
        mine = own & Q(deployment__in=Deployment.objects.filter(team_scope(request, Right.VIEW, Right.PREDICT)))
        found = Job.objects.filter(Q(deployment__in=visible_deployments(request)) | mine)
    return found.select_related("deployment")


def shown(request: Request, job: Job) -> dict[str, Any]:
    """The job's JSON. Results are payload: their asker sees them, others with view_payload do, and that is audited.

    A private job is told of where it belongs (a study): its asker sees no more of it here than others, and nobody who
    is to answer that study first.
    """
    document = job.as_json()
    key, person = key_of(request), person_of(request)
    is_own = job.key_id == key.pk if key is not None else person is not None and job.user_id == person.pk
    if not job.private and (job.result is None or is_own):
        return document
    if job.private and awaiting(request, [job.pk]):
        return {**job.withheld_json(), "payload": AFTER_ANSWER}
    if Right.VIEW_PAYLOAD in rights(request, job.deployment.team_id):
        record(
            actor=actor_of(request),
            action="job.view_payload",
            target_type="job",
            target_id=job.pk,
            target_label=job.deployment.name,
            team_id=job.deployment.team_id,
        )
        return document
    return job.withheld_json()


def wait_asked(request: Request) -> float:
    """Seconds to wait: `?wait=`, else `Prefer: wait=`; 0 where neither is sent. Raises DomainError bad_request."""
    text = request.query_params.get("wait")
    if text is None:
        preferred = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("Prefer", ""))
        text = preferred.group(1) if preferred and "respond-async" not in request.headers["Prefer"] else "0"
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text):
        raise field_error("bad_request", "wait", "wait is a number of seconds.")
    return min(LONGEST_WAIT_S, float(text))


class LateResponse(Response):
    """A response that may still change: when the job ends within `wait_s`, `again` says what is answered instead."""

    wait_s: float = 0.0
    job_id: uuid.UUID | None = None
    again: Callable[[], dict[str, Any]] | None = None


class JobList(GenericAPIView[Any]):
    serializer_class = JobSerializer
    pagination_class = NewestFirst
    queryset = Job.objects.none()
    asked: Deployment | None = None
    allowance: Allowance | None = None

    def get(self, request: Request, name: str) -> Response:
        """Jobs of a deployment, newest first, without their results; `?status=` filters."""
        found = self._deployment(request, name)
        jobs = readable_jobs(request).filter(deployment=found).defer("result")
        status = request.query_params.get("status")
        if status:
            if status not in JobStatus.values:
                raise field_error("validation_error", "status", f"A status is one of {', '.join(JobStatus.values)}.")
            jobs = jobs.filter(status=status)
        page = self.paginate_queryset(jobs) or []
        rows = [
            job.withheld_json() if job.private else {**job.as_json(), "result": None}
            for job in map(_without_result, page)
        ]
        return self.get_paginated_response(rows)

    @described(
        request={
            "multipart/form-data": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}},
            "image/png": OpenApiTypes.BINARY,
            "image/jpeg": OpenApiTypes.BINARY,
            "application/dicom": OpenApiTypes.BINARY,
            "application/json": OpenApiTypes.OBJECT,
        },
        responses={202: JobSerializer, 200: JobSerializer},
        parameters=[WAIT, OpenApiParameter("version", OpenApiTypes.INT, description="Pins a version.")],
    )
    def post(self, request: Request, name: str) -> Response:
        """Takes a job on: 202 with its address; 200 where it ended while waiting, or was posted before."""
        found = self._deployment(request, name)
        require(request, Right.PREDICT, found.team_id)
        key = key_of(request)
        if key is not None and not _is_admitted(request):
            self.allowance = take(key)
        wait_s = wait_asked(request)
        submission = self._submission(request)
        job, created = submit_job(asker=asker_of(request), deployment=found, submission=submission)
        job.deployment = found
        response = LateResponse(
            shown(request, job),
            status=202 if created or not job.is_final else 200,
            headers={"Location": reverse("job", args=[job.pk]), **UNCACHED},
        )
        return later(request, response, job, wait_s)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Tells what is left of the key's limit, of calls that were counted here."""
        response = super().finalize_response(request, response, *args, **kwargs)
        for name, value in (self.allowance.named if self.allowance is not None else {}).items():
            response.headers[name] = value
        return response

    def handle_exception(self, exc: Exception) -> Response:
        """Counts what is refused here, once: calls that the front door passes on are counted there."""
        try:
            response = super().handle_exception(exc)
        except Exception:
            self._count_refusal("internal")
            raise
        self._count_refusal(response.data["code"], response.data["errors"])
        return response

    def _count_refusal(self, code: str, errors: Sequence[Located] = ()) -> None:
        request = self.request
        # Who is nobody leaves no row: anybody could fill the tables.
        if request.method != "POST" or not request.user or _is_admitted(request):
            return
        request_id: str = getattr(request._request, "request_id", "")
        count_refusal(key=key_of(request), deployment=self.asked, code=code, errors=errors, request_id=request_id)

    def _deployment(self, request: Request, name: str) -> Deployment:
        found = visible_deployments(request, Right.PREDICT).filter(name=name).first()
        if found is None:
            raise Http404(f"There is no deployment “{name}”.")
        self.asked = found
        return found

    def _submission(self, request: Request) -> Submission:
        body, media_type = _body(request._request)
        return Submission(
            body=body,
            media_type=media_type,
            sticky_key=_header(request, "X-Sticky-Key"),
            idempotency_key=_idempotency_key(request),
            client_id=_client_id(_header(request, "X-Client-Id")),
            context=_context(_header(request, "X-Context")),
            pin=_pin(request),
            request_id=getattr(request._request, "request_id", ""),
        )


def _is_admitted(request: Request) -> bool:
    """Whether the front door admitted the call and counts it: nobody else knows its mark."""
    said = request.headers.get(ADMITTED_HEADER, "")
    return hmac.compare_digest(said.encode(), admitted_mark(settings.SECRET_KEY).encode())


def _without_result(job: Job) -> Job:
    job.result = None
    return job


def _body(request: HttpRequest) -> tuple[bytes, str]:
    """(content, media type): the one file of a form, or the body as it is. Raises DomainError."""
    media_type = request.content_type.lower() if request.content_type else ""
    try:
        if int(request.META.get("CONTENT_LENGTH") or 0) > _most_bytes():
            raise DomainError("too_large", f"At most {_most_bytes()} bytes are accepted.")
        if media_type != "multipart/form-data":
            return request.body, media_type
        files = [file for _, listed in request.FILES.lists() for file in listed]
    except RequestDataTooBig:
        raise DomainError("too_large", f"At most {_most_bytes()} bytes are accepted.") from None
    if len(files) != 1:
        raise field_error("validation_error", "file", f"Send one file in the field “file”; {len(files)} came.")
    if "file" not in request.FILES:
        raise field_error("validation_error", "file", "Send the file in the field “file”.")
    (file,) = files
    if (file.size or 0) > _most_bytes():
        raise DomainError("too_large", f"At most {_most_bytes()} bytes are accepted.")
    # What a form says of its file is the browser's guess: the bytes decide, unless it is JSON.
    kind = "application/json" if (file.content_type or "").startswith("application/json") else OCTETS
    return file.read(), kind


def _most_bytes() -> int:
    most: int = settings.SIGNALBOX_MAX_PICTURE_BYTES
    return most


def _header(request: Request, name: str) -> str:
    """A header as UTF-8, as the front door reads it, so that one key falls into one bucket on both ways in."""
    return request.headers.get(name, "").encode("latin-1", "replace").decode("utf-8", "replace")


def _idempotency_key(request: Request) -> str:
    value = _header(request, "Idempotency-Key")
    if value and (len(value) > KEY_LENGTH or not PRINTABLE.fullmatch(value)):
        raise DomainError("bad_header", f"Idempotency-Key is a text of at most {KEY_LENGTH} characters.")
    return value


def _client_id(value: str) -> str:
    """The caller's id; one that is too long or has control characters is ignored, as in the prediction API."""
    return value if value and len(value) <= CLIENT_ID_LENGTH and PRINTABLE.fullmatch(value) else ""


def _context(header: str) -> dict[str, str]:
    """`k=v, k=v`. Raises DomainError bad_header for what the prediction API refuses too."""
    context: dict[str, str] = {}
    for part in header.split(",") if header else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        sound = sign and name and len(name) <= CONTEXT_NAME and len(value) <= CONTEXT_VALUE
        if not sound or not (name + value).isprintable():
            raise DomainError("bad_header", "X-Context reads k=v, k=v.")
        context[name] = value
    if len(context) > CONTEXT_PAIRS:
        raise DomainError("bad_header", f"X-Context may have at most {CONTEXT_PAIRS} pairs.")
    return context


def _pin(request: Request) -> int | None:
    text = request.query_params.get("version")
    if text is None:
        return None
    key = key_of(request)
    if key is not None and not key.has_scope(Scope.PIN):
        raise PermissionDenied("The key lacks the scope pin.")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise DomainError("not_found", f"There is no version “{text[:20]}”.")
    return int(text)


class JobDetail(GenericAPIView[Any]):
    serializer_class = JobSerializer

    @described(parameters=[WAIT])
    def get(self, request: Request, job_id: uuid.UUID) -> Response:
        """A job as it is now, or when it ends within `?wait=` seconds."""
        job = self._job(request, job_id)
        response = LateResponse(shown(request, job), headers=UNCACHED)
        return later(request, response, job, wait_asked(request))

    def delete(self, request: Request, job_id: uuid.UUID) -> Response:
        """Cancels a job that has not ended; 409 where it has."""
        job = self._job(request, job_id)
        if not readable_jobs(request).filter(asker_filter(request), pk=job.pk).exists():
            require(request, Right.DEPLOY, job.deployment.team_id)
        return Response(shown(request, cancel(actor=actor_of(request), job=job)))

    @staticmethod
    def _job(request: Request, job_id: uuid.UUID) -> Job:
        job = readable_jobs(request).filter(pk=job_id).first()
        if job is None:
            raise Http404(NO_SUCH_JOB)
        return job


def asker_filter(request: Request) -> Q:
    """Jobs that whoever asks has posted."""
    return Q(asker=asker_of(request).name)


def later(request: Request, response: LateResponse, job: Job, wait_s: float) -> LateResponse:
    """Lets the response wait for the job's end, where that was asked for."""
    if wait_s > 0 and not job.is_final:
        response.wait_s, response.job_id = wait_s, job.pk
        response.again = lambda: shown(request, Job.objects.select_related("deployment").get(pk=job.pk))
    return response


def waiting(view_class: type[APIView]) -> Callable[..., HttpResponseBase]:
    """The view, answering late without holding a thread or a database connection while it waits."""
    view = view_class.as_view()
    synchronous = sync_to_async(view)

    async def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = await synchronous(request, *args, **kwargs)
        if isinstance(response, LateResponse) and response.job_id is not None and response.again is not None:
            await _release_connection()
            if await wait_for(response.job_id, response.wait_s):
                response.data = await sync_to_async(response.again)()
                response.status_code = 200
        return response

    # What middleware and the schema's generator look for on a view.
    vars(answer).update({name: value for name, value in vars(view).items() if name != "__wrapped__"})
    # Django awaits asynchronous views; its types of `path` know synchronous ones alone.
    return cast(Callable[..., HttpResponseBase], answer)


@sync_to_async
def _release_connection() -> None:
    if not connection.in_atomic_block:
        connection.close()


urlpatterns = [
    path("deployments/<slug:name>/jobs/", waiting(JobList), name="deployment-jobs"),
    path("jobs/<uuid:job_id>/", waiting(JobDetail), name="job"),
]
