"""Answers kept for a while, for deployments that are asked the same again and again; off unless a deployment says so.

An answer is found again by the version and by what the model was given: names, dtypes, shapes and bytes of the tensors,
so that JSON and binary forms of one input are one. Who asks is no part of it, but each deployment keeps its own: what
one team asks neither answers another nor is told by how long an answer takes.

Kept in the process, within a budget of bytes for each deployment; least recently used leave first. Where an
installation says so, what was computed in the executor lane is shared through Redis too. A failure is never kept.
Shadow copies are neither answered from here nor kept: they are there to be computed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from sys import getsizeof
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inference.contracts import DeploymentRoute, Lane, VersionRoute
from inference.errors import InferenceError
from inference.runs import Answer, Arrays
from inference.server.metrics import Counter, Metrics
from inference.server.protocols import Call

if TYPE_CHECKING:
    from inference.server.shared_cache import SharedCache

# A larger answer is not kept: it is copied on the event loop, and would push out many.
MOST_ANSWER_BYTES = 1024 * 1024
# Expired answers that are forgotten in one go: about a millisecond.
MOST_DROPPED = 1000
# What an entry takes beside its numbers, and each of its arrays: a little more than measured with tracemalloc.
_ENTRY_BYTES = 640
_ARRAY_BYTES = 208
_DIGEST_BYTES = 32

Clock = Callable[[], float]


def digest_of(version: VersionRoute, inputs: Arrays) -> bytes:
    """What stands for a version and what it is given: 256 bits. Text counts by its UTF-8, however it was sent."""
    found = blake2b(f"{version.id} {version.artifact_sha256}".encode(), digest_size=_DIGEST_BYTES)
    for name, array in sorted(inputs.items()):
        found.update(f"{name!r}{array.dtype.str}{array.shape}".encode())
        if array.dtype.kind == "O":
            texts = [utf8(text) for text in array.ravel().tolist()]
            found.update(repr([len(text) for text in texts]).encode())
            found.update(b"".join(texts))
        else:
            found.update(np.ascontiguousarray(array).data)
    return found.digest()


def utf8(text: Any) -> bytes:
    """An element of a BYTES tensor as bytes."""
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _Kept:
    """One answer. `expires_at`: of the cache's clock."""

    answer: Answer
    size: int
    expires_at: float
    version: "VersionCache"


@dataclass(slots=True)
class _Flight:
    """A run under way, and how many calls wait for it. It belongs to all of them: it ends when none is left."""

    run: "asyncio.Task[Answer]"
    waiting: int = 0


class ResponseCache:
    """What is kept of one deployment. Used from the event loop."""

    def __init__(self, ttl_s: float, most_bytes: int, held_bytes: Counter, clock: Clock = monotonic) -> None:
        """`held_bytes`: the gauge that tells how much is kept."""
        self.bounds = ttl_s, most_bytes
        self.size = 0
        self._clock = clock
        self._held_bytes = held_bytes
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        held_bytes.set(0)

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, digest: bytes) -> Answer | None:
        """The answer that is kept, as one that took no time; None where there is none, or none any more."""
        kept = self._kept.get(digest)
        if kept is None:
            return None
        if self._clock() >= kept.expires_at:
            self._drop(digest)
            return None
        self._kept.move_to_end(digest)
        return kept.answer

    def keep(self, digest: bytes, outputs: Arrays, version: "VersionCache", age_s: float = 0.0) -> None:
        """Keep a copy, unless it is too large; what was used least recently makes room. `age_s`: since the run."""
        ttl_s, most_bytes = self.bounds
        size = _size(outputs)
        if size > min(most_bytes, MOST_ANSWER_BYTES):
            return
        if digest in self._kept:
            self._drop(digest)
        now = self._clock()
        while self._kept:
            oldest, kept = next(iter(self._kept.items()))
            if self.size + size <= most_bytes and now < kept.expires_at:
                break
            self._drop(oldest)
        answer = Answer({name: _frozen(array) for name, array in outputs.items()}, 0.0, 0.0, cached=True)
        self._kept[digest] = _Kept(answer, size, now + ttl_s - age_s, version)
        self.size += size
        self._held_bytes.set(self.size)

    def drop_expired(self, most: int) -> int:
        """Forget answers that may no longer be given, at most so many; how many.

        Only from where the least recently used are: what has expired behind one that has not, and was used before it
        did, leaves at the latest one time to live after.
        """
        now, dropped = self._clock(), 0
        while self._kept and dropped < most:
            oldest, kept = next(iter(self._kept.items()))
            if now < kept.expires_at:
                break
            self._drop(oldest)
            dropped += 1
        return dropped

    def drop_all_of(self, versions: Collection["VersionCache"]) -> None:
        for digest in [digest for digest, kept in self._kept.items() if kept.version in versions]:
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        self.size -= self._kept.pop(digest).size
        self._held_bytes.set(self.size)


def _size(outputs: Arrays) -> int:
    size = _ENTRY_BYTES
    for array in outputs.values():
        size += _ARRAY_BYTES + array.nbytes
        if array.dtype.kind == "O":
            size += sum(getsizeof(text) for text in array.ravel().tolist())
    return size


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of its own, which holds no larger array in memory and cannot be written to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@dataclass(slots=True, eq=False)
class VersionCache:
    """The part of a deployment's cache that is one version's. Once the version has left, nothing is found or kept."""

    version: VersionRoute
    store: ResponseCache
    _hits: Counter
    _misses: Counter
    _shared: "SharedCache | None" = None
    _scope: str = ""
    left: bool = False
    _flights: dict[bytes, _Flight] = field(default_factory=dict)

    def digest(self, inputs: Arrays) -> bytes:
        """Some microseconds, and about a second a gigabyte: for `Call.digest` of a large call, in a thread."""
        return digest_of(self.version, inputs)

    def find(self, call: Call) -> Answer | None:
        """The kept answer to a call whose inputs are known; None where it has to be computed."""
        if not call.digest:
            call.digest = self.digest(call.inputs)
        return self.store.find(call.digest)

    def keep(self, call: Call, answer: Answer) -> None:
        """Keep what was computed for a call that was looked for."""
        if not self.left:
            self.store.keep(call.digest, answer.outputs, self)

    async def share(self, call: Call, deadline: float, run: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What `run` answers; calls that are alike and come while it is under way wait for it instead of running.

        The run goes on while anybody waits, whoever began it. If it fails, each of the others runs for itself. Raises
        as `run`, and InferenceError deadline_exceeded.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        flight = self._flights.get(call.digest)
        first = flight is None
        if flight is None:
            flight = self._flights[call.digest] = _Flight(loop.create_task(self._fly(call, run)))
            flight.run.add_done_callback(self._landed)
        flight.waiting += 1
        try:
            await asyncio.wait([flight.run], timeout=max(0.0, deadline - arrived))
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.run.cancel()
            if (not flight.waiting or flight.run.done()) and self._flights.get(call.digest) is flight:
                del self._flights[call.digest]
        if not flight.run.done():
            raise InferenceError("deadline_exceeded")
        if first:
            return flight.run.result()
        if flight.run.cancelled() or flight.run.exception() is not None:
            return await run()
        return Answer(flight.run.result().outputs, loop.time() - arrived, 0.0, cached=True)

    def count(self, answer: Answer) -> tuple[bytes, bytes]:
        """Count an answer that leaves; returns the header that tells where it is from."""
        if answer.cached:
            self._hits.add()
            return b"x-cache", b"hit"
        self._misses.add()
        return b"x-cache", b"miss"

    async def _fly(self, call: Call, run: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Out of Redis, else by a run. Either is kept, and what was computed shared."""
        shared, ttl_s = self._shared, self.store.bounds[0]
        if shared is None:
            answer = await run()
            self.keep(call, answer)
            return answer
        name = shared.name(self._scope, call.digest)
        found = await shared.find(name)
        if found is not None and found.age_s < ttl_s:
            if not self.left:
                self.store.keep(call.digest, found.outputs, self, found.age_s)
            return Answer(found.outputs, 0.0, 0.0, cached=True)
        answer = await run()
        self.keep(call, answer)
        if _size(answer.outputs) <= MOST_ANSWER_BYTES:
            shared.put(name, answer.outputs, ttl_s)
        return answer

    @staticmethod
    def _landed(run: "asyncio.Task[Answer]") -> None:
        """Asked for, so that a failure nobody waits for any more is not reported as lost."""
        if not run.cancelled():
            run.exception()


class Caches:
    """The caches of this process, by deployment. They outlive a change of routes that does not concern them."""

    def __init__(self, metrics: Metrics, clock: Clock = monotonic, shared: "SharedCache | None" = None) -> None:
        self._metrics = metrics
        self._shared = shared
        self._clock = clock
        self._stores: dict[str, ResponseCache] = {}
        self._versions: dict[tuple[str, str, str], VersionCache] = {}

    def hold(self, deployments: Iterable[DeploymentRoute]) -> None:
        """From now on cache for these: what is of another deployment, setting or version is forgotten."""
        stores: dict[str, ResponseCache] = {}
        versions: dict[tuple[str, str, str], VersionCache] = {}
        for route in deployments:
            if route.cache_ttl_s <= 0 or route.retired or route.lane is Lane.JOB:
                continue
            stores[route.id] = store = self._store(route)
            for version in route.versions.values():
                key = _key(route, version)
                known = self._versions.get(key)
                versions[key] = known if known and known.store is store else self._version(route, version, store)
        gone = [each for key, each in self._versions.items() if versions.get(key) is not each]
        for each in gone:
            each.left = True
        for store in self._stores.values():
            store.drop_all_of(gone)
        self._stores, self._versions = stores, versions

    def drop_expired(self) -> None:
        """Forget what has expired, MOST_DROPPED at most in a call: for a second's tick on the event loop."""
        room = MOST_DROPPED
        for store in self._stores.values():
            room -= store.drop_expired(room)

    def of(self, route: DeploymentRoute, version: VersionRoute) -> VersionCache | None:
        """The cache of a version of a deployment that is held; None where it is off."""
        return self._versions.get(_key(route, version))

    def _store(self, route: DeploymentRoute) -> ResponseCache:
        known = self._stores.get(route.id)
        if known is not None and known.bounds == (route.cache_ttl_s, route.cache_bytes):
            return known
        held_bytes = self._metrics.counter("signalbox_cache_bytes", deployment=route.name)
        return ResponseCache(route.cache_ttl_s, route.cache_bytes, held_bytes, self._clock)

    def _version(self, route: DeploymentRoute, version: VersionRoute, store: ResponseCache) -> VersionCache:
        labels: dict[str, str | int] = {"deployment": route.name, "version": version.number}
        hits = self._metrics.counter("signalbox_cache_hits_total", **labels)
        misses = self._metrics.counter("signalbox_cache_misses_total", **labels)
        # With the setting in it, so that another one begins anew there too.
        return VersionCache(version, store, hits, misses, self._shared, f"{route.id} {route.cache_ttl_s}")


def _key(route: DeploymentRoute, version: VersionRoute) -> tuple[str, str, str]:
    return route.id, version.id, version.artifact_sha256
