"""/api/deployments/{d}/splits/, rollback/ and labels/: table B rows 56 to 60, and what clients see of a change."""

from typing import Any

import pytest
from django.test import Client

from controlplane.accounts.models import ApiKey, Team, User
from controlplane.accounts.services import issue_key
from controlplane.catalog.models import RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, SplitRevision, VersionLabel
from controlplane.deployments.services import apply_split, issue_key_for
from tests.controlplane.deployments.dataplane import StandIn
from tests.controlplane.deployments.rows import (
    ACTOR,
    make_deployment,
    make_team,
    make_version,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def deployment(model: RegisteredModel) -> Deployment:
    return make_deployment(model.team, model)


def with_key(team: Team, *scopes: str) -> Client:
    _, plain = issue_key(actor=ACTOR, team=team, label="a key", scopes=scopes)
    return Client(headers={"Authorization": f"Bearer {plain}"})


def post(client: Client, address: str, body: Any, **options: Any) -> Any:
    return client.post(f"/api/deployments/checkout/{address}", body, content_type="application/json", **options)


def test_a_split_is_accepted_and_told(owners: Client, deployment: Deployment) -> None:
    body = {"shares": {"1": 90, "2": 10}, "shadow": {"3": 12.5}, "expected_revision": 0, "reason": "try 2"}
    response = post(owners, "splits/", body)
    assert response.status_code == 201
    told = response.json()
    assert (told["revision"], told["state"], told["reason"]) == (1, "preparing", "try 2")
    assert (told["shares"], told["shadow"], told["actor"]) == ({"1": 90, "2": 10}, {"3": 12.5}, "user:owner")
    assert response["ETag"] == '"1"'


def test_the_history_tells_who_when_and_why(owners: Client, deployment: Deployment) -> None:
    plane = StandIn()
    for share in (100, 60, 40):
        post(owners, "splits/", {"shares": {"1": share, "2": 100 - share}, "reason": f"{share} %"})
        plane.step()
    response = owners.get("/api/deployments/checkout/splits/")
    told = response.json()["results"]
    assert [(row["revision"], row["state"], row["reason"]) for row in told] == [
        (3, "active", "40 %"),
        (2, "superseded", "60 %"),
        (1, "superseded", "100 %"),
    ]
    assert told[0]["activated_at"]
    assert response["ETag"] == '"3"'


@pytest.mark.parametrize(
    "shares",
    [
        '{"1": 99}',
        '{"1": 100, "2": 1}',
        '{"1": 99.99}',
        '{"1": 110, "2": -10}',
        '{"1": 101}',
        '{"1": NaN, "2": 100}',
        '{"1": Infinity}',
        '{"1": "100"}',
        '{"1": null}',
        '{"1": true}',
        '{"1": 33.333, "2": 66.667}',
        '{"1": 99.999999999999999999999, "2": 0.000000000000000000001}',
        "{}",
        "[]",
        '"100"',
        "100",
    ],
)
def test_row_56_a_split_that_does_not_total_100_is_422(owners: Client, deployment: Deployment, shares: str) -> None:
    response = post(owners, "splits/", f'{{"shares": {shares}}}')
    assert (response.status_code, response.json()["code"]) == (422, "must_total_100")
    assert response["Content-Type"] == "application/problem+json"
    assert not SplitRevision.objects.exists()


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ('{"1": 90, "9": 10}', "9"),
        ('{"1": 90, "4": 10}', "4"),
        ('{"1": 90, "5": 10}', "5"),
        ('{"1": 50, "1": 50}', "1"),
        ('{"1": 50, "01": 50}', "1"),
        ('{"1": 50, "two": 50}', "two"),
    ],
)
def test_row_57_a_version_that_cannot_take_traffic_is_422_and_named(
    owners: Client, deployment: Deployment, shares: str, named: str
) -> None:
    make_version(deployment.model, VersionState.ARCHIVED)
    make_version(deployment.model, VersionState.REJECTED, reason="The model uses an unknown operator.")
    response = post(owners, "splits/", f'{{"shares": {shares}}}')
    assert (response.status_code, response.json()["code"]) == (422, "unknown_version")
    assert named in response.json()["detail"]


def test_row_58_a_version_that_is_not_ready_is_409_and_the_old_split_stays(
    owners: Client, deployment: Deployment
) -> None:
    plane = StandIn()
    post(owners, "splits/", {"shares": {"1": 100}})
    plane.step()
    make_version(deployment.model, VersionState.VALIDATING)
    response = post(owners, "splits/", {"shares": {"1": 90, "4": 10}})
    assert (response.status_code, response.json()["code"]) == (409, "not_ready")
    assert owners.get("/api/deployments/checkout/").json()["split"]["shares"] == {"1": 100}


@pytest.mark.parametrize("by_header", [False, True])
def test_row_59_a_stale_edit_is_409_with_both_values(owners: Client, deployment: Deployment, by_header: bool) -> None:
    tag = owners.get("/api/deployments/checkout/")["ETag"]
    post(owners, "splits/", {"shares": {"1": 80, "2": 20}})
    body: dict[str, Any] = {"shares": {"1": 50, "2": 50}}
    if by_header:
        response = post(owners, "splits/", body, headers={"If-Match": tag})
    else:
        response = post(owners, "splits/", {**body, "expected_revision": 0})
    assert (response.status_code, response.json()["code"]) == (409, "stale_revision")
    told = response.json()
    assert (told["yours"]["shares"], told["current"]["shares"]) == ({"1": 50, "2": 50}, {"1": 80, "2": 20})
    assert (told["expected_revision"], told["current_revision"]) == (0, 1)
    response = post(owners, "splits/", body, headers={"If-Match": '"1"'})
    assert response.status_code == 201


def test_an_if_match_that_is_no_tag_is_400(owners: Client, deployment: Deployment) -> None:
    response = post(owners, "splits/", {"shares": {"1": 100}}, headers={"If-Match": "yesterday"})
    assert (response.status_code, response.json()["code"]) == (400, "bad_header")


@pytest.mark.parametrize("address", ["rollback/"])
def test_row_60_a_get_that_would_mutate_is_405(owners: Client, deployment: Deployment, address: str) -> None:
    response = owners.get(f"/api/deployments/checkout/{address}")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in response["Allow"]


@pytest.mark.parametrize(
    ("method", "address", "body"),
    [
        ("post", "splits/", {"shares": {"1": 100}}),
        ("post", "rollback/", {}),
        ("put", "labels/", {"labels": {}}),
        ("patch", "", {"lane": "inline"}),
        ("delete", "", {}),
    ],
)
def test_row_60_changes_need_the_right_to_deploy(
    team: Team, colleagues: Client, outsiders: Client, deployment: Deployment, method: str, address: str, body: Any
) -> None:
    url = f"/api/deployments/checkout/{address}"
    elsewhere = with_key(make_team("elsewhere"), "deploy")
    apply_split(actor=ACTOR, deployment=deployment, shares={"2": 100})
    for client, status, code in (
        (colleagues, 403, "forbidden"),
        (with_key(team, "read"), 403, "forbidden"),
        (with_key(team, "predict"), 403, "forbidden"),
        (outsiders, 404, "not_found"),
        (elsewhere, 404, "not_found"),
        (Client(), 401, "not_authenticated"),
        (Client(headers={"Authorization": "Bearer sb_wrong"}), 401, "not_authenticated"),
    ):
        response = getattr(client, method)(url, body, content_type="application/json")
        assert (response.status_code, response.json()["code"]) == (status, code)
    assert SplitRevision.objects.count() == 1
    deployment.refresh_from_db()
    assert (deployment.retired_at, deployment.lane) == (None, "auto")


@pytest.mark.parametrize("address", ["", "splits/", "labels/", "openapi.json"])
def test_reading_needs_a_part_in_the_team(
    team: Team, colleagues: Client, outsiders: Client, deployment: Deployment, address: str
) -> None:
    plane = StandIn()
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100})
    plane.step()
    url = f"/api/deployments/checkout/{address}"
    assert colleagues.get(url).status_code == 200
    assert with_key(team, "read").get(url).status_code == 200
    assert outsiders.get(url).status_code == 404
    assert with_key(make_team("elsewhere"), "read").get(url).status_code == 404
    assert Client().get(url).status_code == 401
    # Who may call a deployment may read how to.
    assert with_key(team, "predict").get(url).status_code == (200 if address == "openapi.json" else 403)


def test_a_key_for_other_deployments_does_not_see_this_one(deployment: Deployment) -> None:
    other = make_deployment(deployment.team, deployment.model, "other")
    _, plain = issue_key_for(
        actor=ACTOR, team=deployment.team, label="other only", scopes=["read", "deploy"], deployments=[other]
    )
    client = Client(headers={"Authorization": f"Bearer {plain}"})
    assert post(client, "splits/", {"shares": {"1": 100}}).status_code == 404
    assert [row["name"] for row in client.get("/api/deployments/").json()["results"]] == ["other"]
    response = client.post("/api/deployments/", {"name": "third", "model": "fraud"}, content_type="application/json")
    assert response.status_code == 403


def test_a_key_with_deploy_moves_traffic(team: Team, deployment: Deployment) -> None:
    client = with_key(team, "deploy")
    assert post(client, "splits/", {"shares": {"1": 100}}).json()["actor"] == "key:a key"


def test_a_rollback_is_a_new_revision(owners: Client, deployment: Deployment) -> None:
    plane = StandIn()
    for shares in ({"1": 100}, {"2": 100}):
        post(owners, "splits/", {"shares": shares})
        plane.step()
    response = post(owners, "rollback/", {"reason": "worse"})
    assert response.status_code == 201
    told = response.json()
    assert (told["revision"], told["shares"], told["returns_to"], told["reason"]) == (3, {"1": 100}, 1, "worse")
    response = post(owners, "rollback/", {"to": 2, "expected_revision": 2})
    assert (response.status_code, response.json()["code"]) == (409, "stale_revision")
    assert post(owners, "rollback/", {"to": 2, "expected_revision": 3}).json()["shares"] == {"2": 100}


def test_a_rollback_without_a_past_is_409(owners: Client, deployment: Deployment) -> None:
    response = post(owners, "rollback/", {})
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


def test_waiting_without_a_data_plane_ends_at_once(owners: Client, deployment: Deployment) -> None:
    response = post(owners, "splits/?wait=30", {"shares": {"1": 100}})
    assert (response.status_code, response.json()["state"]) == (201, "preparing")
    response = post(owners, "splits/?wait=long", {"shares": {"1": 100}})
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")


def test_labels_move_only_to_loaded_versions(owners: Client, deployment: Deployment) -> None:
    plane = StandIn()
    post(owners, "splits/", {"shares": {"1": 100, "2": 0}})
    url = "/api/deployments/checkout/labels/"

    def put(labels: Any) -> Any:
        return owners.put(url, {"labels": labels}, content_type="application/json")

    assert put({"stable": 1}).json()["code"] == "not_ready"
    plane.step()
    assert put({"stable": 1, "canary": 2}).json() == {"labels": {"canary": 2, "stable": 1}}
    response = put({"stable": 3})
    assert (response.status_code, response.json()["code"]) == (409, "not_ready")
    response = put({"stable": 9})
    assert (response.status_code, response.json()["code"]) == (422, "unknown_version")
    for wrong in ({"1": 1}, {"Stable": 1}, {"a" * 41: 1}, {"stable": "x"}, {"stable": None}, ["stable"]):
        assert put(wrong).status_code == 422
    assert owners.get(url).json() == {"labels": {"canary": 2, "stable": 1}}
    assert put({"canary": 1}).json() == {"labels": {"canary": 1}}
    assert VersionLabel.objects.count() == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("", 422, "validation_error"),
        ("{", 400, "bad_request"),
        ("[" * 100_000, 400, "too_deep"),
        ("[]", 422, "validation_error"),
        ("{}", 422, "validation_error"),
        ('{"shares": {"1": 100}, "reason": "a\\u0000b"}', 422, "validation_error"),
        ('{"shares": {"1": 100}, "reason": "\\ud800"}', 422, "validation_error"),
        ('{"shares": {"1": 100}, "reason": 7.5, "expected_revision": "x"}', 422, "validation_error"),
        ('{"shares": {"1": 100}, "expected_revision": NaN}', 422, "validation_error"),
        ('{"shares": {"1": 100}, "expected_revision": -1}', 422, "validation_error"),
    ],
)
def test_a_malformed_body_is_told(owners: Client, deployment: Deployment, body: str, status: int, code: str) -> None:
    response = post(owners, "splits/", body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert not SplitRevision.objects.exists()


def test_a_body_that_is_not_json_is_415(owners: Client, deployment: Deployment) -> None:
    response = owners.post("/api/deployments/checkout/splits/", {"shares": "1"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_a_change_by_a_session_needs_its_csrf_token(owner: User, deployment: Deployment) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    response = post(client, "splits/", {"shares": {"1": 100}})
    assert response.status_code == 403
    assert not ApiKey.objects.exists()
