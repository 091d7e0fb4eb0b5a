"""Connections are taken as they come, however many, and the process lives through having no room for more."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from inference.server import accepting
from inference.server.accepting import Acceptor

pytestmark = pytest.mark.unit


class Noting(asyncio.Protocol):
    """Echoes, and tells what it was made with."""

    made: "list[asyncio.BaseTransport]"
    lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.made.append(transport)

    def data_received(self, data: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.made.remove(self.transport)
        self.lost.set()


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[Acceptor, int, "list[asyncio.BaseTransport]"]]:
    listener = socket.create_server(("127.0.0.1", 0))
    made: list[asyncio.BaseTransport] = []
    protocol = type("Noting", (Noting,), {"made": made})
    acceptor = Acceptor(listener, protocol)
    try:
        yield acceptor, listener.getsockname()[1], made
    finally:
        await acceptor.stop()
        listener.close()
        for transport in made:
            transport.close()
        await asyncio.sleep(0.05)


def test_all_that_wait_are_taken_in_one_turn_of_the_loop() -> None:
    async def run() -> None:
        async with accepted() as (_, port, made):
            callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            # A turn takes them, the next ones give them their protocols.
            for _ in range(4):
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            assert len(made) == 100
            own = made[0].get_extra_info("socket")
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for caller in callers:
                caller.close()

    uvloop.run(run())


async def test_a_connection_carries_data_both_ways_and_its_end_is_told() -> None:
    async with accepted() as (_, port, made):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        Noting.lost.clear()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(10):
            await Noting.lost.wait()
        assert made == []


async def test_without_descriptors_it_pauses_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.05)
    async with accepted() as (acceptor, port, _):
        real = acceptor._listener
        acceptor._listener = Exhausted(real)  # type: ignore[assignment]  # as much of a socket as is asked of it
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        async with asyncio.timeout(10):
            assert await reader.readexactly(5) == b"hello"
        writer.close()
    assert caplog.text.count("no connection is taken") == 1


class Exhausted:
    """A listener that has no descriptor for the first connection."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._refused = False

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> object:
        if not self._refused:
            self._refused = True
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()


async def test_after_its_end_nobody_is_taken() -> None:
    async with accepted() as (acceptor, port, made):
        await acceptor.stop()
        with socket.create_connection(("127.0.0.1", port)):
            await asyncio.sleep(0.05)
            assert made == []
