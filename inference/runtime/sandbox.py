"""Run a function on untrusted bytes in a throw-away child of a warm parent.

Forking a warm, threadless parent takes about 13 ms where a fresh interpreter with ONNX Runtime takes 380 ms.
"""

import contextlib
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

import inference
from inference.errors import InferenceError, Located

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4096
_START_S = 60.0
_GRACE_S = 5.0
_LOG_BYTES = 4000
# Lines of a child are handed on in groups, this long after the first of a group came: few writes for who keeps them.
_LINES_EVERY_S = 0.2
_LINES_BYTES = 64 * 1024
_FUNCTION = re.compile(r"(?:[a-z_][a-z0-9_]*\.)+[a-z_][a-z0-9_]*:[a-z_][a-z0-9_]*")

KillReason = Literal["memory", "timeout", "crash"]


class Limits(msgspec.Struct, frozen=True):
    """What one call may use: memory beyond the warm parent's, CPU seconds over all threads, seconds on the clock,
    bytes of any file that it writes."""

    memory_bytes: int = 2 * 1024**3
    cpu_s: float = 60.0
    wall_s: float = 30.0
    file_bytes: int = 16 * 1024**2


class SandboxResult(msgspec.Struct, frozen=True):
    """What the function returned. `isolated`: neither a network nor a socket was within the child's reach."""

    output: bytes
    isolated: bool


class SandboxKilled(Exception):
    """The child did not live to answer: `reason` says what ended it."""

    def __init__(self, reason: KillReason) -> None:
        super().__init__(reason)
        self.reason: KillReason = reason


class Call(msgspec.Struct):
    """What the warm parent is asked, beside descriptors: argument, output, log, lines, status, and a file if any."""

    function: str
    memory_bytes: int
    cpu_s: float
    wall_s: float
    file_bytes: int


class Ending(msgspec.Struct):
    """How a child ended, as the warm parent saw it."""

    signal: int
    code: int
    timed_out: bool
    max_rss_bytes: int


class ErrorAnswer(msgspec.Struct):
    code: str
    message: str
    errors: list[Located]


class Answer(msgspec.Struct):
    """The head of what a child writes; the function's output follows it."""

    isolated: bool
    error: ErrorAnswer | None = None
    out_of_memory: bool = False


class _ParentLost(Exception):
    """The warm parent ended before it said how the child did."""


class Sandbox:
    """A warm parent and the calls to it. Thread-safe; calls run beside each other; starts at the first call.

    A sandbox inherited over a fork starts a parent of its own. As root the children run as nobody and can read no
    folder that only root can, so `preload` must name every module that a function needs, and those import eagerly.
    """

    def __init__(self, *, preload: tuple[str, ...] = (), package: str = "inference.runtime") -> None:
        self._preload = preload
        self._package = package
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def call(
        self,
        function: str,
        argument: bytes,
        limits: Limits,
        *,
        file: Path | None = None,
        on_lines: Callable[[list[bytes]], None] | None = None,
    ) -> SandboxResult:
        """Run `function` on `argument` in a child of its own.

        `function` is "inference.runtime.module:name", takes bytes and returns bytes; no other package may be named.
        `file` is opened here and read there (sandbox_child.given_file). `on_lines` is called, in this thread, with
        what the child says meanwhile (sandbox_child.say): at most five times a second, and with the rest at its end,
        also where it was killed; 64 kB in all. Where a lost parent is replaced the child starts over, and so do they.
        Raises OSError where `file` cannot be opened, InferenceError as the function raised it, SandboxKilled
        where it was ended, RuntimeError where the warm parent does not start.
        """
        if _FUNCTION.fullmatch(function) is None or not function.startswith(self._package + "."):
            raise ValueError(f"{function!r} is not a function of {self._package}.")
        for _attempt in range(2):
            try:
                return self._call_once(function, argument, limits, file, on_lines)
            except _ParentLost:
                logger.warning("sandbox parent lost, starting another")
        raise RuntimeError("The sandbox's parent process was lost twice.")

    def close(self) -> None:
        """End the warm parent and with it every running child. A later call starts another."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        elif process is not None:
            process.returncode = 0  # another process's child: not ours to wait for

    def _connected(self) -> socket.socket:
        """The socket to a live warm parent, started where there is none."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
                assert self._control is not None
                return self._control
            self._stop()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-m", "inference.runtime.sandbox_parent"),
                        *(str(theirs.fileno()), *self._preload),
                    ],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    cwd="/",
                )
            self._control, self._owner = ours, os.getpid()
            ours.settimeout(_START_S)
            try:
                ready = ours.recv(16)
            except OSError as error:
                self._process.kill()
                self._stop()
                raise RuntimeError("The sandbox's parent process did not start in time.") from error
            if ready != b"ready":
                self._stop()
                raise RuntimeError("The sandbox's parent process did not start; its log says why.")
            return ours

    def _call_once(
        self,
        function: str,
        argument: bytes,
        limits: Limits,
        file: Path | None,
        on_lines: Callable[[list[bytes]], None] | None,
    ) -> SandboxResult:
        control = self._connected()
        message = msgspec.json.encode(
            Call(function, limits.memory_bytes, limits.cpu_s, limits.wall_s, limits.file_bytes)
        )
        with contextlib.ExitStack() as stack:
            given, log = _anonymous_file(stack, argument), _anonymous_file(stack, b"")
            output, output_end = _pipe(stack)
            status, status_end = _pipe(stack)
            lines, lines_end = _pipe(stack)
            passed = [given, output_end, log, lines_end, status_end]
            if file is not None:
                passed.append(stack.enter_context(file.open("rb", buffering=0)))
            theirs = [end.fileno() for end in passed]
            try:
                socket.send_fds(control, [message], theirs)
            except OSError as error:
                self._forget(control)
                raise _ParentLost from error
            output_end.close()
            status_end.close()
            lines_end.close()
            deadline = time.monotonic() + limits.wall_s + _GRACE_S
            heard = _Lines(lines.fileno(), on_lines)
            try:
                written, ending = _collect(output.fileno(), status.fileno(), heard, deadline, limits.memory_bytes)
            finally:
                heard.hand_on()
            if ending is None:
                self._forget(control)
                raise _ParentLost
            return _interpret(written, ending, _tail(log.fileno()))

    def _forget(self, control: socket.socket) -> None:
        """Put away the lost parent behind `control`, unless another thread has replaced it already."""
        with self._lock:
            if self._control is control:
                self._stop()


def _interpret(written: bytearray, ending: Ending, log: bytes) -> SandboxResult:
    """The child's answer, or the exception that tells how it ended."""
    if ending.signal == 0 and ending.code == 0 and len(written) >= 4:
        head = 4 + int.from_bytes(written[:4], "big")
        answer = msgspec.json.decode(memoryview(written)[4:head], type=Answer)
        if answer.error is not None:
            raise InferenceError(answer.error.code, answer.error.message, list(answer.error.errors))
        if answer.out_of_memory:
            raise SandboxKilled("memory")
        return SandboxResult(bytes(memoryview(written)[head:]), answer.isolated)
    reason: KillReason = "crash"
    if ending.timed_out or ending.signal == signal.SIGXCPU:
        reason = "timeout"
    elif ending.signal == signal.SIGKILL or any(
        mark in log for mark in (b"bad_alloc", b"MemoryError", b"allocate mem")
    ):
        reason = "memory"  # a SIGKILL that is not the clock's is the kernel's, out of memory
    logger.warning(
        "sandbox child ended by %s: signal %s, exit %s, log %r", reason, ending.signal, ending.code, log[-_LOG_BYTES:]
    )
    raise SandboxKilled(reason)


class _Lines:
    """What one child says while it works, gathered into groups; what is past the bound is read and dropped."""

    def __init__(self, descriptor: int, on_lines: Callable[[list[bytes]], None] | None) -> None:
        self.descriptor = descriptor
        self._on_lines = on_lines
        self._left = _LINES_BYTES
        self._pending = b""
        self.due = float("inf")

    def add(self, chunk: bytes) -> None:
        self._pending += chunk[: self._left]
        self._left -= min(len(chunk), self._left)
        if b"\n" in self._pending:
            self.due = min(self.due, time.monotonic() + _LINES_EVERY_S)

    def hand_on(self) -> None:
        *whole, self._pending = self._pending.split(b"\n")
        self.due = float("inf")
        if whole and self._on_lines is not None:
            self._on_lines(whole)


def _collect(output: int, status: int, lines: _Lines, deadline: float, most: int) -> tuple[bytearray, Ending | None]:
    """Read the child's output and then its ending; None where the warm parent died. At most `most` bytes of output."""
    written, told = bytearray(), bytearray()
    poll = select.poll()
    open_ends = {output, status, lines.descriptor}
    for descriptor in open_ends:
        poll.register(descriptor, select.POLLIN)
    while open_ends:
        now = time.monotonic()
        if now >= deadline:
            raise SandboxKilled("timeout")
        if now >= lines.due:
            lines.hand_on()
        for descriptor, _event in poll.poll((min(deadline, lines.due) - now) * 1000 + 1):
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                poll.unregister(descriptor)
                open_ends.discard(descriptor)
            elif descriptor == status:
                told += chunk
            elif descriptor == lines.descriptor:
                lines.add(chunk)
            else:
                written += chunk
                if len(written) > most:
                    raise SandboxKilled("memory")
    return written, msgspec.json.decode(told, type=Ending) if told else None


def _environment() -> dict[str, str]:
    """What the warm parent needs and nothing that is secret; one thread, so that a fork is safe."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    root = Path(inference.__file__).parents[1]
    return kept | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _anonymous_file(stack: contextlib.ExitStack, content: bytes) -> IO[bytes]:
    """A file without a name that holds `content`, closed with the stack."""
    file: IO[bytes]
    if hasattr(os, "memfd_create"):
        file = stack.enter_context(os.fdopen(os.memfd_create("sandbox"), "w+b", buffering=0))
    else:
        file = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 — the stack closes it
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    return file


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """File objects, since closing them twice is harmless where a bare number may by then be another thread's."""
    read, write = os.pipe()
    return (
        stack.enter_context(os.fdopen(read, "rb", buffering=0)),
        stack.enter_context(os.fdopen(write, "wb", buffering=0)),
    )


def _tail(log: int) -> bytes:
    size = os.fstat(log).st_size
    return os.pread(log, _LOG_BYTES, max(0, size - _LOG_BYTES))
