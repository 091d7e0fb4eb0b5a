"""Who acts in a request, as audit events name it."""

import ipaddress

from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest

from controlplane.audit.services import Actor


def address_of(request: HttpRequest) -> str | None:
    """The caller's address, None where it is not one. The front door alone reaches Django, and writes the header."""
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")[-1].strip()
    address = forwarded or request.META.get("REMOTE_ADDR", "")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None


def person_actor(request: HttpRequest) -> Actor:
    """The signed-in person of a page's request as an actor."""
    user = request.user
    assert isinstance(user, AbstractBaseUser)
    request_id: str = getattr(request, "request_id", "")
    return Actor(f"user:{user.get_username()}", str(user.pk), user.pk, address_of(request), request_id)
