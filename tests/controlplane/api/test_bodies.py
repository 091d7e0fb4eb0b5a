"""Bodies are bounded before Django spools them."""

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
from pytest_django import Settings

from controlplane.api import bodies
from controlplane.api.bodies import FRAME_BYTES, BodyLimits, cap_of
from controlplane.catalog import storage
from tests.controlplane.catalog.uploads import Usage
from tests.inference.server.house import listening, open_house

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("store")]

JOBS = "/api/deployments/fraud/jobs/"
UPLOAD = "/api/models/fraud/versions/"


class Reader:
    """Reads the whole body as Django does, then answers 200."""

    def __init__(self) -> None:
        self.read = 0
        self.dropped = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.dropped = True
                return
            self.read += len(message["body"])
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def call(application: Any, path: str, chunks: list[bytes], **headers: str) -> tuple[int, dict[str, Any]]:
    """The status and the problem document of a POST."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await BodyLimits(application)({"type": "http", "path": path, "headers": raw}, receive, send)
    body = sent[1]["body"]
    return sent[0]["status"], json.loads(body) if body else {}


@pytest.fixture(autouse=True)
def small(settings: Settings) -> None:
    settings.SIGNALBOX_MAX_PICTURE_BYTES = settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 1000


async def test_a_body_within_the_cap_passes() -> None:
    reader = Reader()
    assert await call(reader, JOBS, [b"x" * 600, b"x" * 400]) == (200, {})
    assert reader.read == 1000


async def test_a_declared_length_over_the_cap_is_413_before_a_byte_is_read() -> None:
    reader = Reader()
    for declared in (str(FRAME_BYTES + 1001), "9" * 400):
        status, body = await call(reader, JOBS, [b"x"], content_length=declared, x_request_id="abc")
        assert (status, body["code"], body["request_id"]) == (413, "too_large", "abc")
    assert reader.read == 0


async def test_an_undeclared_body_is_cut_off_at_the_cap() -> None:
    reader = Reader()
    status, body = await call(reader, JOBS, [b"x" * (FRAME_BYTES // 2)] * 5)
    assert (status, body["code"]) == (413, "too_large")
    assert reader.dropped and reader.read <= FRAME_BYTES + 1000


async def test_the_upload_of_a_model_has_a_larger_cap() -> None:
    assert cap_of(UPLOAD) > cap_of(JOBS) == cap_of("/deployments/fraud/try/") == FRAME_BYTES + 1000
    assert cap_of("/api/models/") == cap_of("/accounts/login/") == FRAME_BYTES
    assert cap_of(f"{UPLOAD}3/") == cap_of("/models/fraud/upload/") == cap_of(UPLOAD)
    assert cap_of(f"{UPLOAD}3/report/") == cap_of("/api/models/")


async def test_a_disk_without_room_is_507_before_a_byte_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**12, 0, storage.HEADROOM_BYTES))
    reader = Reader()
    status, body = await call(reader, UPLOAD, [b"x"], content_length="5000")
    assert (status, body["code"], reader.read) == (507, "storage_full", 0)


async def test_a_disk_that_fills_up_meanwhile_is_507_and_other_failures_go_on() -> None:
    async def fail(number: int) -> int:
        async def application(*_: Any) -> None:
            raise OSError(number, "no")

        return (await call(application, UPLOAD, []))[0]

    assert await fail(errno.ENOSPC) == 507
    with pytest.raises(OSError, match="no"):
        await fail(errno.EIO)


class Caller:
    """Sends a body without an end, and notes at each piece whether it has the answer by then."""

    def __init__(self, pieces: int = 10**9, piece: bytes = b"x" * 1024) -> None:
        self.sent: list[Any] = []
        self.asked = 0
        self._pieces = pieces
        self._piece = piece

    async def receive(self) -> Any:
        self.asked += 1
        if self.asked > self._pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._piece, "more_body": True}

    async def send(self, message: Any) -> None:
        self.sent.append({**message, "after": self.asked})

    async def refused(self) -> None:
        scope = {"type": "http", "path": JOBS, "headers": [(b"content-length", b"9" * 20)]}
        await BodyLimits(Reader())(scope, self.receive, self.send)


async def test_a_refusal_is_sent_whole_and_the_body_dropped_until_the_caller_hangs_up() -> None:
    caller = Caller(pieces=5)
    await caller.refused()
    start, answer, end = caller.sent
    assert (start["status"], answer["after"], answer["more_body"]) == (413, 0, True)
    assert dict(start["headers"])[b"content-length"] == b"%d" % len(answer["body"])
    assert (end["body"], end.get("more_body", False), end["after"]) == (b"", False, 6)


async def test_a_body_without_an_end_is_dropped_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LINGER_BYTES", 10_000)
    caller = Caller()
    await caller.refused()
    assert caller.sent[-1]["after"] == 10


async def test_a_caller_that_falls_silent_after_its_refusal_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LINGER_S", 0.01)
    caller = Caller()
    caller.receive = asyncio.Event().wait  # type: ignore[method-assign]  # never set
    await caller.refused()
    assert len(caller.sent) == 3


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """The bounds behind the web server, on a loop and a socket of its own as in a running product."""
    server = uvicorn.Server(uvicorn.Config(BodyLimits(Reader()), lifespan="off", log_config=None, loop="uvloop"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        # Whoever connects before the server runs waits for it.
        listener.listen()
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


async def test_a_refusal_reaches_the_caller_through_the_front_door_while_the_body_still_comes(tmp_path: Path) -> None:
    """Time and again: where the control plane closed at once, the front door now and then told an outage instead."""
    path = tmp_path / "web.sock"
    body = b"x" * (FRAME_BYTES + 4 * 1024**2)
    with serving(path):
        async with (
            open_house(tmp_path, upstream=path) as house,
            listening(house) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            answers = [await client.post(JOBS, content=body) for _ in range(10)]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(413, "too_large")] * 10
