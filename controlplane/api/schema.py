"""What a view's code does not say of itself, for the API's schema."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import extend_schema

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def described(**options: Any) -> Callable[[Callable[Given, Answer]], Callable[Given, Answer]]:
    """drf-spectacular's `extend_schema`, which carries no types, as a decorator that keeps the method's own."""
    return cast(Callable[[Callable[Given, Answer]], Callable[Given, Answer]], extend_schema(**options))


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[misc]  # drf-spectacular carries no types
    """How the schema tells of API keys."""

    target_class = "controlplane.api.authentication.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API key, sb_… or sb_test_…"}


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[misc]  # drf-spectacular carries no types
    """How the schema tells of signed-in people."""

    target_class = "controlplane.api.authentication.SessionWithCsrfAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}
