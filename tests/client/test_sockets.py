"""Both clients on real connections that break, fall silent or are refused."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from signalbox_client import ConnectionFailed, DeadlineExceeded, Retrying
from tests.client.driving import KEY, made

pytestmark = pytest.mark.unit

SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
METADATA = json.dumps({"name": "d", "versions": ["1"], "inputs": [SPEC], "outputs": [SPEC]}).encode()
ANSWER = json.dumps({"outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [7]}]}).encode()
QUICK = Retrying(base_s=0.001)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def server(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """(its address, the bodies it got): one answer a request; None hangs up without one, b"" says nothing for ever."""
    bodies: list[bytes] = []
    ended = threading.Event()
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while left and lines.readline():
                size = 0
                while (line := lines.readline().lower()) != b"\r\n":
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                bodies.append(lines.read(size))
                answer = left.pop(0)
                if answer is None:
                    return
                if not answer:
                    ended.wait()
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", bodies
        finally:
            ended.set()
            # Closing alone does not wake who accepts.
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


def test_a_connection_that_breaks_under_a_large_call_is_made_anew_with_all_of_it(kind: str) -> None:
    rows = np.arange(1_000_000, dtype=np.float32).reshape(-1, 1)
    with server(METADATA, None, ANSWER) as (address, bodies), made(kind, address, KEY, retrying=QUICK) as client:
        assert client.predict("d", rows).output.tolist() == [7]
    assert bodies[1] == bodies[2]
    assert bodies[2].endswith(rows.tobytes())


def test_a_connection_that_breaks_is_told_where_nothing_may_be_tried_again(kind: str) -> None:
    with server(METADATA, None) as (address, bodies), made(kind, address, KEY, retries=0) as client:
        with pytest.raises(ConnectionFailed) as failed:
            client.predict("d", [[1.0]])
        assert (failed.value.sent, len(bodies)) == (True, 2)
        assert KEY not in str(failed.value)


def test_a_server_that_falls_silent_is_left_at_the_deadline(kind: str) -> None:
    with server(METADATA, b"") as (address, bodies), made(kind, address, KEY) as client:
        client.metadata("d")
        with pytest.raises(DeadlineExceeded) as late:
            client.predict("d", [[1.0]], deadline=0.3)
        assert (late.value.status, late.value.code, len(bodies)) == (0, "deadline_exceeded", 2)


def test_a_server_that_falls_silent_is_left_after_the_timeout(kind: str) -> None:
    with server(b"") as (address, bodies), made(kind, address, KEY, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            client.predict_rows("d", [[1.0]])
        assert len(bodies) == 1
