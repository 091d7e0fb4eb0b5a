"""What people do on the pages: move traffic, upload, issue keys; each refusal stands where it can be mended."""

import io

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from controlplane.accounts import limits
from controlplane.accounts.models import ApiKey, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion, RegisteredModel
from controlplane.deployments.models import Deployment, SplitRevision
from tests.inference import toys


def apply(client: Client, **fields: str) -> int:
    return client.post("/deployments/checkout/split/", fields).status_code


def test_a_split_is_applied_and_recorded(owners: Client, deployment: Deployment) -> None:
    response = owners.post(
        "/deployments/checkout/split/",
        {"share_1": "75.00", "share_2": "25,00 %", "expected_revision": "1", "reason": "October retrain"},
    )
    assert response.status_code == 302
    made = SplitRevision.objects.get(number=2)
    assert (made.shares, made.actor, made.reason) == ({"1": 7500, "2": 2500}, "user:owner", "October retrain")
    assert AuditEvent.objects.filter(actor="user:owner", action__startswith="split").exists()


@pytest.mark.parametrize(
    ("first", "second"), [("90", "20"), ("abc", "10"), ("-5", "105"), ("nan", "100"), ("33.333", "66.667"), ("", "")]
)
def test_a_split_that_does_not_total_100_keeps_what_was_typed(
    owners: Client, deployment: Deployment, first: str, second: str
) -> None:
    response = owners.post("/deployments/checkout/split/", {"share_1": first, "share_2": second})
    assert response.status_code == 422
    assert b'role="alert"' in response.content
    assert f'value="{first}"'.encode() in response.content
    assert not SplitRevision.objects.filter(number=2).exists()


def test_a_split_made_from_a_stale_page_is_refused(owners: Client, deployment: Deployment) -> None:
    assert apply(owners, share_1="100", expected_revision="0") == 409
    assert not SplitRevision.objects.filter(number=2).exists()


def test_who_may_not_deploy_moves_nothing(
    colleagues: Client, outsiders: Client, client: Client, deployment: Deployment
) -> None:
    assert apply(colleagues, share_1="100") == 403
    assert apply(outsiders, share_1="100") == 404
    assert apply(client, share_1="100") == 302
    assert not SplitRevision.objects.filter(number=2).exists()


def test_one_click_returns_to_an_earlier_split(owners: Client, deployment: Deployment) -> None:
    apply(owners, share_1="50", share_2="50")
    assert owners.post("/deployments/checkout/return/", {"to": "1"}).status_code == 302
    assert SplitRevision.objects.get(number=3).shares == {"1": 9000, "2": 1000}


def test_settings_are_saved_and_a_bad_one_is_shown_at_its_field(owners: Client, deployment: Deployment) -> None:
    good = {
        "description": "payments",
        "lane": "executor",
        "payload_percent": "50",
        "retention_days": "7",
        "column_policy": '{"amount": "hash"}',
        "max_rows": "100",
        "max_body_mb": "2",
        "max_batch_rows": "16",
        "max_wait_ms": "1.5",
        "cache_ttl_s": "60",
        "cache_mb": "0.5",
        "max_in_flight": "40",
    }
    save = "/deployments/checkout/settings/save/"
    assert owners.post(save, good).status_code == 302
    deployment.refresh_from_db()
    assert (deployment.lane, deployment.payload_share, deployment.column_policy) == (
        "executor",
        0.5,
        {"amount": "hash"},
    )
    assert (deployment.max_batch_rows, deployment.max_wait_ms, deployment.max_in_flight) == (16, 1.5, 40)
    assert (deployment.cache_ttl_s, deployment.cache_bytes) == (60.0, 512 * 1024)
    response = owners.post(save, {**good, "column_policy": '{"no_such": "hash"}'})
    assert response.status_code == 422
    assert b"no_such" in response.content


def test_retiring_asks_for_the_name(owners: Client, deployment: Deployment) -> None:
    owners.post("/deployments/checkout/retire/", {"name": "chekout"})
    deployment.refresh_from_db()
    assert deployment.retired_at is None
    owners.post("/deployments/checkout/retire/", {"name": "checkout"})
    deployment.refresh_from_db()
    assert deployment.retired_at is not None


def test_a_model_is_registered_and_a_version_uploaded(owners: Client, team: Team) -> None:
    answer = owners.post("/models/register/", {"name": "scores", "team": str(team.pk)})
    assert answer.headers["Location"] == "/models/scores/upload/"
    file = SimpleUploadedFile("linear.onnx", toys.linear_regression())
    response = owners.post("/models/scores/upload/", {"file": file, "labels": "", "notes": "first"})
    assert response.headers["Location"] == "/models/scores/versions/1/"
    stored = ModelVersion.objects.get(model__name="scores")
    assert (stored.number, stored.file_name, stored.notes) == (1, "linear.onnx", "first")


def test_a_refused_upload_says_why_and_stores_nothing(owners: Client, versions: list[ModelVersion]) -> None:
    page = SimpleUploadedFile("page.onnx", b"<!doctype html><title>not a model</title>")
    response = owners.post("/models/fraud/upload/", {"file": page}, headers={"X-Requested-With": "fetch"})
    assert (response.status_code, response.json()["code"]) == (422, "not_onnx")
    assert ModelVersion.objects.filter(model__name="fraud").count() == 2
    assert owners.post("/models/fraud/upload/", {}).status_code == 422


@pytest.mark.parametrize("name", ["../x", "x" * 300, "модель", "a b", "\u202egnp"])
def test_a_bad_model_name_is_refused_at_its_field(owners: Client, team: Team, name: str) -> None:
    response = owners.post("/models/register/", {"name": name, "team": str(team.pk)})
    assert response.status_code == 422
    assert b'class="wrong"' in response.content
    assert not RegisteredModel.objects.exists()


def test_a_key_is_shown_once(owners: Client, deployment: Deployment, team: Team) -> None:
    form = {"label": "checkout app", "team": str(team.pk), "scopes": ["predict"]}
    page = owners.post("/keys/issue/", form).content.decode()
    made = ApiKey.objects.get(label="checkout app")
    shown = page.split('id="new-key">')[1].split("<")[0]
    assert shown.startswith(made.prefix) and len(shown) > 40
    assert shown not in owners.get("/keys/").content.decode()
    assert owners.get(f"/keys/{made.pk}/").status_code == 200


def test_a_revoked_key_stays_listed(owners: Client, team: Team) -> None:
    form = {"label": "old", "team": str(team.pk), "scopes": ["predict"]}
    owners.post("/keys/issue/", form)
    made = ApiKey.objects.get(label="old")
    owners.post(f"/keys/{made.pk}/revoke/")
    made.refresh_from_db()
    assert made.revoked_at is not None
    assert b"revoked" in owners.get("/keys/").content


def test_a_keys_limits_are_set_on_its_page_which_shows_what_was_used_today(owners: Client, team: Team) -> None:
    owners.post("/keys/issue/", {"label": "till", "team": str(team.pk), "scopes": ["predict"], "quota_per_day": "50"})
    made = ApiKey.objects.get(label="till")
    limits.take(made)
    assert "1 of 50 calls used today" in owners.get(f"/keys/{made.pk}/").content.decode()
    saved = owners.post(f"/keys/{made.pk}/limit/", {"rate_per_minute": "", "quota_per_day": "70"}, follow=True)
    assert "1 of 70 calls used today" in saved.content.decode()
    refused = owners.post(f"/keys/{made.pk}/limit/", {"rate_per_minute": "0", "quota_per_day": "9"})
    assert (refused.status_code, b'role="alert"' in refused.content) == (422, True)
    made.refresh_from_db()
    assert (made.rate_per_minute, made.quota_per_day) == (None, 70)


def test_another_teams_keys_limits_cannot_be_set(owners: Client, outsiders: Client, team: Team) -> None:
    owners.post("/keys/issue/", {"label": "ours", "team": str(team.pk), "scopes": ["predict"]})
    made = ApiKey.objects.get(label="ours")
    assert outsiders.post(f"/keys/{made.pk}/limit/", {"quota_per_day": "9"}).status_code == 404
    made.refresh_from_db()
    assert made.quota_per_day is None


def test_another_teams_key_cannot_be_seen_or_revoked(owners: Client, outsiders: Client, team: Team) -> None:
    owners.post("/keys/issue/", {"label": "ours", "team": str(team.pk), "scopes": ["predict"]})
    made = ApiKey.objects.get(label="ours")
    assert outsiders.get(f"/keys/{made.pk}/").status_code == 404
    assert outsiders.post(f"/keys/{made.pk}/revoke/").status_code == 404
    made.refresh_from_db()
    assert made.revoked_at is None


def test_an_insider_who_manages_no_keys_is_refused_the_key(owners: Client, colleagues: Client, team: Team) -> None:
    owners.post("/keys/issue/", {"label": "ours", "team": str(team.pk), "scopes": ["predict"]})
    made = ApiKey.objects.get(label="ours")
    assert colleagues.get(f"/keys/{made.pk}/").status_code == 403
    assert colleagues.post(f"/keys/{made.pk}/revoke/").status_code == 403
    made.refresh_from_db()
    assert made.revoked_at is None


def test_who_may_not_deploy_is_offered_no_new_deployment(owners: Client, colleagues: Client, team: Team) -> None:
    assert b"/deployments/new/" in owners.get("/deployments/").content
    assert b"/deployments/new/" not in colleagues.get("/deployments/").content
    assert owners.get("/deployments/new/").status_code == 200
    assert colleagues.get("/deployments/new/").status_code == 403
    assert colleagues.post("/deployments/create/", {"name": "x"}).status_code == 403


def test_a_form_without_its_token_is_refused(owner: User, deployment: Deployment) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(owner)
    assert strict.post("/deployments/checkout/split/", {"share_1": "100"}).status_code == 403
    upload = io.BytesIO(toys.linear_regression())
    upload.name = "linear.onnx"
    assert strict.post("/models/fraud/upload/", {"file": upload}).status_code == 403
    assert not SplitRevision.objects.filter(number=2).exists()
