"""Sending a study: one version for all pictures, one private job each, sent once."""

import threading
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from controlplane.accounts.models import User
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.jobs.beating import beat, forget_silent
from controlplane.jobs.models import Job, Worker
from controlplane.jobs.running import run_batch
from controlplane.jobs.services.claiming import claim_batch, clean, sweep
from controlplane.predictions.models import Prediction
from controlplane.studies.models import Study, StudyState
from controlplane.studies.queries import find_study
from controlplane.studies.services.drafts import add_picture
from controlplane.studies.services.policy import set_policy
from controlplane.studies.services.sending import send_study
from controlplane.studies.suggestion import suggestion
from tests.controlplane.jobs.conftest import serve
from tests.controlplane.studies.conftest import as_actor, draft, picture
from tests.inference.runtime.picture_files import dicom

pytestmark = pytest.mark.django_db


def test_it_works(doctor: User, xray: Deployment, chest_model: ModelVersion, broker: list[uuid.UUID],
                  django_capture_on_commit_callbacks: object) -> None:  # fmt: skip
    study = draft(doctor, xray, picture(-30), picture(60))
    assert suggestion(study).state == "draft"

    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]  # a fixture typed as object
        study = send_study(actor=as_actor(doctor), study=study)

    jobs = list(Job.objects.order_by("id"))
    assert sorted(broker) == sorted(job.pk for job in jobs)
    assert [(job.private, job.user_id, job.source, job.context, job.body_sha256) for job in jobs] == [
        (True, doctor.pk, "live", {}, "")
    ] * 2
    waiting = suggestion(study)
    assert (waiting.state, waiting.place, waiting.worker_alive) == ("queued", 1, False)
    assert (study.state, study.version_id, study.purpose) == ("sent", jobs[0].version_id, "research")
    assert study.sent_at is not None
    assert study.erase_at == study.sent_at + timedelta(days=90)
    beat("a worker")
    assert suggestion(study).worker_alive

    assert run_batch("x") == 2

    told = suggestion(Study.objects.select_related("version__model").get(pk=study.pk))
    assert (told.state, told.model, told.version, told.device) == ("ready", "chest", jobs[0].number, "cpu")
    assert [part.above[0].label for part in told.pictures] == ["dark", "bright"]
    assert told.sentence.startswith("Above their threshold: Picture 1: dark (score 0.")
    assert told.above == ("dark", "bright")
    assert [score.threshold for score in told.pictures[0].scores] == [0.5, 0.5]
    assert told.unchecked == ("modality", "view", "age")
    assert Prediction.objects.count() == 2


def test_sent_twice_is_sent_once(doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture())
    first = send_study(actor=as_actor(doctor), study=study)
    again = send_study(actor=as_actor(doctor), study=study)

    assert first == again
    assert Job.objects.count() == 1
    with pytest.raises(DomainError, match="sent already"):
        add_picture(actor=as_actor(doctor), study=study, content=picture(9))


@pytest.mark.django_db(transaction=True)
def test_sent_twice_at_once_is_sent_once(home: Path, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture(), picture(9))
    states: list[str] = []

    def send() -> None:
        states.append(send_study(actor=as_actor(doctor), study=study).state)
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert states == ["sent"] * 4
    assert Job.objects.count() == 2
    # What the slower ones had sealed for jobs that never were is gone.
    payloads = set(Job.objects.values_list("payload", flat=True))
    assert set(vault.names_older_than(timezone.now().timestamp() + 60)) == payloads


def test_a_study_never_mixes_versions(doctor: User, xray: Deployment) -> None:
    serve(xray, v1=5_000, v2=5_000)
    numbers = set()
    for shade in range(12):
        study = send_study(
            actor=as_actor(doctor), study=draft(doctor, xray, picture(), picture(9), reference=str(shade))
        )
        found = set(study.pictures.values_list("job__number", flat=True))
        assert len(found) == 1
        assert study.version is not None
        assert found == {study.version.number}
        numbers |= found
    assert numbers == {1, 2}


def test_nothing_is_sent_where_nothing_can_be(home: Path, doctor: User, xray: Deployment) -> None:
    with pytest.raises(DomainError, match="Add a picture"):
        send_study(actor=as_actor(doctor), study=draft(doctor, xray))
    study = draft(doctor, xray, picture())
    xray.revisions.update(state="superseded", activated_at=None)
    with pytest.raises(DomainError) as refused:
        send_study(actor=as_actor(doctor), study=study)
    assert refused.value.code == "no_active_version"
    assert not Job.objects.exists()
    assert vault.names_older_than(timezone.now().timestamp() + 60) == []
    assert Study.objects.get(pk=study.pk).state == StudyState.DRAFT


def test_what_does_not_fit_the_intended_use_is_said(doctor: User, xray: Deployment) -> None:
    fits = dicom(ViewPosition="PA", PatientAge="034Y")
    wrong = dicom(ViewPosition="LATERAL", PatientAge="004Y", Modality="CT")
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, fits, wrong))
    told = suggestion(study)

    assert told.pictures[0].mismatches == ()
    assert [said.split(";")[0] for said in told.mismatches] == [
        "Picture 2: Wrong modality: the picture says CT",
        "Picture 2: Wrong view: the picture says LATERAL",
        "Picture 2: Wrong age: the picture says 4 years",
    ]


def test_policy_and_purpose_are_those_of_the_sending(doctor: User, xray: Deployment) -> None:
    actor = as_actor(doctor)
    set_policy(actor=actor, deployment=xray, read_first=True, readers=2, retention_days=7)
    study = send_study(actor=actor, study=draft(doctor, xray, picture()))
    set_policy(actor=actor, deployment=xray, read_first=False, readers=1, retention_days=1)

    study.refresh_from_db()
    assert (study.read_first, study.readers, study.purpose) == (True, 2, "research")
    assert study.sent_at is not None
    assert study.erase_at == study.sent_at + timedelta(days=7)


def test_a_study_whose_worker_dies_three_times_fails_and_says_what_to_do(doctor: User, sent: Study) -> None:
    for attempt in range(3):
        assert suggestion(sent).state == "queued"
        claim_batch(f"doomed {attempt}", 8)
        assert suggestion(sent).state == "running"
        Job.objects.update(leased_until=timezone.now() - timedelta(seconds=1))
        sweep()

    told = suggestion(sent)
    assert told.state == "failed"
    assert told.sentence.startswith("The suggestion could not be made. Your pictures are safe")
    assert "Send it again as a new study" in told.failure
    assert find_study(doctor, sent.pk, actor=as_actor(doctor)).status == "failed"  # type: ignore[attr-defined]  # annotated by with_status


def test_a_workers_silence_is_noticed_and_forgotten(sent: Study) -> None:
    beat("quiet")
    Worker.objects.update(seen_at=Now() - timedelta(seconds=20))
    assert not suggestion(sent).worker_alive
    beat("quiet")
    assert suggestion(sent).worker_alive
    assert forget_silent() == 0
    Worker.objects.update(seen_at=Now() - timedelta(seconds=20))
    assert forget_silent() == 1


def test_a_studys_jobs_outlive_the_logs_retention(ready: Study) -> None:
    Job.objects.update(finished_at=timezone.now() - timedelta(days=31))
    clean()
    assert suggestion(ready).state == "ready"
