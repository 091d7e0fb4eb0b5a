"""Processes that come with the calls and leave after them; what a proxy sees of a front door that ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference.server.metrics import told_by
from tests.inference.server.house import BODY, OWNER, deployment, linear
from tests.inference.server.publishing import Door, Publisher, kill, open_door, until
from tests.services import clean_environment

# The bounds of a test: two calls that wait are many, and nobody lingers.
QUICK = "Rules(in_flight=2.0, busy=2.0, up_after_s=0.5, down_after_s=2.0, smooth_s=0.2, look_s=0.2)"
PARENT = f"""
import sys
from inference.server.__main__ import main
from inference.server.scaling import Rules
sys.exit(main([], {QUICK}))
"""
HEAD = (
    f"POST /v1/models/toy:predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWNER}\r\n"
    f"Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
).encode()


@pytest.fixture
def home(tmp_path: Path, database_url: str) -> Path:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    return tmp_path


def serving(door: Door, home: Path) -> set[int]:
    """The processes that take connections, as their parent sees it."""
    return {pid for pid in door.children() if told_by(home / "run" / "metrics", pid).get("signalbox_serving") == 1}


class Callers:
    """Connections that are kept, calling in turn until they are told to stop."""

    def __init__(self, door: Door, count: int) -> None:
        self.answers: list[int] = []
        self.faults: list[Exception] = []
        self._door = door
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        with self._door.client() as client:
            while not self._stop.wait(0.02):
                try:
                    self.answers.append(client.post("/v1/models/toy:predict", content=BODY).status_code)
                except Exception as error:  # whatever it is, the test tells it
                    self.faults.append(error)

    @contextmanager
    def calling(self) -> Iterator["Callers"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


class Held:
    """A call whose body is half sent: it is in flight until it is finished."""

    def __init__(self, port: int) -> None:
        self.began = time.monotonic()
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._connection.sendall(HEAD + BODY[:5])

    def finish(self) -> bytes:
        """The first line of the answer."""
        with self._connection:
            self._connection.sendall(BODY[5:])
            answer = b""
            while chunk := self._connection.recv(65536):
                answer += chunk
        return answer.partition(b"\r\n")[0]


def test_a_process_comes_with_the_calls_and_leaves_after_them_and_every_call_is_answered(
    home: Path, database_url: str
) -> None:
    finished: list[bytes] = []
    with open_door(home, database_url, command=[sys.executable, "-c", PARENT], SIGNALBOX_WEB_PROCESSES="1-2") as door:
        until(door.predicts, "a prediction")
        first = serving(door, home)
        assert len(first) == 1
        with Callers(door, 3).calling() as callers:
            held: list[Held] = []

            def two_serve() -> bool:
                # Renewed before the time for their bodies is over, so that some are always in flight.
                while held and time.monotonic() - held[0].began > 3:
                    finished.append(held.pop(0).finish())
                while len(held) < 6:
                    held.append(Held(door.port))
                return len(serving(door, home)) == 2

            until(two_serve, "a second process")
            assert first < serving(door, home)
            finished.extend(each.finish() for each in held)
            seen = len(callers.answers)
            until(lambda: len(door.children()) == 1, "the end of one")
            until(lambda: len(callers.answers) > seen + 20, "calls of one again")
        assert callers.faults == []
        assert set(callers.answers) == {200}
        assert set(finished) == {b"HTTP/1.1 200 OK"}
        assert len(serving(door, home)) == 1


def test_a_killed_process_of_an_elastic_door_is_replaced(home: Path, database_url: str) -> None:
    with open_door(home, database_url, SIGNALBOX_WEB_PROCESSES="2-3") as door:
        until(lambda: len(serving(door, home)) == 2, "both processes")
        before = serving(door, home)
        kill(min(before))
        until(lambda: len(serving(door, home) - before) == 1, "a new process")
        assert max(before) in serving(door, home)


def test_kept_connections_move_to_a_process_that_is_new(home: Path, database_url: str) -> None:
    """Told to hand over, every other connection ends with its next answer, and none before."""
    with open_door(home, database_url) as door, contextlib.ExitStack() as stack:
        until(door.predicts, "a prediction")
        clients = [stack.enter_context(door.client()) for _ in range(4)]
        for client in clients:
            assert client.get("/ping").headers.get("connection") is None
        [pid] = serving(door, home)
        os.kill(pid, signal.SIGUSR2)
        ends: list[bool] = []

        def handed_over() -> bool:
            answers = [client.post("/v1/models/toy:predict", content=BODY) for client in clients]
            assert {answer.status_code for answer in answers} == {200}
            ends[:] = [answer.headers.get("connection") == "close" for answer in answers]
            return any(ends)

        until(handed_over, "connections that end")
        first = list(ends)
        # Who was asked in that round before the signal came is told in this one.
        handed_over()
        assert not all(one or other for one, other in zip(first, ends, strict=True))
        assert not handed_over()


def test_the_ready_address_says_no_while_calls_are_still_answered(home: Path, database_url: str) -> None:
    with open_door(home, database_url, SIGNALBOX_WEB_PROCESSES="2", SIGNALBOX_DRAIN_S="300") as door:
        until(lambda: len(serving(door, home)) == 2, "both processes")
        door.process.send_signal(signal.SIGTERM)
        until(lambda: not any(door.is_ready() for _ in range(6)), "processes that say no")
        with door.client() as client:
            assert client.get("/ping").status_code == 503
            assert client.get("/v2/health/live").status_code == 200
            assert client.post("/v1/models/toy:predict", content=BODY).status_code == 200
        assert len(door.children()) == 2
        assert door.process.poll() is None
        # Who does not want to wait that long says so again.
        door.process.send_signal(signal.SIGTERM)
        assert door.process.wait(30) == 0


def test_a_drained_door_finishes_what_was_begun_and_then_refuses_connections(home: Path, database_url: str) -> None:
    with open_door(home, database_url, SIGNALBOX_DRAIN_S="1") as door:
        until(door.predicts, "a prediction")
        call = Held(door.port)
        door.process.send_signal(signal.SIGTERM)
        until(lambda: not _takes_connections(door.port), "no more connections")
        assert door.process.poll() is None, "a call is in progress"
        assert call.finish() == b"HTTP/1.1 200 OK"
        assert door.process.wait(30) == 0
    assert Publisher(database_url).processes() == []


def _takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sessions_and_threads_are_made_by_the_children_alone(home: Path, database_url: str) -> None:
    with open_door(home, database_url, SIGNALBOX_WEB_PROCESSES="2") as door:
        until(lambda: len(serving(door, home)) == 2, "both processes")
        until(door.predicts, "a prediction")
        assert len(list(Path(f"/proc/{door.process.pid}/task").iterdir())) == 1
        assert not _has_runtime(door.process.pid)
        assert all(_has_runtime(pid) for pid in door.children())


def _has_runtime(pid: int) -> bool:
    return re.search(r"onnxruntime|numpy", Path(f"/proc/{pid}/maps").read_text()) is not None


def test_what_the_children_are_told_too_soon_ends_none(tmp_path: Path, database_url: str) -> None:
    """A signal to a child that has just begun waits until it can be understood."""
    environment = clean_environment(
        SIGNALBOX_HOME=str(tmp_path),
        SIGNALBOX_SECRET_KEY="s",
        DATABASE_URL=database_url,
        SIGNALBOX_WEB_PROCESSES="1",
        SIGNALBOX_DRAIN_S="1",
        SIGNALBOX_PORT="0",
    )
    with subprocess.Popen([sys.executable, "-m", "inference.server"], env=environment) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: children.read_text() != "", "a child")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
