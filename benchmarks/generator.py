"""The open loop's own process: sends calls when they are due, and says what became of them.

    python -m benchmarks.generator < SPECIFICATION.json     (what open_loop.run starts; the result is printed as JSON)

One thread, sockets that do not block and hand-written HTTP/1.1: some tens of µs of processor time a call, so that one
core offers what one server can take.
"""

import base64
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.open_loop import BIN_S, Part, Stage
from inference.server import slices

_PR_SET_TIMERSLACK = 29
_NICE = -10
_MAX_IN_ONE_GO = 64
_GIVEN_UP = -1


class _Connection:
    """One persistent connection: the call that it carries, and what came of its answer."""

    __slots__ = ("closes", "due", "number", "received", "socket", "wanted", "written_at")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = -1
        self.due = self.written_at = 0.0
        self.received = b""
        self.wanted = 0
        self.closes = False


class _Log:
    """What happened, call by call, in order of their numbers; a status of 0 is no answer, _GIVEN_UP was never sent."""

    def __init__(self, due: "array[float]") -> None:
        self.due = due
        self.status = array("h", bytes(2 * len(due)))
        self.answered_at = array("d", bytes(8 * len(due)))
        self.written_at = array("d", bytes(8 * len(due)))


class Generator:
    """Sends `request` to `address` when the calls are due. Process state only; `go` is all of its life."""

    def __init__(self, address: tuple[str, int], request: bytes, connections: int, patience_s: float) -> None:
        self._address = address
        self._request = request
        self._poll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._free: list[_Connection] = []
        self._most = connections
        self._patience_s = patience_s
        self._unsent: dict[int, memoryview] = {}
        self._buffer = bytearray(262_144)
        self._view = memoryview(self._buffer)

    def go(self, due: "array[float]", grace_s: float) -> _Log:
        """Sends one call at each of the `due` seconds (monotonic clock, rising) and gathers the answers."""
        log = _Log(due)
        waiting: deque[int] = deque()
        upcoming, total = 0, len(due)
        last_due = due[-1] if total else 0.0
        while upcoming < total or waiting or len(self._free) < len(self._by_fd):
            now = time.monotonic()
            if now > last_due + grace_s:
                break
            while upcoming < total and due[upcoming] <= now:
                waiting.append(upcoming)
                upcoming += 1
            while waiting and due[waiting[0]] + self._patience_s < now:
                log.status[waiting.popleft()] = _GIVEN_UP
            for _ in range(min(len(waiting), _MAX_IN_ONE_GO)):
                connection = self._take()
                if connection is None:
                    break
                self._write(connection, waiting.popleft(), log)
            if waiting and (self._free or len(self._by_fd) < self._most):
                pause = 0.0
            elif upcoming < total and not waiting:
                pause = max(0.0, due[upcoming] - time.monotonic())
            else:
                # What is due meanwhile could not be sent either.
                pause = 0.05
            # epoll's own timeout has milliseconds; select's has microseconds.
            if pause == 0 or select.select([self._poll], [], [], pause)[0]:
                for fd, _ in self._poll.poll(0):
                    if fd in self._unsent:
                        self._write_rest(self._by_fd[fd])
                    if fd in self._by_fd:
                        self._read(self._by_fd[fd], log)
        self._close()
        return log

    def connect(self, count: int) -> None:
        """Opens so many connections ahead, so that none is opened on a timed call."""
        for _ in range(count):
            self._free.append(self._open())

    def _take(self) -> _Connection | None:
        if self._free:
            return self._free.pop()
        if len(self._by_fd) < self._most:
            # A server that takes no more connections lets the call wait.
            with contextlib.suppress(OSError):
                return self._open()
        return None

    def _open(self) -> _Connection:
        connection = _Connection(self._address)
        self._by_fd[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        return connection

    def _write(self, connection: _Connection, number: int, log: _Log) -> None:
        connection.number, connection.received, connection.wanted = number, b"", 0
        try:
            sent = connection.socket.send(self._request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        log.written_at[number] = time.monotonic()
        if sent < len(self._request):
            fd = connection.socket.fileno()
            self._unsent[fd] = memoryview(self._request)[sent:]
            self._poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _write_rest(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        try:
            self._unsent[fd] = self._unsent[fd][connection.socket.send(self._unsent[fd]) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not self._unsent[fd]:
            del self._unsent[fd]
            self._poll.modify(fd, select.EPOLLIN)

    def _read(self, connection: _Connection, log: _Log) -> None:
        try:
            # Into one place: a buffer made for each answer costs more than the answer.
            size = connection.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size or connection.number < 0:
            # Closed, or an answer to nothing: a call on it stays without one.
            self._drop(connection)
            return
        content = self._view[:size].tobytes()
        if connection.received:
            content = connection.received + content
        if not connection.wanted:
            end = content.find(b"\r\n\r\n")
            if end < 0:
                connection.received = content
                return
            head = content[:end].lower()
            connection.wanted = end + 4 + _length(head)
            connection.closes = b"connection: close" in head
        if len(content) < connection.wanted:
            connection.received = content
            return
        log.answered_at[connection.number] = time.monotonic()
        log.status[connection.number] = int(content[9:12])
        connection.number = -1
        if connection.closes:
            self._drop(connection)
        else:
            self._free.append(connection)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        self._unsent.pop(fd, None)
        self._by_fd.pop(fd, None)
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        with contextlib.suppress(OSError):
            self._poll.unregister(connection.socket)
        connection.socket.close()

    def _close(self) -> None:
        for connection in list(self._by_fd.values()):
            self._drop(connection)
        self._poll.close()


def _length(head: bytes) -> int:
    """The body's length, by the answer's head in small letters.

    Raises ValueError where it has none: chunked answers are not read here.
    """
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if found:
        return int(rest.partition(b"\r\n")[0])
    raise ValueError(f"an answer without Content-Length: {head!r}")


def _schedule(stages: Sequence[Stage], begin: float) -> tuple["array[float]", list[int]]:
    """When each call is due, and how many calls each stage has."""
    due: array[float] = array("d")
    counts = []
    for stage in stages:
        count = round(stage.rate * stage.seconds)
        due.extend([begin + number / stage.rate for number in range(count)])
        counts.append(count)
        begin += stage.seconds
    return due, counts


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile in milliseconds, of seconds; 0 of nothing."""
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


def _part(stage: Stage, log: _Log, first: int, count: int) -> Part:
    numbers = range(first, first + count)
    begin = log.due[first] if count else 0.0
    arrived = sum(
        status == 200 and begin <= at < begin + stage.seconds
        for status, at in zip(log.status, log.answered_at, strict=True)
    )
    good = sorted(log.answered_at[k] - log.due[k] for k in numbers if log.status[k] == 200)
    refused = sorted(log.answered_at[k] - log.written_at[k] for k in numbers if log.status[k] in (429, 503))
    served = sorted(log.answered_at[k] - log.written_at[k] for k in numbers if log.status[k] == 200)
    late = sorted(log.written_at[k] - log.due[k] for k in numbers if log.written_at[k])
    statuses: dict[str, int] = {}
    bins: list[list[float]] = [[] for _ in range(max(1, round(stage.seconds / BIN_S)))]
    offered = [0] * len(bins)
    given_up = 0
    for k in numbers:
        at = min(len(bins) - 1, int((log.due[k] - begin) / BIN_S))
        if log.status[k] == _GIVEN_UP:
            given_up += 1
        else:
            offered[at] += 1
        if log.status[k] > 0:
            statuses[str(log.status[k])] = statuses.get(str(log.status[k]), 0) + 1
        if log.status[k] == 200:
            bins[at].append(log.answered_at[k] - log.due[k])
    return Part(
        rate=stage.rate,
        seconds=stage.seconds,
        sent=count,
        statuses=statuses,
        given_up=given_up,
        failed=count - given_up - sum(statuses.values()),
        answered_per_s=round(arrived / stage.seconds, 1),
        p50_ms=_percentile(good, 0.5),
        p99_ms=_percentile(good, 0.99),
        p999_ms=_percentile(good, 0.999),
        most_ms=_percentile(good, 1.0),
        served_p99_ms=_percentile(served, 0.99),
        refused_p50_ms=_percentile(refused, 0.5),
        refused_p99_ms=_percentile(refused, 0.99),
        late_p50_ms=_percentile(late, 0.5),
        late_p99_ms=_percentile(late, 0.99),
        bins=[[len(one), _percentile(sorted(one), 0.99), calls] for one, calls in zip(bins, offered, strict=True)],
    )


def main() -> None:
    """Reads the specification from standard input, sends, and prints the result."""
    spec: dict[str, Any] = json.load(sys.stdin)
    stages = [Stage(**stage) for stage in spec["stages"]]
    url = urlsplit(spec["url"])
    body = base64.b64decode(spec["body"])
    headers = {"Host": url.netloc, **spec["headers"], "Content-Length": str(len(body))}
    head = f"POST {url.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    # Woken when a call is due, not up to 50 µs later; before others on its processor, as a caller elsewhere would be.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    slices.shorten()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
        # Where the kernel groups tasks by session, niceness counts within a session alone.
        Path("/proc/self/autogroup").write_text(str(_NICE))
    address = url.hostname or "", url.port or 80
    generator = Generator(address, f"{head}\r\n".encode() + body, spec["connections"], spec["patience_s"])
    generator.connect(min(64, spec["connections"]))
    # Nothing here makes cycles, and a collection is a pause.
    gc.disable()
    began_at, used_s = time.monotonic() + 0.05, _cpu_s()
    due, counts = _schedule(stages, began_at)
    log = generator.go(due, spec["grace_s"])
    own_s, took_s = _cpu_s() - used_s, time.monotonic() - began_at
    firsts = [sum(counts[:index]) for index in range(len(counts))]
    parts = [_part(*one) for one in zip(stages, [log] * len(stages), firsts, counts, strict=True)]
    told: dict[str, Any] = {"parts": [asdict(part) for part in parts]}
    told |= {"own_us_per_call": round(own_s / max(1, len(due)) * 1e6, 1), "own_share": round(own_s / took_s, 3)}
    print(json.dumps(told))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
