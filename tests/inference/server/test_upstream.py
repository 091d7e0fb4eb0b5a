"""The way through to the control plane: streamed, bounded by the caller alone, and honest about who called."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from inference.limits import ADMITTED_HEADER, admitted_mark
from inference.server import upstream
from inference.server.settings import Settings
from inference.server.upstream import forwarded
from tests.inference.server.house import House, listening, open_house, settings_of
from tests.inference.server.upstreams import ControlPlane, control, house

__all__ = ["control", "house"]
pytestmark = pytest.mark.unit


async def test_it_passes_a_request_on_as_it_was(house: House) -> None:
    answer = await house.client.post("/a%2Fb/?q=%20x&y", content=b"hello", headers=[(b"X-Custom", "ü".encode())])
    told = answer.json()
    assert (told["path"], told["method"], told["length"]) == ("/a%2Fb/?q=%20x&y", "POST", 5)
    assert told["headers"]["host"] == "signalbox"
    assert answer.headers["x-answer"] == "yes"


async def test_headers_of_one_connection_are_not_passed_on(house: House) -> None:
    headers = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "Upgrade": "h2c", "TE": "trailers", "X-Kept": "1"}
    told = (await house.client.get("/x", headers=headers)).json()["headers"]
    assert told["x-kept"] == "1"
    assert not {"x-mine", "upgrade", "te"} & set(told)


async def test_redirects_and_cookies_are_the_callers(house: House, control: ControlPlane) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        response = web.Response(status=302, headers={"Location": "/there"})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    control.handler = redirect
    answer = await house.client.get("/x")
    assert (answer.status_code, answer.headers["location"]) == (302, "/there")
    assert len(answer.headers.get_list("set-cookie")) == 2
    await house.client.get("/y")
    assert "Cookie" not in control.requests[-1].headers or "a=1" in control.requests[-1].headers["Cookie"]


async def test_a_large_upload_is_streamed_both_ways(house: House, control: ControlPlane) -> None:
    total = 0

    async def count(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(str(len(chunk)).encode() + b"\n")
        await response.write_eof()
        return response

    control.handler = count
    pieces = 64
    given = 0
    sent: list[dict[str, Any]] = []
    answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given == pieces:
            await asyncio.Event().wait()
        if given == pieces // 2:
            # Half of the upload is out, and its echo must come before the other half is asked for.
            await answered.wait()
        given += 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": given < pieces}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            answered.set()

    scope = {"type": "http", "method": "POST", "raw_path": b"/up", "query_string": b"", "client": ("10.0.0.1", 1)}
    await house.app({**scope, "headers": [(b"host", b"x"), (b"transfer-encoding", b"chunked")]}, receive, send)
    total = sum(int(n) for message in sent[1:] for n in message["body"].split())
    assert (sent[0]["status"], total) == (200, pieces * 65_536)


async def test_a_hang_up_ends_the_request(house: House, control: ControlPlane) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        begun.set()
        while request.transport is not None:  # noqa: ASYNC110  # aiohttp tells a hang-up by nothing else
            await asyncio.sleep(0.01)
        ended.set()
        return web.Response()

    control.handler = wait
    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "method": "GET", "raw_path": b"/slow", "query_string": b"", "client": ("10.0.0.1", 1)}
    await asyncio.wait_for(house.app({**scope, "headers": [(b"host", b"x")]}, receive, send), 10)
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_control_plane_that_is_away_is_told_in_the_callers_form(tmp_path: Path) -> None:
    async with open_house(tmp_path, upstream=tmp_path / "nobody.sock") as house:
        for_programs = await house.client.get("/api/models/")
        assert (for_programs.status_code, for_programs.json()["code"]) == (503, "upstream_unavailable")
        assert for_programs.headers["retry-after"] == "5"
        for_people = await house.client.get("/", headers={"Accept": "text/html,*/*"})
        assert for_people.status_code == 503
        assert for_people.text.startswith("<!doctype html>")


async def test_an_outage_is_one_line_in_the_log_and_its_end_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "inference.server.upstream")
    socket = tmp_path / "web.sock"
    async with open_house(tmp_path, upstream=socket) as house:

        async def ask(times: int) -> None:
            for _ in range(times):
                await house.client.get("/api/models/")

        async def serve(times: int) -> None:
            server = web.Application()
            server.router.add_route("*", "/{path:.*}", ControlPlane().answer)
            runner = web.AppRunner(server)
            await runner.setup()
            await web.UnixSite(runner, str(socket)).start()
            await ask(times)
            await runner.cleanup()

        await ask(3)
        await serve(2)
        await ask(2)
        await serve(1)
    ours = [record for record in caplog.records if record.name == "inference.server.upstream"]
    lines = [record.getMessage().partition(":")[0] for record in ours]
    assert lines == ["the control plane does not answer", "the control plane answers again"] * 2


def scope_of(client: str, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": (client, 1), "scheme": "http", "headers": [(b"host", b"inside"), *pairs]}


def told_by(settings: Settings, client: str, **headers: str) -> dict[str, str]:
    found = dict(forwarded(scope_of(client, **headers), settings))
    return {name: found[f"x-forwarded-{name}".encode()].decode() for name in ("for", "proto", "host")}


def test_forwarding_headers_are_believed_of_trusted_proxies_alone(tmp_path: Path) -> None:
    from ipaddress import ip_network

    nobody = settings_of(tmp_path)
    proxy = settings_of(tmp_path, trusted_proxies=(ip_network("10.0.0.0/8"),))
    said = {"x_forwarded_for": "6.6.6.6, 1.2.3.4, 10.0.0.9", "x_forwarded_proto": "https", "x_forwarded_host": "public"}
    inside = {"for": "10.0.0.1", "proto": "http", "host": "inside"}
    assert told_by(nobody, "10.0.0.1", **said) == inside
    assert told_by(proxy, "10.0.0.1", **said) == {"for": "1.2.3.4", "proto": "https", "host": "public"}
    assert told_by(proxy, "5.5.5.5", **said)["for"] == "5.5.5.5"
    assert told_by(proxy, "10.0.0.1", x_forwarded_for="<script>", x_forwarded_proto="gopher") == inside


async def test_a_caller_that_falls_silent_within_its_body_is_let_go(
    house: House, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "BODY_SILENT_S", 0.05)
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**scope_of("1.2.3.4", content_length="100"), "type": "http", "method": "POST", "query_string": b""}
    async with asyncio.timeout(10):
        await house.app({**scope, "raw_path": b"/accounts/login/"}, receive, send)
    assert (sent[0]["status"], (b"connection", b"close") in sent[0]["headers"]) == (408, True)


async def test_bodies_that_trickle_are_refused_and_their_connections_given_back(
    tmp_path: Path, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are connections, each with a byte now and then, and never a silence to be ended for."""
    monkeypatch.setattr(upstream, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(upstream, "BODY_GRACE_S", 0.3)
    arrived = asyncio.Semaphore(0)

    async def read(request: web.Request) -> web.StreamResponse:
        arrived.release()
        return await ControlPlane.echo(request)

    control.handler = read
    head = b"POST /accounts/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n"

    async def trickle(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)

        async def bytes_now_and_then() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.05)

        drip = asyncio.create_task(bytes_now_and_then())
        # All that comes until the server ends the connection.
        answer = await reader.read()
        drip.cancel()
        writer.close()
        return answer

    async with open_house(tmp_path, upstream=tmp_path / "web.sock") as house, listening(house) as port:
        async with asyncio.timeout(60):
            slow = [asyncio.create_task(trickle(port)) for _ in range(2)]
            for _ in slow:
                await arrived.acquire()
            # Pages have connections of their own.
            assert (await house.client.get("/deployments/")).status_code == 200
            for answer in await asyncio.gather(*slow):
                head_of, _, body = answer.partition(b"\r\n\r\n")
                assert head_of.startswith(b"HTTP/1.1 408 ")
                assert b"connection: close" in head_of
                assert json.loads(body)["code"] == "body_too_slow"
            assert (await house.client.post("/after", content=b"quick")).json()["length"] == 5


async def test_a_body_that_keeps_the_rate_is_taken_however_long_it_is_on_its_way(
    tmp_path: Path, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "BODY_GRACE_S", 0.2)
    async with open_house(tmp_path, upstream=tmp_path / "web.sock", min_body_rate=1_000) as house:

        async def body() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield b"x" * 1_000
                await asyncio.sleep(0.05)

        answer = await house.client.post("/up", content=body(), headers={"Content-Length": "8000"})
    assert (answer.status_code, answer.json()["length"]) == (200, 8_000)


async def test_a_caller_cannot_say_that_a_call_was_counted(house: House) -> None:
    told = (await house.client.post("/api/x", headers={"X-Signalbox-Admitted": "1"})).json()["headers"]
    assert told.get(ADMITTED_HEADER) != admitted_mark(settings_of(house.home).secret_key)
