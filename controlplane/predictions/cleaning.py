"""Makes any text or JSON value one that PostgreSQL can store: it takes neither U+0000 nor half of a surrogate pair."""

from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


def clean_text(text: str) -> str:
    """The text with U+0000 and lone surrogates replaced by U+FFFD."""
    if text.isascii():
        return text.replace("\0", "\ufffd") if "\0" in text else text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(value: Any) -> Any:
    """The JSON value with every text and key cleaned."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(str(key)): clean(item) for key, item in value.items()}
    return value


def clean_json(body: bytes) -> bytes:
    """JSON for a jsonb column, its texts and keys cleaned of U+0000; b"" for null and for empty collections.

    Raises msgspec.DecodeError where it is to be cleaned and is no JSON; else it is not looked into.
    """
    if body in (b"null", b"{}", b"[]"):
        return b""
    # Rare: the escape of U+0000 (or of a backslash before "u0000", which cleaning leaves as it is).
    if b"\\u0000" in body:
        return _encoder.encode(clean(msgspec.json.decode(body)))
    return body
