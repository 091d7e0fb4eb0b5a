"""What a view's code does not say of itself, for the API's schema."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from drf_spectacular.utils import extend_schema

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def described(**options: Any) -> Callable[[Callable[Given, Answer]], Callable[Given, Answer]]:
    """drf-spectacular's `extend_schema`, which carries no types, as a decorator that keeps the method's own."""
    return cast(Callable[[Callable[Given, Answer]], Callable[Given, Answer]], extend_schema(**options))
