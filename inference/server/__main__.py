"""`python -m inference.server`: listens, and keeps the serving processes alive.

The parent binds one socket and hands it to its children, so that a restart of one resets no queued connection. It
imports nothing heavy and serves nothing.
"""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from inference.server.settings import BadSettingError, Settings, read

_BACKLOG = 2048
# A child that dies at once is started again more slowly.
_QUICK_DEATH_S = 2.0
_RESPAWN_S = (0.05, 1.0)
# Children drain for at most 10 s, then say goodbye to PostgreSQL.
_STOP_S = 14.0


def main(arguments: list[str]) -> int:
    """The process's exit code."""
    try:
        settings = read()
        if arguments[:1] == ["--serve"]:
            # Imported by the children alone: the parent stays small.
            from inference.server.process import serve

            return serve(settings, int(arguments[1]), int(arguments[2]))
        listener = _bind(settings)
    except BadSettingError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return Parent(listener, settings.web_processes).run()


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "another program listens there" if taken else getattr(error, "strerror", str(error))
        raise BadSettingError(
            f"Signalbox cannot listen on {where} ({reason}): choose another SIGNALBOX_PORT or SIGNALBOX_HOST."
        ) from error
    listener.listen(_BACKLOG)
    return listener


class Parent:
    """Starts the children and replaces those that die, until it is told to stop."""

    def __init__(self, listener: socket.socket, processes: int) -> None:
        self._listener = listener
        self._count = processes
        self._children: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._stopping = False

    def run(self) -> int:
        """Returns when all children have ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for _ in range(self._count):
            self._start()
        while self._children:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                break
            child = self._children.pop(pid, None)
            if child is None:
                continue
            process, started = child
            process.returncode = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            quick = time.monotonic() - started < _QUICK_DEATH_S
            time.sleep(_RESPAWN_S[quick])
            if not self._stopping:
                self._start()
        self._listener.close()
        return 0

    def _start(self) -> None:
        fd = self._listener.fileno()
        command = [sys.executable, "-m", "inference.server", "--serve", str(fd), str(os.getpid())]
        child = subprocess.Popen(command, pass_fds=[fd])
        self._children[child.pid] = (child, time.monotonic())
        if self._stopping:
            # The signal came while the child was being started, and did not reach it.
            child.terminate()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Tell the children to drain. A second signal, or time running out, ends them."""
        again, self._stopping = self._stopping, True
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if again else signal.SIGTERM)
        if not again:
            signal.signal(signal.SIGALRM, self._stop)
            signal.setitimer(signal.ITIMER_REAL, _STOP_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
