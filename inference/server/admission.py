"""What is let in: bounds on calls and bytes in progress in this process, and rate limits of keys on this host."""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from inference.errors import InferenceError
from inference.limits import SLACK_S, WINDOW_S, Allowance, over_limit, spend
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


class RateLimits:
    """Limits per key, shared by the processes of a host through one mapped file.

    The arithmetic is that of `inference.limits`. Only limited keys pay for the file's lock.
    """

    _SLOT = struct.Struct("=8sd")
    _SLOTS = 4096
    _PROBES = 16

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
            raise over_limit(0, WINDOW_S)
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
        if paid_back_at > now + WINDOW_S + SLACK_S:
            # Written before the machine's last boot, when the clock began again.
            paid_back_at = now
        busy_s = spend(limit, paid_back_at - now)
        self._SLOT.pack_into(self._map, at, tag, now + busy_s)
        return Allowance.after(limit, busy_s)

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
