"""Per cent as people write it, turned into basis points without rounding."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from controlplane.errors import field_error
from inference.contracts import BASIS_POINTS

Percentage = Decimal | str | int | float
# Each version of a split is held in the memory of every process.
MAX_VERSIONS = 32


def live_shares(shares: Mapping[str | int, Percentage]) -> dict[int, int]:
    """Basis points by version number, in the order of numbers, 10,000 in all.

    Raises DomainError `must_total_100` for a share that is not 0 to 100 with at most two decimals, or a wrong total;
    `unknown_version` for a version that is not a number or named twice.
    """
    points = _points(shares, "shares", "must_total_100")
    total = sum(points.values())
    if total != BASIS_POINTS:
        message = f"The live shares total {Decimal(total) / 100:.2f} %: they must total exactly 100.00 %."
        raise field_error("must_total_100", "shares", message if points else "The split names no version.")
    return points


def shadow_shares(shadow: Mapping[str | int, Percentage], live: Mapping[int, int]) -> dict[int, int]:
    """Basis points by version number; what is 0 is left out.

    Raises DomainError `validation_error` for a share out of range and for a version that answers calls already, and
    as live_shares does for bad numbers.
    """
    points = _points(shadow, "shadow", "validation_error")
    for number, share in points.items():
        if share and live.get(number):
            message = f"Version {number} answers calls already: it cannot shadow them as well."
            raise field_error("validation_error", ["shadow", str(number)], message)
    return {number: share for number, share in points.items() if share}


def _points(shares: Mapping[str | int, Percentage], field: str, code: str) -> dict[int, int]:
    if not isinstance(shares, Mapping):
        raise field_error(code, field, "Give the shares as an object: version number to per cent.")
    if len(shares) > MAX_VERSIONS:
        raise field_error("validation_error", field, f"A split has at most {MAX_VERSIONS} versions.")
    points: dict[int, int] = {}
    for version, share in shares.items():
        number = _number(version, field)
        if number in points:
            raise field_error("unknown_version", [field, str(version)], f"Version {number} is named twice.")
        points[number] = _basis_points(number, share, [field, str(version)], code)
    return dict(sorted(points.items()))


def _number(version: str | int, field: str) -> int:
    text = str(version).strip()
    if isinstance(version, bool) or not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        shown = text[:40]
        raise field_error("unknown_version", [field, shown], f"“{shown}” is not a version number.")
    return int(text)


def _basis_points(number: int, share: Percentage, location: list[str | int], code: str) -> int:
    """`share` per cent as basis points, exactly: a float counts as the shortest decimal that means it."""
    wrong = f"Version {number}'s share is a number from 0 to 100 with at most two decimals."
    if isinstance(share, bool) or not isinstance(share, Decimal | str | int | float):
        raise field_error(code, location, wrong)
    try:
        per_cent = Decimal(str(share).strip())
    except InvalidOperation:
        raise field_error(code, location, wrong) from None
    if not per_cent.is_finite() or not 0 <= per_cent <= 100 or per_cent * 100 % 1:
        raise field_error(code, location, wrong)
    return int(per_cent * 100)
