"""Answers when something went wrong: a page for people, a problem document under /api/."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from controlplane.errors import PROBLEM_MEDIA_TYPE, problem_document
from inference.errors import TABLE


def _answer(request: HttpRequest, code: str, heading: str, advice: str) -> HttpResponse:
    if request.path.startswith("/api/"):
        body = problem_document(code, "", getattr(request, "request_id", ""))
        return JsonResponse(body, status=body["status"], content_type=PROBLEM_MEDIA_TYPE)
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
