"""Deadlines, and when and whether a call is tried again. Nothing here waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from signalbox_client.errors import ConnectionFailed, SignalboxError

_BAD_ANSWER = frozenset({502, 504})


class Deadline:
    """A moment on this machine's monotonic clock that one call, or several one after the other, keep to.

    The server is told of it (`X-Deadline-Ms`): what waited past it is not computed.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` from now, above 0. Raises ValueError."""
        if not seconds > 0:
            raise ValueError("A deadline lies ahead: give seconds above 0.")
        self._clock = clock
        self._at = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left; 0 once it has passed."""
        return max(0.0, self._at - self._clock())

    def __repr__(self) -> str:
        return f"Deadline(left_s={self.left_s:.3f})"


@dataclass(frozen=True)
class Retrying:
    """Exponential backoff with full jitter, after what the server asks for in `Retry-After`.

    Tried again is only what is safe: 429 and 503 that say `retryable`, what never reached the server, and, of calls
    that may be made twice (`idempotent`), 502, 504 and connections that broke. A server that asks to wait longer than
    `longest_wait_s` seconds, or than the deadline leaves, is not waited for.
    """

    base_s: float = 0.1
    most_s: float = 5.0
    longest_wait_s: float = 30.0
    draw: Callable[[], float] = random.random

    def pause_s(
        self, error: SignalboxError, *, attempt: int, retries: int, idempotent: bool, deadline: Deadline | None
    ) -> float | None:
        """Seconds to wait before attempt number `attempt` + 1 (the first is 0), None where there is to be none."""
        if attempt >= retries or not _is_safe(error, idempotent):
            return None
        asked_s = error.retry_after or 0.0
        if asked_s > self.longest_wait_s:
            return None
        wait_s = asked_s + self.draw() * min(self.most_s, self.base_s * 2.0**attempt)
        return None if deadline is not None and wait_s >= deadline.left_s else wait_s


def _is_safe(error: SignalboxError, idempotent: bool) -> bool:
    if isinstance(error, ConnectionFailed):
        return error.retryable and (idempotent or not error.sent)
    if error.job_id:
        # It goes on as a job; asking again would wait for the same one.
        return False
    if error.status in (429, 503):
        # An answer without a code is a proxy's: what it had passed on before, it does not say.
        return error.retryable and (idempotent or bool(error.code) or error.status == 429)
    return idempotent and error.status in _BAD_ANSWER
