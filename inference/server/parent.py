"""The parent of the serving processes: starts them, replaces those that die, adds and takes away, and ends them.

It has one thread and waits for signals alone, which it keeps blocked: none is ever handled in the middle of a step. It
imports no runtime and serves nothing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from inference.server.metrics import told_by
from inference.server.scaling import Load, Rules, Scaling
from inference.server.settings import Settings

# What the parent waits for, and what it tells its children.
_WAITED_FOR = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
SAY_UNREADY = signal.SIGUSR1
HAND_OVER = signal.SIGUSR2
# A child that dies at once is started again more slowly.
_QUICK_DEATH_S = 2.0
_RESPAWN_S = (0.05, 1.0)
# Children drain for at most 10 s, then say goodbye to PostgreSQL.
_STOP_S = 14.0
# How long a new process may be without documents before it answers health checks without them. Beside others that
# serve it has no reason to take a call that it cannot answer.
_ALONE_S, _BESIDE_OTHERS_S = 5, 120


@dataclass(slots=True, eq=False)
class _Child:
    """`load`: None until it serves. `end_by`: when it is killed, once it was told to end."""

    process: "subprocess.Popen[bytes]"
    started_at: float
    load: Load | None = None
    end_by: float | None = None


class Parent:
    """Keeps as many children as are wanted on the listener, until it is told to stop.

    SIGTERM or SIGINT: the ready addresses answer 503 for `drain_s`, while calls are answered as before; then the
    children finish what is in progress. A second signal ends them at once.
    """

    def __init__(self, listener: socket.socket, settings: Settings, rules: Rules) -> None:
        least, most = settings.web_processes
        self._listener = listener
        self._metrics: Path = settings.metrics
        self._drain_s = settings.drain_s
        self._look_s = rules.look_s
        self._scaling = Scaling(least, most, rules)
        self._is_elastic = most > least
        self._children: list[_Child] = []
        self._start_from = 0.0
        self._look_at = 0.0
        self._stopping = False
        # When those that still run are told to end.
        self._end_at = float("inf")

    def run(self) -> int:
        """Returns when it was told to stop and all children have ended."""
        # Whoever started this may have left it ignored; then no child could be waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Children begin with the same mask: what they are told before they have handlers waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_WAITED_FOR, SAY_UNREADY, HAND_OVER))
        try:
            while not self._stopping or self._children:
                self._turn()
        finally:
            self._listener.close()
        return 0

    def _turn(self) -> None:
        now = time.monotonic()
        if self._stopping:
            if now >= self._end_at:
                self._end_at = float("inf")
                self._end(self._children, now)
        else:
            if now >= self._look_at:
                self._look_at = now + self._look_s
                self._look(now)
            while len(self._staying()) < self._scaling.wanted and now >= self._start_from:
                self._start(now)
        for child in self._children:
            if child.end_by is not None and now >= child.end_by:
                child.process.kill()
        told = signal.sigtimedwait(_WAITED_FOR, self._pause_s(now))
        if told is not None and told.si_signo != signal.SIGCHLD:
            self._stop(time.monotonic())
        self._reap(time.monotonic())

    def _pause_s(self, now: float) -> float:
        """Until the next thing that is due."""
        due = self._look_s
        if len(self._staying()) < self._scaling.wanted:
            due = min(due, self._start_from - now)
        return max(0.0, min(due, self._end_at - now))

    def _staying(self) -> list[_Child]:
        return [child for child in self._children if child.end_by is None]

    def _start(self, now: float) -> None:
        fd = self._listener.fileno()
        beside_others = any(child.load is not None for child in self._staying())
        patience_s = _BESIDE_OTHERS_S if beside_others else _ALONE_S
        command = [sys.executable, "-m", "inference.server", "--serve", str(fd), str(os.getpid()), str(patience_s)]
        process = subprocess.Popen(command, pass_fds=[fd])
        self._children.append(_Child(process, now))

    def _reap(self, now: float) -> None:
        ended = [child for child in self._children if child.process.poll() is not None]
        for child in ended:
            self._children.remove(child)
            if child.end_by is None:
                self._start_from = now + _RESPAWN_S[now - child.started_at < _QUICK_DEATH_S]

    def _look(self, now: float) -> None:
        """What the children do, and what follows of it for their number."""
        staying = self._staying()
        served = [child for child in staying if child.load is not None]
        for child in staying:
            told = told_by(self._metrics, child.process.pid)
            serves = told.get("signalbox_serving") == 1
            child.load = Load(told["signalbox_in_flight"], told["signalbox_busy"]) if serves else None
        if not self._is_elastic:
            return
        serving = [child for child in staying if child.load is not None]
        if any(child not in served for child in serving):
            # Callers keep their connections: without this a new process would get no calls but of new callers.
            for child in served:
                child.process.send_signal(HAND_OVER)
        wanted = self._scaling.look(now, [child.load for child in serving if child.load is not None])
        for child in sorted(staying, key=_is_missed)[: max(0, len(staying) - wanted)]:
            self._end([child], now)

    def _end(self, children: Iterable[_Child], now: float) -> None:
        for child in children:
            child.end_by = now + _STOP_S
            child.process.terminate()

    def _stop(self, now: float) -> None:
        if self._stopping:
            for child in self._children:
                child.process.kill()
            return
        self._stopping = True
        # Once the last child has let go of it too, callers are refused at once and go elsewhere.
        self._listener.close()
        self._end_at = now + self._drain_s
        for child in self._children if self._drain_s else ():
            child.process.send_signal(SAY_UNREADY)


def _is_missed(child: _Child) -> tuple[bool, float, float]:
    """A key by which the child that is missed least comes first: not serving yet, with few calls, young."""
    return child.load is not None, child.load.in_flight if child.load is not None else 0.0, -child.started_at
