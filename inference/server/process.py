"""One serving process: uvicorn on the socket that its parent bound."""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
import uvloop

from inference.runtime import collector
from inference.server import slices
from inference.server.accepting import Acceptor
from inference.server.app import App
from inference.server.connection import BoundedHttpProtocol
from inference.server.parent import HAND_OVER, SAY_UNREADY
from inference.server.settings import BadSettingError, Settings

_KEEP_ALIVE_S = 75
_DRAIN_S = 10
_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.02


def serve(settings: Settings, fd: int, parent: int, patience_s: int) -> int:
    """Serve until SIGTERM, then drain for at most 10 s. Returns the exit code.

    `patience_s`: the longest wait for the first documents; after it the health checks at least have to be answered.
    """
    _die_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    if not settings.database_url:
        raise BadSettingError("DATABASE_URL is not set: give the control plane's, where routes and keys are published.")
    uvloop.run(_serve(settings, listener, patience_s))
    return 0


async def _serve(settings: Settings, listener: socket.socket, patience_s: int) -> None:
    slices.shorten()
    app = App(settings)
    serving = app.metrics.counter("signalbox_serving")
    collector.settle()
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    config.load()
    server = _Server(config, listener)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True
        serving.set(0)

    # Before and after uvicorn's own handlers: it raises the signal again at its end, when there is still to tidy up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(SAY_UNREADY, app.say_unready)
    loop.add_signal_handler(HAND_OVER, _hand_over, server)
    # The parent keeps them blocked, so that none came before this.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (SAY_UNREADY, HAND_OVER))
    async with app.running():
        # A process that holds nothing yet would refuse what its siblings answer: callers wait in the socket's queue.
        give_up_at = time.monotonic() + patience_s
        # Asked, not awaited: a signal handler sets the other condition.
        while not (app.holder.ready or server.should_exit or time.monotonic() > give_up_at):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        if not server.should_exit:
            serving.set(1)
            # Without sockets of its own: it has the connections that its acceptor takes.
            await server.serve(sockets=[])


class _Server(uvicorn.Server):
    """uvicorn's server of connections that an acceptor takes from a listener, which is closed first at the end."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._acceptor = Acceptor(self._listener, lambda: BoundedHttpProtocol(self.config, self.server_state, {}))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is not None:
            await self._acceptor.stop()
        self._listener.close()
        await super().shutdown(sockets)


def _hand_over(server: uvicorn.Server) -> None:
    """End every other connection after its next answer: its caller comes again and finds the process that is new."""
    for connection in list(server.server_state.connections)[::2]:
        connection.end_after_next()  # type: ignore[union-attr]  # all are of the protocol given above


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent is gone, however it ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
