"""Gives every request an id, and answers with it."""

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

SANE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class RequestIdMiddleware:
    """Sets `request.request_id`: the front door's X-Request-Id where it is sane, else a new one."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        given = request.headers.get("X-Request-Id", "")
        request.request_id = given if SANE.match(given) else uuid.uuid4().hex  # type: ignore[attr-defined]  # this middleware adds it
        if self._is_async:
            return self._asynchronous(request)
        return self._stamp(request, cast(HttpResponse, self.get_response(request)))

    async def _asynchronous(self, request: HttpRequest) -> HttpResponse:
        return self._stamp(request, await cast(Awaitable[HttpResponse], self.get_response(request)))

    @staticmethod
    def _stamp(request: HttpRequest, response: HttpResponse) -> HttpResponse:
        response.headers["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]  # this middleware adds it
        return response
