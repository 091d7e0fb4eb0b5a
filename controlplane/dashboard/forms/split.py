"""Reads the split editor's fields: one `share_N` and `shadow_N` per version, as typed by people."""

from collections.abc import Mapping

from controlplane.errors import field_error

MOST_VERSIONS = 200


def read_shares(post: Mapping[str, str], prefix: str) -> dict[str | int, str]:
    """Per cent by version number, empty and zero fields left out; the service checks the numbers themselves.

    A decimal comma and a trailing per cent sign are understood. Raises DomainError `must_total_100` for other text.
    """
    shares: dict[str | int, str] = {}
    for name, typed in list(post.items())[: 4 * MOST_VERSIONS]:
        number = name.removeprefix(prefix)
        if number == name or not number.isascii() or not number.isdigit() or len(number) > 9:
            continue
        text = typed.replace("%", "").replace(",", ".").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            raise field_error("must_total_100", name, f"“{typed[:20]}” is not a number of per cent.") from None
        if value != 0:
            shares[int(number)] = text
    return shares


def read_revision(post: Mapping[str, str]) -> int | None:
    """The revision that the editor was made from, None where the form does not say."""
    text = post.get("expected_revision", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
