"""What is let in: bounds on calls and bytes in progress in this process, and rate limits of keys on this host."""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from inference.errors import InferenceError
from inference.server.auth import Caller

MAX_CALLS = 512
# Bodies being read or computed on. One body of the default cap of 64 MB always fits.
MAX_BYTES = 512 * 1024 * 1024


class Admission:
    """Calls in progress. Full means a quick refusal with Retry-After, so that nobody waits in silence."""

    def __init__(self, *, max_calls: int = MAX_CALLS, max_bytes: int = MAX_BYTES) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self.calls = 0
        self.bytes = 0
        self.stopping = False

    def enter(self) -> None:
        """Count a call in. Raises overloaded or shutting_down; every `enter` that returned needs one `leave`."""
        if self.stopping:
            raise InferenceError("shutting_down", headers={"Retry-After": "1"})
        if self.calls >= self._max_calls:
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        self.calls += 1

    def hold(self, amount: int) -> None:
        """Count body bytes in, to be given back to `leave`. Raises overloaded."""
        if self.bytes + amount > self._max_bytes:
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        self.bytes += amount

    def leave(self, held_bytes: int) -> None:
        self.calls -= 1
        self.bytes -= held_bytes


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left: calls now, and seconds until the whole limit is free again (or until the next call is)."""

    limit: int
    remaining: int
    reset_s: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"ratelimit-limit", b"%d" % self.limit),
            (b"ratelimit-remaining", b"%d" % self.remaining),
            (b"ratelimit-reset", b"%d" % self.reset_s),
        ]


class RateLimits:
    """Limits per key, shared by the processes of a host through one mapped file.

    The generic cell rate algorithm: per key one number, the time at which its used-up calls are all paid back. A key
    with N calls a minute may make N at once, then one each 60/N seconds. Only limited keys pay for the file's lock.
    """

    _SLOT = struct.Struct("=8sd")
    _SLOTS = 4096
    _PROBES = 16
    _WINDOW_S = 60.0

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, the same for all processes of the host, as the kernel's monotonic clock is."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clock = clock
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size != self._SLOTS * self._SLOT.size:
            os.ftruncate(self._fd, self._SLOTS * self._SLOT.size)
        self._map = mmap.mmap(self._fd, self._SLOTS * self._SLOT.size)

    def take(self, caller: Caller) -> Allowance | None:
        """Use one call of the key's limit; None where it has none. Raises rate_limited with Retry-After."""
        limit = caller.rate_per_minute
        if limit is None:
            return None
        if limit <= 0:
            raise InferenceError("rate_limited", headers={"Retry-After": str(int(self._WINDOW_S))})
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            return self._take(caller.digest[:8], limit, self._clock())
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def _take(self, tag: bytes, limit: int, now: float) -> Allowance:
        at, paid_back_at = self._find(tag, now)
        interval = self._WINDOW_S / limit
        if paid_back_at > now + self._WINDOW_S + 1e-6:
            # Written before the machine's last boot, when the clock began again.
            paid_back_at = now
        busy_until = max(paid_back_at, now) + interval
        if busy_until - now > self._WINDOW_S + 1e-6:
            wait = ceil(busy_until - now - self._WINDOW_S)
            headers = {"Retry-After": str(wait), "RateLimit-Limit": str(limit), "RateLimit-Remaining": "0"}
            raise InferenceError(
                "rate_limited",
                f"The key's limit of {limit} calls a minute is reached.",
                headers={**headers, "RateLimit-Reset": str(wait)},
            )
        self._SLOT.pack_into(self._map, at, tag, busy_until)
        remaining = int((self._WINDOW_S - (busy_until - now)) / interval + 1e-6)
        return Allowance(limit, remaining, ceil(busy_until - now))

    def _find(self, tag: bytes, now: float) -> tuple[int, float]:
        """(offset of the key's slot, its time); a new key takes the slot of its probe run that is free the longest."""
        first = int.from_bytes(tag, "big")
        best, best_time = 0, float("inf")
        for probe in range(self._PROBES):
            offset = (first + probe) % self._SLOTS * self._SLOT.size
            held, paid_back_at = self._SLOT.unpack_from(self._map, offset)
            if held == tag:
                return offset, paid_back_at
            if paid_back_at < best_time:
                best, best_time = offset, paid_back_at
        return best, now
