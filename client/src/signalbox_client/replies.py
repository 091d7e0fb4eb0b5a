"""Answers read: their common headers, their JSON, and errors out of answers that are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from signalbox_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    RateLimit,
    ServerError,
    SignalboxError,
    kind_of,
)

# What the error table calls retryable where an answer does not say: something between may have written it.
_RETRYABLE = frozenset({429, 502, 503, 504})
_MOST_TEXT = 300


def document_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer. Raises ServerError where it is none."""
    return object_of(response.content, response)


def object_of(content: bytes | memoryview, response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a part of an answer. Raises ServerError where it is none."""
    try:
        document = json.loads(bytes(content))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise unexpected(response, "The answer is not a JSON object: is this the address of a Signalbox?")
    return document


def unexpected(response: httpx.Response, message: str) -> ServerError:
    request_id = response.headers.get("x-request-id", "")
    return ServerError(message, status=response.status_code, code="unexpected_answer", request_id=request_id)


def whole(text: str | None) -> int:
    """A header's whole number, 0 where it is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0


def rate_limit_of(headers: httpx.Headers) -> RateLimit | None:
    """The RateLimit headers (draft-ietf-httpapi-ratelimit-headers-06), None where the key has no limit."""
    if "ratelimit-limit" not in headers:
        return None
    limit, remaining, reset = (whole(headers.get(f"ratelimit-{name}")) for name in ("limit", "remaining", "reset"))
    return RateLimit(limit, remaining, float(reset))


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3): a number, or an HTTP-date seen from the server's own clock."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        moment = _seconds_of(text)
        if moment is None:
            return None
        now = _seconds_of(headers.get("date", ""))
        seconds = moment - (time() if now is None else now)
    return max(0.0, seconds) if isfinite(seconds) else None


def _seconds_of(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def error_of(response: httpx.Response) -> SignalboxError:
    """The error in an answer outside 2xx: the data plane's form, the control API's, or another's."""
    status = response.status_code
    headers = response.headers
    if 300 <= status < 400:
        return _redirected(response)
    try:
        document = json.loads(response.content)
    except ValueError:
        document = None
    ours = isinstance(document, dict) and isinstance(document.get("code"), str)
    told: dict[str, Any] = document if ours else {}
    message = told.get("error") or told.get("detail")
    if not isinstance(message, str):
        message = " ".join(response.text[:_MOST_TEXT].split()) or response.reason_phrase or "no reason was given"
    retryable = told.get("retryable")
    request_id = told.get("request_id") or headers.get("x-request-id", "")
    return kind_of(status)(
        message,
        status=status,
        code=told.get("code", ""),
        errors=_field_errors(told.get("errors")),
        retryable=retryable if isinstance(retryable, bool) else status in _RETRYABLE,
        request_id=request_id if isinstance(request_id, str) else "",
        retry_after=retry_after_of(headers),
        job_id=job_id_of(told.get("job")),
        rate_limit=rate_limit_of(headers),
    )


def job_id_of(address: object) -> str:
    """The id in a job's address, "" where there is none."""
    if not isinstance(address, str):
        return ""
    return urlsplit(address).path.rstrip("/").rpartition("/")[2]


def _redirected(response: httpx.Response) -> ServerError:
    """A redirect is never followed: the key would go along."""
    target = urlsplit(response.headers.get("location", ""))
    where = f"{target.scheme}://{target.hostname}" if target.scheme and target.hostname else "another address"
    message = f"The answer is a redirect to {where}, which is not followed: give the final address as base_url."
    return ServerError(message, status=response.status_code, code="redirected")


def _field_errors(listed: object) -> list[FieldError]:
    found = []
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get("loc"), list):
            found.append(FieldError(tuple(each["loc"]), str(each.get("msg", ""))))
    return found


def error_of_transport(error: httpx.HTTPError, origin: str) -> SignalboxError:
    """The error for an exchange that broke; `origin` is told, nothing of the request is."""
    failure: SignalboxError
    why = str(error) or type(error).__name__
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        failure = DeadlineExceeded(f"{origin} did not answer in time.", code="deadline_exceeded")
    elif isinstance(error, httpx.PoolTimeout):
        failure = ConnectionFailed("All connections of this client are in use.", code="no_free_connection")
    else:
        failed = ConnectionFailed(f"{origin} could not be reached: {why}", code="connection_failed", retryable=True)
        failed.sent = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        failed.retryable = isinstance(error, (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError))
        failure = failed
    failure.__cause__ = error
    return failure
