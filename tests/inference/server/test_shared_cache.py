"""Answers kept in Redis: shared between processes, believed only if signed, and done without where Redis is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import redis.asyncio

from inference.contracts import Lane
from inference.runs import Answer, Arrays
from inference.server.cache import Caches, VersionCache
from inference.server.metrics import Metrics
from inference.server.protocols import Call
from inference.server.settings import BadSettingError, read
from inference.server.shared_cache import SharedCache
from tests.inference.server.house import deployment, linear, with_fields
from tests.inference.server.publishing import Publisher, open_door, until

TTL_S = 60.0
OUTPUTS: Arrays = {
    "y": np.array([[1.5, -2.0], [np.nan, 0.0]], np.float32),
    "half": np.array([1, 2], np.float16),
    "yes": np.array([True, False]),
    "words": np.array([["über", ""]], object),
    "none": np.zeros((0, 3), np.int64),
    "one": np.array(7, np.int32),
}


@asynccontextmanager
async def opened(url: str, secret: str) -> AsyncIterator[SharedCache]:
    shared = SharedCache(url, secret)
    try:
        yield shared
    finally:
        await shared.close()


@pytest.fixture
def redis_at(redis_url: str) -> str:
    """The address as the setting makes it."""
    settings = read({"SIGNALBOX_SECRET_KEY": "s", "SIGNALBOX_CACHE_REDIS": "1", "REDIS_URL": redis_url})
    return settings.cache_redis_url


@pytest.fixture
def secret() -> str:
    """Its own for each test, so that tests find nothing of each other."""
    return uuid4().hex


def cache_of(shared: SharedCache, home: Path, process: str, **settings: Any) -> VersionCache:
    """The cache of version 1 as another process of the installation has it."""
    caches = Caches(Metrics(home / process), shared=shared)
    fields = {"cache_ttl_s": TTL_S, "lane": Lane.EXECUTOR, **settings}
    route = with_fields(deployment(linear(home)), **fields)
    caches.hold([route])
    found = caches.of(route, route.versions[1])
    assert found is not None
    return found


class Runs:
    """Runs of a model, counted."""

    def __init__(self) -> None:
        self.begun = 0

    async def __call__(self) -> Answer:
        self.begun += 1
        return Answer({"y": np.array([[4.0]], np.float32)}, 0.001, 0.002)

    async def asked(self, cache: VersionCache) -> Answer:
        call = Call({"x": np.array([[1.0, 2.0, 3.0]], np.float32)}, 1)
        if (kept := cache.find(call)) is not None:
            return kept
        return await cache.share(call, asyncio.get_running_loop().time() + 60.0, self)


async def written(shared: SharedCache, name: bytes, outputs: Arrays = OUTPUTS, ttl_s: float = TTL_S) -> None:
    shared.put(name, outputs, ttl_s)
    await shared.drain()


async def warmed(shared: SharedCache, name: bytes) -> Any:
    """What is found once there is a connection: on a slow machine the first may take longer than a call waits."""
    for _ in range(100):
        if (found := await shared.find(name)) is not None:
            return found
        shared._failures = 0
    return None


async def test_what_one_process_computes_another_finds(redis_at: str, secret: str, tmp_path: Path) -> None:
    runs = Runs()
    async with opened(redis_at, secret) as one, opened(redis_at, secret) as two:
        first = await runs.asked(cache_of(one, tmp_path, "one"))
        await one.drain()
        other = cache_of(two, tmp_path, "two")
        await warmed(two, two.name(other._scope, other.digest({"x": np.array([[1.0, 2.0, 3.0]], np.float32)})))
        second = await runs.asked(other)
        third = await runs.asked(other)
    assert runs.begun == 1
    assert [answer.cached for answer in (first, second, third)] == [False, True, True]
    assert second.outputs["y"].tolist() == third.outputs["y"].tolist() == [[4.0]]
    assert (second.queue_s, second.compute_s) == (0.0, 0.0)


async def test_every_kind_of_tensor_comes_back_as_it_was(redis_at: str, secret: str) -> None:
    async with opened(redis_at, secret) as shared:
        name = shared.name("toy", b"1")
        await written(shared, name)
        found = await warmed(shared, name)
    assert found.outputs.keys() == OUTPUTS.keys()
    for output, array in OUTPUTS.items():
        same = found.outputs[output]
        assert (same.dtype, same.shape) == (array.dtype, array.shape)
        assert np.array_equal(same, array, equal_nan=array.dtype.kind == "f")
    assert 0.0 <= found.age_s < TTL_S


async def test_deployments_and_settings_have_names_of_their_own(redis_at: str, secret: str, tmp_path: Path) -> None:
    async with opened(redis_at, secret) as shared:
        cache = cache_of(shared, tmp_path, "a")
        others = [
            cache_of(shared, tmp_path, "b", id="d-other", name="other"),
            cache_of(shared, tmp_path, "c", cache_ttl_s=5.0),
        ]
        names = {shared.name(each._scope, b"1") for each in (cache, *others)}
        again = shared.name(cache_of(shared, tmp_path, "d")._scope, b"1")
    assert len(names) == 3
    assert again in names


async def test_what_was_not_signed_for_this_name_is_not_believed(redis_at: str, secret: str) -> None:
    async with opened(redis_at, secret) as shared, redis.asyncio.Redis.from_url(redis_at) as client:
        mine, other = shared.name("toy", b"mine"), shared.name("toy", b"other")
        await written(shared, other)
        sealed = await client.get(other)
        assert isinstance(sealed, bytes)
        assert await warmed(shared, other) is not None
        for value in (sealed, sealed[:-1], b"", b"x" * 200, bytes([sealed[0] ^ 1]) + sealed[1:]):
            await client.set(mine, value, ex=60)
            assert shared._opened(mine, value) is None
        signed = shared._signature(mine, b"\x93junk") + b"\x93junk"
        assert shared._opened(mine, signed) is None


async def test_another_secret_finds_nothing(redis_at: str, secret: str) -> None:
    async with opened(redis_at, secret) as one, opened(redis_at, "another") as two:
        assert one.name("toy", b"1") != two.name("toy", b"1")
        sealed = one._sealed(one.name("toy", b"1"), OUTPUTS)
        assert two._opened(one.name("toy", b"1"), sealed) is None


async def test_it_expires_in_redis_too(redis_at: str, secret: str) -> None:
    async with opened(redis_at, secret) as shared, redis.asyncio.Redis.from_url(redis_at) as client:
        name = shared.name("toy", b"1")
        await written(shared, name, ttl_s=30.0)
        assert 0 < await client.pttl(name) <= 30_000


@pytest.mark.unit
async def test_with_redis_away_calls_are_computed_and_it_is_soon_not_asked(secret: str, tmp_path: Path) -> None:
    runs = Runs()
    async with opened(f"unix://{tmp_path}/nobody.sock", secret) as shared:
        for n in range(5):
            assert not (await runs.asked(cache_of(shared, tmp_path, f"metrics-{n}"))).cached
            await shared.drain()
        assert shared.is_away
    assert runs.begun == 5


@pytest.mark.unit
async def test_a_redis_that_never_answers_holds_no_call_up(secret: str, tmp_path: Path) -> None:
    asked = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read()
        writer.close()

    runs = Runs()
    server = await asyncio.start_unix_server(silent, tmp_path / "s")
    async with server, opened(f"unix://{tmp_path}/s", secret) as shared:
        for n in range(6):
            assert not (await runs.asked(cache_of(shared, tmp_path, f"metrics-{n}"))).cached
        await shared.drain()
        assert shared.is_away
        before = asked
        assert await shared.find(b"any") is None
        shared.put(b"any", OUTPUTS, TTL_S)
        assert not shared._writes
        assert asked == before
    assert runs.begun == 6


async def test_it_is_asked_again_when_it_answers(redis_at: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.server.shared_cache._PAUSE_S", 0.01)
    async with opened(redis_at, secret) as shared:
        for _ in range(3):
            shared._failed(TimeoutError())
        assert shared.is_away
        assert shared._reviving is not None
        await shared._reviving
        assert not shared.is_away


def test_a_front_door_finds_what_the_one_before_it_computed(redis_at: str, database_url: str, tmp_path: Path) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path), lane=Lane.EXECUTOR, cache_ttl_s=600.0, id=uuid4().hex))

    def told(client: httpx.Client, number: int) -> str:
        answer = client.post("/v1/models/toy:predict", json={"instances": [[float(number), 2.0, 3.0]]})
        assert answer.json() == {"predictions": [[number + 1.5]]}
        return answer.headers["x-cache"]

    with open_door(tmp_path, database_url, SIGNALBOX_CACHE_REDIS=redis_at) as door, door.client() as client:
        until(lambda: publisher.state(1)[0] == "active", "the routes")
        assert {told(client, number) for number in range(300)} == {"miss"}
    # Each number once, so that the process itself keeps none: a busy machine's Redis may be too late for some.
    numbers = iter(range(300))
    with open_door(tmp_path, database_url, SIGNALBOX_CACHE_REDIS=redis_at) as door, door.client() as client:
        until(lambda: told(client, next(numbers)) == "hit", "an answer of the door before")


@pytest.mark.unit
def test_the_setting_names_a_redis() -> None:
    base = {"SIGNALBOX_SECRET_KEY": "s", "REDIS_URL": "redis://one/0"}
    assert read(base).cache_redis_url == ""
    assert read({**base, "SIGNALBOX_CACHE_REDIS": "0"}).cache_redis_url == ""
    assert read({**base, "SIGNALBOX_CACHE_REDIS": "1"}).cache_redis_url == "redis://one/0"
    assert read({**base, "SIGNALBOX_CACHE_REDIS": "redis://two/1"}).cache_redis_url == "redis://two/1"
    socket = {**base, "REDIS_URL": "redis+socket:///tmp/r.sock?virtual_host=3", "SIGNALBOX_CACHE_REDIS": "1"}
    assert read(socket).cache_redis_url == "unix:///tmp/r.sock?db=3"
    for bad in ("yes", "http://two"):
        with pytest.raises(BadSettingError):
            read({**base, "SIGNALBOX_CACHE_REDIS": bad})
    with pytest.raises(BadSettingError):
        read({"SIGNALBOX_SECRET_KEY": "s", "SIGNALBOX_CACHE_REDIS": "1"})
