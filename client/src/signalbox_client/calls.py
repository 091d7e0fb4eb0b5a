"""Every call as steps: requests to send and pauses to make, and what is made of the answers. Nothing here does I/O.

A call is a generator that yields `httpx.Request` or `Pause`. Who runs it sends the response back in, or throws the
`httpx.HTTPError` in, and gets the result at its end. So both clients are one implementation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from signalbox_client import rows as v1
from signalbox_client import tensors, wire
from signalbox_client.endpoint import Endpoint, Header, Part
from signalbox_client.errors import ConnectionFailed, DeadlineExceeded, InvalidInput, Overloaded, SignalboxError
from signalbox_client.options import CallOptions, Options, deadline_of, options_of, path_of
from signalbox_client.replies import document_of, error_of, error_of_transport
from signalbox_client.results import (
    Deployment,
    Feedback,
    FeedbackReport,
    FeedbackTaken,
    JobState,
    Metadata,
    PicturePrediction,
    RowsPrediction,
    TensorPrediction,
)
from signalbox_client.retrying import Deadline, Retrying

T = TypeVar("T")

_JSON: Header = (b"Content-Type", b"application/json")
_OCTETS: Header = (b"Content-Type", b"application/octet-stream")
# One look at a job: the server waits for its end at most 60 s.
_LOOK_S = 30.0
_BULK_ROWS = 1000
_PAGE = 500
# What a version says whose inputs are not those that are remembered of its deployment.
_MISFITS = frozenset({"unknown_feature", "wrong_type", "wrong_shape"})
_REMEMBERED = 1024


@dataclass(frozen=True)
class Pause:
    """Nothing is to be done for so long."""

    seconds: float


Steps = Generator[httpx.Request | Pause, httpx.Response | None, T]


@dataclass(frozen=True)
class _Send:
    """What is sent, however often. `headers` are made anew for each attempt."""

    method: str
    path: str
    headers: Callable[[], Sequence[Header]] = tuple
    parts: Sequence[Part] = ()
    idempotent: bool = True
    patience_s: float = 0.0


class Calls:
    """The calls of one client. It remembers what deployments take; threads may share it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        retries: int,
        deadline_s: float | None,
        retrying: Retrying,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if retries < 0:
            raise ValueError("retries is 0 or more.")
        self.endpoint = endpoint
        self._retries = retries
        self._deadline_s = deadline_s
        self._retrying = retrying
        self._clock = clock
        self._metadata: dict[str, Metadata] = {}

    # Predictions

    def predict(
        self, deployment: str, inputs: tensors.Inputs, outputs: Sequence[str] | None, given: CallOptions
    ) -> Steps[TensorPrediction]:
        options = self._options(given)
        base = path_of("/v2/models/", deployment)
        if options.label is not None:
            # V2 has no addresses for labels: which version has it is asked each time, for it may move.
            told = yield from self._told(path_of("/v1/models/", deployment) + options.pin + "/metadata", options)
            base += f"/versions/{wire.version_of(told)}"
        else:
            base += options.pin
        signature = self._metadata.get(base)
        remembered = signature is not None
        while True:
            if signature is None:
                signature = yield from self._signature(base, options)
            named = tensors.named(inputs, signature.inputs)
            try:
                size, parts = tensors.encode(named, signature.inputs, outputs)
                length = (b"Inference-Header-Content-Length", b"%d" % size)
                send = _Send("POST", base + "/infer", lambda: [*options.sent(), _OCTETS, length], parts)  # noqa: B023
                response = yield from self._exchange(send, options.deadline, options.retries)
            except InvalidInput as refused:
                if not remembered or refused.code not in _MISFITS:
                    raise
                # The deployment may have moved on to a version with other inputs.
                newer = yield from self._signature(base, options)
                if newer.inputs == signature.inputs:
                    raise
                signature, remembered = newer, False
                continue
            return wire.tensor_prediction(response)

    def predict_rows(self, deployment: str, rows: Any, given: CallOptions) -> Steps[RowsPrediction]:
        content = v1.document(instances=v1.rows_of(rows))
        response = yield from self._v1(deployment, b"application/json", content, given)
        return wire.rows_prediction(response)

    def predict_picture(self, deployment: str, content: bytes, given: CallOptions) -> Steps[PicturePrediction]:
        kind, body = v1.picture_body(content)
        response = yield from self._v1(deployment, kind, body, given)
        return wire.picture_prediction(response)

    def _v1(self, deployment: str, kind: bytes, body: bytes, given: CallOptions) -> Steps[httpx.Response]:
        options = self._options(given)
        path = path_of("/v1/models/", deployment) + options.pin + ":predict"
        send = _Send("POST", path, lambda: [*options.sent(), (b"Content-Type", kind)], (body,))
        response = yield from self._exchange(send, options.deadline, options.retries)
        if response.status_code == 202:
            self._pending(response)
        return response

    @staticmethod
    def _pending(response: httpx.Response) -> NoReturn:
        """A deployment of the lane `job` was not done by the deadline. Raises DeadlineExceeded with the job's id."""
        raise DeadlineExceeded(
            "The job is not done yet; wait for it by its id.",
            status=202,
            code="deadline_exceeded",
            request_id=response.headers.get("x-request-id", ""),
            job_id=str(document_of(response).get("id", "")),
        )

    # What is there

    def metadata(self, deployment: str, version: int | None) -> Steps[Metadata]:
        path = path_of("/v2/models/", deployment) + ("" if version is None else f"/versions/{version}")
        return (yield from self._signature(path, self._options({})))

    def _signature(self, path: str, options: Options) -> Steps[Metadata]:
        metadata = wire.metadata((yield from self._told(path, options)))
        if len(self._metadata) >= _REMEMBERED:
            self._metadata.clear()
        self._metadata[path] = metadata
        return metadata

    def ready(self, deployment: str | None) -> Steps[bool]:
        path = "/v2/health/ready" if deployment is None else path_of("/v2/models/", deployment) + "/ready"
        try:
            yield from self._exchange(_Send("GET", path), deadline_of(None, self._deadline_s), 0)
        except (ConnectionFailed, DeadlineExceeded, Overloaded):
            return False
        return True

    def deployments(self) -> Steps[list[Deployment]]:
        found: list[Deployment] = []
        query = {"page_size": str(_PAGE)}
        options = self._options({})
        while True:
            page = yield from self._told(f"/api/deployments/?{urlencode(query)}", options)
            found += map(wire.deployment, page.get("results", ()))
            # Of the next page's address only the cursor is taken: the rest may name the server otherwise.
            cursor = parse_qs(urlsplit(page.get("next") or "").query).get("cursor")
            if not cursor:
                return found
            query["cursor"] = cursor[0]

    # Feedback

    def feedback(self, one: Feedback, deadline: float | Deadline | None) -> Steps[FeedbackTaken]:
        row = wire.feedback_row(one)
        until = deadline_of(deadline, self._deadline_s)
        if one.prediction_id is None:
            send = _Send("POST", "/api/feedback/", lambda: [_JSON], (v1.document(feedback=[row]),))
            return wire.taken(document_of((yield from self._exchange(send, until, self._retries))))
        path = path_of("/api/predictions/", row.pop("prediction_id")) + "/feedback/"
        send = _Send("POST", path, lambda: [_JSON], (v1.document(**row),))
        response = yield from self._exchange(send, until, self._retries)
        return FeedbackTaken(wire.TAKEN.get(response.status_code, "counted"), one.prediction_id)

    def feedback_batch(self, rows: Iterable[Feedback], deadline: float | Deadline | None) -> Steps[FeedbackReport]:
        listed = [wire.feedback_row(one) for one in rows]
        until = deadline_of(deadline, self._deadline_s)
        report = FeedbackReport(0, 0, ())
        for start in range(0, len(listed), _BULK_ROWS):
            content = v1.document(feedback=listed[start : start + _BULK_ROWS])
            send = _Send("POST", "/api/feedback/", lambda: [_JSON], (content,))
            response = yield from self._exchange(send, until, self._retries)
            report = wire.joined(report, document_of(response), start)
        return report

    # Jobs

    def submit_job(
        self, deployment: str, rows: Any, picture: bytes | None, inputs: Mapping[str, Any] | None, given: CallOptions
    ) -> Steps[JobState]:
        if sum(part is not None for part in (rows, picture, inputs)) != 1:
            raise TypeError("Give one of rows, picture and inputs.")
        options = self._options(given)
        if options.label is not None:
            raise ValueError("A job is pinned by version, not by label.")
        if picture is not None:
            kind, body = v1.picture_body(picture)
        else:
            content = v1.document(inputs=inputs) if rows is None else v1.document(instances=v1.rows_of(rows))
            kind, body = b"application/json", content
        path = path_of("/api/deployments/", deployment) + "/jobs/"
        if options.version is not None:
            path += f"?version={options.version}"
        send = _Send("POST", path, lambda: [*options.headers, (b"Content-Type", kind)], (body,))
        response = yield from self._exchange(send, options.deadline, options.retries)
        return wire.job(response)

    def job(self, job_id: str, *, wait_s: float = 0.0, deadline: Deadline | None = None) -> Steps[JobState]:
        path = path_of("/api/jobs/", job_id) + "/"
        if wait_s:
            path += f"?wait={wait_s:.3f}"
        send = _Send("GET", path, patience_s=wait_s)
        response = yield from self._exchange(send, deadline, self._retries)
        return wire.job(response)

    def wait_for_job(self, job_id: str, timeout_s: float | None) -> Steps[JobState]:
        """The job at its end. Raises DeadlineExceeded, with its id, where that is not within `timeout_s`."""
        until = None if timeout_s is None else self._clock() + timeout_s
        while True:
            left_s = _LOOK_S if until is None else max(0.0, until - self._clock())
            look_s = min(_LOOK_S, left_s)
            began_at = self._clock()
            state = yield from self.job(job_id, wait_s=look_s)
            if state.is_final:
                return state
            if until is not None and self._clock() >= until:
                message = f"The job is {state.status} after {timeout_s:g} s; it goes on."
                raise DeadlineExceeded(message, code="deadline_exceeded", retryable=True, job_id=job_id)
            if self._clock() - began_at < look_s / 2:
                # A server that does not wait as asked is not asked again at once.
                yield Pause(min(1.0, look_s / 2))

    def cancel_job(self, job_id: str) -> Steps[JobState]:
        # Cancelled twice is a conflict, so an answer that was lost is not asked for again.
        send = _Send("DELETE", path_of("/api/jobs/", job_id) + "/", idempotent=False)
        response = yield from self._exchange(send, deadline_of(None, self._deadline_s), self._retries)
        return wire.job(response)

    # One exchange

    def _options(self, given: CallOptions) -> Options:
        return options_of(given, retries=self._retries, deadline_s=self._deadline_s)

    def _told(self, path: str, options: Options) -> Steps[dict[str, Any]]:
        """A JSON object that is asked for."""
        response = yield from self._exchange(_Send("GET", path), options.deadline, options.retries)
        return document_of(response)

    def _exchange(self, send: _Send, deadline: Deadline | None, retries: int) -> Steps[httpx.Response]:
        """The answer, of 2xx, within the deadline and after as many attempts as are allowed. Raises SignalboxError."""
        attempt = 0
        while True:
            if deadline is not None and not deadline.left_s:
                raise DeadlineExceeded("The deadline passed before the call was sent.", code="deadline_exceeded")
            failure: SignalboxError
            try:
                response = yield self.endpoint.request(
                    send.method,
                    send.path,
                    headers=send.headers(),
                    parts=send.parts,
                    deadline=deadline,
                    patience_s=send.patience_s,
                )
            except httpx.HTTPError as error:
                failure = error_of_transport(error, self.endpoint.origin)
            else:
                assert response is not None
                if 200 <= response.status_code < 300:
                    return response
                failure = error_of(response)
            wait_s = self._retrying.pause_s(
                failure, attempt=attempt, retries=retries, idempotent=send.idempotent, deadline=deadline
            )
            if wait_s is None:
                raise failure
            yield Pause(wait_s)
            attempt += 1
