"""Answers when something went wrong: a page for people, a problem document under /api/."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from inference.errors import TABLE


def _problem(request: HttpRequest, code: str) -> JsonResponse:
    # The pages may not import the API's package; RFC 9457's document is small enough to state here.
    kind, request_id = TABLE[code], getattr(request, "request_id", "")
    body = {"type": f"urn:signalbox:error:{code}", "title": kind.meaning, "status": kind.status, "code": code}
    body |= {"detail": kind.meaning, "errors": [], "retryable": kind.retryable, "request_id": request_id}
    return JsonResponse(body, status=kind.status, content_type="application/problem+json")


def _answer(request: HttpRequest, code: str, heading: str, advice: str) -> HttpResponse:
    if request.path.startswith("/api/"):
        return _problem(request, code)
    status = TABLE[code].status
    context = {"heading": heading, "advice": advice, "request_id": getattr(request, "request_id", "")}
    return render(request, "failure.html", context, status=status)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _answer(request, "bad_request", "The request was malformed", "Go back and try again.")


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _answer(request, "forbidden", "Your role does not allow this", "An admin of the team can change roles.")


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _answer(request, "not_found", "There is nothing here", "It may belong to another team, or never was.")


def server_error(request: HttpRequest) -> HttpResponse:
    return _answer(
        request, "internal", "Something failed inside", "Nothing was lost. The id below finds it in the log."
    )


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    return _answer(request, "csrf_failed", "The form has expired", "Reload the page and send it again.")
