"""What is tried again, when, and for how long. The calls are run by hand: nothing waits, nothing is sent."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from signalbox_client import (
    ConnectionFailed,
    Deadline,
    DeadlineExceeded,
    Feedback,
    InvalidInput,
    NotAuthenticated,
    Overloaded,
    RateLimited,
    Retrying,
    ServerError,
    SignalboxError,
)
from signalbox_client.replies import retry_after_of
from tests.client.driving import Clock, Driven

pytestmark = pytest.mark.unit

OK = {"X-Prediction-Id": "p1", "X-Model-Version": "2", "X-Split-Revision": "3"}


def predicted() -> httpx.Response:
    return httpx.Response(200, headers=OK, json={"predictions": [1.0]})


def refused(status: int, *, retryable: bool = True, code: str = "overloaded", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": "No.", "code": code, "errors": [], "retryable": retryable, "request_id": "r1"}
    return httpx.Response(status, headers=named, json=body)


def asked(driven: Driven, **options: Any) -> Any:
    return driven.run(driven.calls.predict_rows("d", [[1.0]], options))


@pytest.mark.parametrize("status", [429, 503])
def test_what_says_retryable_is_tried_again_with_the_same_idempotency_key(status: int) -> None:
    driven = Driven([refused(status), refused(status), predicted()])
    assert asked(driven).version == 2
    keys = {request.headers["Idempotency-Key"] for request in driven.sent}
    assert (len(driven.sent), len(keys)) == (3, 1)


def test_a_rehearsed_refusal_is_asked_for_with_every_attempt() -> None:
    driven = Driven([refused(503), predicted()])
    asked(driven, rehearse="503")
    assert [request.headers["X-Test-Outcome"] for request in driven.sent] == ["503", "503"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refused(503, retryable=False), Overloaded),
        (refused(422, code="wrong_type"), InvalidInput),
        (refused(401, code="not_authenticated"), NotAuthenticated),
        (refused(500, code="internal"), ServerError),
        (refused(504, code="deadline_exceeded"), None),
        (httpx.Response(502, text="<html>Bad gateway</html>"), None),
        (httpx.Response(503, text="<html>Come back</html>"), None),
        (httpx.ConnectError("refused"), None),
        (httpx.ReadError("reset"), None),
        (httpx.RemoteProtocolError("closed"), None),
        (httpx.ReadTimeout("silence"), DeadlineExceeded),
        (httpx.PoolTimeout("full"), ConnectionFailed),
        (httpx.UnsupportedProtocol("what"), ConnectionFailed),
    ],
)
def test_only_what_is_safe_is_tried_again(answer: Any, kind: type[SignalboxError] | None) -> None:
    driven = Driven([answer, predicted()])
    if kind is None:
        assert asked(driven).version == 2
        return
    with pytest.raises(kind):
        asked(driven)
    assert len(driven.sent) == 1


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        (httpx.ConnectError("refused"), 2),
        (refused(503), 2),
        (httpx.ReadError("reset"), 1),
        (refused(504), 1),
        (httpx.Response(503, text="from a proxy"), 1),
    ],
)
def test_a_call_that_may_not_be_made_twice_is_tried_again_only_where_it_was_not_made(
    answer: Any, attempts: int
) -> None:
    driven = Driven([answer, refused(422)])
    with pytest.raises(SignalboxError):
        driven.run(driven.calls.cancel_job("j1"))
    assert len(driven.sent) == attempts


def test_retries_0_switches_them_off() -> None:
    driven = Driven([refused(503)])
    with pytest.raises(Overloaded):
        asked(driven, retries=0)
    assert (len(driven.sent), driven.pauses) == (1, [])
    assert "Idempotency-Key" not in driven.sent[0].headers


def test_the_last_error_is_raised_once_the_retries_are_used_up() -> None:
    driven = Driven([refused(503), refused(429, code="rate_limited")], retries=1)
    with pytest.raises(RateLimited):
        asked(driven)


def test_pauses_double_up_to_a_bound_and_are_drawn_from_all_of_it() -> None:
    driven = Driven(
        [refused(503)] * 6 + [predicted()], retries=6, retrying=Retrying(base_s=1, most_s=8, draw=lambda: 1)
    )
    asked(driven)
    assert driven.pauses == [1, 2, 4, 8, 8, 8]
    none = Driven([refused(503), predicted()], retrying=Retrying(draw=lambda: 0.0))
    asked(none)
    assert none.pauses == [0]


def test_retry_after_is_waited_for_before_the_drawn_pause() -> None:
    driven = Driven([refused(429, Retry_After="7"), predicted()])
    asked(driven)
    assert driven.pauses == [7.1]


def test_a_retry_after_that_is_too_long_is_not_waited_for() -> None:
    driven = Driven(
        [refused(429, Retry_After="31", RateLimit_Limit="2", RateLimit_Remaining="0", RateLimit_Reset="31")]
    )
    with pytest.raises(RateLimited) as limited:
        asked(driven)
    assert limited.value.retry_after == 31
    assert limited.value.rate_limit is not None
    assert (limited.value.rate_limit.limit, limited.value.rate_limit.remaining) == (2, 0)


def test_retry_after_may_be_a_date_of_the_servers_clock() -> None:
    now = datetime(2001, 5, 6, 12, tzinfo=UTC)
    headers = {"date": format_datetime(now, usegmt=True)}
    later = format_datetime(now + timedelta(seconds=9), usegmt=True)
    assert retry_after_of({**headers, "retry-after": later}) == 9
    assert retry_after_of({**headers, "retry-after": format_datetime(now - timedelta(seconds=9))}) == 0
    assert 8 <= (retry_after_of({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=10))}) or 0) <= 10


@pytest.mark.parametrize("text", ["soon", "", "nan", "inf", "Fri, 99 Xxx 2001"])
def test_a_retry_after_that_says_nothing_is_none(text: str) -> None:
    assert retry_after_of({"retry-after": text}) is None


def test_the_deadline_bounds_pauses_and_attempts() -> None:
    driven = Driven([refused(503, Retry_After="1")] * 9, retries=9, took_s=0.5)
    with pytest.raises(Overloaded):
        asked(driven, deadline=Deadline(4.0, clock=driven.clock))
    assert driven.clock.now <= 1004
    told = [int(request.headers["X-Deadline-Ms"]) for request in driven.sent]
    assert told[0] == 3800
    assert told == sorted(told, reverse=True)
    assert len(told) == 3
    assert driven.sent[1].extensions["timeout"]["read"] < 4.0


def test_a_deadline_that_passed_sends_nothing() -> None:
    driven = Driven([])
    deadline = Deadline(1.0, clock=driven.clock)
    driven.clock.now += 2
    with pytest.raises(DeadlineExceeded) as passed:
        asked(driven, deadline=deadline)
    assert (passed.value.status, passed.value.code) == (0, "deadline_exceeded")
    assert isinstance(passed.value, TimeoutError)


def test_a_deadline_lies_ahead() -> None:
    with pytest.raises(ValueError, match="above 0"):
        asked(Driven([]), deadline=0)


def test_what_goes_on_as_a_job_is_not_asked_again() -> None:
    job = "/api/jobs/0198a000-0000-7000-8000-000000000001/"
    body = {"error": "Not yet.", "code": "deadline_exceeded", "errors": [], "retryable": True, "job": job}
    for answer in (httpx.Response(504, json=body), httpx.Response(202, json={"id": job.split("/")[3], "job": job})):
        driven = Driven([answer])
        with pytest.raises(DeadlineExceeded) as late:
            asked(driven)
        assert late.value.job_id == "0198a000-0000-7000-8000-000000000001"


def described(name: str) -> httpx.Response:
    spec = {"name": name, "datatype": "FP32", "shape": [-1, 1]}
    return httpx.Response(200, json={"name": "d", "versions": ["1"], "inputs": [spec], "outputs": [spec]})


def test_a_deployment_that_moved_on_to_other_inputs_is_asked_anew_once() -> None:
    answer = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [2]}]}
    good = httpx.Response(200, headers=OK, json=answer)
    driven = Driven([described("a"), good, refused(422, code="unknown_feature"), described("b"), good])
    for _ in range(2):
        assert driven.run(driven.calls.predict("d", [[1.0]], None, {})).output.tolist() == [[2]]
    assert b'"name":"b"' in driven.sent[-1].stream._stream  # type: ignore[attr-defined]  # ByteStream's bytes
    driven.answers = [refused(422, code="unknown_feature"), described("b")]
    with pytest.raises(InvalidInput):
        driven.run(driven.calls.predict("d", [[1.0]], None, {}))


def test_the_next_page_is_asked_of_the_same_server() -> None:
    row = {"name": "d", "model": "m", "team": "t", "description": "", "lane": "auto", "split": None, "labels": {},
           "max_rows": 1, "max_body_bytes": 1, "retired_at": None}  # fmt: skip
    elsewhere = "http://elsewhere.example.com/api/deployments/?cursor=abc"
    pages = [httpx.Response(200, json={"next": page, "results": [row]}) for page in (elsewhere, None)]
    driven = Driven(list(pages))
    assert len(driven.run(driven.calls.deployments())) == 2
    assert {request.url.host for request in driven.sent} == {"signalbox.example.org"}
    assert driven.sent[1].url.params["cursor"] == "abc"


def job_answer(status: str) -> httpx.Response:
    told = {"id": "j1", "status": status, "deployment": "d", "version": 1, "client_id": "", "prediction_id": None,
            "progress": 0.0, "attempts": 1, "warnings": [], "created_at": "2026-01-01T00:00:00+00:00",
            "finished_at": None, "result": None, "error": None}  # fmt: skip
    return httpx.Response(200, json=told)


def test_a_job_is_waited_for_at_the_server_and_not_past_its_time() -> None:
    driven = Driven([job_answer("running"), job_answer("running")], took_s=30.0)
    with pytest.raises(DeadlineExceeded) as late:
        driven.run(driven.calls.wait_for_job("j1", 45.0))
    assert [request.url.params["wait"] for request in driven.sent] == ["30.000", "15.000"]
    assert driven.sent[0].extensions["timeout"]["read"] == 60.0
    assert (late.value.job_id, driven.pauses) == ("j1", [])


def test_a_server_that_does_not_wait_is_not_asked_at_once_again() -> None:
    driven = Driven([job_answer("queued"), job_answer("queued"), job_answer("succeeded")])
    driven.run(driven.calls.wait_for_job("j1", None))
    assert driven.pauses == [1.0, 1.0]


def test_feedback_goes_by_the_thousand_and_names_refused_rows_by_their_place() -> None:
    def report(rows: int, *bad: int) -> httpx.Response:
        results = [{"index": index, "status": 201, "prediction_id": None} for index in range(rows)]
        for index in bad:
            results[index] |= {
                "status": 422,
                "code": "unknown_label",
                "detail": "No.",
                "errors": [],
                "retryable": False,
            }
        return httpx.Response(200, json={"counted": rows - len(bad), "pending": 0, "results": results})

    driven = Driven([report(1000), report(5, 3)])
    taken = driven.run(driven.calls.feedback_batch([Feedback("yes", f"p{n}") for n in range(1005)], None))
    assert (taken.counted, [row.index for row in taken.refused]) == (1004, [1003])
    assert [len(json.loads(request.stream._stream)["feedback"]) for request in driven.sent[1:]] == [5]  # type: ignore[attr-defined]


def test_deadlines_tell_what_is_left() -> None:
    clock = Clock()
    deadline = Deadline(2.0, clock=clock)
    clock.now += 0.5
    assert deadline.left_s == 1.5
    clock.now += 5
    assert deadline.left_s == 0
