"""JSON bodies, read as the prediction API reads them: one UTF-8 document, no name twice, no NaN, not too deep."""

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework.parsers import BaseParser

from controlplane.errors import DomainError


class StrictJSONParser(BaseParser):
    """Raises DomainError: `empty_body`, `bad_encoding`, `bad_json`, `duplicate_key`, `non_finite` or `too_deep`."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        body = stream.read()
        if not body.strip():
            raise DomainError("empty_body")
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DomainError("bad_encoding") from None
        try:
            return json.loads(text, parse_constant=_non_finite, parse_float=_finite, object_pairs_hook=_each_once)
        except RecursionError:
            raise DomainError("too_deep") from None
        except json.JSONDecodeError as error:
            raise DomainError("bad_json", f"The body is not JSON: {error.msg} at character {error.pos}.") from None
        except ValueError:
            raise DomainError("bad_json", "The body has a number with too many digits.") from None


def _non_finite(name: str) -> NoReturn:
    raise DomainError("non_finite", f"{name} is not a number that JSON has.")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        _non_finite(digits[:40])
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DomainError("duplicate_key", f"“{name[:100]}” is named twice.")
        found[name] = value
    return found
