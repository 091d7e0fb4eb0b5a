"""Limits of keys at the front door: rates and quotas, shared by the processes of a host through mapped files.

The arithmetic is that of `inference.limits`. Only limited keys pay for a file's lock.
"""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.errors import InferenceError
from inference.limits import (
    SLACK_S,
    WINDOW_S,
    Allowance,
    day_of,
    over_limit,
    over_quota,
    spend,
    tighter,
)
from inference.server.auth import Caller

_SLOTS = 4096
_PROBES = 16


class KeyLimits:
    """Both limits of a key; files in `folder`. `quotas` is what the follower compares with other hosts."""

    def __init__(self, folder: Path) -> None:
        self.rates = RateLimits(folder / "rate-limits")
        self.quotas = Quotas(folder / "quotas")

    def take(self, caller: Caller) -> Allowance | None:
        """Use one call of the key; None where it has no limit. Raises rate_limited or quota_exceeded."""
        if not caller.policy:
            return None
        try:
            return tighter(self.rates.take(caller), self.quotas.take(caller), caller.policy)
        except InferenceError as error:
            error.headers["RateLimit-Policy"] = caller.policy
            raise

    def look(self, caller: Caller) -> Allowance | None:
        """What the key has left; None where it has no limit. Uses nothing."""
        if not caller.policy:
            return None
        return tighter(self.rates.look(caller), self.quotas.look(caller), caller.policy)

    def close(self) -> None:
        self.rates.close()
        self.quotas.close()


class _Slots:
    """A mapped file of a fixed number of slots, each with a key's tag at its beginning."""

    def __init__(self, path: Path, slot: struct.Struct) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._slot = slot
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size != _SLOTS * slot.size:
            os.ftruncate(self._fd, _SLOTS * slot.size)
        self._map = mmap.mmap(self._fd, _SLOTS * slot.size)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the processes of the host."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def read(self, offset: int) -> tuple[int, ...]:
        """A slot's values behind its tag."""
        return self._slot.unpack_from(self._map, offset)[1:]

    def write(self, offset: int, *values: object) -> None:
        self._slot.pack_into(self._map, offset, *values)

    def find(self, tag: bytes) -> tuple[int, bool]:
        """(offset, whether it is the key's own); a new key gets the slot of its probe run whose values are least."""
        first = int.from_bytes(tag, "big")
        offsets = [(first + probe) % _SLOTS * self._slot.size for probe in range(_PROBES)]
        for offset in offsets:
            if self._map[offset : offset + 8] == tag:
                return offset, True
        return min(offsets, key=self.read), False

    def close(self) -> None:
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1


class RateLimits:
    """Calls a minute, per key. A slot holds the time at which the key's used-up calls are paid back."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, the same for all processes of the host, as the kernel's monotonic clock is."""
        self._slots = _Slots(path, struct.Struct("=8sd"))
        self._clock = clock

    def take(self, caller: Caller) -> Allowance | None:
        """Use one call of the key's rate; None where it has none. Raises rate_limited with Retry-After."""
        limit = caller.rate_per_minute
        if limit is None:
            return None
        if limit <= 0:
            raise over_limit(0, WINDOW_S)
        tag = caller.digest[:8]
        with self._slots.locked():
            now = self._clock()
            offset, busy_s = self._busy(tag, now)
            busy_s = spend(limit, busy_s)
            self._slots.write(offset, tag, now + busy_s)
        return Allowance.after(limit, busy_s)

    def look(self, caller: Caller) -> Allowance | None:
        """What is left of the key's rate; None where it has none."""
        limit = caller.rate_per_minute
        if limit is None:
            return None
        _, busy_s = self._busy(caller.digest[:8], self._clock())
        return Allowance.after(limit, max(0.0, busy_s))

    def close(self) -> None:
        self._slots.close()

    def _busy(self, tag: bytes, now: float) -> tuple[int, float]:
        """(offset of the key's slot, seconds of paying back ahead)."""
        offset, known = self._slots.find(tag)
        (paid_back_at,) = self._slots.read(offset) if known else (now,)
        if paid_back_at > now + WINDOW_S + SLACK_S:
            # Written before the machine's last boot, when the clock began again.
            paid_back_at = now
        return offset, paid_back_at - now


class Quotas:
    """Calls a day, per key. A slot holds the day, the calls of it that all hosts have told, and those not told yet."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix seconds."""
        self._slots = _Slots(path, struct.Struct("=8sQQQ"))
        self._clock = clock

    def take(self, caller: Caller) -> Allowance | None:
        """Use one call of the key's quota; None where it has none. Raises quota_exceeded with Retry-After."""
        quota = caller.quota_per_day
        if quota is None:
            return None
        tag = caller.digest[:8]
        with self._slots.locked():
            now = self._clock()
            offset, told, untold = self._used(tag, day_of(now))
            if told + untold >= quota:
                raise over_quota(quota, now)
            self._slots.write(offset, tag, day_of(now), told, untold + 1)
        return Allowance.of_quota(quota, told + untold + 1, now)

    def look(self, caller: Caller) -> Allowance | None:
        """What is left of the key's quota; None where it has none."""
        quota = caller.quota_per_day
        if quota is None:
            return None
        now = self._clock()
        _, told, untold = self._used(caller.digest[:8], day_of(now))
        return Allowance.of_quota(quota, told + untold, now)

    def today(self) -> int:
        return day_of(self._clock())

    def tell(self, caller: Caller, day: int) -> int | None:
        """The calls of the day that were not told yet, which count as told from now on; None where none were made."""
        tag = caller.digest[:8]
        with self._slots.locked():
            offset, told, untold = self._used(tag, day)
            if not told + untold:
                return None
            self._slots.write(offset, tag, day, told + untold, 0)
        return untold

    def take_back(self, caller: Caller, day: int, untold: int) -> None:
        """Telling failed: the calls are to be told again."""
        tag = caller.digest[:8]
        with self._slots.locked():
            offset, told, more = self._used(tag, day)
            self._slots.write(offset, tag, day, max(0, told - untold), more + untold)

    def learn(self, caller: Caller, day: int, told: int) -> None:
        """What all hosts have told. It only grows in a day: what another process learned meanwhile stays."""
        tag = caller.digest[:8]
        with self._slots.locked():
            offset, known, untold = self._used(tag, day)
            self._slots.write(offset, tag, day, max(known, told), untold)

    def close(self) -> None:
        self._slots.close()

    def _used(self, tag: bytes, day: int) -> tuple[int, int, int]:
        """(offset of the key's slot, calls told, calls not told) of a day."""
        offset, known = self._slots.find(tag)
        held, told, untold = self._slots.read(offset) if known else (day, 0, 0)
        return (offset, told, untold) if held == day else (offset, 0, 0)
