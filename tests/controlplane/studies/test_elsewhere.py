"""What is told of a study on the pages and addresses of jobs, predictions, feedback and the audit log: nothing."""

import pytest

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.predictions.models import Feedback
from controlplane.studies.models import Study
from controlplane.studies.services.sending import send_study
from tests.controlplane.cast import Caller, new_key, new_user, person
from tests.controlplane.cast import bearer as with_key
from tests.controlplane.studies.conftest import REFERENCE, Say, as_actor, draft
from tests.inference.runtime.picture_files import chest, dicom

pytestmark = pytest.mark.django_db


@pytest.fixture
def job(doctor: User, xray: Deployment, say: Say) -> Job:
    """The job of a study that was answered, of a picture that warns of burned-in text."""
    content = dicom(chest(), BurnedInAnnotation="YES", ViewPosition="PA")
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, content))
    run_batch("x")
    say(study, doctor, "correct", "bright", comment="clearly bright")
    return Job.objects.get()


def addresses(job: Job) -> list[str]:
    return [
        f"/api/jobs/{job.pk}/",
        f"/api/jobs/{job.pk}/?wait=1",
        "/api/deployments/xray/jobs/",
        "/api/predictions/?deployment=xray",
        f"/api/predictions/{job.pk}/",
        f"/api/predictions/{job.pk}/feedback/",
        "/jobs/",
        f"/jobs/{job.pk}/",
        "/deployments/xray/predictions/",
        f"/deployments/xray/predictions/{job.pk}/",
        "/audit/",
    ]


def told(job: Job) -> list[str]:
    """What the study holds: scores to some digits, findings, its picture's hash, warnings, what the doctor said."""
    assert job.result is not None
    scores = [str(score)[:8] for score in job.result["scores"].values()]
    # The other label, dark, is also the name of a theme.
    return [*scores, "bright", "burned", "sha256", "clearly", REFERENCE, "logits"]


def test_who_may_not_see_payloads_gets_nothing_of_a_study(job: Job, team: Team, other_team: Team) -> None:
    callers: dict[str, Caller] = {
        "viewer": person(new_user("viewer", team, Role.VIEWER)),
        "developer": person(new_user("developer", team, Role.DEVELOPER)),
        "admin": person(new_user("admin", team, Role.ADMIN)),
        "site admin": person(User.objects.create(username="root", is_superuser=True, is_staff=True)),
        "another team's doctor": person(new_user("elsewhere", other_team, Role.DOCTOR)),
        "its own doctor": person(User.objects.get(username="doctor")),
        "a key": with_key(new_key(team, ["read", "predict", "feedback"])[1]),
        "an admin's key": with_key(new_key(team, ["admin"])[1]),
    }
    found = []
    for who, caller in callers.items():
        for address in addresses(job):
            response = caller.get(address)
            if response.status_code != 200:
                assert response.status_code in (302, 401, 403, 404), (who, address, response.status_code)
                continue
            content = response.content.decode()
            found += [(who, address, text) for text in told(job) if text in content]
    assert found == []


def test_the_row_itself_is_there_for_who_runs_the_deployment(job: Job, team: Team) -> None:
    viewer = person(new_user("viewer", team, Role.VIEWER))
    shown = viewer.get(f"/api/jobs/{job.pk}/").json()
    assert (shown["status"], shown["result"], shown["warnings"], shown["payload"]) == (
        "succeeded",
        None,
        [],
        "withheld",
    )
    assert viewer.get(f"/api/predictions/{job.pk}/").json()["feedback"] == []
    assert viewer.get("/api/predictions/?deployment=xray").json()["results"][0]["feedback"] == []


def test_a_failure_says_only_its_code(sent: Study, team: Team) -> None:
    Job.objects.update(
        status="failed",
        finished_at=sent.sent_at,
        error={"code": "corrupt_image", "detail": "The picture of Jane is damaged.", "retryable": False},
    )
    job = Job.objects.get()
    viewer = person(new_user("viewer", team, Role.VIEWER))
    for address in (f"/api/jobs/{job.pk}/", "/api/deployments/xray/jobs/", "/jobs/", f"/jobs/{job.pk}/"):
        content = viewer.get(address).content.decode()
        assert "Jane" not in content
        assert "corrupt_image" in content


def test_who_may_see_payloads_sees_them_and_that_is_audited(job: Job, team: Team) -> None:
    scientist = person(new_user("scientist", team, Role.DATA_SCIENTIST))
    assert scientist.get(f"/api/jobs/{job.pk}/").json()["result"] == job.result
    assert scientist.get(f"/api/predictions/{job.pk}/").json()["feedback"][0]["labels"] == ["bright"]
    assert {event.action for event in AuditEvent.objects.filter(target_id=str(job.pk))} == {
        "job.view_payload",
        "prediction.view_payload",
    }


def test_a_verdict_is_given_in_the_study_alone(job: Job, team: Team, doctor: User) -> None:
    before = list(Feedback.objects.values_list("pk", "truth"))
    for caller in (
        person(new_user("developer", team, Role.DEVELOPER)),
        person(doctor),
        with_key(new_key(team, ["feedback", "admin", "predict"])[1]),
    ):
        said = {"labels": ["dark"]}
        assert caller.post(f"/api/predictions/{job.pk}/feedback/", said).status_code == 404
        bulk = caller.post("/api/feedback/", {"feedback": [{"prediction_id": str(job.pk), **said}]})
        assert (bulk.status_code, bulk.json()["results"][0]["code"]) == (200, "not_found")
    assert list(Feedback.objects.values_list("pk", "truth")) == before
