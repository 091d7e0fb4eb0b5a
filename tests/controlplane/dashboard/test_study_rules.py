"""The doctor's pages: what is audited, what a form may not do, what stays as it was."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.purpose import set_purpose
from controlplane.jobs.models import Job
from controlplane.studies import explaining
from controlplane.studies.models import Study, StudyState
from controlplane.studies.services.sending import send_study
from tests.controlplane.cast import new_user, signed_in
from tests.controlplane.dashboard.test_studies import SCRIPT, doctors, file_of, new_study, verdict
from tests.controlplane.studies.conftest import (
    as_actor,
    broker,
    chest_model,
    children,
    doctor,
    draft,
    home,
    picture,
    ready,
    second,
    sent,
    xray,
)

__all__ = ["broker", "chest_model", "children", "doctor", "doctors", "home", "ready", "second", "sent", "xray"]
pytestmark = pytest.mark.django_db


def test_what_is_told_without_opening_the_page_is_audited_too(
    doctors: Client, second: User, team: Team, ready: Study
) -> None:
    signed_in(second).get(f"/studies/{ready.pk}/state/")
    assert verdict(signed_in(second), ready, answer="nonsense").status_code == 422
    verdict(doctors, ready, answer="correct", labels="dark")
    scientist = new_user("scientist", team, Role.DATA_SCIENTIST)
    signed_in(scientist).get(f"/studies/{ready.pk}/state/")
    seen = AuditEvent.objects.filter(action="study.view")
    assert seen.filter(actor_id=str(second.pk)).count() == 2
    assert seen.filter(actor_id=str(scientist.pk)).count() == 1


def test_a_form_too_large_for_its_files_sends_nothing(
    doctors: Client, doctor: User, xray: Deployment, settings: Any
) -> None:
    study = draft(doctor, xray, picture())
    settings.SIGNALBOX_MAX_PICTURE_BYTES = settings.FILE_UPLOAD_MAX_MEMORY_SIZE = len(picture()) + 100
    answer = new_study(doctors, picture(20), picture(30), identity=study.pk)
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/studies/{study.pk}/")
    assert "send fewer" in doctors.get(f"/studies/{study.pk}/").content.decode()
    study.refresh_from_db()
    assert (study.state, study.pictures.count()) == (StudyState.DRAFT, 1)


def test_who_left_the_team_cannot_go_on_with_a_draft_of_it(
    doctor: User, team: Team, other_team: Team, xray: Deployment
) -> None:
    study = draft(doctor, xray, picture())
    doctor.memberships.all().delete()
    doctor.memberships.create(team=other_team, role=Role.DOCTOR)
    client = signed_in(doctor)
    answer = client.post("/studies/new/", {"study": str(study.pk), "file": file_of(picture(20))})
    assert answer.status_code == 403
    assert client.post("/studies/new/", {"study": str(study.pk)}, headers=SCRIPT).status_code == 403
    study.refresh_from_db()
    assert (study.state, study.pictures.count()) == (StudyState.DRAFT, 1)


def test_a_study_names_who_had_approved_it_whatever_comes_after(
    doctors: Client, doctor: User, xray: Deployment
) -> None:
    set_purpose(actor=as_actor(doctor), deployment=xray, purpose="clinical", approver="Dr. May")
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    set_purpose(actor=as_actor(doctor), deployment=xray, purpose="clinical", approver="Dr. June")
    assert "approved by Dr. May." in doctors.get(f"/studies/{study.pk}/").content.decode()
    set_purpose(actor=as_actor(doctor), deployment=xray, purpose="research")
    assert "approved by Dr. May." in doctors.get(f"/studies/{study.pk}/").content.decode()


def test_a_heat_map_that_was_given_up_is_said_to_have_failed_and_what_to_do(doctors: Client, ready: Study) -> None:
    at = f"/studies/{ready.pk}/pictures/{ready.pictures.get().pk}/heat/?label=dark"
    assert doctors.get(at).status_code == 202
    Job.objects.update(finished_at=timezone.now() - explaining.GIVEN_UP_AFTER - timedelta(seconds=1))
    answer = doctors.get(at)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (404, "no-store")
    assert "could not be made" in answer.json()["detail"]
    assert "send the picture as a new study" in answer.json()["detail"]
    assert not AuditEvent.objects.filter(action="picture.view").exists()
