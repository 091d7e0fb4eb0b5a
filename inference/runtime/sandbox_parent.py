"""The warm parent of the sandbox: imports what the children need, starts no thread, forks one child a call.

Run by `Sandbox` as `python -m inference.runtime.sandbox_parent SOCKET_FD MODULE...`; not meant for people.
"""

import contextlib
import fcntl
import gc
import importlib
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import inference
from inference.errors import InferenceError
from inference.runtime import sandbox_child
from inference.runtime.isolation import confine
from inference.runtime.sandbox import MESSAGE_BYTES, Answer, Call, Ending, ErrorAnswer
from inference.runtime.sandbox_child import ARGUMENT, FILE, LINES, OUTPUT

_POLL_MS = 1000


@dataclass(slots=True)
class _Child:
    status: int
    deadline: float
    timed_out: bool = False


class Parent:
    """One event loop: takes calls from the socket, ends children that are late or unwanted, reports how each ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._owner = os.getppid()
        self._children: dict[int, _Child] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        # Of the project only the package: the folder around it may hold the home with its secrets.
        package = Path(inference.__file__).resolve().parent
        paths = {Path(entry).resolve() for entry in sys.path if entry} - {package.parent}
        self._readable = [Path(sys.prefix), Path(sys.base_prefix), package, *sorted(paths)]

    def serve(self) -> None:
        """Returns when the owner closed the socket or died; no child is left then."""
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._control.send(b"ready")
        try:
            while self._do_one():
                pass
        finally:
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)

    def _do_one(self) -> bool:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        for child in self._children.values():
            poll.register(child.status, 0)  # errors alone: the caller went away
        now = time.monotonic()
        wait_ms = min((max(0, (child.deadline - now) * 1000) for child in self._children.values()), default=_POLL_MS)
        ready = dict(poll.poll(min(wait_ms + 1, _POLL_MS)))
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        self._reap()
        self._end_late(ready)
        if os.getppid() != self._owner:
            return False
        return self._control.fileno() not in ready or self._take_call()

    def _reap(self) -> None:
        while self._children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            ending = Ending(
                signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
                timed_out=child.timed_out,
                max_rss_bytes=usage.ru_maxrss * 1024,
            )
            try:
                os.write(child.status, msgspec.json.encode(ending))
            except BrokenPipeError:
                pass  # the caller gave up waiting
            finally:
                os.close(child.status)

    def _end_late(self, ready: dict[int, int]) -> None:
        now = time.monotonic()
        for pid, child in self._children.items():
            if now >= child.deadline and not child.timed_out:
                child.timed_out = True
                os.kill(pid, signal.SIGKILL)
            elif child.status in ready:
                os.kill(pid, signal.SIGKILL)

    def _take_call(self) -> bool:
        message, descriptors, _flags, _address = socket.recv_fds(self._control, MESSAGE_BYTES, 6)
        if not message:
            return False
        call = msgspec.json.decode(message, type=Call)
        argument, output, errors, lines, status, *file = descriptors
        theirs = {ARGUMENT: argument, OUTPUT: output, 1: errors, 2: errors, LINES: lines}
        if file:
            theirs[FILE] = file[0]
        pid = os.fork()
        if pid == 0:
            self._run_child(call, theirs)
        for descriptor in {*theirs.values()}:
            os.close(descriptor)
        self._children[pid] = _Child(status, time.monotonic() + call.wall_s)
        return True

    def _run_child(self, call: Call, descriptors: dict[int, int]) -> None:
        """The child's whole life; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _arrange_descriptors(descriptors)
            sandbox_child.enter()
            isolated = confine(
                memory_bytes=call.memory_bytes,
                cpu_s=call.cpu_s,
                file_bytes=call.file_bytes,
                readable=self._readable,
            )
            _answer(call, isolated)
            code = 0
        except BaseException:  # the edge of the process: what is not an answer is written for the log
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


def _arrange_descriptors(wanted: dict[int, int]) -> None:
    """Put each descriptor where it is wanted (target: source), nothing at 0, and close every other one."""
    # Moved above all targets first, so that no target of dup2 is a source still needed.
    high = {target: fcntl.fcntl(source, fcntl.F_DUPFD, FILE + 1) for target, source in wanted.items()}
    high[0] = fcntl.fcntl(os.open(os.devnull, os.O_RDONLY), fcntl.F_DUPFD, FILE + 1)
    for target, source in high.items():
        os.dup2(source, target, inheritable=False)
    for descriptor in set(range(FILE + 1)) - set(high):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    os.closerange(FILE + 1, 65536)


def _answer(call: Call, isolated: bool) -> None:
    output = b""
    answer = Answer(isolated=isolated)
    try:
        size = os.fstat(ARGUMENT).st_size
        argument = b""
        if size:
            with mmap.mmap(ARGUMENT, size, access=mmap.ACCESS_READ) as mapped:
                argument = bytes(mapped)
        os.close(ARGUMENT)
        output = _resolve(call.function)(argument)
    except InferenceError as error:
        answer = Answer(isolated=isolated, error=ErrorAnswer(error.code, error.message, error.errors))
    except MemoryError:
        answer = Answer(isolated=isolated, out_of_memory=True)
    head = msgspec.json.encode(answer)
    for part in (len(head).to_bytes(4, "big") + head, output):
        view = memoryview(part)
        while view:
            view = view[os.write(OUTPUT, view) :]


def _resolve(function: str) -> Callable[[bytes], bytes]:
    module, _, name = function.partition(":")
    found: Callable[[bytes], bytes] = getattr(importlib.import_module(module), name)
    return found


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    owner = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner closes us
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # What was imported is never freed, so the children share its pages.
    gc.collect()
    gc.freeze()
    if os.getppid() == owner:
        Parent(control).serve()


if __name__ == "__main__":
    main()
