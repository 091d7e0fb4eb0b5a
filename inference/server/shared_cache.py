"""The second level of kept answers: Redis, for all processes and hosts. It may be away, slow or full of lies.

A caller waits for it a few milliseconds at most. After some failures in a row it is not asked any more until it has
answered a ping, which no caller waits for. What it gives is believed if it is signed with a key made from the
installation's secret, under the name that was asked for; names are made with that key too.
"""

import asyncio
import hashlib
import hmac
import logging
from hashlib import blake2b
from math import prod
from time import time
from typing import Any, NamedTuple

import msgspec
import numpy as np
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inference.runs import Arrays
from inference.runtime.tensors import NUMPY_DTYPES
from inference.server.cache import utf8

_log = logging.getLogger(__name__)

_LABEL = b"signalbox-kept-answers"
# How long a call that would otherwise be computed waits for an answer of Redis.
FIND_S = 0.005
_WRITE_S = 0.25
_PING_S = 1.0
_CONNECTIONS = 8
_MOST_WRITES = 32
# Failures in a row after which it counts as away, and how soon it is asked again, doubled each time.
_FAILURES = 3
_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0
_SIGNATURE_BYTES = 32
_FAULTS = (RedisError, OSError, TimeoutError)
_DTYPES = {np.dtype(dtype).str: np.dtype(dtype) for dtype in NUMPY_DTYPES.values()}


class Found(NamedTuple):
    """`age_s`: since it was computed."""

    outputs: Arrays
    age_s: float


class _Tensor(msgspec.Struct, array_like=True):
    """`data`: the elements in row-major order, as bytes or, of text, as a list of UTF-8."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes | list[bytes]


class _Kept(msgspec.Struct, array_like=True):
    """`at`: when it was computed, Unix seconds."""

    at: float
    outputs: list[_Tensor]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Kept)


class SharedCache:
    """Answers in Redis. Used from one event loop; nothing of it raises."""

    def __init__(self, url: str, secret_key: str) -> None:
        self._key = hmac.new(secret_key.encode(), _LABEL, hashlib.sha256).digest()
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_WRITE_S,
            socket_connect_timeout=_PING_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)
        self._failures = 0
        self._writes: set[asyncio.Task[None]] = set()
        self._reviving: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        return self._failures >= _FAILURES

    def name(self, scope: str, digest: bytes) -> bytes:
        """The name of an answer: of a digest within a scope."""
        made = blake2b(f"{scope} ".encode() + digest, key=self._key, digest_size=32)
        return b"signalbox:answer:" + made.hexdigest().encode()

    async def find(self, name: bytes) -> Found | None:
        """What is kept under this name; None where there is nothing, or Redis does not say so in time."""
        if self.is_away:
            return None
        try:
            async with asyncio.timeout(FIND_S):
                value = await self._redis.get(name)
        except _FAULTS as error:
            self._failed(error)
            return None
        self._failures = 0
        return self._opened(name, value) if isinstance(value, bytes) else None

    def put(self, name: bytes, outputs: Arrays, ttl_s: float) -> None:
        """Write in the background; not at all where Redis is away or too many writes are under way."""
        if self.is_away or len(self._writes) >= _MOST_WRITES:
            return
        task = asyncio.get_running_loop().create_task(self._write(name, self._sealed(name, outputs), ttl_s))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def drain(self) -> None:
        """Wait for the writes under way."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def close(self) -> None:
        if self._reviving is not None:
            self._reviving.cancel()
        await self.drain()
        await self._redis.aclose()

    async def _write(self, name: bytes, value: bytes, ttl_s: float) -> None:
        try:
            async with asyncio.timeout(_WRITE_S):
                await self._redis.set(name, value, px=max(1, int(ttl_s * 1000)))
        except _FAULTS as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self.is_away and (self._reviving is None or self._reviving.done()):
            _log.warning("Redis is away, answers are kept in each process alone: %s", type(error).__name__)
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        pause_s = _PAUSE_S
        while self.is_away:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
            try:
                async with asyncio.timeout(_PING_S):
                    await self._redis.ping()
            except _FAULTS:
                continue
            self._failures = 0
            _log.info("Redis keeps answers again")

    # -- what lies in Redis: a signature, and msgpack behind it

    def _sealed(self, name: bytes, outputs: Arrays) -> bytes:
        tensors = []
        for output, array in outputs.items():
            is_text = array.dtype.kind == "O"
            data = [utf8(text) for text in array.ravel().tolist()] if is_text else array.tobytes()
            tensors.append(_Tensor(output, array.dtype.str, list(array.shape), data))
        body = _encoder.encode(_Kept(time(), tensors))
        return self._signature(name, body) + body

    def _opened(self, name: bytes, value: bytes) -> Found | None:
        signature, body = value[:_SIGNATURE_BYTES], value[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(name, body)):
            return None
        try:
            kept = _decoder.decode(body)
            outputs = {tensor.name: _array(tensor) for tensor in kept.outputs}
        except (msgspec.MsgspecError, ValueError, KeyError):
            # Of another release.
            return None
        return Found(outputs, max(0.0, time() - kept.at))

    def _signature(self, name: bytes, body: bytes) -> bytes:
        return blake2b(name + body, key=self._key, digest_size=_SIGNATURE_BYTES).digest()


def _array(tensor: _Tensor) -> Any:
    """Raises ValueError or KeyError where the parts do not fit."""
    dtype = _DTYPES[tensor.dtype]
    if isinstance(tensor.data, bytes):
        if dtype.kind == "O":
            raise ValueError
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    if dtype.kind != "O" or len(tensor.data) != prod(tensor.shape):
        raise ValueError
    texts = np.empty(len(tensor.data), object)
    texts[:] = [text.decode("utf-8", "surrogatepass") for text in tensor.data]
    return texts.reshape(tensor.shape)
