"""One prediction call: rights, routing, bounds, answers, and the record that it leaves."""

import asyncio
import gzip
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.contracts import Lane, Outcome, Role, Source
from inference.server.protocols import v1
from tests.inference import toys
from tests.inference.server.house import (
    BODY,
    CALLER,
    EXPIRED,
    GUEST,
    LIMITED,
    OUTSIDER,
    OWNER,
    READER,
    REVOKED,
    TESTER,
    House,
    call_asgi,
    deployment,
    linear,
    open_house,
    version,
)

pytestmark = pytest.mark.unit


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path)))
        yield opened


async def refused(house: House, status: int, code: str, **call: Any) -> dict[str, Any]:
    """Expect this refusal, in the error form, and no prediction in the log."""
    answer = await house.post(**call)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert set(body) == {"error", "code", "errors", "retryable", "request_id"}
    assert house.served() == []
    return {**body, "headers": answer.headers}


async def test_it_works(house: House) -> None:
    answer = await house.post()
    assert answer.status_code == 200
    assert answer.json() == {"predictions": [[2.5]]}
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["x-split-revision"] == "7"
    assert answer.headers["x-request-id"] == answer.headers["x-prediction-id"]


async def test_the_prediction_is_in_the_log_when_its_answer_leaves(house: House) -> None:
    seen: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(len(house.served()))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY}

    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict"}
    await house.app({**scope, "headers": [(b"authorization", b"Bearer sb_owner")]}, receive, send)
    assert seen == [1]


async def test_the_record_says_all_that_is_known(house: House) -> None:
    answer = await house.post(X_Client_Id="payment-9", X_Context="country=de, channel=app", X_Sticky_Key="card-4")
    [record] = house.records()
    assert record.id == answer.headers["x-prediction-id"]
    assert answer.headers["x-client-id"] == "payment-9"
    assert (record.client_id, record.key_id, record.source) == ("payment-9", f"id-{OWNER}", Source.LIVE)
    assert (record.deployment_id, record.version_id, record.version, record.revision) == ("d-toy", "v1", 1, 7)
    assert (record.routes_generation, record.pinned, record.role, record.lane) == (1, False, Role.LIVE, Lane.INLINE)
    assert (record.outcome, record.status, record.rows) == (Outcome.OK, 200, 1)
    assert record.inputs == record.features == {"a": [1.0], "b": [2.0], "c": [3.0]}
    assert record.outputs == {"y": [[2.5]]}
    assert record.scores == {"y": [2.5]}
    assert record.context == {"country": "de", "channel": "app"}
    assert record.total_ms >= record.compute_ms > 0


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        ("", 401, "not_authenticated"),
        ("sb_unknown", 401, "not_authenticated"),
        ("x" * 5_000, 401, "not_authenticated"),
        (REVOKED, 401, "not_authenticated"),
        (EXPIRED, 401, "not_authenticated"),
        (OUTSIDER, 404, "not_found"),
        (GUEST, 404, "not_found"),
        (READER, 403, "forbidden"),
    ],
)
async def test_a_key_without_the_right_is_refused(house: House, key: str, status: int, code: str) -> None:
    body = await refused(house, status, code, key=key)
    assert ("www-authenticate" in body["headers"]) == (status == 401)


@pytest.mark.parametrize("header", ["sb_owner", "Basic sb_owner", "Bearer", "Bearer  ", "Bearer sb_owner,x"])
async def test_a_malformed_authorization_is_refused(house: House, header: str) -> None:
    await refused(house, 401, "not_authenticated", key="", Authorization=header)


async def test_a_test_keys_prediction_is_marked(house: House) -> None:
    await house.post(key=TESTER)
    assert [record.source for record in house.records()] == [Source.TEST]


async def test_a_pin_needs_its_scope_and_is_logged(house: House) -> None:
    path = "/v1/models/toy/versions/1:predict"
    await refused(house, 403, "forbidden", path=path, key=CALLER)
    assert (await house.post(path)).status_code == 200
    assert [record.pinned for record in house.served()] == [True]
    await house.post(key=CALLER)
    assert [record.pinned for record in house.served()] == [True, False]


async def test_a_label_pins_the_version_it_stands_for(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), linear(tmp_path, 2), labels={"canary": 2}))
    answer = await house.post("/v1/models/toy/labels/canary:predict")
    assert answer.headers["x-model-version"] == "2"
    await house.post("/v1/models/toy/labels/stable:predict")
    [served] = house.served()
    assert served.pinned


async def test_unknown_retired_and_unready_answer_apart(house: House, tmp_path: Path) -> None:
    await refused(house, 404, "not_found", path="/v1/models/unknown:predict")
    await refused(house, 404, "not_found", path="/v1/models/toy/versions/9:predict")
    await house.hold(deployment(linear(tmp_path), retired=True))
    await refused(house, 410, "gone")
    broken = version(tmp_path, 2, toys.classifier())
    (tmp_path / "artifacts" / broken.artifact_sha256[:2] / broken.artifact_sha256).write_bytes(b"other bytes")
    failures = await house.hold(deployment(linear(tmp_path), broken, shadow={2: 1}))
    assert failures["v2"].code == "load_failed"
    body = await refused(house, 503, "version_not_ready", path="/v1/models/toy/versions/2:predict")
    assert body["headers"]["retry-after"] == "1"
    assert (await house.post()).status_code == 200


async def test_a_deployment_without_a_split_says_so(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), live={}))
    body = await refused(house, 503, "no_active_version")
    assert body["retryable"]
    assert body["headers"]["retry-after"] == "1"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/Models/toy:predict",
        "/v1/models/toy:predict/",
        "/v1//models/toy:predict",
        "/v1/models/to%2Fy:predict",
        "/v1/models/toy/versions/01:predict",
        "/v1/models/toy/versions/-1:predict",
        "/v1/models/toy:classify",
        "/v1/models/:predict",
        "/v2/models/toy/infer/",
        "/v2/models//infer",
        "/v2/models/toy/versions/infer",
        "/v2/",
        "/v1",
    ],
)
async def test_paths_are_exact(house: House, path: str) -> None:
    sent = await call_asgi(house.app, path, [{"type": "http.request", "body": BODY}])
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/models/toy:predict", "POST"),
        ("PUT", "/v2/models/toy/infer", "POST"),
        ("POST", "/v1/models/toy", "GET, HEAD"),
        ("DELETE", "/ping", "GET, HEAD"),
        ("GET", "/invocations", "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_one(house: House, method: str, path: str, allow: str) -> None:
    answer = await house.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


async def test_the_body_cap_holds_with_and_without_a_length(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), max_body_bytes=100))
    body = await refused(house, 413, "too_large", content=b"x" * 70_000)
    assert body["headers"]["connection"] == "close"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10

    body = await refused(house, 413, "too_large", content=pieces())
    assert body["headers"]["connection"] == "close"


async def test_a_compressed_body_is_read_and_a_bomb_is_not(house: House, tmp_path: Path) -> None:
    answer = await house.post(content=gzip.compress(BODY), Content_Encoding="gzip")
    assert answer.json() == {"predictions": [[2.5]]}
    await house.hold(deployment(linear(tmp_path), max_body_bytes=100_000))
    count = len(house.served())
    bomb = await house.post(content=gzip.compress(b" " * 50_000_000), Content_Encoding="gzip")
    assert (bomb.status_code, bomb.json()["code"]) == (413, "too_large")
    broken = await house.post(content=b"no gzip", Content_Encoding="gzip")
    assert (broken.status_code, broken.json()["code"]) == (400, "bad_request")
    unknown = await house.post(Content_Encoding="br")
    assert (unknown.status_code, unknown.json()["code"]) == (415, "unsupported_media_type")
    assert len(house.served()) == count


async def test_other_calls_go_on_while_a_large_body_is_read(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reading does not end before another call is answered, which no reading on the event loop could wait for."""
    await house.hold(deployment(version(tmp_path, 1, toys.dynamic())))
    large = json.dumps({"instances": [[1] * 300_000]}).encode()
    loop, decode = asyncio.get_running_loop(), v1.decode
    reading, answered = asyncio.Event(), threading.Event()

    def decode_meanwhile(body: bytes, *rest: Any) -> Any:
        if len(body) == len(large):
            loop.call_soon_threadsafe(reading.set)
            assert threading.current_thread() is not threading.main_thread()
            assert answered.wait(60)
        return decode(body, *rest)

    monkeypatch.setattr(v1, "decode", decode_meanwhile)
    first = asyncio.create_task(house.post(content=large, X_Deadline_Ms="60000"))
    await reading.wait()
    assert (await house.post(content=b'{"instances": [[1, 2]]}')).json() == {"predictions": [[3.0]]}
    assert not first.done()
    answered.set()
    assert (await first).json() == {"predictions": [[300_000.0]]}


async def test_a_large_body_is_refused_like_a_small_one(house: House) -> None:
    content = json.dumps({"instances": [["x" * 300_000, 2, 3]]}).encode()
    body = await refused(house, 422, "wrong_type", content=content)
    assert body["errors"][0]["loc"] == ["instances", 0, 0]


async def test_rows_past_the_cap_are_refused(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), max_rows=2))
    await refused(house, 413, "batch_too_large", content=json.dumps({"instances": [[1, 2, 3]] * 3}).encode())


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", ""])
async def test_a_deadline_that_cannot_be_read_is_refused(house: House, value: str) -> None:
    await refused(house, 400, "bad_header", X_Deadline_Ms=value)


async def test_a_huge_deadline_is_clamped(house: House) -> None:
    assert (await house.post(X_Deadline_Ms="9" * 400)).status_code == 200


async def test_a_body_that_does_not_come_in_time_is_given_up(house: House) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer sb_owner"), (b"x-deadline-ms", b"20"), (b"content-length", b"40")]
    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict", "headers": headers}
    await house.app(scope, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("value", ["a\tb", "x" * 10_000, "nul\x00"])
async def test_an_unusable_client_id_is_passed_over(house: House, value: str) -> None:
    headers = [
        (b"authorization", b"Bearer sb_owner"),
        (b"x-client-id", value.encode()),
        (b"x-request-id", value.encode()),
    ]
    sent = await call_asgi(
        house.app, "/v1/models/toy:predict", [{"type": "http.request", "body": BODY}], headers=headers
    )
    assert sent[0]["status"] == 200
    answered = dict(sent[0]["headers"])
    assert b"x-client-id" not in answered
    assert answered[b"x-request-id"] == answered[b"x-prediction-id"]
    assert house.records()[0].client_id == ""


@pytest.mark.parametrize("value", ["no pair", "=v", ",".join(f"k{n}=v" for n in range(9)), "k=" + "v" * 300])
async def test_a_context_that_cannot_be_kept_is_refused(house: House, value: str) -> None:
    await refused(house, 400, "bad_header", X_Context=value)


async def test_a_refusal_is_logged_with_its_place_and_no_payload(house: House) -> None:
    answer = await house.post(content=b'{"instances": [{"a": 1, "b": "x", "c": 3}]}', X_Request_Id="my-request")
    assert answer.status_code == 422
    [record] = house.records()
    assert (record.status, record.code, record.loc) == (422, answer.json()["code"], "b")
    assert (record.outcome, record.inputs, record.features) == (Outcome.CLIENT_ERROR, None, None)
    assert record.context == {"request_id": "my-request"}
    assert answer.headers["x-request-id"] == "my-request"


async def test_a_flood_of_refusals_is_a_few_records_that_add_up(house: House) -> None:
    for _ in range(200):
        await house.post(key="sb_unknown")
    house.app.refusals.flush()
    records = house.records()
    assert len(records) == 2
    assert sum(record.rows for record in records) == 200


async def test_a_retry_has_its_own_id_and_names_the_first(house: House) -> None:
    first = await house.post(Idempotency_Key="pay-1")
    again = await house.post(Idempotency_Key="pay-1")
    other = await house.post(Idempotency_Key="pay-1", content=b'{"instances": [[0, 0, 0]]}')
    assert first.json() == again.json()
    ids = [answer.headers["x-prediction-id"] for answer in (first, again, other)]
    assert len(set(ids)) == 3
    assert [record.retry_of for record in house.served()] == ["", ids[0], ""]
    assert {record.idempotency_key for record in house.served()} == {"pay-1"}


async def test_a_sticky_key_keeps_its_arm_and_arms_have_their_shares(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), linear(tmp_path, 2), live={1: 7_000, 2: 3_000}))
    arms = Counter[str]()
    for n in range(300):
        first = await house.post(X_Sticky_Key=f"card-{n}")
        again = await house.post(X_Sticky_Key=f"card-{n}")
        assert first.headers["x-model-version"] == again.headers["x-model-version"]
        arms[first.headers["x-model-version"]] += 1
    # 300 draws at 30 %: standard deviation 7.9, 99.9 % within 3.29 of it.
    assert abs(arms["2"] - 90) < 27


async def test_a_rate_limit_is_told_and_held(house: House) -> None:
    answers = [await house.post(key=LIMITED) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["ratelimit-limit"] == "3"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert "ratelimit-limit" not in (await house.post()).headers


async def test_a_full_process_refuses_at_once(house: House) -> None:
    house.app.admission.calls = 512
    body = await refused(house, 503, "overloaded")
    assert body["headers"]["retry-after"] == "1"
    house.app.admission.calls = 0
    assert (await house.post()).status_code == 200
    assert house.app.admission.calls == house.app.admission.bytes == 0


async def test_a_stopping_process_admits_nothing(house: House) -> None:
    house.app.admission.stopping = True
    await refused(house, 503, "shutting_down")
    assert (await house.get("/v2/health/ready", key="")).status_code == 503


async def test_an_answer_that_cannot_be_logged_is_not_sent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    answer = await house.post()
    monkeypatch.undo()
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert house.records() == []


async def test_a_heavy_lane_gives_the_same_answer(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.EXECUTOR))
    answers = await asyncio.gather(*(house.post() for _ in range(20)))
    assert {answer.text for answer in answers} == {'{"predictions":[[2.5]]}'}
    assert {record.lane for record in house.served()} == {Lane.EXECUTOR}


async def test_a_bad_input_that_only_the_model_can_see_is_the_callers_fault(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(version(tmp_path, 1, toys.lookup())))
    spec = house.app.holder.routes.deployments["toy"].versions[1].route.signature.inputs[0]
    value: Any = 10**6
    for _ in spec.shape:
        value = [value]
    answer = await house.post(content=json.dumps({"inputs": value}).encode())
    assert (answer.status_code, answer.json()["code"]) == (422, "model_rejected_input")


async def test_a_shadow_is_asked_after_the_answer_and_only_logged(house: House, tmp_path: Path) -> None:
    shadowed = deployment(linear(tmp_path), version(tmp_path, 2, toys.linear_regression()), shadow={2: 10_000})
    await house.hold(shadowed)
    answer = await house.post(X_Client_Id="mine")
    assert answer.headers["x-model-version"] == "1"
    await house.app.stop()
    live, shadow = sorted(house.records(), key=lambda record: record.role)
    assert (shadow.role, shadow.source, shadow.version) == (Role.SHADOW, Source.SHADOW, 2)
    assert (shadow.shadow_of, shadow.client_id, shadow.outputs) == (live.id, "", {"y": [[2.5]]})


async def test_invocations_find_the_deployment_by_header_or_because_it_is_the_only_one(
    house: House, tmp_path: Path
) -> None:
    assert (await house.post("/invocations", content_type="application/json")).status_code == 200
    other = deployment(linear(tmp_path), id="d-another", name="another")
    await house.hold(deployment(linear(tmp_path)), other)
    several = await house.post("/invocations", content_type="application/json")
    assert (several.status_code, several.json()["code"]) == (400, "bad_request")
    named = await house.post("/invocations", X_Amzn_SageMaker_Target_Model="another", content_type="application/json")
    assert named.status_code == 200
    assert house.served()[-1].deployment_id == "d-another"
    assert (await house.post("/invocations", key=GUEST, content_type="application/json")).status_code == 200
    hidden = await house.post("/invocations", X_Amzn_SageMaker_Target_Model="toy", key=GUEST)
    assert hidden.status_code == 404


async def test_a_call_in_flight_keeps_its_version_while_routes_change(house: House, tmp_path: Path) -> None:
    gate = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await gate.wait()
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict"}
    call = asyncio.create_task(house.app({**scope, "headers": [(b"authorization", b"Bearer sb_owner")]}, receive, send))
    await asyncio.sleep(0)
    await house.hold(deployment(version(tmp_path, 2, toys.classifier())), generation=2)
    gate.set()
    await call
    assert dict(sent[0]["headers"])[b"x-model-version"] == b"1"
    assert house.served()[0].routes_generation == 1
