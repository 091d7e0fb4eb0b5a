"""What is not a prediction: health, descriptions, metrics, and what no address has."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.server.addresses import Address, Kind, is_ours, parse
from inference.server.auth import Caller
from inference.server.limits import RateLimits
from inference.server.memory import memory_bytes
from inference.server.settings import BadSettingError, read
from tests.inference.server.house import (
    CALLER,
    GUEST,
    KEYS,
    LIMITED,
    OUTSIDER,
    OWNER,
    READER,
    REVOKED,
    House,
    deployment,
    linear,
    open_house,
)

pytestmark = pytest.mark.unit

EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/v2/health/ready", "/ping"])
async def test_ready_means_that_routes_are_held_if_there_are_none(house: House, path: str) -> None:
    assert (await house.get(path, key="")).status_code == 503
    assert (await house.get("/v2/health/live", key="")).status_code == 200
    await house.hold()
    assert (await house.get(path, key="")).status_code == 200


async def test_a_deployment_is_described_to_those_who_reach_it(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path), linear(tmp_path, 2)))
    for path in (
        "/v2/models/toy",
        "/v2/models/toy/versions/2",
        "/v2/models/toy/ready",
        "/v1/models/toy",
        "/v1/models/toy/versions/2",
        "/v1/models/toy/metadata",
        "/v1/models/toy/versions/2/metadata",
    ):
        for key, status in ((OWNER, 200), (READER, 200), (CALLER, 200), (OUTSIDER, 404), (GUEST, 404), ("", 401)):
            answer = await house.get(path, key=key)
            assert (path, key, answer.status_code) == (path, key, status)
    assert (await house.get("/v2", key=REVOKED)).status_code == 401
    assert (await house.get("/v2")).json()["name"]
    assert (await house.get("/v1/models/toy/versions/9")).status_code == 404


async def test_descriptions_tell_what_a_key_has_left_and_use_none_of_it(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    paths = ("/v2", "/v2/models/toy", "/v1/models/toy/metadata", "/v1/models/nobody", "/v1/models/toy/versions/9")
    for _ in range(2):
        answers = [await house.get(path, key=LIMITED) for path in paths]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404]
        assert {(each.headers["ratelimit-remaining"], each.headers["ratelimit-policy"]) for each in answers} == {
            ("3", "3;w=60")
        }
    await house.post(key=LIMITED)
    assert (await house.get("/v2/models/toy", key=LIMITED)).headers["ratelimit-remaining"] == "2"
    for key in (OWNER, REVOKED, ""):
        assert "ratelimit-limit" not in (await house.get("/v2/models/toy", key=key)).headers


async def test_status_counts_the_versions_that_would_answer(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    [state] = (await house.get("/v1/models/toy")).json()["model_version_status"]
    assert (state["version"], state["state"]) == ("1", "AVAILABLE")


async def test_metrics_are_for_readers_and_for_this_machine(house: House, tmp_path: Path) -> None:
    await house.hold(deployment(linear(tmp_path)))
    await house.post()
    local = await house.get("/metrics", key="")
    assert local.headers["content-type"].startswith("text/plain")
    assert 'signalbox_calls_total{deployment="toy",version="1",code="ok"} 1' in local.text
    forwarded = await house.client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
    assert forwarded.status_code == 401
    assert (await house.get("/metrics", key=READER)).status_code == 200
    assert (await house.get("/metrics", key=CALLER)).status_code == 403


async def test_metrics_ask_for_a_key_behind_a_public_address(tmp_path: Path) -> None:
    async with open_house(tmp_path, public_url="https://signalbox.example") as opened:
        await opened.hold()
        assert (await opened.get("/metrics", key="")).status_code == 401
        assert (await opened.get("/metrics", key=OWNER)).status_code == 200


async def test_without_a_control_plane_other_paths_are_not_found(house: House) -> None:
    answer = await house.get("/deployments/")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/v1/models/fraud:predict", Address(Kind.PREDICT, "fraud", protocol="v1")),
        ("/v1/models/fraud/versions/12:predict", Address(Kind.PREDICT, "fraud", number=12, protocol="v1")),
        ("/v1/models/fraud/labels/stable:predict", Address(Kind.PREDICT, "fraud", label="stable", protocol="v1")),
        ("/v1/models/fraud/labels/stable/metadata", Address(Kind.V1_METADATA, "fraud", label="stable")),
        ("/v1/models/metadata", Address(Kind.V1_STATUS, "metadata")),
        ("/v1/models/versions/metadata", Address(Kind.V1_METADATA, "versions")),
        ("/v2/models/card%20fraud/infer", Address(Kind.PREDICT, "card fraud", protocol="v2")),
        ("/v2/models/versions/versions/3/infer", Address(Kind.PREDICT, "versions", number=3, protocol="v2")),
        ("/v2/models/a%2fb/infer", None),
        ("/v2/models/a%00b/infer", None),
        ("/v2/models/%ff/infer", None),
        ("/v1/models/fraud/versions/1234567890:predict", None),
        ("/v1/models/fraud/versions/1/labels/x:predict", None),
        ("/v1/models", None),
    ],
)
def test_paths_mean_what_the_contract_says(path: str, address: Address | None) -> None:
    assert parse(path.encode()) == address
    assert is_ours(path.encode())


@pytest.mark.parametrize("path", ["/", "/v3/x", "/metrics/", "/V1/models/x", "/api/models/", "/invocations/x", "/v10"])
def test_all_other_paths_are_the_control_planes(path: str) -> None:
    assert not is_ours(path.encode())


def test_a_limit_is_shared_by_processes_and_paid_back_with_time(tmp_path: Path) -> None:
    now = [1_000.0]
    one, two = (RateLimits(tmp_path / "limits", clock=lambda: now[0]) for _ in range(2))
    caller = Caller.of(next(key for key in KEYS if key.id == f"id-{LIMITED}"))
    left = [limits.take(caller) for limits in (one, two, one)]
    assert [allowance.remaining for allowance in left if allowance is not None] == [2, 1, 0]
    with pytest.raises(Exception, match="limit of 3") as caught:
        two.take(caller)
    assert caught.value.headers["Retry-After"] == "20"  # type: ignore[attr-defined]  # of the error that was raised
    now[0] += 20
    assert two.take(caller) is not None
    now[0] = 5.0  # another boot, whose clock began again
    allowance = one.take(caller)
    assert allowance is not None
    assert allowance.remaining == 2
    one.close()
    two.close()


def environ(**fields: str) -> dict[str, str]:
    return {"SIGNALBOX_SECRET_KEY": "s", "DATABASE_URL": "postgresql://", **fields}


def test_the_default_is_one_machine() -> None:
    settings = read(environ())
    assert (settings.host, settings.port, settings.upstream) == ("127.0.0.1", 8000, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"SIGNALBOX_PORT": "http"}, "SIGNALBOX_PORT=http"),
        ({"SIGNALBOX_PORT": "70000"}, "SIGNALBOX_PORT=70000"),
        ({"SIGNALBOX_WEB_PROCESSES": "0"}, "SIGNALBOX_WEB_PROCESSES=0"),
        ({"SIGNALBOX_WEB_PROCESSES": "3-2"}, "SIGNALBOX_WEB_PROCESSES=3-2 is not .* such as 1-4"),
        ({"SIGNALBOX_WEB_PROCESSES": "1-"}, "SIGNALBOX_WEB_PROCESSES=1- "),
        ({"SIGNALBOX_WEB_PROCESSES": "1-2-3"}, "SIGNALBOX_WEB_PROCESSES=1-2-3"),
        ({"SIGNALBOX_WEB_PROCESSES": "1-257"}, "SIGNALBOX_WEB_PROCESSES=1-257"),
        ({"SIGNALBOX_THREADS": "0"}, "SIGNALBOX_THREADS=0"),
        ({"SIGNALBOX_DRAIN_S": "-1"}, "SIGNALBOX_DRAIN_S=-1"),
        ({"SIGNALBOX_MODEL_MEMORY_MB": "0"}, "SIGNALBOX_MODEL_MEMORY_MB=0"),
        ({"SIGNALBOX_TRUSTED_PROXIES": "me"}, "SIGNALBOX_TRUSTED_PROXIES=me"),
        ({"SIGNALBOX_PUBLIC_URL": "signalbox.example"}, "SIGNALBOX_PUBLIC_URL"),
        ({"SIGNALBOX_HOST": EVERYWHERE}, "SIGNALBOX_INSECURE_HTTP=1"),
        ({"DATABASE_URL_FILE": "/nowhere/at/all"}, "DATABASE_URL_FILE"),
    ],
)
def test_a_bad_setting_is_one_sentence(fields: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadSettingError, match=sentence):
        read(environ(**fields))


@pytest.mark.parametrize(
    ("processes", "threads", "each"),
    [("1", "8", 8), ("4", "8", 2), ("1-4", "8", 2), ("3", "8", 2), ("7", "8", 1), ("16", "8", 1), ("1", "1", 1)],
)
def test_processes_share_the_threads_of_the_machine_as_if_all_were_there(
    processes: str, threads: str, each: int
) -> None:
    settings = read(environ(SIGNALBOX_WEB_PROCESSES=processes, SIGNALBOX_THREADS=threads))
    assert settings.threads == each
    assert each == 1 or each * settings.web_processes.most <= int(threads)


@pytest.mark.parametrize("quota", ["max 100000", "250000 100000", "50000 100000", None])
def test_by_default_models_have_the_cores_and_no_more_than_the_containers_quota(
    quota: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr("inference.server.settings._QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    usable = {"250000 100000": 2, "50000 100000": 1}.get(quota or "", 8)
    settings = read(environ())
    assert settings.web_processes == ((7, 7) if usable == 8 else (1, 1))
    assert settings.web_processes.most * settings.threads <= usable
    assert read(environ(SIGNALBOX_WEB_PROCESSES="1")).threads == usable


def test_processes_may_be_given_as_the_least_and_the_most() -> None:
    assert read(environ(SIGNALBOX_WEB_PROCESSES="2")).web_processes == (2, 2)
    assert read(environ(SIGNALBOX_WEB_PROCESSES="1-4")).web_processes == (1, 4)


def test_a_public_bind_is_meant_with_tls_or_with_the_switch() -> None:
    assert read(environ(SIGNALBOX_HOST=EVERYWHERE, SIGNALBOX_INSECURE_HTTP="1")).host == EVERYWHERE
    assert read(environ(SIGNALBOX_HOST="::", SIGNALBOX_PUBLIC_URL="https://a.example")).host == "::"


def test_the_memory_for_models_is_shared_by_the_processes_and_half_of_all_by_default() -> None:
    settings = read(environ(SIGNALBOX_MODEL_MEMORY_MB="100", SIGNALBOX_WEB_PROCESSES="2-4"))
    assert settings.model_memory_bytes == 25 * 1024 * 1024
    assert read(environ(SIGNALBOX_WEB_PROCESSES="1")).model_memory_bytes == pytest.approx(memory_bytes() / 2, abs=2**20)


def test_the_least_limit_of_the_control_groups_around_a_process_holds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,memory:/old\n0::/pod/box\n",
        "sys/fs/cgroup/pod/box/memory.max": "max\n",
        "sys/fs/cgroup/pod/memory.max": "3000000\n",
        "sys/fs/cgroup/memory/old/memory.limit_in_bytes": "9223372036854771712\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_bytes(tmp_path) == 3_000_000
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("2000000\n")
    assert memory_bytes(tmp_path) == 2_000_000
    assert memory_bytes(tmp_path / "nothing") > 2**20


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file\n")
    fields: dict[str, Any] = {"SIGNALBOX_SECRET_KEY_FILE": str(tmp_path / "key"), "SIGNALBOX_SECRET_KEY": ""}
    assert read(environ(**fields)).secret_key == "from the file"
