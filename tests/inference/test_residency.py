"""Which models stay in memory: the accounts, without any model."""

import asyncio
from pathlib import Path

import pytest

from inference.contracts import Lane, Routes
from inference.errors import InferenceError
from inference.residency import UNMEASURED_FACTOR, Residency, served_versions, shared_versions, size_of
from tests.inference import toys
from tests.inference.server.house import deployment, linear, version, with_fields

pytestmark = pytest.mark.unit

MB = 1024 * 1024


def holding(*names: str, budget: int = 100, size: int = 30) -> Residency:
    """Accounts that hold these models of `size` bytes each, admitted in this order."""
    accounts = Residency(budget)
    for name in names:
        assert accounts.admit(name, size) == []
    return accounts


def test_the_model_used_least_recently_leaves_first() -> None:
    accounts = holding("a", "b", "c")
    accounts.touch("a")
    assert accounts.admit("d", 30) == ["b"]
    assert accounts.admit("e", 60) == ["c", "a"]
    assert accounts.held_bytes == 90


def test_nothing_leaves_while_there_is_room() -> None:
    accounts = holding("a", "b")
    assert accounts.admit("c", 40) == []
    assert accounts.held_bytes == accounts.budget_bytes


def test_a_model_in_use_never_leaves() -> None:
    accounts = holding("a", "b", "c")
    accounts.begin("a")
    accounts.begin("a")
    assert accounts.admit("d", 30) == ["b"]
    accounts.end("a")
    assert accounts.admit("e", 80) is None
    accounts.end("a")
    assert accounts.admit("e", 80) == ["c", "d", "a"]


def test_a_model_with_traffic_never_leaves_and_others_leave_for_it() -> None:
    accounts = holding("a", "b", "c")
    accounts.fix(["a", "d"])
    assert accounts.admit("d", 40) == ["b"]
    with pytest.raises(InferenceError) as refused:
        accounts.admit("e", 31)
    assert refused.value.code == "model_memory"
    assert accounts.admit("e", 30) == ["c"]


def test_a_model_that_loses_its_traffic_is_the_last_to_leave() -> None:
    accounts = holding("a", "b", "c")
    accounts.fix(["a"])
    accounts.fix([])
    assert accounts.admit("d", 90) == ["b", "c", "a"]


def test_what_is_forgotten_takes_no_room() -> None:
    accounts = holding("a", "b", "c")
    accounts.forget("b")
    assert accounts.admit("d", 40) == []


def test_a_refusal_tells_the_figures() -> None:
    accounts = holding("a", "b", "c", budget=2048 * MB, size=500 * MB)
    accounts.fix(["a", "b"])
    accounts.begin("c")
    with pytest.raises(InferenceError) as refused:
        accounts.admit("d", 1_100 * MB)
    assert refused.value.message == (
        "It needs 1,100 MB of memory. Of the 2,048 MB for models in each serving process "
        "2 models with traffic hold 1,000 MB and 1 model in use holds 500 MB."
    )
    assert holding(budget=MB).refusal(3 * MB // 2).message == (
        "It needs 1.5 MB of memory. Of the 1.0 MB for models in each serving process 0 models with traffic hold 0.0 MB."
    )


async def test_who_waits_for_room_hears_that_a_call_ended() -> None:
    accounts = holding("a")
    accounts.begin("a")
    assert accounts.admit("b", 100) is None
    waiting = asyncio.create_task(accounts.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    accounts.end("a")
    await waiting
    assert accounts.admit("b", 100) == ["a"]


def test_the_size_is_what_was_measured_and_not_less_than_the_file(tmp_path: Path) -> None:
    measured = with_fields(linear(tmp_path), memory_bytes=10**6)
    assert size_of(measured) == 10**6
    assert size_of(with_fields(measured, memory_bytes=0)) == measured.artifact_bytes
    assert size_of(linear(tmp_path)) == measured.artifact_bytes * UNMEASURED_FACTOR


def test_copied_traffic_is_a_share_and_job_lanes_and_the_retired_have_none(tmp_path: Path) -> None:
    one, two, three = linear(tmp_path), version(tmp_path, 2, toys.classifier()), linear(tmp_path, 3)
    served = deployment(one, two, three, live={1: 10_000, 3: 0}, shadow={2: 5})
    elsewhere = [with_fields(served, lane=Lane.JOB), with_fields(served, retired=True)]
    routes = Routes(generation=1, deployments=(served, *elsewhere))
    assert [each.number for each in shared_versions(routes)] == [1, 2]
    assert [each.number for each in served_versions(routes)] == [1, 2, 3]
