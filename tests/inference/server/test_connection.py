"""The connection: the short way and where it ends, slow heads and bodies, callers that do not read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from uvicorn.server import ServerState

from inference.contracts import Lane
from inference.server import connection, replies
from inference.server.connection import BoundedHttpProtocol
from tests.inference import toys
from tests.inference.server.house import BODY, OWNER, House, deployment, linear, open_house, version

pytestmark = pytest.mark.unit


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path)))
        yield opened


@asynccontextmanager
async def listening(house: House) -> AsyncIterator[int]:
    """The application behind a real socket in this event loop; yields the port."""
    config = uvicorn.Config(
        house.app, http=BoundedHttpProtocol, lifespan="off", ws="none", log_config=None, proxy_headers=False
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedHttpProtocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in list(state.connections):
            each.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks)


@asynccontextmanager
async def caller(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    # With small buffers of the kernel's, so that a caller that does not read is soon felt.
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def head(*lines: str, path: str = "/v1/models/toy:predict", key: str = OWNER) -> bytes:
    first = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def whole(**options: str) -> bytes:
    return head(f"Content-Length: {len(BODY)}", **options) + BODY


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], bytes]:
    """(status, headers, body) of the next answer."""
    async with asyncio.timeout(30):
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers[b"content-length"]))


async def warm(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """From the second call on the address is known, and the short way open."""
    writer.write(whole())
    assert (await answer(reader))[0] == 200


async def test_a_slow_body_leaves_the_short_way_and_is_answered_when_it_is_here(house: House) -> None:
    async with listening(house) as port, caller(port) as (reader, writer):
        await warm(reader, writer)
        writer.write(head(f"Content-Length: {len(BODY)}"))
        async with asyncio.timeout(30):
            while not house.app.admission.calls:  # noqa: ASYNC110  # a figure, not an event
                await asyncio.sleep(0.001)
        for place in range(0, len(BODY), 5):
            writer.write(BODY[place : place + 5])
            await asyncio.sleep(0)
        status, _, body = await answer(reader)
        assert (status, body) == (200, b'{"predictions":[[2.5]]}')
        assert house.app.admission.calls == 0
        await warm(reader, writer)


async def test_a_body_that_stops_on_the_short_way_is_ended_by_the_deadline_and_the_connection_with_it(
    house: House,
) -> None:
    async with listening(house) as port, caller(port) as (reader, writer):
        await warm(reader, writer)
        writer.write(head(f"Content-Length: {len(BODY)}", "X-Deadline-Ms: 100") + BODY[:9])
        status, headers, body = await answer(reader)
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert headers[b"connection"] == b"close"
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        assert house.app.admission.calls == 0


async def test_a_body_that_trickles_on_the_short_way_must_keep_the_least_rate(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "BODY_GRACE_S", 0.1)
    async with listening(house) as port, caller(port) as (reader, writer):
        await warm(reader, writer)
        writer.write(head("Content-Length: 60000", "X-Deadline-Ms: 300000"))

        async def trickle() -> None:
            while not writer.is_closing():
                writer.write(b" ")
                await asyncio.sleep(0.005)

        trickling = asyncio.create_task(trickle())
        status, headers, body = await answer(reader)
        trickling.cancel()
        assert (status, json.loads(body)["code"]) == (408, "body_too_slow")
        assert headers[b"connection"] == b"close"


async def test_a_body_that_comes_with_the_last_piece_of_its_head_is_not_counted_as_head(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    begin = BoundedHttpProtocol.on_message_begin

    def watch(protocol: BoundedHttpProtocol) -> None:
        begin(protocol)
        begun.set()

    monkeypatch.setattr(BoundedHttpProtocol, "on_message_begin", watch)
    monkeypatch.setattr(connection, "MAX_HEAD_BYTES", 1000)
    body = BODY + b" " * 5000
    message = head(f"Content-Length: {len(body)}") + body
    async with listening(house) as port, caller(port) as (reader, writer):
        writer.write(message[:30])
        async with asyncio.timeout(30):
            # The first piece came on its own: else this would test nothing.
            await begun.wait()
        writer.write(message[30:])
        assert (await answer(reader))[0] == 200


async def test_a_head_that_grows_without_end_ends_the_connection(house: House) -> None:
    async with listening(house) as port, caller(port) as (_, writer):
        writer.write(head()[:-2])
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(30):
                while True:
                    writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
                    await writer.drain()
        assert house.app.admission.calls == 0


async def test_a_head_that_trickles_is_ended_by_the_time_for_heads(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    async with listening(house) as port, caller(port) as (reader, writer):

        async def trickle() -> None:
            for each in whole():
                writer.write(bytes([each]))
                await asyncio.sleep(0.005)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(30):
            # One line: what is sent behind the refusal may end the connection before all of it is read.
            assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        trickling.cancel()
        assert house.app.admission.calls == 0


async def test_a_full_house_answers_on_both_ways_and_keeps_the_connection(house: House) -> None:
    async with listening(house) as port, caller(port) as (reader, writer):
        await warm(reader, writer)
        house.app.admission.calls = 512
        for lines in ((), ("Expect: nothing",)):
            writer.write(head(f"Content-Length: {len(BODY)}", *lines) + BODY)
            status, headers, body = await answer(reader)
            assert (status, headers[b"retry-after"], json.loads(body)["code"]) == (503, b"1", "overloaded")
            if not lines:
                assert b"connection" not in headers
        house.app.admission.calls = 0


async def test_a_caller_that_never_reads_is_cut_off(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_UNREAD_S", 0.1)
    await house.hold(deployment(version(tmp_path, 1, toys.identity(1)), lane=Lane.INLINE, max_rows=1_000_000))
    content = b'{"instances": [' + b"[0.123, 0.456]," * 400_000 + b"[1, 2]]}"
    async with listening(house) as port:
        async with caller(port) as (_, writer):
            writer.write(head(f"Content-Length: {len(content)}") + content)
            async with asyncio.timeout(60):
                while not house.app.admission.calls:  # noqa: ASYNC110  # a figure, not an event
                    await asyncio.sleep(0.001)
                while house.app.admission.calls:  # noqa: ASYNC110  # a figure, not an event
                    await asyncio.sleep(0.001)
        async with caller(port) as (reader, writer):
            writer.write(head("Content-Length: 25") + b'{"instances": [[1.0, 2]]}')
            assert (await answer(reader))[0] == 200
