"""A job's life: claimed by one, finished once, tried three times, cancelled, swept."""

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from controlplane.accounts.models import ApiKey
from controlplane.audit.services import SYSTEM
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs import dispatch, running, vault
from controlplane.jobs.models import Job, JobStatus
from controlplane.jobs.running import run_batch
from controlplane.jobs.services.claiming import cancel, claim_batch, clean, fail, renew, sweep
from controlplane.jobs.services.submitting import Asker, Submission, submit_job
from controlplane.predictions.models import Prediction, Rollup
from inference.errors import InferenceError
from inference.worker import WorkResult
from tests.controlplane.jobs.conftest import serve

Submit = Callable[..., Job]


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[uuid.UUID]:
    """The messages that went to the broker."""
    messages: list[uuid.UUID] = []
    monkeypatch.setattr(dispatch.app, "send_task", lambda name, args, queue: messages.append(uuid.UUID(args[0])))
    monkeypatch.setattr(dispatch, "_broker_down_until", 0.0)
    return messages


@pytest.fixture
def submit(table: Deployment, issued: tuple[ApiKey, str]) -> Submit:
    def one(rows: str = '{"instances": [[1, 2, 3]]}', **fields: Any) -> Job:
        job, _ = submit_job(
            asker=Asker(key=issued[0]),
            deployment=table,
            submission=Submission(body=rows.encode(), media_type="application/json", **fields),
        )
        return job

    return one


@pytest.mark.django_db
def test_a_job_runs_and_is_a_logged_prediction(submit: Submit, django_capture_on_commit_callbacks: Any,
                                               sent: list[uuid.UUID]) -> None:  # fmt: skip
    with django_capture_on_commit_callbacks(execute=True):
        job = submit(client_id="mine", context={"ward": "7"})
    assert sent == [job.pk]

    assert run_batch(str(job.pk)) == 1

    job.refresh_from_db()
    assert (job.status, job.attempts, job.progress, job.device) == ("succeeded", 1, 1.0, "cpu")
    assert job.result["outputs"] == {"y": [[2.5]]}
    row = Prediction.objects.get()
    assert (row.id, row.lane, row.client_id, row.inputs) == (
        job.pk, "job", "mine", {"a": [1.0], "b": [2.0], "c": [3.0]}
    )  # fmt: skip
    assert row.scores == {"y": [2.5]} or list(row.scores.values()) == [[2.5]]
    assert Rollup.objects.get().calls == 1
    assert run_batch(str(job.pk)) == 0


@pytest.mark.django_db
def test_jobs_of_one_version_run_as_a_batch_and_a_bad_one_fails_alone(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submit() for _ in range(4)]
    broken = Job.objects.get(pk=jobs[1].pk)
    vault.remove(broken.payload)

    assert run_batch("x") == 4

    assert [job.status for job in Job.objects.order_by("id")] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert Job.objects.get(pk=broken.pk).error["code"] == "internal"


@pytest.mark.django_db(transaction=True)
def test_no_job_is_claimed_twice(submit: Submit) -> None:
    ids = {submit().pk for _ in range(30)}
    claimed: list[list[uuid.UUID]] = []

    def take() -> None:
        mine = []
        while jobs := claim_batch("w", 4):
            mine += [job.pk for job in jobs]
        claimed.append(mine)
        connection.close()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [pk for mine in claimed for pk in mine]
    assert len(found) == len(set(found)) == 30
    assert set(found) == ids


@pytest.mark.django_db
def test_a_batch_is_of_one_version(submit: Submit, table: Deployment, pictures: Deployment) -> None:
    first = submit()
    version = pictures.model.versions.get(number=1)
    Job.objects.filter(pk=submit().pk).update(version=version, deployment=pictures)

    assert [job.pk for job in claim_batch("w", 10)] == [first.pk]


def expire() -> None:
    Job.objects.filter(status="running").update(leased_until=timezone.now() - timedelta(seconds=1))


@pytest.mark.django_db
def test_a_lost_worker_is_replaced_three_times_then_the_failure_shows(submit: Submit, sent: list[uuid.UUID]) -> None:
    job = submit()
    for attempt in (1, 2, 3):
        (claimed,) = claim_batch(f"worker {attempt}", 8)
        assert claimed.attempts == attempt
        expire()
        assert sweep() >= 1
    job.refresh_from_db()
    assert (job.status, job.error["code"]) == ("failed", "attempts_exhausted")
    assert claim_batch("another", 8) == []


@pytest.mark.django_db
def test_a_renewed_lease_is_kept_and_a_late_worker_cannot_finish(submit: Submit) -> None:
    job = submit()
    (claimed,) = claim_batch("slow", 8)
    assert claimed.lease is not None
    expire()
    assert renew(claimed.lease) == 1
    assert sweep() == 0
    expire()
    sweep()
    (second,) = claim_batch("quick", 8)

    assert not fail(claimed, code="invalid_input", detail="late")
    assert fail(second, code="invalid_input", detail="in time")

    job.refresh_from_db()
    assert job.error["detail"] == "in time"


@pytest.mark.django_db
def test_a_job_that_killed_its_worker_is_tried_alone(submit: Submit) -> None:
    jobs = [submit() for _ in range(3)]
    claim_batch("doomed", 8)
    expire()
    sweep()

    assert [[job.pk for job in claim_batch("w", 8)] for _ in range(3)] == [[job.pk] for job in jobs]


@pytest.mark.django_db
def test_a_worker_that_dies_in_a_batch_sends_its_jobs_back(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def predict(self, *_: Any, **__: Any) -> list[WorkResult]:
            return [WorkResult(error=InferenceError("worker_lost"))]

    job = submit()
    with monkeypatch.context() as patched:
        patched.setattr(running, "_host", Dying())
        run_batch("x")
        job.refresh_from_db()
        assert (job.status, job.attempts) == ("queued", 1)
        run_batch("x")
        run_batch("x")
    job.refresh_from_db()
    assert (job.status, job.error["code"]) == ("failed", "attempts_exhausted")
    assert not Prediction.objects.filter(outcome="ok").exists()


@pytest.mark.django_db
def test_a_cancelled_job_keeps_no_result(submit: Submit, django_capture_on_commit_callbacks: Any) -> None:
    waiting, running_one = submit(), None
    with django_capture_on_commit_callbacks(execute=True):
        cancel(actor=SYSTEM, job=waiting)
    assert vault.names_older_than(timezone.now().timestamp() + 60) == []
    running_one = submit()
    (claimed,) = claim_batch("w", 8)
    cancel(actor=SYSTEM, job=running_one)
    assert not fail(claimed, code="invalid_input", detail="late")
    running_one.refresh_from_db()
    assert running_one.status == JobStatus.CANCELLED
    done = submit()
    run_batch("x")
    done.refresh_from_db()
    with pytest.raises(DomainError) as refused:
        cancel(actor=SYSTEM, job=done)
    assert refused.value.code == "conflict"


@pytest.mark.django_db
def test_a_broker_that_is_down_fails_no_request_and_the_sweeper_sends_again(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, sent: list[uuid.UUID], django_capture_on_commit_callbacks: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError

    with monkeypatch.context() as patched:
        patched.setattr(dispatch.app, "send_task", refuse)
        with django_capture_on_commit_callbacks(execute=True):
            job = submit()
    assert job.status == "queued"
    monkeypatch.setattr(dispatch, "_broker_down_until", 0.0)
    assert sweep() == 0  # not silent for long enough yet
    Job.objects.update(dispatched_at=timezone.now() - timedelta(seconds=11))

    assert sweep() == 1

    assert sent == [job.pk]
    assert sweep() == 0


@pytest.mark.django_db
def test_inputs_are_erased_after_the_job_and_rows_after_the_retention(submit: Submit, home: Path) -> None:
    job = submit()
    run_batch("x")
    assert clean() == 0
    Job.objects.update(finished_at=timezone.now() - timedelta(hours=2))
    assert clean() == 1
    job.refresh_from_db()
    assert (job.payload, job.payload_key) == ("", None)
    assert [path for path in (home / "pictures").rglob("*") if path.is_file()] == []
    Job.objects.update(finished_at=timezone.now() - timedelta(days=31))
    assert clean() == 1
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_the_split_decides_at_admission_with_the_same_keys(
    pictures: Deployment, issued: tuple[ApiKey, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlplane.deployments.documents import active_route
    from controlplane.jobs.services import submitting
    from inference.routing import bucket, choose

    serve(pictures, v1=5_000, v2=5_000)
    route = active_route(pictures)
    for n in range(20):
        key = f"patient-{n}"
        expected = choose(route, bucket(route.salt, key))
        by_sticky = Submission(b"x", "image/png", sticky_key=key, idempotency_key="other")
        by_idempotency = Submission(b"x", "image/png", idempotency_key=key)
        assert submitting._choose_version(route, by_sticky).number == expected
        assert submitting._choose_version(route, by_idempotency).number == expected
    assert submitting._choose_version(route, Submission(b"x", "image/png", pin=2)).number == 2
