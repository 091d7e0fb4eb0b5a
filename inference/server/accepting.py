"""Taking connections: all that wait, at every turn of the event loop.

The event loop's own server takes one a turn (libuv since 1.45). Under load a turn is long, and who comes then would
wait for as many turns as there are callers before him, in a queue where nobody sees his deadline.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

_log = logging.getLogger(__name__)

BACKLOG = 2048
# How long no connection is taken where there is no descriptor or no memory for one.
_PAUSE_S = 0.5
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Takes connections of a listening socket, which it does not close, until `stop`. Used on the event loop."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._watch()

    async def stop(self) -> None:
        """Take no more. Returns when all that were taken have their protocols."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        if self._joining:
            await asyncio.wait(self._joining)

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # Nobody is left, a sibling was quicker, or the caller has gone: what waits is asked for again.
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    _log.exception("a connection could not be taken")
                    return
                _log.warning("no connection is taken for %.1f s: %s", _PAUSE_S, error.strerror)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._watch)
                return
            connection.setblocking(False)
            # An answer leaves when it is written, not when the one before it was acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._join(connection))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    async def _join(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            # The caller has gone already.
            connection.close()
