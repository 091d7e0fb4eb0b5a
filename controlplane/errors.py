"""Expected failures of the control plane. They name a code of `inference.errors.TABLE` and know nothing of HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

from inference.errors import TABLE, InferenceError, Located


class DomainError(Exception):
    """An expected failure: `code` is in the error table, `message` one sentence that says how to mend it.

    `errors` points at the fields that are wrong; `extra` is added to the problem document (both values of a conflict).
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        errors: Sequence[Located] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        kind = TABLE[code]
        self.code = code
        self.message = message or kind.meaning
        self.errors = list(errors)
        self.extra = dict(extra or {})
        super().__init__(code, self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        return TABLE[self.code].status

    @property
    def retryable(self) -> bool:
        return TABLE[self.code].retryable

    @classmethod
    def from_inference(cls, error: InferenceError) -> "DomainError":
        return cls(error.code, error.message, errors=error.errors)


def field_error(code: str, field: str | Sequence[str | int], message: str) -> DomainError:
    """A DomainError about one field of the request; `field` is a name or a path."""
    location: list[str | int] = [field] if isinstance(field, str) else list(field)
    return DomainError(code, message, errors=[{"loc": location, "msg": message}])


PROBLEM_MEDIA_TYPE = "application/problem+json"


def problem_document(
    code: str,
    message: str,
    request_id: str,
    errors: Sequence[Located] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An RFC 9457 problem document: type, title, status, code, detail, errors, request_id, and what `extra` adds."""
    kind = TABLE[code]
    return {
        "type": f"urn:signalbox:error:{code}",
        "title": kind.meaning,
        "status": kind.status,
        "code": code,
        "detail": message or kind.meaning,
        "errors": list(errors),
        "retryable": kind.retryable,
        "request_id": request_id,
        **(extra or {}),
    }
