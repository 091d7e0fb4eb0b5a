"""How many processes are wanted, told a load and a time at a time; and what a process says of its own work."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from inference.server import work as work_module
from inference.server.scaling import Load, Rules, Scaling
from inference.server.work import Work

pytestmark = pytest.mark.unit

RULES = Rules(in_flight=16.0, busy=0.75, up_after_s=3.0, down_after_s=60.0, slack=0.6, smooth_s=0.1)
IDLE, WAITED_ON, COMPUTING = Load(0.0, 0.05), Load(20.0, 0.1), Load(0.0, 0.95)


def over(scaling: Scaling, seconds: range, *loads: Load) -> list[int]:
    """What is wanted after each of these looks, one a second."""
    return [scaling.look(second, loads) for second in seconds]


@pytest.mark.parametrize("load", [WAITED_ON, COMPUTING], ids=["calls wait", "the loop computes"])
def test_a_process_comes_once_the_load_has_lasted(load: Load) -> None:
    assert over(Scaling(1, 4, RULES), range(5), load) == [1, 1, 1, 2, 2]


def test_a_load_with_a_break_in_it_brings_nobody() -> None:
    scaling = Scaling(1, 4, RULES)
    assert over(scaling, range(3), COMPUTING) == [1, 1, 1]
    assert over(scaling, range(3, 4), IDLE) == [1]
    assert over(scaling, range(4, 7), COMPUTING) == [1, 1, 1]


def test_the_next_one_waits_until_the_last_one_serves_and_takes_its_part() -> None:
    scaling = Scaling(1, 4, RULES)
    assert over(scaling, range(4), COMPUTING)[-1] == 2
    assert over(scaling, range(4, 60), COMPUTING)[-1] == 2, "the second does not serve yet"
    assert over(scaling, range(60, 90), COMPUTING, IDLE)[-1] == 2, "the load is not shared yet"
    assert over(scaling, range(90, 94), COMPUTING, COMPUTING)[-1] == 3


def test_there_are_never_more_than_the_most_nor_fewer_than_the_least() -> None:
    scaling = Scaling(2, 3, RULES)
    assert over(scaling, range(100), COMPUTING, COMPUTING, COMPUTING)[-1] == 3
    assert over(scaling, range(100, 400), IDLE, IDLE, IDLE)[-1] == 2


def test_they_leave_one_at_a_time_each_after_a_long_quiet_time() -> None:
    scaling = Scaling(1, 3, RULES)
    over(scaling, range(20), COMPUTING, COMPUTING, COMPUTING)
    assert scaling.wanted == 3
    assert over(scaling, range(100, 160), IDLE, IDLE, IDLE)[-1] == 3
    assert over(scaling, range(160, 162), IDLE, IDLE, IDLE) == [2, 2]
    assert over(scaling, range(162, 222), IDLE, IDLE)[-2:] == [2, 1]


def test_nobody_leaves_whose_part_would_call_one_back() -> None:
    """Between the bound and the slack nothing moves: what two do at 0.4 is more than one does at 0.45."""
    scaling = Scaling(1, 2, RULES)
    over(scaling, range(4), COMPUTING)
    assert scaling.wanted == 2
    assert over(scaling, range(10, 500), Load(0.0, 0.4), Load(0.0, 0.4))[-1] == 2
    assert over(scaling, range(500, 561), Load(0.0, 0.2), Load(0.0, 0.2))[-1] == 1


def test_a_second_of_other_work_does_not_begin_the_quiet_minute_again() -> None:
    spiky = Scaling(1, 2, replace(RULES, smooth_s=10.0))
    over(spiky, range(4), COMPUTING)
    over(spiky, range(4, 40), IDLE, IDLE)
    over(spiky, range(40, 41), COMPUTING, COMPUTING)
    assert over(spiky, range(41, 90), IDLE, IDLE)[-1] == 1
    lasting = Scaling(1, 2, replace(RULES, smooth_s=10.0))
    over(lasting, range(4), COMPUTING)
    over(lasting, range(4, 40), IDLE, IDLE)
    over(lasting, range(40, 50), COMPUTING, COMPUTING)
    assert over(lasting, range(50, 90), IDLE, IDLE)[-1] == 2


def test_a_process_that_never_comes_is_no_longer_wanted_when_it_is_quiet() -> None:
    scaling = Scaling(1, 2, RULES)
    over(scaling, range(4), COMPUTING)
    assert over(scaling, range(4, 65), IDLE)[-1] == 1


def test_without_any_word_of_the_processes_nothing_moves() -> None:
    scaling = Scaling(1, 2, RULES)
    assert over(scaling, range(200)) == [1] * 200


def test_work_is_the_share_of_the_time_that_was_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = {"monotonic": 0.0, "thread_time": 0.0, "process_time": 0.0}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])
    monkeypatch.setattr(work_module, "Path", lambda path: tmp_path / "schedstat")
    work = Work(threads=2)
    now.update(monotonic=2.0, thread_time=1.0, process_time=1.2)
    assert work.share() == pytest.approx(0.5)
    now.update(monotonic=3.0, thread_time=1.1, process_time=2.9)
    assert work.share() == pytest.approx(0.8), "two threads computed 1.6 s"
    now.update(monotonic=4.0, thread_time=2.2, process_time=5.0)
    assert work.share() == 1.0


def test_a_loop_that_waits_for_a_core_is_busy_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    schedstat = tmp_path / "schedstat"
    schedstat.write_text("1000000000 500000000 7\n")
    monkeypatch.setattr(work_module, "Path", lambda path: schedstat)
    monkeypatch.setattr(time, "monotonic", iter([0.0, 2.0]).__next__)
    work = Work(threads=1)
    schedstat.write_text("1800000000 1100000000 9\n")
    assert work.share() == pytest.approx(0.7)


def test_a_thread_that_spins_is_busy_on_this_kernel() -> None:
    work = Work(threads=8)
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    # Whatever else this machine does: it was on a core, or in the queue for one.
    assert work.share() > 0.5
