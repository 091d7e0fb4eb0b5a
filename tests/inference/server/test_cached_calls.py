"""Calls of deployments that keep answers: every hit is a prediction of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from inference.contracts import Lane, Source
from inference.server.aside import LARGE_BYTES
from tests.inference import toys
from tests.inference.server.house import OUTSIDER, TESTER, House, deployment, linear, open_house, version
from tests.inference.server.test_metrics import lines

pytestmark = pytest.mark.unit

TTL_S = 60.0
V2 = "/v2/models/toy/infer"


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def house(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    async with open_house(tmp_path, clock) as opened:
        await opened.hold(deployment(linear(tmp_path), cache_ttl_s=TTL_S))
        yield opened


async def test_a_hit_is_a_prediction_of_its_own(house: House, clock: FakeClock) -> None:
    first, second = await house.post(), await house.post(X_Client_Id="mine")
    assert [answer.headers["x-cache"] for answer in (first, second)] == ["miss", "hit"]
    assert first.json() == second.json()
    computed, cached = house.served()
    assert (computed.cached, cached.cached) == (False, True)
    assert cached.id == second.headers["x-prediction-id"] != computed.id
    assert (cached.compute_ms, cached.queue_ms, cached.client_id) == (0.0, 0.0, "mine")
    assert computed.compute_ms > 0
    assert (cached.inputs, cached.outputs) == (computed.inputs, computed.outputs)
    assert (cached.features, cached.scores) == (computed.features, computed.scores)
    clock.now += TTL_S
    assert (await house.post()).headers["x-cache"] == "miss"


async def test_a_process_forgets_what_has_expired_in_its_own_time(
    house: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.server.app._TICK_S", 0.001)
    monkeypatch.setattr(house.app, "_caches", house.caches)

    def kept_bytes() -> float:
        figures = lines(house.home / "run" / "metrics").items()
        return sum(value for series, value in figures if series.startswith("signalbox_cache_bytes"))

    await house.post()
    assert kept_bytes() > 0
    clock.now += TTL_S
    ticking = asyncio.create_task(house.app._tick())
    async with asyncio.timeout(30):
        while kept_bytes():  # noqa: ASYNC110  # a figure that no event tells of
            await asyncio.sleep(0.001)
    ticking.cancel()


async def test_lines_printed_from_a_template_tell_a_hit_too(house: House) -> None:
    for _ in range(4):
        await house.post()
    assert [record.cached for record in house.served()] == [False, True, True, True]
    assert [record.compute_ms for record in house.served()][1:] == [0.0] * 3


async def test_json_and_binary_forms_of_an_input_are_one(house: House) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32"}
    await house.post()
    as_json = await house.post(V2, b'{"inputs": [%s]}' % orjson.dumps({**tensor, "data": [1.0, 2.0, 3.0]}))
    head = b'{"inputs": [%s]}' % orjson.dumps({**tensor, "parameters": {"binary_data_size": 12}})
    binary = head + np.array([1, 2, 3], "<f4").tobytes()
    as_binary = await house.post(V2, binary, Inference_Header_Content_Length=str(len(head)))
    for answer in (as_json, as_binary):
        assert answer.headers["x-cache"] == "hit"
        assert answer.json()["outputs"][0]["data"] == [2.5]


async def test_a_hit_needs_the_right_to_ask(house: House) -> None:
    await house.post()
    assert (await house.post(key=OUTSIDER)).status_code == 404
    assert (await house.post(key="")).status_code == 401
    assert (await house.post(key=TESTER)).headers["x-cache"] == "hit"
    assert [record.source for record in house.served()] == [Source.LIVE, Source.TEST]


async def test_a_hit_goes_where_the_split_sends_it(house: House, tmp_path: Path) -> None:
    two = version(tmp_path, 2, toys.classifier())
    one = linear(tmp_path)
    await house.hold(deployment(one, two, live={1: 5_000, 2: 5_000}, cache_ttl_s=TTL_S), generation=2)
    answers = [await house.post(X_Sticky_Key=f"card-{n % 20}") for n in range(60)]
    by_key: dict[int, set[str]] = {}
    for n, answer in enumerate(answers):
        by_key.setdefault(n % 20, set()).add(answer.headers["x-model-version"])
    assert all(len(versions) == 1 for versions in by_key.values())
    assert {"1", "2"} == set.union(*by_key.values())
    assert [answer.headers["x-cache"] for answer in answers].count("miss") == 2
    assert all(len(answer.json()["predictions"][0]) == int(answer.headers["x-model-version"]) for answer in answers)


async def test_a_deployment_that_keeps_nothing_says_nothing(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)), generation=2)
    answers = [await house.post() for _ in range(2)]
    assert all("x-cache" not in answer.headers for answer in answers)
    assert [record.cached for record in house.served()] == [False, False]


async def test_the_executor_lane_computes_once(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), lane=Lane.EXECUTOR, cache_ttl_s=TTL_S), generation=2)
    answers = await asyncio.gather(*(house.post() for _ in range(8)))
    answers.append(await house.post())
    assert [answer.status_code for answer in answers] == [200] * 9
    assert [answer.headers["x-cache"] for answer in answers].count("miss") == 1
    assert len({answer.headers["x-prediction-id"] for answer in answers}) == 9
    assert sorted(record.cached for record in house.served()) == [False] + [True] * 8
    counts = lines(house.home / "run" / "metrics")
    assert counts['signalbox_cache_hits_total{deployment="toy",version="1"}'] == 8
    assert counts['signalbox_cache_misses_total{deployment="toy",version="1"}'] == 1
    assert counts['signalbox_predict_compute_seconds_count{deployment="toy",version="1"}'] == 1


async def test_a_rehearsal_is_computed_and_counts_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.server.predict.SLOW_S", 0.0)
    answers = [await house.post(key=TESTER, X_Test_Outcome="slow") for _ in range(2)]
    assert all(answer.status_code == 200 and "x-cache" not in answer.headers for answer in answers)
    assert all(record.compute_ms > 0 and not record.cached for record in house.served())
    assert (await house.post()).headers["x-cache"] == "miss"


async def test_shadows_are_computed_for_hits_too(house: House, tmp_path: Path) -> None:
    two = version(tmp_path, 2, toys.classifier())
    await house.hold(deployment(linear(tmp_path), two, shadow={2: 10_000}, cache_ttl_s=TTL_S), generation=2)
    for _ in range(3):
        await house.post()
    await house.app._shadows.drain()
    shadows = [record for record in house.records() if record.shadow_of]
    assert len(shadows) == 3
    assert all(record.compute_ms > 0 and not record.cached for record in shadows)


async def test_a_large_input_is_found_too(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(version(tmp_path, 1, toys.dynamic()), cache_ttl_s=TTL_S), generation=2)
    numbers = np.ones(LARGE_BYTES, "<f4")
    tensor = {"name": "x", "shape": [1, numbers.size], "datatype": "FP32"}
    head = b'{"inputs": [%s]}' % orjson.dumps({**tensor, "parameters": {"binary_data_size": numbers.nbytes}})
    for expected in ("miss", "hit"):
        answer = await house.post(V2, head + numbers.tobytes(), Inference_Header_Content_Length=str(len(head)))
        assert answer.headers["x-cache"] == expected
        assert answer.json()["outputs"][0]["data"] == [float(LARGE_BYTES)]


async def test_a_refusal_of_the_model_is_not_kept(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(version(tmp_path, 1, toys.lookup()), cache_ttl_s=TTL_S), generation=2)
    bad = b'{"instances": [99]}'
    answers = [await house.post(content=bad) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [answers[0].status_code] * 2
    assert answers[0].status_code >= 400
    assert not any(record.cached for record in house.records())
    good = [await house.post(content=b'{"instances": [1]}') for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in good] == ["miss", "hit"]
