"""Failed calls by kind, code and place, gathered from rollups: whose fault it was, where it points, since when."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypedDict

from controlplane.monitoring.estimates import Number
from inference.errors import TABLE

PLACES = 20


class FailureKind(StrEnum):
    """Who can mend it: the caller, who made the model, who runs the installation, or more room."""

    CLIENT = "client"
    MODEL = "model"
    SERVER = "server"
    OVERLOAD = "overload"


# The calls were right, and the model could not compute with them.
_MODEL = frozenset({"model_rejected_input", "non_finite_output"})
# Refused, or too late, because there was too much to do.
_OVERLOAD = frozenset({"rate_limited", "quota_exceeded", "overloaded", "deadline_exceeded", "storage_full"})


class Place(TypedDict):
    """Where failed calls point: the path in the body as it was answered."""

    place: str
    calls: int


class Column(TypedDict):
    """A column or input that failed calls point at, over all rows of all bodies."""

    column: str
    calls: int


class VersionCalls(TypedDict):
    """`version` None: refused before a version was chosen."""

    version: int | None
    calls: int


class Failure(TypedDict):
    """One code. `share` is of all calls; `first_at` and `last_at` are starts of the rollups' buckets."""

    code: str
    kind: str
    meaning: str
    status: int
    calls: int
    share: Number
    first_at: str
    last_at: str
    versions: list[VersionCalls]
    places: list[Place]
    columns: list[Column]


class KindSeries(TypedDict):
    """One kind; `series` are its calls per step, None where nobody called."""

    kind: str
    calls: int
    share: Number
    series: list[Number]


@dataclass(slots=True)
class _Code:
    first_at: datetime
    last_at: datetime
    calls: int = 0
    versions: dict[int | None, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Failures:
    """Adds up what rollups say of failed calls. `steps`: how many steps the interval has."""

    steps: int
    _codes: dict[str, _Code] = field(default_factory=dict)
    _series: dict[FailureKind, list[int]] = field(default_factory=dict)

    def add(
        self, step: int, bucket: datetime, version: int | None, codes: dict[str, int], places: dict[str, int]
    ) -> None:
        for code, count in codes.items():
            found = self._codes.setdefault(code, _Code(bucket, bucket))
            found.first_at, found.last_at = min(found.first_at, bucket), max(found.last_at, bucket)
            found.calls += count
            found.versions[version] = found.versions.get(version, 0) + count
            self._series.setdefault(kind_of(code), [0] * self.steps)[step] += count
        for name, count in places.items():
            code, _, place = name.partition("|")
            if code in self._codes:
                counts = self._codes[code].places
                counts[place] = counts.get(place, 0) + count

    def by_code(self, calls: int) -> list[Failure]:
        """Most frequent first. `calls`: all calls, failed or not."""
        return [
            {
                "code": code,
                "kind": kind_of(code).value,
                "meaning": TABLE[code].meaning if code in TABLE else "",
                "status": TABLE[code].status if code in TABLE else 500,
                "calls": found.calls,
                "share": round(found.calls / calls, 6) if calls else None,
                "first_at": found.first_at.isoformat(),
                "last_at": found.last_at.isoformat(),
                "versions": [
                    {"version": version, "calls": count}
                    for version, count in sorted(found.versions.items(), key=lambda one: (one[0] is None, one[0] or 0))
                ],
                "places": [
                    {"place": place, "calls": count}
                    for place, count in sorted(found.places.items(), key=lambda one: (-one[1], one[0]))[:PLACES]
                ],
                "columns": _columns(found.places),
            }
            for code, found in sorted(self._codes.items(), key=lambda one: (-one[1].calls, one[0]))
        ]

    def by_kind(self, calls: int, all_calls: Sequence[int]) -> list[KindSeries]:
        """The kinds that occurred, in the order of FailureKind. `all_calls`: calls of each step, failed or not."""
        return [
            {
                "kind": kind.value,
                "calls": sum(self._series[kind]),
                "share": round(sum(self._series[kind]) / calls, 6) if calls else None,
                "series": [
                    count if everyone else None for count, everyone in zip(self._series[kind], all_calls, strict=True)
                ],
            }
            for kind in FailureKind
            if kind in self._series
        ]


def kind_of(code: str) -> FailureKind:
    """The kind of an error code; a code that this release does not know was made by a server."""
    if code in _MODEL:
        return FailureKind.MODEL
    if code in _OVERLOAD:
        return FailureKind.OVERLOAD
    return FailureKind.CLIENT if code in TABLE and TABLE[code].status < 500 else FailureKind.SERVER


def _columns(places: dict[str, int]) -> list[Column]:
    """Calls by the last part of the path that is no row number: "instances.3.amount" speaks of amount."""
    found: dict[str, int] = {}
    for place, count in places.items():
        column = next((part for part in reversed(place.split(".")) if not part.isdigit()), place)
        found[column] = found.get(column, 0) + count
    return [
        {"column": column, "calls": count}
        for column, count in sorted(found.items(), key=lambda one: (-one[1], one[0]))[:PLACES]
    ]
