"""X-Test-Outcome: with a test key each refusal as the real one looks; with a live key nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference.contracts import Lane, Source
from inference.server import predict
from inference.server.metrics import render
from tests.inference.server.house import LIMITED, OWNER, TESTER, House, deployment, key, linear, open_house

pytestmark = pytest.mark.unit
V2 = b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path)))
        yield opened


def look(answer: httpx.Response) -> tuple[Any, ...]:
    """All that two answers to different calls have in common."""
    body = {name: value for name, value in answer.json().items() if name != "request_id"}
    return answer.status_code, body, sorted(answer.headers.keys())


async def test_a_rehearsed_503_is_the_real_one(house: House) -> None:
    rehearsed = await house.post(key=TESTER, X_Test_Outcome="503")
    house.app.admission.calls = 512
    real = await house.post(key=TESTER)
    house.app.admission.calls = 0
    assert look(rehearsed) == look(real)
    assert rehearsed.headers["retry-after"] == real.headers["retry-after"]


async def test_a_rehearsed_504_is_the_real_one(house: House, tmp_path: Path) -> None:
    rehearsed = await house.post(key=TESTER, X_Test_Outcome="504")
    real = await house.post(key=TESTER, X_Test_Outcome="slow", X_Deadline_Ms="1")
    assert look(rehearsed) == look(real)
    assert rehearsed.json()["code"] == "deadline_exceeded"


async def test_a_rehearsed_429_is_the_real_one(house: House) -> None:
    house.access = type(house.access)(generation=2, keys=(key("sb_test_l", test=True, rate_per_minute=2), key(TESTER)))
    await house.hold(deployment(linear(house.home)))
    rehearsed = await house.post(key="sb_test_l", X_Test_Outcome="429")
    await house.post(key="sb_test_l")
    real = await house.post(key="sb_test_l")
    assert look(rehearsed) == look(real)
    for name in ("ratelimit-limit", "ratelimit-remaining", "ratelimit-policy"):
        assert rehearsed.headers[name] == real.headers[name]
    assert 1 <= int(rehearsed.headers["retry-after"]) <= 60


async def test_a_test_key_without_a_limit_rehearses_one_too(house: House) -> None:
    answer = await house.post("/v2/models/toy/infer", V2, TESTER, X_Test_Outcome="429")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "rate_limited", "1")
    assert answer.headers["ratelimit-remaining"] == "0"


async def test_slow_answers_rightly_and_late_and_the_log_has_its_own_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "SLOW_S", 0.25)
    began = asyncio.get_running_loop().time()
    answer = await house.post(key=TESTER, X_Test_Outcome="Slow")
    assert asyncio.get_running_loop().time() - began >= 0.25
    assert answer.json() == {"predictions": [[2.5]]}
    [record] = house.records()
    assert (record.source, record.status, record.lane) == (Source.TEST, 200, Lane.INLINE)
    assert record.total_ms < 250
    assert house.app.admission.calls == 0


async def test_the_log_says_test_and_metrics_say_rehearsed(house: House) -> None:
    for outcome in ("429", "503", "504"):
        await house.post(key=TESTER, X_Test_Outcome=outcome)
    assert [(record.source, record.status) for record in house.records()] == [
        (Source.TEST, 429),
        (Source.TEST, 503),
        (Source.TEST, 504),
    ]
    told = render(house.app.metrics.folder).decode()
    assert 'code="rehearsed"' in told
    assert 'code="overloaded"' not in told


@pytest.mark.parametrize("live", [OWNER, LIMITED])
@pytest.mark.parametrize("outcome", ["503", "slow", "nonsense"])
async def test_a_live_key_rehearses_nothing(house: House, live: str, outcome: str) -> None:
    answer = await house.post(key=live, X_Test_Outcome=outcome)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [[2.5]]})


@pytest.mark.parametrize("outcome", ["", "500", "429, 503", "\u00e9"])
async def test_what_cannot_be_rehearsed_is_told(house: House, outcome: str) -> None:
    headers = {"Authorization": f"Bearer {TESTER}", "X-Test-Outcome": outcome.encode()}
    answer = await house.client.post("/v1/models/toy:predict", content=b"{}", headers=headers)  # type: ignore[arg-type]  # bytes go too
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_header")
