"""Who is doctor and data scientist in one team: of a study to be read first, no page or address shows a score."""

import pytest
from django.test import Client

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.studies.models import ReadingPolicy, Study
from controlplane.studies.services.sending import send_study
from tests.controlplane.cast import new_user, signed_in
from tests.controlplane.studies.conftest import (
    Say,
    as_actor,
    broker,
    chest_model,
    children,
    doctor,
    draft,
    home,
    picture,
    say,
    xray,
)

__all__ = ["broker", "chest_model", "children", "doctor", "home", "say", "xray"]
pytestmark = pytest.mark.django_db

LIST = "/deployments/xray/predictions/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def unread(doctor: User, xray: Deployment) -> Study:
    """A study that is to be read first; its suggestion is there."""
    ReadingPolicy.objects.create(deployment=xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    return study


@pytest.fixture
def both(team: Team) -> Client:
    return signed_in(new_user("both", team, Role.DOCTOR, Role.DATA_SCIENTIST))


def pages(job: Job) -> list[str]:
    return [LIST, f"{LIST}{job.pk}/", f"/jobs/{job.pk}/"]


def addresses(job: Job) -> list[str]:
    return [f"/api/predictions/{job.pk}/", f"/api/jobs/{job.pk}/", f"/api/jobs/{job.pk}/?wait=1"]


def scores(job: Job) -> list[str]:
    assert job.result is not None
    return [str(score)[:5] for score in job.result["scores"].values()]


def seen() -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(action__in=["payload.view", "prediction.view_payload", "job.view_payload"]))


def test_no_page_shows_a_score_before_the_answer_and_each_says_why(both: Client, unread: Study) -> None:
    job = Job.objects.get()
    for page in pages(job):
        for headers in ({}, HTMX):
            content = both.get(page, headers=headers).content.decode()
            assert "hown after your answer" in content, page
            assert not [score for score in scores(job) if score in content], page
    assert seen() == []


def test_no_address_tells_a_score_before_the_answer_and_each_says_why(both: Client, unread: Study) -> None:
    job = Job.objects.get()
    for address in addresses(job):
        answer = both.get(address)
        assert answer.json()["payload"] == "after_answer", address
        assert not [score for score in scores(job) if score in answer.content.decode()], address
    for address in ("/api/predictions/?deployment=xray", f"/api/predictions/{job.pk}/feedback/"):
        assert not [score for score in scores(job) if score in both.get(address).content.decode()], address
    assert seen() == []


def test_after_the_answer_each_shows_them(both: Client, unread: Study, say: Say) -> None:
    say(unread, User.objects.get(username="both"), "correct", "dark")
    job = Job.objects.get()
    for page in pages(job):
        content = both.get(page).content.decode()
        assert "hown after your answer" not in content, page
        assert [score for score in scores(job) if score in content], page
    for address in addresses(job):
        assert [score for score in scores(job) if score in both.get(address).content.decode()], address
    assert [event.target_type for event in seen()].count("deployment") == 1
    assert {event.target_type for event in seen()} == {"deployment", "prediction", "job"}


def test_a_second_reader_waits_for_their_own_answer(both: Client, doctor: User, unread: Study, say: Say) -> None:
    Study.objects.update(readers=2)
    unread.refresh_from_db()
    say(unread, doctor, "correct", "dark")
    job = Job.objects.get()
    for page in pages(job):
        assert "hown after your answer" in both.get(page).content.decode(), page


def test_who_reads_no_studies_is_held_back_by_none(team: Team, unread: Study) -> None:
    scientist = signed_in(new_user("scientist", team, Role.DATA_SCIENTIST))
    job = Job.objects.get()
    for page in [*pages(job), *addresses(job)]:
        assert [score for score in scores(job) if score in scientist.get(page).content.decode()], page


def test_a_list_that_stays_open_is_audited_as_pictures_come(
    team: Team, doctor: User, xray: Deployment, unread: Study
) -> None:
    scientist = signed_in(new_user("scientist", team, Role.DATA_SCIENTIST))
    for _ in range(3):
        scientist.get(LIST, headers=HTMX)
    first = Job.objects.get()
    assert [event.after for event in seen()] == [{"predictions": [str(first.pk)]}]
    send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture(20)))
    run_batch("x")
    second = Job.objects.exclude(pk=first.pk).get()
    for _ in range(3):
        scientist.get(LIST, headers=HTMX)
    assert seen()[0].after == {"predictions": [str(second.pk)]}
    assert len(seen()) == 2
    scientist.get(LIST)
    assert seen()[0].after == {"predictions": sorted([str(first.pk), str(second.pk)])}
