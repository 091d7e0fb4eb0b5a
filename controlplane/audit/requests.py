"""Who stands behind a web request, as audit events name them."""

from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest

from controlplane.audit.services import Actor


def address_of(request: HttpRequest) -> str | None:
    """The caller's address. The front door alone reaches Django, and writes X-Forwarded-For itself."""
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")[-1].strip()
    return forwarded or request.META.get("REMOTE_ADDR") or None


def person(request: HttpRequest) -> Actor:
    """The signed-in person of a request as an actor; raises AssertionError for nobody."""
    user = request.user
    assert isinstance(user, AbstractBaseUser)
    request_id = getattr(request, "request_id", "")
    return Actor(f"user:{user.get_username()}", str(user.pk), user.pk, address_of(request), request_id)
