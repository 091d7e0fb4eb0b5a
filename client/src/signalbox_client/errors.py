"""What a call can fail with. Each error has the code of the product's error table; what to catch is the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldError:
    """One place that is wrong: `loc` is the path to it ("instances", 3, "amount"), `msg` how to mend it."""

    loc: tuple[str | int, ...]
    msg: str


@dataclass(frozen=True)
class RateLimit:
    """What a key has left: `remaining` of `limit` calls a minute; all are free again after `reset_s` seconds."""

    limit: int
    remaining: int
    reset_s: float


class SignalboxError(Exception):
    """Base of all that the client raises of a call. A misuse of the client itself is a ValueError or TypeError.

    status: of HTTP, 0 where no answer came. code: of the error table, stable. message: a sentence.
    errors: each place that is wrong. retryable: whether the same call may succeed later. request_id: finds the call in
    the server's log. retry_after: seconds that the server asks to wait, None where it did not say. job_id: of the job
    that goes on where a call was not waited for to its end, else "". rate_limit: None where the key has none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        errors: Sequence[FieldError] = (),
        retryable: bool = False,
        request_id: str = "",
        retry_after: float | None = None,
        job_id: str = "",
        rate_limit: RateLimit | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.errors = tuple(errors)
        self.retryable = retryable
        self.request_id = request_id
        self.retry_after = retry_after
        self.job_id = job_id
        self.rate_limit = rate_limit

    def __str__(self) -> str:
        head = " ".join(part for part in (str(self.status or ""), self.code) if part)
        tail = f" (request {self.request_id})" if self.request_id else ""
        return f"{head}: {self.message}{tail}" if head else f"{self.message}{tail}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.message, dict(vars(self)))


def _restored(kind: type[SignalboxError], message: str, state: dict[str, Any]) -> SignalboxError:
    error = kind(message)
    vars(error).update(state)
    return error


class InvalidInput(SignalboxError):
    """What was sent does not fit (400, 405, 411, 413, 415, 422); `errors` names each bad cell."""


class NotAuthenticated(SignalboxError):
    """No key was sent, or it is unknown, revoked or expired (401)."""


class Forbidden(SignalboxError):
    """The key lacks the scope (403)."""


class NotFound(SignalboxError):
    """There is no such thing, another team's, or it was retired (404, 410)."""


class Conflict(SignalboxError):
    """The state has changed, or the same Idempotency-Key came with another body (409)."""


class RateLimited(SignalboxError):
    """The key's limit of calls a minute is reached (429)."""


class Overloaded(SignalboxError):
    """Too much is in progress, or nothing can answer right now (503); nothing was computed."""


class DeadlineExceeded(SignalboxError, TimeoutError):
    """The deadline passed (504 of the server, 408, or here). `job_id` names a job that goes on all the same."""


class ServerError(SignalboxError):
    """The server failed, or something between answered in its place (other 5xx, redirects, answers of no form)."""


class ConnectionFailed(SignalboxError, ConnectionError):
    """No answer came. `sent`: whether the server may have got the call."""

    sent: bool = False


class JobFailed(SignalboxError):
    """The job ended without a result: failed, or cancelled (code `cancelled`)."""


_BY_STATUS: dict[int, type[SignalboxError]] = {
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    408: DeadlineExceeded,
    409: Conflict,
    410: NotFound,
    429: RateLimited,
    503: Overloaded,
    504: DeadlineExceeded,
}


def kind_of(status: int) -> type[SignalboxError]:
    """The class for an HTTP status outside 2xx."""
    return _BY_STATUS.get(status) or (InvalidInput if 400 <= status < 500 else ServerError)
