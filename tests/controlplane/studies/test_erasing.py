"""Erasing a study: no key, no file, no payload, no scores; its row and its events stay."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from controlplane.accounts.models import User
from controlplane.audit.models import AuditEvent
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.jobs.services.claiming import claim_batch, clean, fail
from controlplane.predictions.models import Prediction
from controlplane.studies import sealing
from controlplane.studies.models import Study, StudyState, Verdict
from controlplane.studies.queries import find_study, reference_of, worklist
from controlplane.studies.services import erasing
from controlplane.studies.services.drafts import add_picture
from controlplane.studies.services.erasing import erase_study, purge, sweep_files
from controlplane.studies.services.sending import send_study
from controlplane.studies.suggestion import suggestion
from tests.controlplane.cast import new_user, person
from tests.controlplane.studies.conftest import Say, as_actor, draft, picture

pytestmark = pytest.mark.django_db


def files(home: Path) -> list[Path]:
    return [path for path in (home / "pictures").rglob("*") if path.is_file()]


def test_an_erased_study_cannot_be_read_by_anyone(
    home: Path, ready: Study, doctor: User, say: Say, django_capture_on_commit_callbacks: Any
) -> None:
    say(ready, doctor, comment="as it says")
    kept = files(home)
    copies = {path: path.read_bytes() for path in kept}
    name = ready.pictures.get().name
    with django_capture_on_commit_callbacks(execute=True):
        erased = erase_study(actor=as_actor(doctor), study=ready)

    assert files(home) == []
    assert (erased.state, erased.wrapped_key, bytes(erased.reference), erased.reference_digest) == (
        "erased", None, b"", ""
    )  # fmt: skip
    job, row, verdict = Job.objects.get(), Prediction.objects.get(), Verdict.objects.get()
    assert (job.result, job.payload, job.payload_key, job.warnings) == (None, "", None, [])
    assert (row.inputs, row.outputs, row.scores, row.pictures, row.warnings) == (None,) * 5
    assert (bytes(verdict.comment), verdict.labels) == (b"", ["dark"])
    # Copies of the files, on a backup say, are noise without the key.
    for path, content in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(DomainError) as refused:
        sealing.open_file(erased, name)
    assert refused.value.code == "gone"
    assert reference_of(erased) == ""
    assert AuditEvent.objects.filter(action="study.erase", target_id=str(ready.pk)).exists()


def test_erased_twice_is_erased_once_and_takes_nothing_more(ready: Study, doctor: User, say: Say) -> None:
    erase_study(actor=as_actor(doctor), study=ready)
    erase_study(actor=as_actor(doctor), study=ready)
    assert AuditEvent.objects.filter(action="study.erase").count() == 1
    for act in (
        lambda: say(ready, doctor),
        lambda: send_study(actor=as_actor(doctor), study=ready),
        lambda: add_picture(actor=as_actor(doctor), study=Study.objects.get(), content=picture(5)),
    ):
        with pytest.raises(DomainError):
            act()
    assert worklist(doctor).rows == []
    assert [row.study for row in worklist(doctor, status="erased").rows] == [ready]
    assert suggestion(find_study(doctor, ready.pk, actor=as_actor(doctor))).state == "failed"


def test_a_waiting_or_running_job_of_it_is_cancelled(sent: Study, doctor: User, xray: Deployment) -> None:
    (claimed,) = claim_batch("w", 8)
    erase_study(actor=as_actor(doctor), study=sent)

    assert not fail(claimed, code="internal", detail="late")
    assert Job.objects.get().status == "cancelled"
    assert run_batch("x") == 0
    assert not Prediction.objects.exists()


def test_what_is_past_its_time_is_purged_and_its_job_then_too(home: Path, ready: Study) -> None:
    assert purge() == 0
    Study.objects.update(erase_at=timezone.now() - timedelta(seconds=1))
    assert purge() == 1
    assert purge() == 0
    assert Study.objects.get().state == StudyState.ERASED
    Job.objects.update(finished_at=timezone.now() - timedelta(days=31))
    clean()
    assert not Job.objects.exists()


def test_what_was_said_of_it_stays_hidden(ready: Study, doctor: User, team: Any, say: Say) -> None:
    say(ready, doctor, "correct", "bright")
    job_id = ready.pictures.get().job_id
    erase_study(actor=as_actor(doctor), study=ready)
    viewer = person(new_user("viewer", team, "viewer"))
    assert "bright" not in viewer.get(f"/api/predictions/{job_id}/").content.decode()


def test_a_draft_that_is_sent_while_it_is_due_is_not_erased(
    doctor: User, xray: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = [draft(doctor, xray, picture()) for _ in range(2)]
    Study.objects.update(erase_at=timezone.now() - timedelta(seconds=1))

    def erase(*, actor: Actor, study: Study) -> Study:
        for other in drafts:
            if other.pk != study.pk:
                send_study(actor=as_actor(doctor), study=other)
        return erase_study(actor=actor, study=study)

    monkeypatch.setattr(erasing, "erase_study", erase)
    assert purge() == 1
    kept = Study.objects.get()
    assert (kept.state, bool(kept.wrapped_key)) == (StudyState.SENT, True)


def test_files_that_no_study_names_go_however_many_belong_to_studies(ready: Study) -> None:
    orphans = [sealing.seal_file(ready, b"never named") for _ in range(3)]
    assert sweep_files() == 0
    for path in sealing._FILES.path.glob("*/*"):
        os.utime(path, (0, 0))
    assert sweep_files() == len(orphans)
    assert sweep_files() == 0
    assert sealing.open_file(ready, ready.pictures.get().name)
