"""The open loop counts and times what a server with known delays does; only bounds that hold on any machine."""

import pytest

from benchmarks.load import Target, drive, is_here
from benchmarks.open_loop import Stage, run
from benchmarks.pacing import recovered_after_s
from tests.benchmarks.slow_server import SlowServer, serving
from tests.services import free_port


def test_it_sends_what_is_due_and_counts_every_answer() -> None:
    with serving(SlowServer(content=b"x" * 100_000)) as server:
        result = run(server.target(b"body"), [Stage(100, 0.5), Stage(200, 1.0)])
    first, second = result.parts
    assert (first.sent, second.sent) == (50, 200)
    assert (first.statuses, second.statuses) == ({"200": 50}, {"200": 200})
    assert (first.errors, second.errors, second.failed) == (0, 0, 0)
    assert server.calls == 250 and server.bodies == {b"body"}
    assert sum(one[2] for one in second.bins) == 200 and sum(one[0] for one in second.bins) == 200
    assert result.own_us_per_call > 0


def test_a_stall_is_paid_for_by_every_call_that_was_due_meanwhile() -> None:
    """A closed loop would see one slow call; here 0.5 s of calls at 200/s wait, the first of them the longest."""
    with serving(SlowServer(delay_s=lambda number: 0.5 if number == 20 else 0.0)) as server:
        (part,) = run(server.target(), [Stage(200, 1.0)], connections=4).parts
    assert part.statuses == {"200": 200}
    assert part.most_ms >= 500
    # Half of the calls were due in the stall; a quarter of all waited for a quarter of a second or longer.
    assert part.p99_ms >= 450
    assert part.p50_ms < part.p99_ms


def test_a_wait_for_a_connection_counts() -> None:
    """One connection, 20 ms a call and 100 calls a second: the last of 50 was due after half of the time."""
    with serving(SlowServer(delay_s=lambda number: 0.02)) as server:
        (part,) = run(server.target(), [Stage(100, 0.5)], connections=1).parts
    assert part.statuses == {"200": 50}
    assert part.most_ms >= 50 * 20 - 500
    assert part.late_p99_ms >= 400


def test_refusals_and_hang_ups_are_told_apart_from_answers() -> None:
    status = {0: 503, 1: 429, 2: 500}
    with serving(
        SlowServer(status=lambda number: status.get(number % 10, 200), hangs_up=lambda number: number % 10 == 3)
    ) as server:
        (part,) = run(server.target(), [Stage(100, 1.0)]).parts
    assert part.statuses == {"200": 60, "503": 10, "429": 10, "500": 10}
    assert part.failed == 10 and part.ok == 60 and part.errors == 40
    assert 0 < part.refused_p50_ms <= part.refused_p99_ms


def test_calls_without_an_answer_end_with_the_grace() -> None:
    with serving(SlowServer(delay_s=lambda number: 60.0 if number == 0 else 0.0)) as server:
        (part,) = run(server.target(), [Stage(20, 0.5)], grace_s=0.5).parts
    assert part.sent == 10 and part.failed == 10 and part.statuses == {}
    assert part.p99_ms == 0


def test_a_caller_that_finds_no_connection_gives_up() -> None:
    with serving(SlowServer(delay_s=lambda number: 0.2)) as server:
        (part,) = run(server.target(), [Stage(100, 1.0)], connections=1, patience_s=0.1).parts
    assert part.failed == 0 and part.ok + part.given_up == part.sent == 100
    assert part.given_up >= 80
    assert part.served_p99_ms >= 200


def test_goodput_counts_arrivals_within_the_stage() -> None:
    """20 ms a call are at most 50 answers a second, however many are due."""
    with serving(SlowServer(delay_s=lambda number: 0.02)) as server:
        (part,) = run(server.target(), [Stage(100, 1.0)]).parts
    assert part.statuses == {"200": 100}
    assert 0 < part.answered_per_s <= 51


def test_a_server_that_is_not_there_fails_the_run() -> None:
    nobody = Target("nobody", f"http://127.0.0.1:{free_port()}/", {}, b"")
    with pytest.raises(RuntimeError, match="the open loop failed"):
        run(nobody, [Stage(10, 0.1)])


@pytest.mark.unit
def test_recovery_is_the_first_of_two_half_seconds_that_are_normal() -> None:
    bad, slow, fine = [9, 1.0, 10], [10, 50.0, 10], [10, 2.0, 10]
    assert recovered_after_s([fine, fine], 1.0) == 0
    assert recovered_after_s([slow, fine, bad, fine, fine], 1.0) == 1.5
    assert recovered_after_s([slow, slow], 1.0) == 1.0


@pytest.mark.skipif(not is_here(), reason="wrk is not installed")
def test_the_closed_loop_sends_bytes_as_they_are_and_fails_on_a_bad_answer() -> None:
    body = bytes(range(256)) * 4
    with serving(SlowServer()) as server:
        load = drive(server.target(body), connections=4, seconds=1)
    assert load.requests <= server.calls and server.bodies == {body}
    with (
        serving(SlowServer(status=lambda number: 500 if number == 3 else 200)) as server,
        pytest.raises(RuntimeError, match="1 of"),
    ):
        drive(server.target(), connections=1, seconds=1)
