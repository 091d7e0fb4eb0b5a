"""What a key may post as jobs in a minute, and how what is refused at that address is counted: each call once."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from controlplane.accounts import limits
from controlplane.accounts.models import ApiKey, QuotaUse, Team
from controlplane.deployments.models import Deployment
from controlplane.jobs import running
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.jobs.services.claiming import claim_batch, sweep
from controlplane.predictions.models import FailedCall, KeyUse, Prediction, Rollup
from inference.errors import InferenceError
from inference.limits import ADMITTED_HEADER, admitted_mark
from inference.worker import WorkResult
from tests.controlplane.cast import Caller, bearer, new_key, nobody
from tests.controlplane.jobs.conftest import children, home, table

__all__ = ["children", "home", "table"]
pytestmark = pytest.mark.django_db
POST = "/api/deployments/line/jobs/"
GOOD, BAD = {"instances": [{"a": 1, "b": 2, "c": 3}]}, {"instances": [{"a": 1, "b": 2}]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker, and no memory of what other tests counted."""
    monkeypatch.setattr("controlplane.jobs.dispatch.app.send_task", lambda *_, **__: None)
    monkeypatch.setattr(limits, "_away_until", 0.0)
    monkeypatch.setattr(limits, "_paid_back_at", {})


@pytest.fixture
def no_redis(settings: Any, tmp_path: Any) -> None:
    settings.REDIS_URL = f"redis+socket://{tmp_path}/nobody.sock?virtual_host=0"


def remaining(answer: Any) -> tuple[int, str | None]:
    return answer.status_code, answer.headers.get("RateLimit-Remaining")


def assert_held(app: Caller) -> None:
    """A key with three calls a minute: every answer tells what is left, and the fourth is refused in words."""
    answers = [app.post(POST, GOOD), app.post(POST, BAD), app.post(POST, GOOD), app.post(POST, GOOD)]
    assert [remaining(answer) for answer in answers] == [(202, "2"), (422, "1"), (202, "0"), (429, "0")]
    refused = answers[3]
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert (refused.json()["code"], refused.json()["retryable"]) == ("rate_limited", True)
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert refused.headers["RateLimit-Limit"] == "3"
    assert Job.objects.count() == 2


def test_a_keys_limit_holds_for_jobs_too(redis_url: str, as_key: Callable[..., Caller], table: Deployment) -> None:
    assert_held(as_key("predict", rate_per_minute=3))
    assert limits._paid_back_at == {}, "counted in Redis, for every process"


def test_without_redis_each_process_counts_and_says_so_once(
    no_redis: None, as_key: Callable[..., Caller], table: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    assert_held(as_key("predict", rate_per_minute=3))
    assert [record.name for record in caplog.records if "Redis" in record.getMessage()] == [limits.__name__]


def test_a_key_without_a_limit_is_told_none(redis_url: str, as_key: Callable[..., Caller], table: Deployment) -> None:
    assert remaining(as_key("predict").post(POST, GOOD)) == (202, None)


def test_looking_at_jobs_uses_nothing(redis_url: str, as_key: Callable[..., Caller], table: Deployment) -> None:
    app = as_key("predict", rate_per_minute=1)
    location = app.post(POST, GOOD)["Location"]
    assert [app.get(path).status_code for path in (location, POST, location)] == [200, 200, 200]


def test_the_counter_in_redis_is_atomic(redis_url: str, team: Team) -> None:
    key = new_key(team, ["predict"], rate_per_minute=7)[0]
    taken: list[bool] = []

    def take() -> None:
        try:
            limits.take(key)
            taken.append(True)
        except InferenceError:
            taken.append(False)

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(taken), len(taken)) == (7, 20)


def test_a_smaller_limit_counts_from_what_the_larger_one_left(redis_url: str, team: Team) -> None:
    key = new_key(team, ["predict"], rate_per_minute=600)[0]
    for _ in range(500):
        limits.take(key)
    key.rate_per_minute = 1
    with pytest.raises(InferenceError) as refused:
        limits.take(key)
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60


def test_what_the_front_door_counted_is_not_counted_again(
    redis_url: str, team: Team, table: Deployment, settings: Any
) -> None:
    _, token = new_key(team, ["predict"], rate_per_minute=1)
    app = bearer(token)
    passed_on = Caller(app.client, {**app.headers, ADMITTED_HEADER: admitted_mark(settings.SECRET_KEY)})
    pretender = Caller(app.client, {**app.headers, ADMITTED_HEADER: admitted_mark("another secret")})

    assert [remaining(passed_on.post(POST, body)) for body in (GOOD, BAD, GOOD)] == [
        (202, None),
        (422, None),
        (202, None),
    ]
    assert not Rollup.objects.exists() and not FailedCall.objects.exists()
    assert [remaining(pretender.post(POST, GOOD)) for _ in range(2)] == [(202, "0"), (429, "0")]


def test_a_quota_holds_for_a_day_and_is_told(redis_url: str, as_key: Callable[..., Caller], table: Deployment) -> None:
    app = as_key("predict", rate_per_minute=100, quota_per_day=2)
    answers = [app.post(POST, GOOD) for _ in range(3)]
    assert [remaining(answer) for answer in answers] == [(202, "1"), (202, "0"), (429, "0")]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {"100;w=60, 2;w=86400"}
    assert answers[2].json()["code"] == "quota_exceeded"
    assert answers[2].headers["Retry-After"] == answers[2].headers["RateLimit-Reset"]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 86_400
    assert Job.objects.count() == 2


def test_a_quota_counts_what_front_doors_told(team: Team) -> None:
    key = new_key(team, ["predict"], quota_per_day=10)[0]
    QuotaUse.objects.create(key_id=key.pk, day=timezone.now().date(), calls=9)
    limits.take(key)
    with pytest.raises(InferenceError, match="quota of 10 calls a day"):
        limits.take(key)
    assert limits.calls_of_day(key, timezone.now()) == 10


def test_quotas_of_days_long_past_are_forgotten(team: Team) -> None:
    key = new_key(team, ["predict"], quota_per_day=10)[0]
    today = datetime.now(UTC).date()
    for days in (0, 1, 7, 8, 400):
        QuotaUse.objects.create(key_id=key.pk, day=today - timedelta(days=days), calls=9)
    assert limits.forget_past_days() == 2
    assert QuotaUse.objects.count() == 3
    assert limits.calls_of_day(key, timezone.now()) == 9


# Counting refusals


def codes() -> dict[str, int]:
    """Calls by error code, as the rollups add up."""
    found: dict[str, int] = {}
    for rollup in Rollup.objects.all():
        assert rollup.failed == sum(rollup.codes.values())
        for code, count in rollup.codes.items():
            found[code] = found.get(code, 0) + count
    return found


def use(key: ApiKey) -> tuple[int, int]:
    """(calls, failed calls) of a key."""
    hours = KeyUse.objects.filter(key_id=key.pk)
    return sum(hour.calls for hour in hours), sum(hour.failed for hour in hours)


def test_a_call_refused_at_the_jobs_address_is_counted_once(team: Team, table: Deployment) -> None:
    key, token = new_key(team, ["predict"])
    app = bearer(token)
    refused = [app.post(POST, BAD), app.post(POST, BAD), app.post("/api/deployments/nobody/jobs/", GOOD)]

    assert [answer.status_code for answer in refused] == [422, 422, 404]
    assert codes() == {"unknown_feature": 2, "not_found": 1}
    assert {rollup.deployment_id for rollup in Rollup.objects.filter(codes__has_key="unknown_feature")} == {table.pk}
    assert use(key) == (3, 3)
    kept = FailedCall.objects.filter(key_id=key.pk, code="unknown_feature")
    assert {call.request_id for call in kept} == {answer["X-Request-Id"] for answer in refused[:2]}
    assert {call.loc for call in kept} == {"c"}


def test_what_is_over_the_limit_is_counted_once(no_redis: None, team: Team, table: Deployment) -> None:
    key, token = new_key(team, ["predict"], rate_per_minute=1)
    for _ in range(3):
        bearer(token).post(POST, GOOD)
    assert codes() == {"rate_limited": 2}
    assert Rollup.objects.filter(outcomes__shed=1).count() == 2
    assert use(key) == (2, 2), "the job that was taken on is counted when it ends"


def test_nobody_and_who_only_looks_leave_no_row(team: Team, table: Deployment) -> None:
    assert nobody().post(POST, GOOD).status_code == 401
    assert bearer("sb_" + "x" * 40).post(POST, GOOD).status_code == 401
    assert bearer(new_key(team, ["predict"])[1]).get(POST, status="odd").status_code == 422
    assert not Rollup.objects.exists() and not FailedCall.objects.exists()


def test_a_test_keys_refusals_are_in_no_rollup(team: Team, table: Deployment) -> None:
    key, token = new_key(team, ["predict"], test=True)
    bearer(token).post(POST, BAD)
    assert (codes(), use(key)) == ({}, (1, 1))


def test_a_persons_refused_call_is_counted_too(as_owner: Caller, table: Deployment) -> None:
    assert as_owner.post(POST, BAD).status_code == 422
    assert codes() == {"unknown_feature": 1}


class Failing:
    """A runtime whose every run ends with this error."""

    def __init__(self, code: str) -> None:
        self.code = code

    def predict(self, *_: Any, **__: Any) -> list[WorkResult]:
        return [WorkResult(error=InferenceError(self.code))]


@pytest.mark.parametrize(
    ("error", "runs", "code"),
    [("model_rejected_input", 1, "model_rejected_input"), ("internal", 3, "attempts_exhausted")],
)
def test_a_job_that_fails_is_counted_once_under_the_code_that_it_ends_with(
    error: str, runs: int, code: str, team: Team, table: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = new_key(team, ["predict"])
    posted = bearer(token).post(POST, GOOD)
    with monkeypatch.context() as patched:
        patched.setattr(running, "_host", Failing(error))
        for _ in range(runs + 1):
            run_batch("x")
    job = Job.objects.get()
    assert job.error is not None and job.error["code"] == code
    assert (codes(), use(key), Prediction.objects.count()) == ({code: 1}, (1, 1), 0)
    assert FailedCall.objects.get().request_id == posted["X-Request-Id"]


def test_a_job_whose_workers_died_is_counted_once(team: Team, table: Deployment) -> None:
    key, token = new_key(team, ["predict"])
    bearer(token).post(POST, GOOD)
    for _ in range(3):
        claim_batch("doomed", 8)
        Job.objects.filter(status="running").update(leased_until=timezone.now() - timedelta(seconds=1))
        sweep()
    assert (codes(), use(key)) == ({"attempts_exhausted": 1}, (1, 1))
