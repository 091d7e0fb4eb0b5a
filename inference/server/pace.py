"""How much one turn of the event loop does: under load the rest waits for the next, in the order in which it came.

The loop hands over everything that is there to be read before it does anything else: sending answers, taking new
connections, noticing who has gone. With a thousand callers that is a second of work. So a turn takes on requests for
some milliseconds, and others only as bytes, which cost next to nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

# A few calls of the dearest model that runs on the loop, some dozens of a cheap one.
TURN_S = 0.01


class Pace:
    """The turns of one event loop, for all of its connections."""

    def __init__(self, turn_s: float = TURN_S) -> None:
        self._turn_s = turn_s
        self._began: float | None = None
        self._waiting: deque[Callable[[], None]] = deque()

    def is_over(self) -> bool:
        """Whether this turn takes on no more: then the caller has to `wait`, else to go on at once."""
        if self._waiting:
            return True
        if self._began is None:
            self._begin()
            return False
        return monotonic() - self._began > self._turn_s

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on`, which must not raise, when those who wait already had their turn."""
        self._waiting.append(go_on)

    def _begin(self) -> None:
        self._began = monotonic()
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._began = None
        if not self._waiting:
            return
        self._begin()
        end_at = monotonic() + self._turn_s
        while self._waiting:
            self._waiting.popleft()()
            if monotonic() >= end_at:
                break
