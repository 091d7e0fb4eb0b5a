"""Stretches of time that figures are asked for, cut into equal steps."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from controlplane.errors import field_error

# Steps that rollups can be cut into, and the most points a series should have.
STEPS_S = (10, 60, 300, 1800, 3600, 6 * 3600, 86_400)
POINTS = 240
DEFAULT = timedelta(hours=24)
LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class Interval:
    """From `since` (in it) to `until` (not in it), in steps of `step_s` that begin at multiples of it since 1970."""

    since: datetime
    until: datetime
    step_s: int

    @classmethod
    def of(cls, since: datetime, until: datetime) -> "Interval":
        """The finest steps that give at most POINTS of them."""
        seconds = (until - since).total_seconds()
        step_s = next((step for step in STEPS_S if seconds / step <= POINTS), STEPS_S[-1])
        return cls(since, until, step_s)

    def coarsened(self, width_s: int) -> "Interval":
        """With steps no finer than the rollups that were found."""
        return self if width_s <= self.step_s else Interval(self.since, self.until, width_s)

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()

    @property
    def first(self) -> int:
        """The start of the first step, Unix seconds."""
        return int(self.since.timestamp()) // self.step_s * self.step_s

    def starts(self) -> list[int]:
        """The start of every step, Unix seconds."""
        return list(range(self.first, int(self.until.timestamp()) + (self.until.microsecond > 0), self.step_s))

    def step_of(self, at: datetime) -> int:
        """The number of the step that holds `at`; it is outside 0..len(starts()) for other times."""
        return (int(at.timestamp()) - self.first) // self.step_s


def read_interval(since: str | None, until: str | None) -> Interval:
    """The interval in a request: ISO times, or "1h", "24h", "7d" before now. Raises DomainError validation_error."""
    now = timezone.now()
    end = read_moment_at(until, "until", now) if until else now
    start = read_moment_at(since, "since", now) if since else end - DEFAULT
    if not start < end:
        raise field_error("validation_error", "since", "since must lie before until.")
    if end - start > LONGEST:
        raise field_error("validation_error", "since", "At most ten years can be asked for.")
    return Interval.of(start, end)


def read_moment_at(text: str, field: str, now: datetime) -> datetime:
    unit = {"m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
    if unit and text[:-1].isascii() and text[:-1].isdigit() and len(text) <= 7:
        return now - timedelta(seconds=min(int(text[:-1]) * unit, LONGEST.total_seconds() * 2))
    try:
        # In a query string an unescaped + reads as a space.
        moment = parse_datetime(text.strip().replace(" ", "+"))
    except ValueError:
        moment = None
    if moment is None:
        raise field_error("validation_error", field, "A time reads 2026-03-01T12:00:00Z, or 24h for a day ago.")
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    if not 1970 < moment.year < 2900:
        raise field_error("validation_error", field, "This time is out of range.")
    return moment


def read_moment(text: str, field: str) -> datetime:
    """One time in a request, as in `read_interval`. Raises DomainError validation_error."""
    return read_moment_at(text, field, timezone.now())
