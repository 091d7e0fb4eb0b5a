"""Calls that are all here are answered in a function call: over sockets, in order, and logged before they are told."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference.contracts import Lane
from inference.server import connection
from inference.server.app import App
from tests.inference.server.house import BODY, OWNER, House, deployment, linear, listening, open_house

pytestmark = pytest.mark.unit

PATH = "/v1/models/toy:predict"


def request(body: bytes = BODY, path: str = PATH, key: str = OWNER, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: signalbox", f"Content-Length: {len(body)}", f"Authorization: Bearer {key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Caller:
    """A connection to the front door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """(status, head, body) of the next answer."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            return int(head.split()[1]), head, await self.reader.readexactly(int(length[1]))

    async def ask(self, content: bytes) -> tuple[int, bytes, bytes]:
        self.writer.write(content)
        return await self.answer()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path)))
        yield opened


@asynccontextmanager
async def calling(house: House) -> AsyncIterator[Caller]:
    """A connection whose next call can go the short way: its address was met before."""
    async with listening(house) as port:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
        assert (await caller.ask(request()))[0] == 200
        yield caller
        caller.writer.close()


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which calls became a task."""
    seen: list[str] = []
    whole = App.__call__

    async def noted(self: App, scope: object, receive: object, send: object) -> None:
        seen.append(scope["path"])  # type: ignore[index]  # an ASGI scope
        await whole(self, scope, receive, send)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(App, "__call__", noted)
    return seen


async def test_a_call_that_is_all_here_needs_no_task(house: House, long_ways: list[str]) -> None:
    async with calling(house) as caller:
        del long_ways[:]
        status, head, body = await caller.ask(request(X_Client_Id="order-7"))
        assert (status, body, long_ways) == (200, b'{"predictions":[[2.5]]}', [])
        assert b"x-client-id: order-7\r\n" in head
        assert b"\r\ndate: " in head
        assert [record.client_id for record in house.served()] == ["", "order-7"]


async def test_refusals_go_the_short_way_too_and_the_connection_lives_on(house: House, long_ways: list[str]) -> None:
    async with calling(house) as caller:
        del long_ways[:]
        assert [(await caller.ask(request(content)))[0] for content in (b"{", BODY)] == [400, 200]
        status, head, _ = await caller.ask(request(key="sb_nobody"))
        assert (status, b"www-authenticate: " in head) == (401, True)
        assert (await caller.ask(request()))[0] == 200
        assert long_ways == []


async def test_a_body_behind_its_head_is_waited_for(house: House, long_ways: list[str]) -> None:
    async with calling(house) as caller:
        del long_ways[:]
        content = request()
        caller.writer.write(content[: -len(BODY)])
        await caller.writer.drain()
        await asyncio.sleep(0)
        assert (await caller.ask(content[-len(BODY) :]))[0] == 200
        assert long_ways == []


async def test_a_body_that_is_slow_becomes_a_task_with_a_deadline(
    house: House, long_ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_REST_OF_BODY_S", 0.0)
    async with calling(house) as caller:
        del long_ways[:]
        content = request()
        caller.writer.write(content[:-5])
        while not long_ways:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0.01)
        assert (await caller.ask(content[-5:]))[0] == 200
        caller.writer.write(request(X_Deadline_Ms="50")[:-5])
        assert (await caller.answer())[0] in (408, 504)


async def test_calls_sent_at_once_are_answered_in_their_order(house: House) -> None:
    async with calling(house) as caller:
        ids = [f"call-{number}" for number in range(6)]
        bodies = [BODY if number % 3 else b"{" for number in range(6)]
        caller.writer.write(b"".join(request(body, X_Request_Id=each) for each, body in zip(ids, bodies, strict=True)))
        answers = [await caller.answer() for _ in ids]
        assert [re.search(rb"x-request-id: (\S+)", head)[1].decode() for _, head, _ in answers] == ids  # type: ignore[index]
        assert [status for status, _, _ in answers] == [400, 200, 200, 400, 200, 200]


async def test_calls_that_come_together_are_logged_in_one_write(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(house) as port:
        callers = [Caller(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(8)]
        for caller in callers:
            assert (await caller.ask(request()))[0] == 200
        before = len(house.served())
        sizes: list[int] = []
        write = os.write

        def noted(fd: int, content: bytes) -> int:
            sizes.append(content.count(b"\n"))
            return write(fd, content)

        monkeypatch.setattr("inference.spool.os.write", noted)
        for _ in range(5):
            for caller in callers:
                caller.writer.write(request())
            assert {(await caller.answer())[0] for caller in callers} == {200}
        assert sum(sizes) == 40
        assert len(sizes) < 40
        assert len(house.served()) == before + 40
        for caller in callers:
            caller.writer.close()


async def test_an_answer_that_cannot_be_logged_is_not_given(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling(house) as caller:
        write = os.write

        def full(fd: int, content: bytes) -> int:
            if b'"packed"' in content:
                raise OSError(errno.ENOSPC, "no space")
            return write(fd, content)

        monkeypatch.setattr("inference.spool.os.write", full)
        status, head, body = await caller.ask(request())
        assert (status, b"storage_full" in body, b"retry-after: " in head) == (507, True, True)
        monkeypatch.undo()
        assert (await caller.ask(request()))[0] == 200
        assert len(house.served()) == 2
        assert house.app.admission.calls == 0


async def test_a_call_that_has_to_wait_goes_on_as_a_task(tmp_path: Path, house: House, long_ways: list[str]) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.EXECUTOR))
    async with calling(house) as caller:
        del long_ways[:]
        assert (await caller.ask(request()))[2] == b'{"predictions":[[2.5]]}'
        # Its beginning was not made twice: the rest of it is not the application.
        assert long_ways == []
        assert [record.lane for record in house.served()] == [Lane.EXECUTOR, Lane.EXECUTOR]
        assert (house.app.admission.calls, house.app.admission.bytes) == (0, 0)


async def test_an_idle_connection_is_closed_and_a_used_one_is_not(house: House) -> None:
    async with listening(house, timeout_keep_alive=1) as port:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
        for _ in range(5):
            assert (await caller.ask(request()))[0] == 200
            await asyncio.sleep(0.4)
        async with asyncio.timeout(20):
            assert await caller.reader.read() == b""
        caller.writer.close()
