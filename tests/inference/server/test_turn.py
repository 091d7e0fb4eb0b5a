"""Calls that come together: computed in one run, each answered as if it were alone, the late ones told so."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from inference.contracts import Lane
from inference.runs import Share, grouped
from inference.runtime.onnx import OnnxModel
from inference.server.heads import Heads
from inference.server.predict import Predictor
from inference.server.turn import MOST_GATHERED
from tests.inference import toys
from tests.inference.server.house import BODY, House, deployment, linear, listening, open_house, version
from tests.inference.server.test_short_way import Caller, request

pytestmark = pytest.mark.unit


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(linear(tmp_path), lane=Lane.INLINE))
        yield opened


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run of a model."""
    seen: list[int] = []
    real = OnnxModel.run

    def noted(self: OnnxModel, inputs: dict[str, np.ndarray], outputs: object = None) -> dict[str, np.ndarray]:
        seen.append(len(next(iter(inputs.values()))))
        return real(self, inputs)

    monkeypatch.setattr(OnnxModel, "run", noted)
    return seen


@asynccontextmanager
async def calling(house: House, count: int, first: bytes = BODY) -> AsyncIterator[list[Caller]]:
    """Connections whose next calls can go the short way."""
    async with listening(house) as port:
        callers = [Caller(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
        for caller in callers:
            assert (await caller.ask(request(first)))[0] == 200
        try:
            yield callers
        finally:
            for caller in callers:
                caller.writer.close()


def body(*rows: list[float]) -> bytes:
    return json.dumps({"instances": rows}).encode()


def at_once(caller: Caller, content: bytes) -> None:
    """Send without the loop, so that nothing is read meanwhile."""
    assert os.write(caller.writer.get_extra_info("socket").fileno(), content) == len(content)


async def all_at_once(callers: list[Caller], contents: list[bytes]) -> list[tuple[int, bytes, bytes]]:
    """The answers to calls that are all there before the loop reads any."""
    for caller, content in zip(callers, contents, strict=True):
        at_once(caller, content)
    return [await caller.answer() for caller in callers]


async def test_calls_that_come_together_share_a_run_and_each_gets_its_own_rows(house: House, runs: list[int]) -> None:
    async with calling(house, 6) as callers:
        del runs[:]
        sent = [[[float(n), 0.0, 1.0]] * (n % 3 + 1) for n in range(6)]
        answers = await all_at_once(callers, [request(body(*rows)) for rows in sent])
        alone = [(await callers[0].ask(request(body(*rows))))[2] for rows in sent]
    assert [status for status, _, _ in answers] == [200] * 6
    assert [content for _, _, content in answers] == alone
    assert max(runs[:-6]) > 3
    assert sum(runs[:-6]) == 12
    logged = house.served()[-12:-6]
    assert sorted(record.rows for record in logged) == [1, 1, 2, 2, 3, 3]
    assert len({record.id for record in logged}) == 6


async def test_a_bad_call_in_company_fails_alone(house: House, runs: list[int]) -> None:
    async with calling(house, 4) as callers:
        good = body([1.0, 2.0, 3.0])
        contents = [good, b'{"instances": [[1, "x", 3]]}', good, b"{"]
        answers = await all_at_once(callers, [request(content) for content in contents])
    assert [status for status, _, _ in answers] == [200, 422, 200, 400]


async def test_rows_that_the_model_rejects_are_refused_alone(tmp_path: Path) -> None:
    async with open_house(tmp_path) as opened:
        await opened.hold(deployment(version(tmp_path, 1, toys.lookup()), lane=Lane.INLINE))
        async with calling(opened, 3, b'{"instances": [1]}') as callers:
            contents = [request(b'{"instances": [%d]}' % index) for index in (0, 99, 2)]
            answers = await all_at_once(callers, contents)
        assert [status for status, _, _ in answers] == [200, 422, 200]
        assert b"model_rejected_input" in answers[1][2]


async def test_more_calls_than_a_turn_holds_are_answered_in_several(house: House, runs: list[int]) -> None:
    count = MOST_GATHERED + 5
    async with calling(house, count) as callers:
        del runs[:]
        answers = await all_at_once(callers, [request(body([1.0, 2.0, float(n)])) for n in range(count)])
    assert {status for status, _, _ in answers} == {200}
    assert len({content for _, _, content in answers}) == count
    assert max(runs) <= MOST_GATHERED
    assert house.app.admission.calls == 0


def let_one_fail(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The end of the call of that number, counted from 1, has a fault of ours."""
    real = Predictor._finish
    seen: list[object] = []

    def fail(self: Predictor, ask: object, *rest: object) -> object:
        seen.append(ask)
        if len(seen) == number:
            raise ZeroDivisionError
        return real(self, ask, *rest)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(Predictor, "_finish", fail)


async def test_a_fault_in_one_calls_end_leaves_the_others_theirs(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(house, 3) as callers:
        let_one_fail(monkeypatch, 2)
        answers = await all_at_once(callers, [request()] * 3)
    assert sorted(status for status, _, _ in answers) == [200, 200, 500]
    assert "prediction failed" in caplog.text
    assert house.app.admission.calls == 0


async def test_a_refusal_that_cannot_be_noted_leaves_no_other_call_unanswered(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unwritable(record: object) -> None:
        raise FileNotFoundError("the spool's folder")

    async with calling(house, 3) as callers:
        let_one_fail(monkeypatch, 1)
        monkeypatch.setattr(house.app.refusals, "note", unwritable)
        for caller in callers:
            at_once(caller, request())
        assert [(await callers[index].answer())[0] for index in (1, 2)] == [200, 200]
    assert "the end of a call failed" in caplog.text
    assert house.app.admission.calls == 0


async def test_who_waited_too_long_in_the_socket_is_refused_and_others_times_count_from_their_arrival(
    house: House,
) -> None:
    async with calling(house, 2) as (hurried, patient):
        at_once(hurried, request(X_Deadline_Ms="200"))
        at_once(patient, request())
        # The loop is held up, as by a heavy neighbour: nothing is read meanwhile.
        time.sleep(0.3)  # noqa: ASYNC251
        status, head, content = await hurried.answer()
        assert (status, json.loads(content)["code"]) == (503, "overloaded")
        assert b"retry-after: 1\r\n" in head.lower()
        assert (await patient.answer())[0] == 200
    assert house.served()[-1].total_ms >= 250


def test_a_head_is_known_only_where_the_parser_read_the_same_bytes_to_the_same_end() -> None:
    heads = Heads()
    address, headers = object(), {b"content-length": b"3"}
    head = b"POST /x HTTP/1.1\r\ncontent-length: 3\r\n\r\n"
    heads.keep(head + b"abcX", headers, address, b"abc")  # type: ignore[arg-type]  # only passed on
    heads.keep(head + b"abc", {b"content-length": b"4"}, address, b"abc")  # type: ignore[arg-type]  # as above
    assert heads.find(head + b"abc") is None
    heads.keep(head + b"abc", headers, address, b"abc")  # type: ignore[arg-type]  # as above
    found = heads.find(head + b"xyz")
    assert found is not None
    assert (found[0].address, found[1]) == (address, b"xyz")
    for other in (head + b"xy", head + b"xyz1", head[:-1] + b"xyz", head.replace(b"x", b"y", 1) + b"xyz", b"", b"a"):
        assert heads.find(other) is None


def test_heads_with_something_new_in_each_stay_bounded() -> None:
    heads = Heads()
    for number in range(5000):
        heads.keep(b"POST /%d\r\n\r\n" % number, {b"content-length": b"0"}, object(), b"")  # type: ignore[arg-type]
    assert len(heads._known) <= 1024
    heads.keep(b"x" * 5000 + b"\r\n\r\n", {b"content-length": b"0"}, object(), b"")  # type: ignore[arg-type]
    assert heads.find(b"x" * 5000 + b"\r\n\r\n") is None


def share(rows: int, width: int = 3, most_rows: int = 100, dtype: type = np.float32) -> Share:
    return Share(inputs={"x": np.zeros((rows, width), dtype)}, rows=rows, most_rows=most_rows)


def test_groups_keep_order_form_and_bounds() -> None:
    def sizes(*shares: Share, cells: int = 1000) -> list[list[int]]:
        return [[each.rows for each in group] for group in grouped(shares, cells)]

    assert sizes(share(1), share(2), share(3)) == [[1, 2, 3]]
    assert sizes(share(1), share(2, width=4), share(3)) == [[1], [2], [3]]
    assert sizes(share(1), share(2, dtype=np.float64)) == [[1], [2]]
    assert sizes(share(2), share(2), share(2), cells=12) == [[2, 2], [2]]
    assert sizes(share(1), share(1, most_rows=1), share(1)) == [[1], [1], [1]]
    assert sizes(share(500), share(1)) == [[500], [1]]
    assert sizes() == []
