"""The job lane: a call is handed to the control plane as a job, and its result waited for until the deadline."""

import asyncio
import base64
from types import ModuleType
from typing import Any

import numpy as np
import orjson

from inference.contracts import VersionRoute
from inference.errors import TABLE, InferenceError
from inference.runtime.tensors import NUMPY_DTYPES
from inference.server.asking import Ask
from inference.server.held import HeldDeployment, HeldVersion
from inference.server.protocols import PICTURE_TYPES, Call, content_type
from inference.server.replies import JSON, HeaderList, Receive, Send, reply, reply_error, unless_gone
from inference.server.upstream import Fetched, Upstream

# One look at a job waits so long in the control plane.
_LOOK_S = 30
_PASSED_ON = (b"authorization", b"idempotency-key", b"x-sticky-key", b"x-client-id", b"x-context")


class JobLane:
    """Calls of deployments whose lane is `job`. The control plane draws the version, by the same split and key."""

    def __init__(self, upstream: Upstream | None) -> None:
        self._upstream = upstream

    async def answer(
        self,
        ask: Ask,
        deployment: HeldDeployment,
        version: HeldVersion,
        protocol: ModuleType,
        call: Call,
        body: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        """Post the job and answer with its result; past the deadline, or when asked to, with where it will be.

        Raises InferenceError with the control plane's code, or the code of the job that failed.
        """
        upstream = self._upstream
        if upstream is None:
            raise InferenceError("upstream_unavailable", headers={"Retry-After": "5"})
        job, url = await unless_gone(receive, self._post(upstream, ask, deployment, version, call, body))
        ask.taken_on = True
        if b"respond-async" not in ask.headers.get(b"prefer", b"").lower():
            job = await unless_gone(receive, self._wait(upstream, ask, job))
        if job["status"] in ("failed", "cancelled"):
            raise _job_error(job)
        if job["status"] != "succeeded":
            await self._answer_pending(ask, job, url, send)
            return
        number = int(job.get("version") or version.route.number)
        answered = deployment.versions.get(number, version)
        prediction_id = str(job.get("prediction_id") or ask.id)
        outputs = _outputs(job, answered.route)
        kind, extra, content = protocol.encode(call, outputs, deployment.route, answered.route, prediction_id)
        answered.calls.add()
        answered.rows.add(call.rows)
        headers: HeaderList = [
            (b"content-type", kind),
            (b"x-prediction-id", prediction_id.encode()),
            (b"x-model-version", b"%d" % number),
            (b"x-split-revision", deployment.revision_header),
            (b"x-request-id", ask.request_id.encode()),
            *extra,
        ]
        if ask.client_id:
            headers.append((b"x-client-id", ask.client_id.encode()))
        if ask.allowance is not None:
            headers += ask.allowance.headers
        await reply(send, 200, headers, content)

    async def _post(
        self, upstream: Upstream, ask: Ask, deployment: HeldDeployment, version: HeldVersion, call: Call, body: bytes
    ) -> tuple[dict[str, Any], str]:
        """(the job, its URL) of a job that was taken on."""
        kind, content = _as_v1(ask, call, body)
        headers: HeaderList = [(name, ask.headers[name]) for name in _PASSED_ON if name in ask.headers]
        headers += [(b"content-type", kind), (b"x-request-id", ask.request_id.encode()), (b"accept", JSON)]
        path = f"/api/deployments/{deployment.route.name}/jobs/"
        if ask.pinned:
            path += f"?version={version.route.number}"
        taken = await upstream.fetch("POST", path, headers, content, ask.deadline)
        job = _document(taken)
        url = taken.headers.get("location") or f"/api/jobs/{job['id']}/"
        return job, url

    async def _wait(self, upstream: Upstream, ask: Ask, job: dict[str, Any]) -> dict[str, Any]:
        """The job as it is when it ended, or when the deadline passed."""
        headers: HeaderList = [(b"authorization", ask.headers[b"authorization"]), (b"accept", JSON)]
        loop = asyncio.get_running_loop()
        while job["status"] in ("queued", "running") and (left := ask.deadline - loop.time()) > 0:
            path = f"/api/jobs/{job['id']}/?wait={max(1, min(int(left), _LOOK_S))}"
            try:
                job = _document(await upstream.fetch("GET", path, headers, b"", ask.deadline))
            except InferenceError as error:
                if error.code == "deadline_exceeded":
                    break
                raise
        return job

    @staticmethod
    async def _answer_pending(ask: Ask, job: dict[str, Any], url: str, send: Send) -> None:
        """Where the job will be. V2 clients cannot read a 202, unless they asked for one: they get 504."""
        if ask.address.protocol == "v2" and b"prefer" not in ask.headers:
            error = InferenceError("deadline_exceeded", "The job is not done yet; its result will be at its address.")
            error.headers["Location"] = url
            if ask.allowance is not None:
                error.headers |= ask.allowance.named
            await reply_error(send, error, ask.request_id, job=url)
            return
        headers: HeaderList = [
            (b"content-type", JSON),
            (b"location", url.encode()),
            (b"x-request-id", ask.request_id.encode()),
        ]
        if ask.allowance is not None:
            headers += ask.allowance.headers
        await reply(send, 202, headers, orjson.dumps({**job, "job": url}))


def _as_v1(ask: Ask, call: Call, body: bytes) -> tuple[bytes, bytes]:
    """(content type, body) as the control plane reads jobs: a raw picture or a V1 document."""
    kind = content_type(ask.headers)
    if kind in PICTURE_TYPES:
        return kind, body
    if ask.address.protocol == "v1":
        return JSON, body
    if call.pictures:
        document: dict[str, Any] = {"instances": [_b64(picture) for picture in call.pictures]}
    else:
        document = {"inputs": {name: _plain(array.tolist()) for name, array in call.inputs.items()}}
    return JSON, orjson.dumps(document)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _b64(value) if isinstance(value, bytes) else value


def _b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def _document(fetched: Fetched) -> dict[str, Any]:
    """The JSON object of an answer. Raises InferenceError with the code of a refusal."""
    try:
        document = orjson.loads(fetched.body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise InferenceError("upstream_unavailable", headers={"Retry-After": "5"})
    if fetched.status < 300:
        return document
    code = document.get("code", "")
    if code not in TABLE:
        code = "upstream_unavailable" if fetched.status >= 500 else "bad_request"
    headers = {"Retry-After": fetched.headers["retry-after"]} if "retry-after" in fetched.headers else {}
    raise InferenceError(code, str(document.get("detail") or ""), list(document.get("errors") or []), headers)


def _job_error(job: dict[str, Any]) -> InferenceError:
    error = job.get("error") or {}
    code = error.get("code", "cancelled" if job["status"] == "cancelled" else "internal")
    return InferenceError(code if code in TABLE else "internal", str(error.get("detail") or ""))


def _outputs(job: dict[str, Any], version: VersionRoute) -> dict[str, Any]:
    """The job's outputs as tensors. Raises InferenceError internal where the result does not fit the signature."""
    named = (job.get("result") or {}).get("outputs") or {}
    try:
        return {
            spec.name: np.array(named[spec.name], dtype=NUMPY_DTYPES[spec.datatype])
            for spec in version.signature.outputs
        }
    except (KeyError, ValueError, TypeError) as error:
        raise InferenceError("internal", "The job's result does not have the model's outputs.") from error
