"""The clients: what `calls` says, done with httpx. Every method is one line each, beside its other half."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from signalbox_client import wire
from signalbox_client.calls import Pause, Steps, T
from signalbox_client.common import CONNECTIONS, RETRIES, TIMEOUT_S, Common
from signalbox_client.options import CallOptions
from signalbox_client.results import (
    Deployment,
    Feedback,
    FeedbackReport,
    FeedbackTaken,
    JobResult,
    JobState,
    Metadata,
    PicturePrediction,
    RowsPrediction,
    TensorPrediction,
)
from signalbox_client.retrying import Deadline, Retrying
from signalbox_client.rows import Picture, picture_bytes
from signalbox_client.tensors import Inputs

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Client(Common):
    """A connection to a Signalbox. Make one, share it between threads, close it (or use `with`).

    Every method that calls the server raises `SignalboxError`, whose subclasses say of what kind; ValueError and
    TypeError are for what cannot be sent at all. Options of predictions and jobs are in `CallOptions`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        deadline_s: float | None = None,
        retries: int = RETRIES,
        retrying: Retrying | None = None,
        connections: int = CONNECTIONS,
        allow_insecure_http: bool = False,
        verify: bool | SSLContext = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`base_url` and `key` are by default the environment's SIGNALBOX_URL and SIGNALBOX_KEY.

        timeout_s: silence of the server that is borne where a call has no deadline. deadline_s: of every call that
        names none. retries: attempts after the first, at most. connections: open at once, at most. transport: in place
        of the network, for tests. Raises ValueError, also for a key that would go over http to another machine.
        """
        super().__init__(base_url, key, timeout_s, deadline_s, retries, retrying, allow_insecure_http)
        self._http = httpx.Client(transport=transport, **self._options(verify, connections))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def predict(
        self, deployment: str, inputs: Inputs, *, outputs: Sequence[str] | None = None, **options: Unpack[CallOptions]
    ) -> TensorPrediction:
        """Predicts from arrays, in binary. `inputs`: by name, or one array where the model has one input.

        Arrays are made what the signature says where no value is lost by it (float64 to FP32); one that is right
        already is sent without a copy. Texts are arrays of str or bytes. `outputs`: names of those wanted, else all.
        """
        return self._run(self._calls.predict(deployment, inputs, outputs, options))

    def predict_rows(self, deployment: str, rows: Any, **options: Unpack[CallOptions]) -> RowsPrediction:
        """Predicts from rows: dicts by feature or lists, one dict, a pandas or polars table, bytes of pictures."""
        return self._run(self._calls.predict_rows(deployment, rows, options))

    def predict_picture(self, deployment: str, picture: Picture, **options: Unpack[CallOptions]) -> PicturePrediction:
        """Scores by label of one PNG, JPEG or DICOM: its bytes, its path, or the open file. Raises OSError too."""
        return self._run(self._calls.predict_picture(deployment, picture_bytes(picture), options))

    def feedback(
        self,
        prediction_id: str | None = None,
        truth: str | Sequence[str] | float | None = None,
        *,
        deployment: str | None = None,
        client_id: str | None = None,
        certainty: float | None = None,
        ungradable: bool = False,
        comment: str = "",
        observed_at: datetime | None = None,
        deadline: float | Deadline | None = None,
    ) -> FeedbackTaken:
        """Says what really happened; see `Feedback` for what each argument means. The last word counts."""
        said = Feedback(truth, prediction_id, deployment, client_id, certainty, ungradable, comment, observed_at)
        return self._run(self._calls.feedback(said, deadline))

    def feedback_batch(self, rows: Iterable[Feedback], *, deadline: float | Deadline | None = None) -> FeedbackReport:
        """Any number of rows, sent by the thousand, each taken or refused by itself: look at `refused`."""
        return self._run(self._calls.feedback_batch(rows, deadline))

    def submit_job(
        self,
        deployment: str,
        rows: Any = None,
        *,
        picture: Picture | None = None,
        inputs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Job:
        """Has it computed later, from one of rows, picture and inputs (by name). Returns once the job is on record."""
        content = None if picture is None else picture_bytes(picture)
        return Job(self, self._run(self._calls.submit_job(deployment, rows, content, inputs, options)))

    def job(self, job_id: str) -> Job:
        """The job of this id, as it is now; also of one that `DeadlineExceeded.job_id` names."""
        return Job(self, self._run(self._calls.job(job_id)))

    def deployments(self) -> list[Deployment]:
        """All deployments of the key's team that it may see; needs the scope `read`."""
        return self._run(self._calls.deployments())

    def metadata(self, deployment: str, version: int | None = None) -> Metadata:
        """Inputs and outputs of a deployment, or of one of its versions."""
        return self._run(self._calls.metadata(deployment, version))

    def ready(self, deployment: str | None = None) -> bool:
        """Whether the server, or a deployment, answers predictions now; asked once. No key is needed for the server."""
        return self._run(self._calls.ready(deployment))

    def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | None = None
        failed: httpx.HTTPError | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = failed = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._http.send(step)
            except httpx.HTTPError as error:
                failed = error


class Job:
    """A job that was submitted. `state` is what was last heard of it."""

    def __init__(self, client: Client, state: JobState) -> None:
        self._client = client
        self.state = state

    def __repr__(self) -> str:
        return f"Job({self.id}, {self.status})"

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def status(self) -> str:
        return self.state.status

    def refresh(self) -> JobState:
        """Asks how it stands."""
        self.state = self._client._run(self._client._calls.job(self.id))
        return self.state

    def wait(self, timeout_s: float | None = None) -> JobResult:
        """The result, once there is one. Raises JobFailed, or DeadlineExceeded after `timeout_s` (None: no bound)."""
        if not self.state.is_final:
            self.state = self._client._run(self._client._calls.wait_for_job(self.id, timeout_s))
        return wire.job_result(self.state)

    def cancel(self) -> JobState:
        """Cancels it. Raises Conflict where it has ended."""
        self.state = self._client._run(self._client._calls.cancel_job(self.id))
        return self.state


class AsyncClient(Common):
    """The same as `Client`, for asyncio: each method is awaited, and it is closed with `aclose` or `async with`."""

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        deadline_s: float | None = None,
        retries: int = RETRIES,
        retrying: Retrying | None = None,
        connections: int = CONNECTIONS,
        allow_insecure_http: bool = False,
        verify: bool | SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As of `Client`."""
        super().__init__(base_url, key, timeout_s, deadline_s, retries, retrying, allow_insecure_http)
        self._http = httpx.AsyncClient(transport=transport, **self._options(verify, connections))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def predict(
        self, deployment: str, inputs: Inputs, *, outputs: Sequence[str] | None = None, **options: Unpack[CallOptions]
    ) -> TensorPrediction:
        """As `Client.predict`."""
        return await self._run(self._calls.predict(deployment, inputs, outputs, options))

    async def predict_rows(self, deployment: str, rows: Any, **options: Unpack[CallOptions]) -> RowsPrediction:
        """As `Client.predict_rows`."""
        return await self._run(self._calls.predict_rows(deployment, rows, options))

    async def predict_picture(
        self, deployment: str, picture: Picture, **options: Unpack[CallOptions]
    ) -> PicturePrediction:
        """As `Client.predict_picture`; a file is read in a thread."""
        content = await asyncio.to_thread(picture_bytes, picture)
        return await self._run(self._calls.predict_picture(deployment, content, options))

    async def feedback(
        self,
        prediction_id: str | None = None,
        truth: str | Sequence[str] | float | None = None,
        *,
        deployment: str | None = None,
        client_id: str | None = None,
        certainty: float | None = None,
        ungradable: bool = False,
        comment: str = "",
        observed_at: datetime | None = None,
        deadline: float | Deadline | None = None,
    ) -> FeedbackTaken:
        """As `Client.feedback`."""
        said = Feedback(truth, prediction_id, deployment, client_id, certainty, ungradable, comment, observed_at)
        return await self._run(self._calls.feedback(said, deadline))

    async def feedback_batch(
        self, rows: Iterable[Feedback], *, deadline: float | Deadline | None = None
    ) -> FeedbackReport:
        """As `Client.feedback_batch`."""
        return await self._run(self._calls.feedback_batch(rows, deadline))

    async def submit_job(
        self,
        deployment: str,
        rows: Any = None,
        *,
        picture: Picture | None = None,
        inputs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncJob:
        """As `Client.submit_job`."""
        content = None if picture is None else await asyncio.to_thread(picture_bytes, picture)
        return AsyncJob(self, await self._run(self._calls.submit_job(deployment, rows, content, inputs, options)))

    async def job(self, job_id: str) -> AsyncJob:
        """As `Client.job`."""
        return AsyncJob(self, await self._run(self._calls.job(job_id)))

    async def deployments(self) -> list[Deployment]:
        """As `Client.deployments`."""
        return await self._run(self._calls.deployments())

    async def metadata(self, deployment: str, version: int | None = None) -> Metadata:
        """As `Client.metadata`."""
        return await self._run(self._calls.metadata(deployment, version))

    async def ready(self, deployment: str | None = None) -> bool:
        """As `Client.ready`."""
        return await self._run(self._calls.ready(deployment))

    async def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | None = None
        failed: httpx.HTTPError | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = failed = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._http.send(step)
            except httpx.HTTPError as error:
                failed = error


class AsyncJob:
    """The same as `Job`, for asyncio."""

    def __init__(self, client: AsyncClient, state: JobState) -> None:
        self._client = client
        self.state = state

    def __repr__(self) -> str:
        return f"AsyncJob({self.id}, {self.status})"

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def status(self) -> str:
        return self.state.status

    async def refresh(self) -> JobState:
        """As `Job.refresh`."""
        self.state = await self._client._run(self._client._calls.job(self.id))
        return self.state

    async def wait(self, timeout_s: float | None = None) -> JobResult:
        """As `Job.wait`."""
        if not self.state.is_final:
            self.state = await self._client._run(self._client._calls.wait_for_job(self.id, timeout_s))
        return wire.job_result(self.state)

    async def cancel(self) -> JobState:
        """As `Job.cancel`."""
        self.state = await self._client._run(self._client._calls.cancel_job(self.id))
        return self.state
