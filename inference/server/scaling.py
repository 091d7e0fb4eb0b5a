"""How many serving processes there are to be, from what those that serve tell once a second.

One process is a cost: it holds every model. One too few is another: calls wait while cores are idle. So a process comes
soon and leaves late. It comes when the mean of the processes that serve has been at a bound for some seconds, and the
one asked for before is there and counted in. It leaves when what all of them do would have kept one fewer well below
the bounds for a minute: far enough below that it is not called back at once (hysteresis). Of that a mean over some
seconds is taken, in which one second of other work on the machine does not begin the minute again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp


@dataclass(frozen=True, slots=True)
class Load:
    """What one process told last. `in_flight`: calls that wait for anything, be it a run, a body or a job.

    `busy`: share of the last second, 0 to 1, in which its event loop had work, or its model threads if more.
    A call of the inline lane waits for nothing and is never in flight, so only `busy` shows that many come.
    """

    in_flight: float
    busy: float


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds of the mean process, and for how long it must be at or past one of them, or below both."""

    in_flight: float = 16.0
    busy: float = 0.75
    up_after_s: float = 3.0
    down_after_s: float = 60.0
    # What one process fewer would do has to be at most this share of the bounds.
    slack: float = 0.6
    # The time constant of the mean by which it is quiet.
    smooth_s: float = 10.0
    # How often the processes are looked at.
    look_s: float = 1.0


class Scaling:
    """The number that is `wanted`, between the least and the most; it moves by one at a time."""

    def __init__(self, least: int, most: int, rules: Rules) -> None:
        self.wanted = least
        self._least = least
        self._most = most
        self._rules = rules
        self._over_since: float | None = None
        self._quiet_since: float | None = None
        # Smoothed sums over the processes, and when they were last added to.
        self._calls = self._busy = 0.0
        self._looked_at: float | None = None

    def look(self, now: float, loads: Sequence[Load]) -> int:
        """`wanted` after this look; `now` in seconds of any clock, one of `loads` for each process that serves."""
        calls, busy = sum(load.in_flight for load in loads), sum(load.busy for load in loads)
        rules = self._rules
        over = len(loads) >= self.wanted and self._most > self.wanted
        over = over and (calls >= rules.in_flight * len(loads) or busy >= rules.busy * len(loads))
        fewer = self.wanted - 1
        self._smooth(now, calls, busy)
        quiet = fewer >= self._least and len(loads) > 0
        quiet = quiet and self._calls <= rules.slack * rules.in_flight * fewer
        quiet = quiet and self._busy <= rules.slack * rules.busy * fewer
        self._over_since = _since(self._over_since, now, over)
        self._quiet_since = _since(self._quiet_since, now, quiet)
        if self._over_since is not None and now - self._over_since >= rules.up_after_s:
            self._move(1)
        elif self._quiet_since is not None and now - self._quiet_since >= rules.down_after_s:
            self._move(-1)
        return self.wanted

    def _smooth(self, now: float, calls: float, busy: float) -> None:
        """Exponential means, of looks that may be irregular."""
        weight = 1.0 if self._looked_at is None else 1 - exp((self._looked_at - now) / self._rules.smooth_s)
        self._calls += weight * (calls - self._calls)
        self._busy += weight * (busy - self._busy)
        self._looked_at = now

    def _move(self, step: int) -> None:
        self.wanted += step
        self._over_since = self._quiet_since = None


def _since(since: float | None, now: float, holds: bool) -> float | None:
    """Since when it holds without a break; None while it does not."""
    if not holds:
        return None
    return now if since is None else since
