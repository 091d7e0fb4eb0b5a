"""Every failure of the control API as RFC 9457 problem JSON with a code of the error table."""

import logging
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from controlplane.errors import PROBLEM_MEDIA_TYPE, DomainError, problem_document
from inference.errors import TABLE, InferenceError, Located

logger = logging.getLogger(__name__)

CODES: dict[type[Exception], str] = {
    exceptions.NotAuthenticated: "not_authenticated",
    exceptions.AuthenticationFailed: "not_authenticated",
    exceptions.PermissionDenied: "forbidden",
    PermissionDenied: "forbidden",
    exceptions.NotFound: "not_found",
    Http404: "not_found",
    exceptions.MethodNotAllowed: "method_not_allowed",
    exceptions.UnsupportedMediaType: "unsupported_media_type",
    exceptions.Throttled: "rate_limited",
    exceptions.ParseError: "bad_request",
    exceptions.NotAcceptable: "bad_request",
}


def _located(detail: Any, path: list[str | int]) -> list[Located]:
    if isinstance(detail, dict):
        return [found for key, value in detail.items() for found in _located(value, [*path, key])]
    if isinstance(detail, list):
        found: list[Located] = []
        for index, value in enumerate(detail):
            found += _located(value, [*path, index] if isinstance(value, dict | list) else path)
        return found
    return [{"loc": path, "msg": str(detail)}]


def problem_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler. Unexpected exceptions return None: Django logs them and answers `internal`."""
    request = context.get("request")
    request_id = getattr(getattr(request, "_request", None), "request_id", "")
    headers: dict[str, str] = {}
    errors: list[Located] = []
    extra: dict[str, Any] = {}
    if isinstance(error, DomainError):
        code, message, errors, extra = error.code, error.message, error.errors, error.extra
    elif isinstance(error, InferenceError):
        code, message, errors, headers = error.code, error.message, error.errors, dict(error.headers)
    elif isinstance(error, exceptions.ValidationError):
        code, errors = "validation_error", _located(error.detail, [])
        message = errors[0]["msg"] if len(errors) == 1 else TABLE[code].meaning
    else:
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "")
        if not code:
            return None
        message = str(error.detail) if isinstance(error, exceptions.APIException) else TABLE[code].meaning
        if isinstance(error, exceptions.MethodNotAllowed) and request is not None:
            headers["Allow"] = ", ".join(getattr(context.get("view"), "allowed_methods", []))
    set_rollback()
    if TABLE[code].status == 401:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="signalbox"')
    if TABLE[code].retryable and TABLE[code].status in (429, 503):
        headers.setdefault("Retry-After", "1")
    body = problem_document(code, message, request_id, errors, extra)
    return Response(body, status=TABLE[code].status, headers=headers, content_type=PROBLEM_MEDIA_TYPE)
