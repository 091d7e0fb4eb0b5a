"""A turn of the event loop takes on only so much; what waits keeps its order, and loses nothing when it ends."""

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from inference.contracts import Lane
from inference.server.pace import Pace
from tests.inference.server.house import House, deployment, linear, open_house
from tests.inference.server.test_short_way import request
from tests.inference.server.test_turn import all_at_once, at_once, body, calling

pytestmark = pytest.mark.unit


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path), lane=Lane.INLINE))
        # One request a turn.
        opened.app.pace = Pace(0.0)
        yield opened


async def test_what_waits_goes_on_in_order_and_other_work_gets_its_turns() -> None:
    pace, done = Pace(0.0), asyncio.Event()
    seen: list[int] = []
    turns = 0

    def count_turns() -> None:
        nonlocal turns
        turns += 1
        if not done.is_set():
            asyncio.get_running_loop().call_soon(count_turns)

    assert not pace.is_over()
    for number in range(5):
        assert pace.is_over()
        pace.wait(partial(seen.append, number))
    pace.wait(done.set)
    count_turns()
    async with asyncio.timeout(10):
        await done.wait()
    assert seen == [0, 1, 2, 3, 4]
    assert turns >= 5
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not pace.is_over(), "a new turn"


async def test_calls_that_wait_for_a_turn_are_answered_in_their_connections_order(house: House) -> None:
    async with calling(house, 8) as callers:
        contents = [request(body([float(n), 1.0, 2.0])) for n in range(8)]
        answers = await all_at_once(callers, [content * 3 for content in contents])
        further = [[await caller.answer() for _ in range(2)] for caller in callers]
        alone = [(await callers[0].ask(content))[2] for content in contents]
    for first, rest, own in zip(answers, further, alone, strict=True):
        assert [first[0], *(status for status, _, _ in rest)] == [200] * 3
        assert [first[2], *(content for _, _, content in rest)] == [own] * 3


async def test_what_comes_behind_a_request_that_waits_is_not_mixed_up(house: House) -> None:
    async with calling(house, 3) as (one, two, three):
        at_once(one, request())
        at_once(two, request(body([1.0, 1.0, 1.0])))
        content = request(body([3.0, 2.0, 1.0]))
        at_once(three, content[:40])
        await asyncio.sleep(0)
        at_once(three, content[40:])
        answers = [await caller.answer() for caller in (one, two, three)]
        assert [status for status, _, _ in answers] == [200] * 3
        assert (await three.ask(content))[2] == answers[2][2]


async def test_who_hangs_up_while_he_waits_costs_nothing_and_disturbs_nobody(house: House) -> None:
    async with calling(house, 4) as callers:
        before = len(house.served())
        for caller in callers:
            at_once(caller, request())
        os.close(os.dup(callers[2].writer.get_extra_info("socket").fileno()))
        callers[2].writer.transport.abort()
        answers = [await callers[index].answer() for index in (0, 1, 3)]
        assert {status for status, _, _ in answers} == {200}
    assert 3 <= len(house.served()) - before <= 4
    assert house.app.admission.calls == 0


async def test_large_bodies_are_taken_on_whole_however_busy_the_loop(house: House) -> None:
    async with calling(house, 3) as callers:
        large = body(*([[1.0, 2.0, 3.0]] * 4000))
        for caller in callers:
            caller.writer.write(request(large))
        answers = [await caller.answer() for caller in callers]
    assert {status for status, _, _ in answers} == {200}
    assert len({content for _, _, content in answers}) == 1
