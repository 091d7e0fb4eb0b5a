"""Which version answers a call, and the ids of predictions: the same functions for the front door and the workers."""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from inference.contracts import BASIS_POINTS, DeploymentRoute, Share
from inference.errors import InferenceError


def bucket(salt: str, key: str) -> int:
    """The bucket, 0..9999, of a caller's key under a deployment's salt; equal on every process, host and release."""
    digest = _salted(salt)
    digest.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big") % BASIS_POINTS


def _salted(salt: str) -> blake2b:
    return blake2b(digest_size=8, key=salt.encode()[:64])


@dataclass(frozen=True, slots=True)
class Split:
    """A deployment's shares, laid out for look-up: `edges[i]` is the first bucket past version `numbers[i]`.

    Shares lie side by side in the order of version numbers, so moving 90/10 to 80/20 moves only the buckets between.
    """

    salt: str
    edges: tuple[int, ...]
    numbers: tuple[int, ...]
    shadow: tuple[tuple[str, Share], ...]
    # The salted hash before it has seen a key: `bucket` begins with a copy.
    salted: blake2b

    @classmethod
    def of(cls, deployment: DeploymentRoute) -> "Split":
        """Lay out a deployment's revision. An empty split, or one that does not total 100 %, has no active version."""
        edges: list[int] = []
        total = 0
        live = [share for share in deployment.live if share.basis_points > 0]
        for share in live:
            total += share.basis_points
            edges.append(total)
        if total != BASIS_POINTS:
            live, edges = [], []
        # Each shadow draws its own sample, so that a shadow's share does not copy one arm of the live split.
        shadow = tuple((f"{deployment.salt}/shadow/{s.number}", s) for s in deployment.shadow if s.basis_points > 0)
        numbers = tuple(share.number for share in live)
        return cls(deployment.salt, tuple(edges), numbers, shadow, _salted(deployment.salt))

    def bucket(self, key: str) -> int:
        """The caller's bucket under the deployment's salt, as the function of this name says."""
        digest = self.salted.copy()
        digest.update(key.encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "big") % BASIS_POINTS

    def choose(self, at: int) -> int:
        """The version number that serves a bucket. Raises InferenceError no_active_version for an empty split."""
        if not self.numbers:
            raise InferenceError("no_active_version", headers={"Retry-After": "1"})
        return self.numbers[bisect_right(self.edges, at)]

    def shadows_for(self, key: str) -> tuple[int, ...]:
        """The version numbers that get a copy of the call with this key."""
        return tuple(share.number for salt, share in self.shadow if bucket(salt, key) < share.basis_points)


def choose(deployment: DeploymentRoute, at: int) -> int:
    """The version number that serves a bucket; the hot path keeps a `Split` instead of building one a call."""
    return Split.of(deployment).choose(at)


def shadows_for(deployment: DeploymentRoute, key: str) -> tuple[int, ...]:
    """The version numbers that get a copy of the call with this key."""
    return Split.of(deployment).shadows_for(key)


class Uuid7:
    """UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 bits that only grow within a millisecond.

    Ids of one generator sort by creation, also when the clock steps back. Safe to call from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # A generator seeded by the kernel is enough: ids must be unique, they are no secret.
        self._random_bits = Random(os.urandom(32)).getrandbits  # noqa: S311
        self._last_ms = 0
        self._prefix = ""
        self._low = 0

    def __call__(self) -> str:
        """The next id in the usual text form."""
        now_ms = int(self._clock() * 1000)
        bits = self._random_bits
        with self._lock:
            if now_ms > self._last_ms:
                self._last_ms = now_ms
                self._prefix = f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}-7{bits(12):03x}-"
                # Below the variant's bits and one that stays free, so that no millisecond's increments overflow.
                low = self._low = 1 << 63 | bits(61)
            else:
                low = self._low = self._low + bits(32) + 1
            prefix = self._prefix
        text = f"{low:016x}"
        return f"{prefix}{text[:4]}-{text[4:]}"


uuid7 = Uuid7()
