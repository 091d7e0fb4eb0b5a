"""The front door as its users meet it: a port, several processes, kills, signals and raw sockets."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from inference.server import slices
from inference.spool import SpoolReader
from tests.inference.server.house import BODY, OWNER, deployment, linear
from tests.inference.server.publishing import Door, Publisher, kill, needs_slices, open_door, until
from tests.services import Cluster, clean_environment, new_database


@pytest.fixture
def door(tmp_path: Path, database_url: str) -> Iterator[Door]:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path), max_body_bytes=100_000))
    with open_door(tmp_path, database_url, SIGNALBOX_WEB_PROCESSES="2") as opened:
        until(opened.predicts, "a prediction")
        until(lambda: len(serving(opened)) == 2, "both processes")
        yield opened


@pytest.fixture(scope="module")
def standing_door(tmp_path_factory: pytest.TempPathFactory, postgres: Cluster) -> Iterator[Door]:
    """One door for the tests that leave it as it was."""
    home, url = tmp_path_factory.mktemp("home"), new_database(postgres)
    publisher = Publisher(url)
    publisher.access()
    publisher.routes(1, deployment(linear(home), max_body_bytes=100_000))
    with open_door(home, url, SIGNALBOX_WEB_PROCESSES="2") as opened:
        until(opened.predicts, "a prediction")
        yield opened
    postgres.drop(str(conninfo_to_dict(url)["dbname"]))


def talk(door: Door, request: bytes, *, half_close: bool = False) -> bytes:
    """Send raw bytes; returns all that comes until the connection ends, if by a reset."""
    answer = b""
    with socket.create_connection(("127.0.0.1", door.port), timeout=20) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def serving(door: Door) -> set[int]:
    """The processes that hold routes, by what they tell in the metrics."""
    with door.client() as client:
        lines = client.get("/metrics").text.splitlines()
    told = re.compile(r'signalbox_routes_generation\{pid="(\d+)"\} [1-9]')
    return {int(found[1]) for line in lines if (found := told.match(line))} & set(door.children())


def head(*lines: str) -> bytes:
    first = ["POST /v1/models/toy:predict HTTP/1.1", "Host: x", f"Authorization: Bearer {OWNER}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def test_a_killed_process_is_replaced_and_loses_no_logged_prediction(door: Door, tmp_path: Path) -> None:
    ids: set[str] = set()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                with door.client() as client:
                    while not stop.is_set():
                        answer = client.post("/v1/models/toy:predict", content=BODY)
                        if answer.status_code == 200:
                            ids.add(answer.headers["x-prediction-id"])
            except Exception:  # noqa: S112  # the kill resets connections: that is the point
                continue

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = set(door.children())
    until(lambda: len(ids) > 50, "some answers")
    kill(min(before))
    until(lambda: len(set(door.children()) & before) == 1 and len(door.children()) == 2, "a new process")
    seen = len(ids)
    until(lambda: len(ids) > seen + 50, "more answers")
    stop.set()
    for thread in threads:
        thread.join()
    logged = [record.id for _, record in SpoolReader(tmp_path / "spool").records() if record.status == 200]
    assert len(logged) == len(set(logged))
    assert ids <= set(logged)


def test_sigterm_finishes_what_was_begun_and_leaves_nothing(door: Door, database_url: str) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=20) as connection:
        connection.sendall(head(f"Content-Length: {len(BODY)}") + BODY[:5])
        with door.client() as client:
            assert client.get("/ping").status_code == 200
        children = door.children()
        door.process.send_signal(signal.SIGTERM)
        connection.sendall(BODY[5:])
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'{"predictions":[[2.5]]}')
    assert door.process.wait(20) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert Publisher(database_url).processes() == []


@needs_slices
def test_the_loops_of_serving_processes_have_short_slices(door: Door) -> None:
    until(lambda: bool(serving(door)), "a process that serves")
    assert {slices.slice_s(pid) for pid in serving(door)} == {slices.SLICE_S}


def test_killing_the_parent_ends_the_children(door: Door) -> None:
    children = door.children()
    kill(door.process.pid)
    door.process.wait(20)
    until(lambda: not any(_runs(pid) for pid in children), "the children's end", 20)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_restart_of_every_process_in_turn_fails_no_call(door: Door) -> None:
    answers: list[int] = []
    stop = threading.Event()

    def call() -> None:
        # A connection for each call: what counts is that no connection is refused or reset.
        while not stop.is_set():
            with door.client() as client:
                answers.append(client.post("/v1/models/toy:predict", content=BODY).status_code)

    caller = threading.Thread(target=call)
    caller.start()
    first = serving(door)
    try:
        for pid in sorted(first):
            os.kill(pid, signal.SIGTERM)
            # As an operator would: the next one goes when the replacement answers.
            until(lambda gone=pid: gone not in door.children() and len(serving(door)) == 2, "a replacement")  # type: ignore[misc]  # mypy infers no lambda with a default
    finally:
        stop.set()
        caller.join()
    assert len(first) == 2
    assert not first & serving(door)
    assert len(answers) > 5
    assert set(answers) == {200}


@pytest.mark.parametrize(
    "request_bytes",
    [
        head("Content-Length: 200000") + b"x" * 200_000,
        head("Content-Length: 99999999999"),
        head("Transfer-Encoding: chunked")
        + b"8000\r\n"
        + b" " * 0x8000
        + b"\r\n"
        + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 6,
        head("Expect: 100-continue", "Content-Length: 200000"),
    ],
    ids=["declared", "declared and not sent", "chunked", "expecting"],
)
def test_a_body_past_the_cap_is_refused_and_the_connection_closed(standing_door: Door, request_bytes: bytes) -> None:
    answer = talk(standing_door, request_bytes, half_close=True)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_large"


def test_a_length_that_lies_is_a_protocol_error_or_a_second_request_and_never_a_prediction_of_it(
    standing_door: Door,
) -> None:
    answer = talk(standing_door, head("Content-Length: 5") + BODY, half_close=True)
    first, _, _ = answer.partition(b"\r\n")
    assert first.split()[1] in (b"400", b"422")


def test_a_refused_call_leaves_the_connection_usable(standing_door: Door) -> None:
    refused = head("Content-Length: 3").replace(OWNER.encode(), b"sb_nobody") + b"abc"
    good = head(f"Content-Length: {len(BODY)}", "Connection: close") + BODY
    answer = talk(standing_door, refused + good)
    assert answer.count(b"HTTP/1.1 401") == 1
    assert answer.count(b"HTTP/1.1 200") == 1


def test_calls_sent_at_once_are_answered_in_turn_each_with_a_whole_head(standing_door: Door) -> None:
    ids = [f"call-{n}" for n in range(4)]
    calls = [head(f"Content-Length: {len(BODY)}", f"X-Client-Id: {each}") + BODY for each in ids[:-1]]
    last = head(f"Content-Length: {len(BODY)}", f"X-Client-Id: {ids[-1]}", "Connection: close") + BODY
    answers = talk(standing_door, b"".join(calls) + last).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 4
    for answer, each in zip(answers, ids, strict=True):
        lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        told = dict(line.split(b": ", 1) for line in lines)
        assert told[b"x-client-id"] == each.encode()
        assert told[b"content-length"] == b"%d" % len(b'{"predictions":[[2.5]]}')
        assert {b"date", b"content-type", b"x-prediction-id", b"x-request-id", b"x-model-version"} <= told.keys()
    assert b"connection: close" in answers[-1]
    assert b"connection: close" not in answers[0]


def test_a_body_that_comes_in_pieces_is_answered_as_one(standing_door: Door) -> None:
    with socket.create_connection(("127.0.0.1", standing_door.port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(head("Transfer-Encoding: chunked") + b"10\r\n" + BODY[:16] + b"\r\n")
            with standing_door.client() as client:
                assert client.get("/ping").status_code == 200
            connection.sendall(b"%x\r\n" % len(BODY[16:]) + BODY[16:] + b"\r\n0\r\n\r\n")
            answer = b""
            while b"]]}" not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


def test_an_endless_head_is_ended(standing_door: Door) -> None:
    answer = talk(
        standing_door, b"GET /ping HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(2_000))
    )
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""
    assert standing_door.predicts()


def test_a_port_in_use_is_one_sentence(standing_door: Door, tmp_path: Path) -> None:
    environment = clean_environment(
        SIGNALBOX_HOME=str(tmp_path),
        SIGNALBOX_SECRET_KEY="s",
        DATABASE_URL="postgresql://",
        SIGNALBOX_PORT=str(standing_door.port),
    )
    second = subprocess.run(
        [sys.executable, "-m", "inference.server"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert f"127.0.0.1:{standing_door.port}" in second.stderr
    assert "SIGNALBOX_PORT" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_metrics_add_up_over_processes(standing_door: Door) -> None:
    for _ in range(20):
        assert standing_door.predicts()
    with standing_door.client() as client:
        text = client.get("/metrics").text
    [line] = [each for each in text.splitlines() if each.startswith("signalbox_calls_total{") and 'code="ok"' in each]
    assert float(line.split()[-1]) >= 20
    assert text.count("signalbox_routes_generation{") == 2
