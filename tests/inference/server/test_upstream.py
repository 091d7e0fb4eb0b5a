"""The way through to the control plane: streamed, bounded by the caller alone, and honest about who called."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from inference.contracts import Lane
from inference.server import upstream
from inference.server.settings import Settings
from inference.server.upstream import forwarded
from tests.inference.server.house import BODY, CALLER, House, call_asgi, deployment, linear, open_house, settings_of

pytestmark = pytest.mark.unit

Handler = Callable[[web.Request], Any]


def lowered(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


class ControlPlane:
    """A small web server in the place of Django; `handler` answers everything."""

    def __init__(self) -> None:
        self.handler: Handler = self.echo
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer: web.StreamResponse = await self.handler(request)
        return answer

    @staticmethod
    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        document = {"path": request.raw_path, "method": request.method, "length": len(body)}
        return web.json_response({**document, "headers": lowered(request)}, headers={"X-Answer": "yes"})


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    server = web.Application(client_max_size=1 << 30)
    server.router.add_route("*", "/{path:.*}", plane.answer)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "web.sock")).start()
    yield plane
    await runner.cleanup()


@pytest.fixture
async def house(tmp_path: Path, control: ControlPlane) -> AsyncIterator[House]:
    async with open_house(tmp_path, upstream=tmp_path / "web.sock") as opened:
        yield opened


async def test_it_passes_a_request_on_as_it_was(house: House) -> None:
    answer = await house.client.post("/a%2Fb/?q=%20x&y", content=b"hello", headers={"X-Custom": "ü".encode()})
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


# The job lane goes the same way


class Jobs:
    """Answers as the control plane's job addresses do: done after `looks` looks."""

    def __init__(self, looks: int, **result: Any) -> None:
        self.looks = looks
        self.posted: list[tuple[str, dict[str, str], bytes]] = []
        self.result = result

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        job = {"id": "j1", "status": "queued", "deployment": "toy", "version": 1, "prediction_id": "p1"}
        if request.method == "POST":
            self.posted.append((request.raw_path, lowered(request), await request.read()))
            return web.json_response(job, status=202, headers={"Location": "/api/jobs/j1/"})
        self.looks -= 1
        if self.looks > 0:
            return web.json_response(job)
        return web.json_response({**job, "status": "succeeded", **self.result})


DONE = {"result": {"scores": {}, "outputs": {"y": [[2.5]]}}}


async def test_a_job_lane_call_is_answered_with_the_jobs_result(
    house: House, control: ControlPlane, tmp_path: Path
) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = jobs = Jobs(2, **DONE)
    answer = await house.post(Idempotency_Key="once", X_Client_Id="mine")
    assert (answer.status_code, answer.json()) == (200, {"predictions": [[2.5]]})
    assert (answer.headers["x-prediction-id"], answer.headers["x-model-version"]) == ("p1", "1")
    [(path, headers, body)] = jobs.posted
    assert (path, body) == ("/api/deployments/toy/jobs/", BODY)
    assert (headers["authorization"], headers["idempotency-key"]) == ("Bearer sb_owner", "once")


async def test_a_job_of_a_house_behind_tls_is_not_sent_away_to_its_public_address(
    tmp_path: Path, control: ControlPlane
) -> None:
    """With a public https address Django answers a call that came over http with a redirect there."""
    control.handler = jobs = Jobs(1, **DONE)
    settings = {"upstream": tmp_path / "web.sock", "public_url": "https://signalbox.example.org"}
    async with open_house(tmp_path, **settings) as house:
        await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
        assert (await house.post()).status_code == 200
    assert jobs.posted[0][1]["x-forwarded-proto"] == "https"
    assert {lowered(request)["x-forwarded-proto"] for request in control.requests} == {"https"}


async def test_pages_are_passed_on_however_many_calls_wait_for_jobs(
    tmp_path: Path, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "MAX_CALLS", 1)
    monkeypatch.setattr(upstream, "MAX_CONNECTIONS", 1)
    waits, done, jobs = asyncio.Event(), asyncio.Event(), Jobs(1, **DONE)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET" and request.path.startswith("/api/jobs/"):
            waits.set()
            await done.wait()
        return await (ControlPlane.echo(request) if request.path == "/deployments/" else jobs(request))

    control.handler = handler
    async with open_house(tmp_path, upstream=tmp_path / "web.sock") as house:
        await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
        call = asyncio.create_task(house.post())
        await waits.wait()
        async with asyncio.timeout(5):
            assert (await house.client.get("/deployments/")).status_code == 200
        assert not call.done()
        done.set()
        assert (await call).status_code == 200


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
    assert (sent[0]["status"], (b"connection", b"close") in sent[0]["headers"]) == (504, True)


async def test_a_v2_job_is_posted_as_v1(house: House, control: ControlPlane, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = jobs = Jobs(1, **DONE)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    answer = await house.post("/v2/models/toy/infer", json.dumps({"inputs": [tensor]}).encode())
    assert answer.json()["outputs"][0]["data"] == [2.5]
    assert json.loads(jobs.posted[0][2]) == {"inputs": {"x": [[1.0, 2.0, 3.0]]}}


async def test_a_job_past_the_deadline_is_202_for_v1_and_504_for_v2(
    house: House, control: ControlPlane, tmp_path: Path
) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = Jobs(10**9)
    answer = await house.post(X_Deadline_Ms="60")
    assert (answer.status_code, answer.headers["location"], answer.json()["job"]) == (
        202,
        "/api/jobs/j1/",
        "/api/jobs/j1/",
    )
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = await house.post("/v2/models/toy/infer", body, X_Deadline_Ms="60")
    assert (answer.status_code, answer.json()["code"], answer.json()["job"]) == (
        504,
        "deadline_exceeded",
        "/api/jobs/j1/",
    )
    answer = await house.post("/v2/models/toy/infer", body, Prefer="respond-async")
    assert answer.status_code == 202


async def test_a_job_that_failed_or_was_refused_answers_with_its_code(
    house: House, control: ControlPlane, tmp_path: Path
) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = Jobs(1, status="failed", error={"code": "worker_lost", "detail": "The worker died."})
    answer = await house.post()
    assert (answer.status_code, answer.json()["code"], answer.json()["error"]) == (
        503,
        "worker_lost",
        "The worker died.",
    )

    async def conflict(request: web.Request) -> web.StreamResponse:
        problem = {"status": 409, "code": "idempotency_conflict", "detail": "Another body."}
        return web.json_response(problem, status=409, content_type="application/problem+json")

    control.handler = conflict
    answer = await house.post()
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")


async def test_a_bad_body_never_becomes_a_job(house: House, control: ControlPlane, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    assert (await house.post(content=b"{")).status_code == 400
    assert (await house.post("/v1/models/toy/versions/1:predict", key=CALLER)).status_code == 403
    assert control.requests == []
    await house.app.stop()
    sent = await call_asgi(house.app, "/v1/models/toy:predict", [{"type": "http.request", "body": BODY}])
    assert sent[0]["status"] == 503
