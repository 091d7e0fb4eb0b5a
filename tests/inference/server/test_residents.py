"""Versions at 0 % at the front door: all of them answer when pinned, within the budget of memory."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.contracts import DeploymentRoute, VersionRoute
from inference.server.metrics import render
from tests.inference import toys
from tests.inference.server.house import House, deployment, linear, listening, open_house, version
from tests.inference.server.publishing import SECRET, Publisher
from tests.inference.server.test_documents import generation, until

MB = 1024 * 1024
# Room for the version with the traffic and four more.
BUDGET = 5 * MB
MANY = 40


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, model_memory_bytes=BUDGET) as opened:
        yield opened


def scaled(home: Path, number: int, size: int = MB) -> VersionRoute:
    """Its logits are `number` times [1.0, 2.0] for the row [1, 2, 3]; `size` as measured."""
    return version(home, number, toys.classifier(softmax=False, scale=float(number)), memory_bytes=size)


def many(home: Path) -> DeploymentRoute:
    return deployment(*(scaled(home, number) for number in range(1, MANY + 1)), labels={"next": MANY})


def held_bytes(house: House) -> int:
    return house.app.registry.residency.held_bytes


async def test_forty_versions_answer_when_pinned_within_the_memory_of_five(house: House, tmp_path: Path) -> None:
    assert await house.hold(many(tmp_path)) == {}
    assert house.app.registry.loaded == 1
    for number in range(1, MANY + 1):
        answer = await house.post(f"/v1/models/toy/versions/{number}:predict")
        assert answer.json() == {"predictions": [[2.0 * number, 1.0 * number]]}
        assert answer.headers["x-model-version"] == str(number)
        assert held_bytes(house) <= BUDGET
    assert (house.app.registry.loaded, held_bytes(house)) == (5, BUDGET)
    assert (await house.post("/v1/models/toy/labels/next:predict")).headers["x-model-version"] == str(MANY)
    # The version with the traffic has been there all the while.
    assert (await house.post()).headers["x-model-version"] == "1"
    assert house.app.registry.loads == MANY


async def test_forty_versions_pinned_at_the_same_time_all_answer(house: House, tmp_path: Path) -> None:
    await house.hold(many(tmp_path))
    numbers = [*range(1, MANY + 1), *range(1, MANY + 1)]
    answers = await asyncio.gather(*(house.post(f"/v1/models/toy/versions/{number}:predict") for number in numbers))
    assert [answer.json() for answer in answers] == [{"predictions": [[2.0 * n, 1.0 * n]]} for n in numbers]
    assert held_bytes(house) <= BUDGET
    assert len(house.served()) == len(numbers)


async def test_a_call_on_a_connection_waits_for_the_load_and_the_next_finds_it(house: House, tmp_path: Path) -> None:
    await house.hold(many(tmp_path))
    async with listening(house) as port:
        house.client.base_url = f"http://127.0.0.1:{port}"
        for _ in range(2):
            answer = await house.post("/v1/models/toy/versions/3:predict")
            assert answer.json() == {"predictions": [[6.0, 3.0]]}
    assert house.app.registry.loads == 2
    assert [(record.version, record.pinned) for record in house.served()] == [(3, True), (3, True)]


async def test_a_version_at_nought_is_ready_until_it_fails_to_load(house: House, tmp_path: Path) -> None:
    broken = scaled(tmp_path, 2)
    (tmp_path / "artifacts" / broken.artifact_sha256[:2] / broken.artifact_sha256).write_bytes(b"other bytes")
    assert await house.hold(deployment(scaled(tmp_path, 1), broken)) == {}
    assert (await house.get("/v2/models/toy/versions/2/ready")).status_code == 200
    answer = await house.post("/v1/models/toy/versions/2:predict")
    assert (answer.status_code, answer.json()["code"]) == (503, "version_not_ready")
    assert answer.json()["error"] == (
        "Version 2 of toy does not load: The model's file in the artifact store is not the one registered."
    )
    assert int(answer.headers["retry-after"]) > 0
    assert (await house.get("/v2/models/toy/versions/2/ready")).status_code == 503
    assert (await house.post()).status_code == 200


async def test_a_version_that_never_fits_is_refused_with_the_figures(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(scaled(tmp_path, 1, 2 * MB), scaled(tmp_path, 2, 4 * MB)))
    answer = await house.post("/v1/models/toy/versions/2:predict")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_memory")
    assert answer.json()["error"] == (
        "Version 2 of toy does not load: It needs 4.0 MB of memory. "
        "Of the 5.0 MB for models in each serving process 1 model with traffic holds 2.0 MB."
    )
    assert "retry-after" in answer.headers


async def test_kept_answers_of_a_version_at_nought_need_no_model(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(scaled(tmp_path, 1), scaled(tmp_path, 2), cache_ttl_s=60.0))
    first, second = [await house.post("/v1/models/toy/versions/2:predict") for _ in range(2)]
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert first.content == second.content


async def test_a_split_that_does_not_fit_is_refused_with_the_figures_and_the_old_one_serves(
    tmp_path: Path, database_url: str
) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    one, two, three = (scaled(tmp_path, number, 3 * MB) for number in (1, 2, 3))
    publisher.routes(1, deployment(one, two))
    async with (
        open_house(tmp_path, database_url=database_url, secret_key=SECRET, model_memory_bytes=BUDGET) as house,
        house.app.running(),
    ):
        await until(lambda: generation(house.app) == 1)
        publisher.routes(2, deployment(one, two, live={1: 5_000, 2: 5_000}))
        await until(lambda: publisher.state(2)[0] == "failed")
        assert publisher.state(2)[1] == (
            "It needs 3.0 MB of memory. "
            "Of the 5.0 MB for models in each serving process 1 model with traffic holds 3.0 MB."
        )
        [report] = publisher.processes()
        assert report["failures"]["v2"]["code"] == "model_memory"
        assert (await house.post()).headers["x-model-version"] == "1"
        # At 0 % it may stay named, for as long as nobody pins it.
        publisher.routes(3, deployment(one, two, three, linear(tmp_path, 4), live={1: 5_000, 4: 5_000}))
        await until(lambda: generation(house.app) == 3)
        await until(lambda: set(publisher.processes()[0]["loaded"]) == {"v1", "v4"})

        await until(lambda: told(house, "signalbox_models") == 2)
        assert told(house, "signalbox_model_budget_bytes") == BUDGET
        assert 3 * MB < told(house, "signalbox_model_bytes") <= BUDGET
        assert told(house, "signalbox_model_loads_total") == 2


def told(house: House, name: str) -> float:
    """What a scrape says of this process."""
    lines = [line.split() for line in render(house.app.metrics.folder).decode().splitlines()]
    return next(float(line[-1]) for line in lines if line[0].partition("{")[0] == name)
