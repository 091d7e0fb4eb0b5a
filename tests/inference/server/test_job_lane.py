"""The job lane: a call of the front door becomes a job of the control plane, and its end the answer."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from inference.contracts import Lane
from inference.limits import ADMITTED_HEADER, admitted_mark
from inference.server import upstream
from tests.inference.server.house import (
    BODY,
    CALLER,
    LIMITED,
    House,
    call_asgi,
    deployment,
    linear,
    open_house,
    settings_of,
)
from tests.inference.server.upstreams import ControlPlane, control, house, lowered

__all__ = ["control", "house"]
pytestmark = pytest.mark.unit


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


async def test_a_job_that_failed_is_counted_where_it_ended_and_a_refused_post_here(
    house: House, control: ControlPlane, tmp_path: Path
) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = Jobs(1, status="failed", error={"code": "invalid_input", "detail": "The worker said no."})
    assert (await house.post()).status_code == 422
    house.app.refusals.flush()
    assert house.records() == []

    async def conflict(request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": 409, "code": "idempotency_conflict", "detail": "Another."}, status=409)

    control.handler = conflict
    assert (await house.post()).status_code == 409
    house.app.refusals.flush()
    assert [record.code for record in house.records()] == ["idempotency_conflict"]


async def test_a_job_lane_call_uses_the_keys_limit_once_and_every_answer_tells_it(
    house: House, control: ControlPlane, tmp_path: Path
) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    control.handler = jobs = Jobs(1, **DONE)
    done = await house.post(key=LIMITED)
    later = await house.post(key=LIMITED, Prefer="respond-async")
    bad = await house.post(key=LIMITED, content=b"{")
    over = await house.post(key=LIMITED)
    answers = [done, later, bad, over]
    assert [answer.status_code for answer in answers] == [200, 202, 400, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
    mark = admitted_mark(settings_of(tmp_path).secret_key)
    assert [headers[ADMITTED_HEADER] for _, headers, _ in jobs.posted] == [mark, mark]


async def test_a_bad_body_never_becomes_a_job(house: House, control: ControlPlane, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.JOB))
    assert (await house.post(content=b"{")).status_code == 400
    assert (await house.post("/v1/models/toy/versions/1:predict", key=CALLER)).status_code == 403
    assert control.requests == []
    await house.app.stop()
    sent = await call_asgi(house.app, "/v1/models/toy:predict", [{"type": "http.request", "body": BODY}])
    assert sent[0]["status"] == 503
