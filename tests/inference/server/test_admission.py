"""What is let in when much is in progress: bounds of a deployment, room for others, refusals at once, slow bodies."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.contracts import Lane
from inference.errors import InferenceError
from inference.server import replies
from inference.server.admission import Admission, Shares
from inference.server.predict import Whole
from tests.inference import toys
from tests.inference.server.house import BODY, LIMITED, OWNER, House, deployment, key, linear, open_house, version

pytestmark = pytest.mark.unit


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


def other(home: Path, **fields: Any) -> Any:
    return deployment(version(home, 1, toys.classifier()), id="d-other", name="other", **fields)


@contextmanager
def stalled(house: House, name: str = "toy", number: int = 1) -> Iterator[threading.Event]:
    """Runs of this version do not end before the event is set."""
    go_on = threading.Event()
    model = house.app.holder.routes.deployments[name].versions[number].loaded()
    run = model.batcher._run

    def stall(*arguments: Any) -> Any:
        go_on.wait(60)
        return run(*arguments)

    model.batcher._run = stall
    try:
        yield go_on
    finally:
        go_on.set()


async def in_progress(house: House, calls: int) -> None:
    async with asyncio.timeout(30):
        while house.app.admission.calls < calls:  # noqa: ASYNC110  # a figure, not an event
            await asyncio.sleep(0)


# The arithmetic


def refused(act: Callable[..., None], *arguments: Any) -> bool:
    try:
        act(*arguments)
    except InferenceError as error:
        assert (error.code, error.headers) == ("overloaded", {"Retry-After": "1"})
        return True
    return False


def enter(admission: Admission, name: str, most: int = 1000) -> None:
    admission.enter()
    try:
        admission.occupy(name, most)
    except InferenceError:
        admission.leave()
        raise


def test_deployments_that_take_all_they_get_leave_a_part_free() -> None:
    admission = Admission(max_calls=100)
    counts = {}
    for name in "abc":
        counts[name] = 0
        while not refused(enter, admission, name):
            counts[name] += 1
    assert counts["a"] == 50
    assert admission.calls < 100, "there is room for a fourth"
    assert not refused(enter, admission, "d")
    for name, count in counts.items():
        for _ in range(count):
            admission.leave(name)
    admission.leave("d")
    assert (admission.calls, admission._usage) == (0, {})


def test_bytes_are_shared_in_the_same_way_and_a_lone_call_may_have_all() -> None:
    admission = Admission(max_bytes=100)
    enter(admission, "a")
    assert not refused(admission.hold, "a", 100)
    admission.leave("a", 100)
    for _ in range(2):
        enter(admission, "a")
    assert not refused(admission.hold, "a", 50)
    assert refused(admission.hold, "a", 10)
    enter(admission, "b")
    assert not refused(admission.hold, "b", 40)
    admission.leave("b", 40)
    admission.leave("a", 50)
    admission.leave("a")
    assert (admission.calls, admission.bytes, admission._usage) == (0, 0, {})


def test_a_call_with_too_many_bytes_leaves_nothing_behind() -> None:
    admission = Admission(max_bytes=100)
    admission.enter()
    assert refused(admission.occupy, "a", 5, 101)
    admission.leave()
    assert (admission.calls, admission.bytes, admission._usage) == (0, 0, {})


def test_places_are_shared() -> None:
    shares = Shares(10)
    assert [shares.take("a") for _ in range(6)] == [True] * 5 + [False]
    assert [shares.take("b") for _ in range(4)] == [True] * 3 + [False]
    for owner in "aaaaabbb":
        shares.give_back(owner)
    assert shares.take("c")


# The application


async def test_the_calls_in_progress_of_a_deployment_are_bounded_and_others_go_on(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.EXECUTOR, max_in_flight=3), other(tmp_path))
    with stalled(house):
        held = [asyncio.create_task(house.post()) for _ in range(3)]
        await in_progress(house, 3)
        answer = await house.post()
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert "deployment" in answer.json()["error"]
        assert (await house.post("/v1/models/other:predict")).status_code == 200
    assert [each.status_code for each in await asyncio.gather(*held)] == [200] * 3
    assert (house.app.admission.calls, house.app.admission.bytes) == (0, 0)
    assert (await house.post()).status_code == 200


async def test_a_stalled_model_leaves_other_models_of_its_lane_their_threads(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.EXECUTOR), other(tmp_path, lane=Lane.EXECUTOR))
    with stalled(house):
        held = [asyncio.create_task(house.post()) for _ in range(8)]
        await in_progress(house, 8)
        for _ in range(20):
            assert (await house.post("/v1/models/other:predict")).status_code == 200
        assert not any(each.done() for each in held)
    await asyncio.gather(*held)


async def test_a_stalled_shadow_slows_nobody_and_leaves_others_their_copies(house: House, tmp_path: Path) -> None:
    shadowed = deployment(linear(tmp_path), version(tmp_path, 2, toys.dynamic()), shadow={2: 10_000})
    also = deployment(
        linear(tmp_path), version(tmp_path, 3, toys.classifier()), shadow={3: 10_000}, id="d-also", name="also"
    )
    await house.hold(shadowed, also)
    with stalled(house, "toy", 2):
        for _ in range(40):
            assert (await house.post()).status_code == 200
        assert (await house.post("/v1/models/also:predict")).status_code == 200
        async with asyncio.timeout(30):
            while not any(record.shadow_of and record.version == 3 for record in house.records()):  # noqa: ASYNC110  # a file
                await asyncio.sleep(0)
    await house.app.stop()
    copies = [record.version for record in house.records() if record.shadow_of]
    assert (copies.count(2), copies.count(3)) == (16, 1)


async def test_bodies_that_do_not_come_fill_no_more_than_their_deployments_share(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), max_in_flight=5), other(tmp_path))
    hang_up = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict"}
    headers = [(b"authorization", f"Bearer {OWNER}".encode()), (b"content-length", b"40")]
    held = [asyncio.create_task(house.app({**scope, "headers": headers}, receive, send)) for _ in range(5)]
    await in_progress(house, 5)
    assert (await house.post()).status_code == 503
    assert (await house.post("/v1/models/other:predict")).status_code == 200
    hang_up.set()
    await asyncio.gather(*held)
    assert (house.app.admission.calls, house.app.admission._usage) == (0, {})


async def test_a_refusal_that_waits_for_its_body_takes_nobodys_place(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    lingering = asyncio.Event()
    hang_up = asyncio.Event()

    async def receive() -> dict[str, Any]:
        lingering.set()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict"}
    headers = [(b"authorization", b"Bearer sb_nobody"), (b"content-length", b"400000")]
    call = asyncio.create_task(house.app({**scope, "headers": headers}, receive, send))
    await lingering.wait()
    assert house.app.admission.calls == 0
    hang_up.set()
    await call


async def test_a_body_slower_than_the_least_rate_is_408_whatever_the_deadline(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "BODY_GRACE_S", 0.05)
    await house.hold(deployment(linear(tmp_path)))
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": BODY[:3], "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(replies, "_LINGER_S", 0.0)
    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/models/toy:predict"}
    headers = [
        (b"authorization", f"Bearer {OWNER}".encode()),
        (b"content-length", b"40"),
        (b"x-deadline-ms", b"300000"),
    ]
    await house.app({**scope, "headers": headers}, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (408, "body_too_slow")
    assert (b"connection", b"close") in sent[0]["headers"]


# A full house


async def test_a_full_house_refuses_limited_keys_too_with_what_they_have_left(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    house.app.admission.calls = 512
    answers = [await house.post(key=LIMITED) for _ in range(5)]
    house.app.admission.calls = 0
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (answer.headers["ratelimit-limit"], answer.headers["ratelimit-remaining"]) == ("3", "3")
        assert answer.headers["ratelimit-policy"] == "3;w=60"


async def refused_unread(house: House) -> tuple[int, str, list[tuple[bytes, bytes]]]:
    """What a call on the short way is told whose body would be refused if it were read."""
    address = house.app._addresses.find(b"/v1/models/toy:predict")
    assert address is not None
    headers = {b"authorization": f"Bearer {OWNER}".encode()}
    answers: list[Whole] = []
    rest = house.app.at_once(headers, address, b"this is never parsed", lambda *whole: answers.append(whole), -1)
    assert rest is None
    [(status, sent, body)] = answers
    return status, json.loads(body)["code"], sent


async def test_a_full_house_refuses_on_the_short_way_without_reading_on(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    house.app.admission.calls = 512
    status, code, sent = await refused_unread(house)
    house.app.admission.calls = 0
    assert (status, code) == (503, "overloaded")
    assert (b"retry-after", b"1") in sent


async def test_a_full_deployment_of_the_executor_lane_refuses_without_reading_on(house: House, tmp_path: Path) -> None:
    route = deployment(linear(tmp_path), lane=Lane.EXECUTOR, max_in_flight=1)
    await house.hold(route)
    house.app.admission.enter()
    house.app.admission.occupy(route.id, 1)
    assert (await refused_unread(house))[:2] == (503, "overloaded")
    house.app.admission.leave(route.id)
    assert (await refused_unread(house))[:2] == (400, "bad_json")


# What is told of limits

ROUTES = ("/v1/models/toy:predict", "/v1/models/nobody:predict", "/v1/models/toy/versions/9:predict")


async def test_every_answer_to_a_limited_key_tells_what_is_left(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    told = [(await house.post(path, key=LIMITED)).headers["ratelimit-remaining"] for path in ROUTES]
    assert told == ["2", "2", "1"], "what is refused before it is counted uses nothing"


async def test_a_quota_is_held_until_midnight_and_told(house: House, tmp_path: Path) -> None:
    house.access = type(house.access)(generation=2, keys=(key("sb_daily", quota_per_day=2, rate_per_minute=60),))
    await house.hold(deployment(linear(tmp_path)))
    answers = [await house.post(key="sb_daily") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {"60;w=60, 2;w=86400"}
    body = answers[2].json()
    assert (body["code"], body["retryable"]) == ("quota_exceeded", True)
    assert 1 <= int(answers[2].headers["retry-after"]) <= 86_400
    assert [record.code for record in house.records() if record.status == 429] == ["quota_exceeded"]
