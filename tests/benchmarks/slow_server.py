"""A tiny real HTTP server on a thread of its own that answers one call after the other, each after a known delay."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.load import Target


class SlowServer:
    """Call number n (from 0) is answered with `status(n)` after `delay_s(n)`, when those before it were answered.

    `hangs_up(n)`: its connection is closed in place of an answer.
    """

    def __init__(
        self,
        *,
        delay_s: Callable[[int], float] = lambda number: 0.0,
        status: Callable[[int], int] = lambda number: 200,
        hangs_up: Callable[[int], bool] = lambda number: False,
        content: bytes = b"{}",
    ) -> None:
        self._delay_s, self._status, self._hangs_up, self._content = delay_s, status, hangs_up, content
        self.calls = 0
        self.bodies: set[bytes] = set()
        self.port = 0
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()

    def target(self, body: bytes = b"{}") -> Target:
        return Target("slow", f"http://127.0.0.1:{self.port}/predict", {"Content-Type": "application/json"}, body)

    def _life(self) -> None:
        asyncio.set_event_loop(self._loop)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen())

    async def _listen(self) -> None:
        self._ended, self._turn = asyncio.Event(), asyncio.Lock()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._ended.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                self.bodies.add(await reader.readexactly(length))
                async with self._turn:
                    number, self.calls = self.calls, self.calls + 1
                    await asyncio.sleep(self._delay_s(number))
                if self._hangs_up(number):
                    return
                # In two pieces, which a client has to put together.
                writer.write(
                    b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n" % (self._status(number), len(self._content))
                )
                await writer.drain()
                writer.write(self._content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def serving(server: SlowServer) -> Iterator[SlowServer]:
    """Listens until the end of the block."""
    thread = threading.Thread(target=server._life, name="slow server")
    thread.start()
    assert server._listening.wait(20)
    try:
        yield server
    finally:
        server._loop.call_soon_threadsafe(server._ended.set)
        thread.join()
