"""What a page must not do for whoever asks: show payloads, hand out rights, or answer bad input with 500."""

import socket
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from controlplane.accounts.models import ApiKey, Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion
from controlplane.dashboard.pages.tryit import read_answer
from controlplane.dashboard.trial import Answer, call
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.trial import TrialKey
from controlplane.jobs.models import Job, JobStatus, PayloadKind
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from tests.controlplane.cast import Caller, new_user, signed_in
from tests.controlplane.predictions.records import served


@pytest.mark.parametrize("scope", ["admin", "deploy", "upload"])
def test_nobody_gives_a_key_rights_that_they_do_not_hold(team: Team, scope: str) -> None:
    developers = signed_in(new_user("dev", team, Role.DEVELOPER))
    answer = developers.post("/keys/issue/", {"label": "mine", "team": str(team.pk), "scopes": ["predict", scope]})
    assert answer.status_code == 422
    assert not ApiKey.objects.exists()


def test_a_share_of_an_absurd_version_is_refused(owners: Client, deployment: Deployment) -> None:
    answer = owners.post(f"/deployments/{deployment.name}/split/", {"share_" + "9" * 5000: "100"})
    assert answer.status_code == 400


def test_the_theme_goes_home_from_an_address_that_is_none(owners: Client) -> None:
    answer = owners.post("/theme/", {"theme": "dark", "next": "nowhere"})
    assert answer.status_code == 302


@pytest.mark.parametrize(
    "path", ["deployments/%00/metrics/", "deployments/%00/jobs/", "predictions/%00/", "models/%00/"]
)
def test_a_name_with_nul_is_not_found(as_owner: Caller, path: str) -> None:
    assert as_owner.get(f"/api/{path}").status_code == 404


def test_a_password_reset_is_no_server_error_where_no_mail_can_be_sent(
    client: Client, settings: Any, colleague: User
) -> None:
    # Nothing listens on the discard port.
    settings.EMAIL_BACKEND, settings.EMAIL_PORT = "django.core.mail.backends.smtp.EmailBackend", 9
    User.objects.filter(pk=colleague.pk).update(email="colleague@example.org")
    answers = [
        client.post("/accounts/password/reset/", {"email": f"{name}@example.org"}) for name in ("colleague", "x")
    ]
    assert [answer.status_code for answer in answers] == [302, 302]


@pytest.fixture
def answered(deployment: Deployment, versions: list[ModelVersion], owner: User) -> Job:
    """A job that somebody else's key asked, with its result."""
    now = timezone.now()
    return Job.objects.create(
        deployment=deployment,
        version=versions[0],
        number=1,
        revision=1,
        asker="key:1",
        body_sha256="0" * 64,
        status=JobStatus.SUCCEEDED,
        payload_kind=PayloadKind.TENSORS,
        result={"label": "pneumonia", "scores": {"pneumonia": 0.875}},
        created_at=now,
        dispatched_at=now,
        finished_at=now,
    )


def test_a_jobs_result_needs_the_right_and_looking_is_written_down(
    owners: Client, colleagues: Client, outsiders: Client, answered: Job
) -> None:
    path = f"/jobs/{answered.pk}/"
    assert outsiders.get(path).status_code == 404
    for headers in ({}, {"HX-Request": "true"}):
        assert b"pneumonia" not in colleagues.get(path, headers=headers).content
    assert not AuditEvent.objects.filter(action="payload.view").exists()
    shown = owners.get(path)
    assert b"pneumonia" in shown.content and shown.headers["Cache-Control"] == "no-store"
    assert AuditEvent.objects.get(action="payload.view").target_id == str(answered.pk)


def test_who_asked_a_job_sees_its_result(team: Team, answered: Job) -> None:
    asker = new_user("asker", team, Role.DEVELOPER)
    Job.objects.filter(pk=answered.pk).update(user=asker)
    assert b"pneumonia" in signed_in(asker).get(f"/jobs/{answered.pk}/").content


def test_the_list_of_jobs_shows_no_results(owners: Client, answered: Job) -> None:
    page = owners.get("/jobs/").content
    assert str(answered.pk).encode() in page and b"pneumonia" not in page


def test_scores_need_the_right_to_see_payloads(
    owners: Client, colleagues: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    record_predictions([served(deployment, versions[0], inputs={}, outputs={}, scores={"fraud": [0.8125]})])
    search = "/deployments/checkout/predictions/"
    for path in (search, f"{search}{Prediction.objects.get().pk}/"):
        assert b"0.81" not in colleagues.get(path).content
        assert not AuditEvent.objects.filter(action="payload.view", target_label=path).exists()
        assert b"0.81" in owners.get(path).content
    assert AuditEvent.objects.filter(action="payload.view", actor="user:owner").count() == 2
    assert not AuditEvent.objects.filter(action="payload.view", actor="user:colleague").exists()


def test_an_answer_without_a_score_is_read() -> None:
    answer = Answer(200, {}, {"predictions": [{"label": "", "scores": {"a": None, "b": 0.5}}]}, 1.0)
    assert [score.label for score in read_answer(answer).scores] == ["b"]


def test_a_trial_call_goes_past_the_hosts_proxy(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """A proxy that the environment names would see the key: it is not asked, so nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as closed:
        proxy.settimeout(0.2)
        settings.SIGNALBOX_PORT = closed.getsockname()[1]
        closed.close()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        key = TrialKey("sb_test_x", is_fresh=False)
        assert call("/v1/models/checkout:predict", key, b"{}", "application/json").status == 0
        with pytest.raises(TimeoutError):
            proxy.accept()
