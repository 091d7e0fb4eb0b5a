"""Quotas of keys: one count for the processes of a host, and one for all hosts through the database."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from inference.errors import InferenceError
from inference.limits import DAY_S
from inference.server.auth import Caller
from inference.server.limits import KeyLimits, Quotas
from inference.server.usage import Usage
from tests.inference.server.house import key


class Clock:
    now = 20_000.5 * DAY_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def caller(quota: int | None = 5) -> Caller:
    return replace(Caller.of(key(f"sb_{uuid4()}", quota_per_day=quota)), id=str(uuid4()))


def used(quotas: Quotas, who: Caller) -> int:
    left = quotas.look(who)
    assert left is not None
    return left.limit - left.remaining


@pytest.mark.unit
def test_processes_of_a_host_share_one_count(tmp_path: Path, clock: Clock) -> None:
    one, two = (Quotas(tmp_path / "quotas", clock) for _ in range(2))
    who = caller()
    left = [quotas.take(who) for quotas in (one, two, one, two, one)]
    assert [allowance.remaining for allowance in left if allowance] == [4, 3, 2, 1, 0]
    with pytest.raises(InferenceError) as refused:
        two.take(who)
    assert (refused.value.code, refused.value.headers["Retry-After"]) == ("quota_exceeded", str(DAY_S // 2))
    one.close()
    again = Quotas(tmp_path / "quotas", clock)
    assert used(again, who) == 5, "a restart forgets nothing"
    assert used(again, caller()) == 0


@pytest.mark.unit
def test_a_new_day_begins_anew_and_a_larger_quota_holds_at_once(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(tmp_path / "quotas", clock)
    who = caller(1)
    quotas.take(who)
    with pytest.raises(InferenceError):
        quotas.take(who)
    larger = quotas.take(replace(who, quota_per_day=3))
    assert larger is not None and larger.remaining == 1
    clock.now += DAY_S
    anew = quotas.take(who)
    assert anew is not None and anew.remaining == 0


@pytest.mark.unit
def test_thousands_of_keys_take_the_slots_of_yesterday(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(tmp_path / "quotas", clock)
    for _ in range(4000):
        quotas.take(caller())
    clock.now += DAY_S
    today = [caller() for _ in range(1000)]
    for who in today:
        quotas.take(who)
    assert sum(used(quotas, who) for who in today) == 1000


@pytest.mark.unit
def test_what_could_not_be_told_is_told_again(tmp_path: Path, clock: Clock) -> None:
    quotas = Quotas(tmp_path / "quotas", clock)
    who, day = caller(), quotas.today()
    assert quotas.tell(who, day) is None
    quotas.take(who)
    assert quotas.tell(who, day) == 1
    assert (quotas.tell(who, day), used(quotas, who)) == (0, 1)
    quotas.take_back(who, day, 1)
    assert (quotas.tell(who, day), used(quotas, who)) == (1, 1)


@pytest.mark.unit
def test_the_tighter_limit_is_told_with_both_as_the_policy(tmp_path: Path) -> None:
    limits = KeyLimits(tmp_path)
    who = Caller.of(key("sb_both", rate_per_minute=2, quota_per_day=1000))
    told = limits.take(who)
    assert told is not None
    assert (told.limit, told.remaining, told.policy) == (2, 1, "2;w=60, 1000;w=86400")
    looked = limits.look(who)
    assert looked is not None and (looked.limit, looked.remaining) == (2, 1)
    assert limits.take(Caller.of(key("sb_none"))) is None
    limits.close()


async def test_hosts_learn_from_each_other_and_refuse_together(tmp_path: Path, clock: Clock, database_url: str) -> None:
    here, there = Quotas(tmp_path / "here", clock), Quotas(tmp_path / "there", clock)
    who = caller(10)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        near, far = Usage(here), Usage(there)
        for _ in range(4):
            here.take(who)
        for _ in range(5):
            there.take(who)
        await near.exchange(connection, [who])
        await far.exchange(connection, [who])
        assert (used(here, who), used(there, who)) == (4, 9)
        here.take(who)
        await near.exchange(connection, [who])
        assert used(here, who) == 10
        with pytest.raises(InferenceError):
            here.take(who)
        assert there.take(who) is not None, "what the others let in since the last exchange is not known"
        await far.exchange(connection, [who])
        with pytest.raises(InferenceError):
            there.take(who)
        row = await connection.execute("SELECT calls FROM quota_use WHERE key_id = %s", (who.id,))
        assert await row.fetchall() == [(11,)]


async def test_a_host_that_lost_its_file_learns_what_was_used(tmp_path: Path, clock: Clock, database_url: str) -> None:
    who = caller(10)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        before = Quotas(tmp_path / "before", clock)
        for _ in range(7):
            before.take(who)
        await Usage(before).exchange(connection, [who])
        after = Quotas(tmp_path / "after", clock)
        after.take(who)
        await Usage(after).exchange(connection, [who])
        assert used(after, who) == 8


async def test_a_database_that_fails_loses_no_count(tmp_path: Path, clock: Clock, database_url: str) -> None:
    quotas = Quotas(tmp_path / "quotas", clock)
    who = caller(10)
    quotas.take(who)
    connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    await connection.close()
    usage = Usage(quotas)
    with pytest.raises(psycopg.Error):
        await usage.exchange(connection, [who])
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as again:
        await usage.exchange(again, [who])
        row = await again.execute("SELECT calls FROM quota_use WHERE key_id = %s", (who.id,))
        assert await row.fetchall() == [(1,)]
