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
from inference.server.app import App
from inference.server.connection import BoundedHttpProtocol
from inference.server.settings import BadSettingError, Settings

_KEEP_ALIVE_S = 75
_DRAIN_S = 10
_PR_SET_PDEATHSIG = 1
# Longest wait for the first documents: after it the health checks at least have to be answered.
_FIRST_DOCUMENTS_S = 5.0
_LOOK_S = 0.02


def serve(settings: Settings, fd: int, parent: int) -> int:
    """Serve until SIGTERM, then drain for at most 10 s. Returns the exit code."""
    _die_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    if not settings.database_url:
        raise BadSettingError("DATABASE_URL is not set: give the control plane's, where routes and keys are published.")
    uvloop.run(_serve(settings, listener))
    return 0


async def _serve(settings: Settings, listener: socket.socket) -> None:
    app = App(settings)
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
        backlog=2048,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # Before and after uvicorn's own handlers: it raises the signal again at its end, when there is still to tidy up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    async with app.running():
        # A process that holds nothing yet would refuse what its siblings answer: callers wait in the socket's queue.
        give_up_at = time.monotonic() + _FIRST_DOCUMENTS_S
        # Asked, not awaited: a signal handler sets the other condition.
        while not (app.holder.ready or server.should_exit or time.monotonic() > give_up_at):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        if not server.should_exit:
            await server.serve(sockets=[listener])


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent is gone, however it ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
