"""The theme switch, and how a live region answers."""

import hashlib
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, HttpResponseRedirect
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from controlplane.dashboard.context import THEME_COOKIE, THEMES


@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Keeps the person's theme in a cookie, so that a page arrives in the right colours without a script."""
    target = request.POST.get("next", "/")
    if not url_has_allowed_host_and_scheme(target, allowed_hosts={request.get_host()}):
        target = "/"
    # Not `redirect`, which would look for a page of that name.
    response: HttpResponse = HttpResponseRedirect(target)
    chosen = request.POST.get("theme", "")
    if chosen in THEMES:
        response.set_cookie(
            THEME_COOKIE, chosen, max_age=365 * 86400, samesite="Lax", httponly=True, secure=request.is_secure()
        )
    else:
        response.delete_cookie(THEME_COOKIE)
    return response


def live_partial(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """A live region's HTML with an ETag; 304 where the asker already has exactly this."""
    response = render(request, template, context)
    etag = '"' + hashlib.blake2b(response.content, digest_size=12).hexdigest() + '"'
    if request.headers.get("If-None-Match") == etag:
        unchanged = HttpResponseNotModified()
        unchanged["ETag"] = etag
        return unchanged
    response["ETag"] = etag
    response["Cache-Control"] = "no-store"
    return response
