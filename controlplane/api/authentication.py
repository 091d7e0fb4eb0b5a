"""Who calls the control API: a bearer key, or a signed-in person with a CSRF token."""

from dataclasses import dataclass

from django.http import HttpRequest
from rest_framework import authentication, exceptions
from rest_framework.request import Request

from controlplane.accounts.models import ApiKey, User
from controlplane.accounts.queries import find_usable_key
from controlplane.audit.requests import address_of, person_actor
from controlplane.audit.services import Actor


@dataclass(frozen=True, slots=True)
class KeyUser:
    """Stands for an API key where DRF wants a user; it is nobody in particular and holds its key's scopes."""

    key: ApiKey
    is_authenticated: bool = True
    is_active: bool = True

    @property
    def pk(self) -> str:
        return f"key:{self.key.pk}"


class ApiKeyAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer sb_...`; unknown, malformed, revoked and expired keys are 401 alike."""

    def authenticate(self, request: Request) -> tuple[KeyUser, ApiKey] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        key = find_usable_key(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise exceptions.AuthenticationFailed("The key is unknown, revoked or expired.")
        return KeyUser(key), key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="signalbox"'


class SessionWithCsrfAuthentication(authentication.SessionAuthentication):
    """Unsafe methods need the CSRF token."""

    def enforce_csrf(self, request: Request) -> None:
        """Asks Django's own request: DRF's would parse, and so use up, a body that a view reads as it came."""
        super().enforce_csrf(request._request)  # type: ignore[arg-type]  # either has what Django's check asks for


def actor_of(request: Request | HttpRequest) -> Actor:
    """The actor that audit events of this request name."""
    plain: HttpRequest = request._request if isinstance(request, Request) else request
    user = request.user
    if isinstance(user, KeyUser):
        request_id: str = getattr(plain, "request_id", "")
        return Actor(f"key:{user.key.label}", str(user.key.pk), None, address_of(plain), request_id)
    assert isinstance(user, User)
    return person_actor(plain)
