"""Runs the parts of Signalbox as foreground children: logs, restarts and an ordered end, in one thread."""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from controlplane.local.errors import CannotStart
from controlplane.local.home import Account, Home
from controlplane.local.processes import MARK, kill_group, marked_with, spawn, stop_stepwise, yield_sessions

LOG_FILE_BYTES = 5 * 1024 * 1024
FIRST_PAUSE_S = 0.2
# A killed part is back within five seconds, its start included.
LONGEST_PAUSE_S = 3.0
STEADY_AFTER_S = 20.0
# How often nice parts are asked for children with sessions of their own.
EASE_EVERY_S = 2.0


class StopRequested(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived while something was being waited for."""


@dataclass(frozen=True, slots=True)
class Service:
    """A part to run. At the end the highest `tier` is stopped first; parts of one tier end together.

    `drain_s`: how long it may take to end after `stop_signal`, before it is killed.
    """

    name: str
    command: tuple[str, ...]
    tier: int
    environment: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    niceness: int = 0
    stop_signal: int = signal.SIGTERM
    drain_s: float = 10.0
    # Started again when it ends; without, it is a task that ends by itself.
    lasting: bool = True
    # Restarted by `up --reload` when a file of the project changes.
    reloads: bool = False


class LogFile:
    """A part's own log; grown past LOG_FILE_BYTES, it is moved to NAME.log.1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("ab")
        path.chmod(0o600)

    def write(self, line: bytes) -> None:
        # A full disk must not stop the supervisor: the line is on the console all the same.
        with contextlib.suppress(OSError):
            self._stream.write(line + b"\n")
            self._stream.flush()
            if self._stream.tell() > LOG_FILE_BYTES:
                self._stream.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._stream = self._path.open("ab")
                self._path.chmod(0o600)

    def close(self) -> None:
        self._stream.close()


@dataclass(slots=True)
class Child:
    """One service and its present process. Times are the clock's seconds."""

    service: Service
    log: LogFile
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float | None = None
    failures: int = 0
    restarts: int = 0
    last_exit: int | None = None
    last_line: str = ""
    rest: bytes = b""
    # Its children whose sessions were lowered.
    yielded: set[int] = field(default_factory=set)

    @property
    def pipe(self) -> IO[bytes]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout


class Supervisor:
    """Holds the home's lock and its children. Use as a context manager; leaving it stops everything."""

    def __init__(self, home: Home, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.home = home
        self.stopping = False
        self.state: dict[str, object] = {"state": "starting"}
        self._clock = clock
        self._children: dict[str, Child] = {}
        self._console_open = True
        # While some parts are being ended on purpose, nobody is started again.
        self._holding = False
        self._eased_at = clock()

    def __enter__(self) -> "Supervisor":
        with contextlib.ExitStack() as undo:
            self._lock = undo.enter_context(self._take_lock())
            self._selector = undo.enter_context(selectors.DefaultSelector())
            # Signals wake the selector by way of this pair.
            self._wake, waker = (undo.enter_context(end) for end in socket.socketpair())
            for end in (self._wake, waker):
                end.setblocking(False)
            self._selector.register(self._wake, selectors.EVENT_READ, None)
            signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, -1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            self._end_leftovers()
            self._publish()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        with self._undo:
            self.stop()

    # Starting and waiting

    def start(self, service: Service) -> None:
        """Starts a part, which is kept running from then on."""
        child = Child(service, LogFile(self.home.log / f"{service.name}.log"))
        self._children[service.name] = child
        self._spawn(child)

    def run(self, service: Service, within_s: float, patience: int | None = None) -> int:
        """Runs a task to its end and returns its exit status; -9 where it took longer than `within_s`.

        `patience` and what is raised are as for `wait`.
        """
        self.start(service)
        child = self._children[service.name]
        if not self.wait(lambda: child.process is None, within_s, patience):
            self._end([child], drain_s=1.0)
            child.last_exit = -signal.SIGKILL
        del self._children[service.name]
        child.log.close()
        return child.last_exit or 0

    def wait(self, done: Callable[[], bool], within_s: float, patience: int | None = None) -> bool:
        """Turns until `done()`; False when `within_s` passed. Raises StopRequested when the runner is told to end.

        With `patience`, raises CannotStart once a part has ended by itself that many times in a row.
        """
        end = self._clock() + within_s
        while not done():
            if self._clock() >= end:
                return False
            self.turn(0.05)
            if self.stopping:
                raise StopRequested
            for child in self._children.values() if patience else ():
                if child.service.lasting and child.failures >= (patience or 0):
                    raise CannotStart(self.why(child.service.name))
        return True

    def turn(self, timeout_s: float = 0.5) -> None:
        """One round: pass logs on, reap who ended, start again who is due."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(512)
            else:
                self._pass_on(key.data)
        now = self._clock()
        for child in list(self._children.values()):
            if child.process is not None and child.process.poll() is not None:
                self._reap(child, now)
            elif child.process is None and child.due_at is not None and child.due_at <= now and not self._holding:
                child.restarts += 1
                self._spawn(child)
            elif child.failures and child.process is not None and now - child.started_at > STEADY_AFTER_S:
                child.failures = 0
        if now - self._eased_at >= EASE_EVERY_S:
            self._eased_at = now
            for child in self._children.values():
                if child.process is not None and child.service.niceness:
                    yield_sessions(child.process.pid, child.service.niceness, child.yielded)

    def why(self, name: str) -> str:
        """A sentence on why a part does not run, with its last words."""
        child = self._children[name]
        words = f" ({child.last_line})" if child.last_line else ""
        return f"{name} does not start{words}: read {self.home.log / f'{name}.log'}, then start again."

    def restart(self, chosen: Callable[[Service], bool]) -> None:
        """Ends the parts that `chosen` picks and starts them at once with the files as they are now."""
        children = [child for child in self._children.values() if chosen(child.service)]
        self._end(children, drain_s=3.0)
        for child in children:
            child.failures = 0
            self._spawn(child)

    def stop(self) -> None:
        """Ends all parts, the highest tier first; each tier is killed when its time is up."""
        self.stopping = True
        self.report(state="stopping")
        for tier in sorted({child.service.tier for child in self._children.values()}, reverse=True):
            self._end([child for child in self._children.values() if child.service.tier == tier])
        for child in self._children.values():
            child.log.close()
        self._children.clear()
        self.report(state="stopped")

    # What people see

    def say(self, name: str, text: str) -> None:
        """A line on the console; a console that went away is no reason to stop."""
        if self._console_open:
            try:
                sys.stdout.write(f"{name:<12} | {text}\n" if name else f"{text}\n")
                sys.stdout.flush()
            except OSError:
                self._console_open = False

    def report(self, **facts: object) -> None:
        """Adds to what run/status.json tells."""
        self.state.update(facts)
        self._publish()

    def _publish(self) -> None:
        processes = {
            name: {
                "pid": child.process.pid if child.process else None,
                "restarts": child.restarts,
                "last_exit": child.last_exit,
            }
            for name, child in self._children.items()
        }
        status = {**self.state, "runner": os.getpid(), "processes": processes}
        with contextlib.suppress(OSError):  # a full disk: the parts go on
            self.home.write_private(self.home.status_file, json.dumps(status, indent=1) + "\n")

    # Inside

    def _take_lock(self) -> IO[str]:
        lock = self.home.lock_file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "?"
            lock.close()
            raise CannotStart(
                f"Signalbox already runs on {self.home.root} (process {pid}): stop it with kill {pid}, "
                "or start this one with another SIGNALBOX_HOME."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    def _end_leftovers(self) -> None:
        """Parts that a killed runner of this home left; the lock says that no runner lives."""
        left = marked_with(self.home.root)
        if left:
            self.say("up", f"ending {len(left)} processes that an earlier run left behind")
            stop_stepwise(left, ((signal.SIGTERM, 3), (signal.SIGKILL, 3)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _spawn(self, child: Child) -> None:
        service = child.service
        try:
            child.process = spawn(
                service.command,
                environment={**service.environment, MARK: str(self.home.root)},
                account=service.account,
                niceness=service.niceness,
                # PostgreSQL ends on SIGINT without waiting for its clients; a killed runner should have that too.
                orphan_signal=service.stop_signal,
            )
        except OSError as error:
            if not child.restarts:
                raise CannotStart(
                    f"{service.command[0]} cannot be executed ({error.strerror}): let this account read it, "
                    "or remove the folder .venv and type make run."
                ) from None
            # It ran before: the machine is short of something, which passes.
            child.due_at = self._clock() + LONGEST_PAUSE_S
            self.say("up", f"{service.name} cannot be started just now ({error.strerror}) and is tried again")
            return
        child.started_at = self._clock()
        child.due_at = None
        child.rest = b""
        os.set_blocking(child.pipe.fileno(), False)
        self._selector.register(child.pipe, selectors.EVENT_READ, child)
        self._publish()

    def _pass_on(self, child: Child) -> bool:
        """Hands what the child wrote to its log and the console; False when there is nothing more to read now."""
        try:
            block = os.read(child.pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        lines = (child.rest + block).split(b"\n")
        # A line without an end is cut, so that a part cannot make this process grow.
        child.rest = lines.pop() if block and len(lines[-1]) < 65536 else b""
        for line in filter(None, lines):
            child.log.write(line)
            text = line.decode(errors="replace").rstrip()
            child.last_line = text.strip()[:300]
            self.say(child.service.name, text[:2000])
        if not block:
            self._selector.unregister(child.pipe)
        return bool(block)

    def _reap(self, child: Child, now: float) -> None:
        """Called when the process has ended: kills what it started, reads its last words, plans the next start."""
        assert child.process is not None
        kill_group(child.process.pid)
        while child.pipe in self._selector.get_map() and self._pass_on(child):
            continue
        if child.pipe in self._selector.get_map():
            self._selector.unregister(child.pipe)
        child.pipe.close()
        child.last_exit = child.process.returncode
        child.process = None
        if child.service.lasting and not self._holding:
            steady = now - child.started_at > STEADY_AFTER_S
            child.failures = 1 if steady else child.failures + 1
            pause = min(FIRST_PAUSE_S * 2 ** (child.failures - 1), LONGEST_PAUSE_S)
            child.due_at = now + pause
            self.say(
                "up", f"{child.service.name} ended ({_ending(child.last_exit)}); starting it again in {pause:.1f} s"
            )
        self._publish()

    def _end(self, children: list[Child], drain_s: float | None = None) -> None:
        """Ends these children together and waits for them, passing their logs on meanwhile."""
        for child in children:
            child.due_at = None
            if child.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(child.service.stop_signal)
        asked_at = self._clock()
        killed: set[str] = set()
        self._holding = True
        try:
            while alive := [child for child in children if child.process is not None]:
                for child in alive:
                    patience_s = child.service.drain_s if drain_s is None else drain_s
                    late = self._clock() - asked_at > patience_s
                    if late and child.process is not None and child.service.name not in killed:
                        killed.add(child.service.name)
                        self.say("up", f"{child.service.name} did not end in {patience_s:.0f} s and is killed")
                        kill_group(child.process.pid)
                self.turn(0.05)
        finally:
            self._holding = False


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
