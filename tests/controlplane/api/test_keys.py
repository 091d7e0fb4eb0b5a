"""/api/keys/ and /api/audit/: shown once, revoked at once, and never outranking who issues them."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.models import ApiKey, Role, Team, User
from controlplane.accounts.queries import find_usable_key
from controlplane.audit.models import AuditEvent
from controlplane.audit.services import SYSTEM, record
from controlplane.catalog.models import RegisteredModel
from controlplane.deployments.documents import build_access
from controlplane.deployments.models import Deployment, KeyGrant
from controlplane.deployments.services.keys import issue_key_for
from tests.controlplane.cast import ACTOR, Caller, bearer, new_key, new_user, nobody, person

pytestmark = [pytest.mark.urls("tests.controlplane.api.catalog_urls"), pytest.mark.django_db]

KEYS = "/api/keys/"


@pytest.fixture
def developer(team: Team) -> Caller:
    """Manages keys, and may neither upload nor deploy."""
    return person(new_user("developer", team, Role.DEVELOPER))


@pytest.fixture
def deployment(team: Team) -> Deployment:
    model = RegisteredModel.objects.create(team=team, name="fraud")
    return Deployment.objects.create(team=team, name="checkout", model=model)


def test_a_key_is_shown_once_and_works(as_owner: Caller) -> None:
    made = as_owner.post(KEYS, {"label": "till 7"})
    assert made.status_code == 201 and made["Cache-Control"] == "no-store"
    body = made.json()
    plain = body.pop("key")
    found = find_usable_key(plain)
    assert found is not None and str(found.pk) == body["id"]
    assert (body["label"], body["team"], body["state"]) == ("till 7", "cards", "active")
    assert (body["scopes"], body["deployments"], body["test"]) == (["predict", "pin", "feedback"], None, False)
    assert body["created_by"] == "owner"
    shown = as_owner.get(made["Location"])
    assert shown.json() == body
    for answer in (shown, as_owner.get(KEYS), as_owner.get("/api/audit/")):
        assert plain not in answer.content.decode() and found.digest not in answer.content.decode()


def test_a_key_may_be_for_some_deployments_alone(as_owner: Caller, deployment: Deployment) -> None:
    body = as_owner.post(KEYS, {"label": "till", "deployments": ["checkout"], "test": True}).json()
    assert body["deployments"] == ["checkout"] and body["key"].startswith("sb_test_")
    assert KeyGrant.objects.get().deployment == deployment


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"label": ""}, "label"),
        ({"label": None}, "label"),
        ({"label": "a\x00"}, "label"),
        ({"scopes": ["fly"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "predict"}, "scopes"),
        ({"deployments": ["absent"]}, "deployments"),
        ({"deployments": []}, "deployments"),
        ({"expires_at": "yesterday"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"rate_per_minute": 10**30}, "rate_per_minute"),
        ({"test": "perhaps"}, "test"),
    ],
)
def test_a_key_that_makes_no_sense_is_422(as_owner: Caller, change: dict[str, Any], where: str) -> None:
    answer = as_owner.post(KEYS, {"label": "till", **change})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error"), answer.json()
    assert answer.json()["errors"][0]["loc"][0] == where
    assert not ApiKey.objects.exists()


def test_revoking_ends_it_at_once_and_for_good(as_owner: Caller) -> None:
    made = as_owner.post(KEYS, {"label": "till", "scopes": ["read"]})
    plain, address = made.json()["key"], made["Location"]
    assert bearer(plain).get("/api/models/").status_code == 200
    assert as_owner.delete(address).status_code == 204
    refused = bearer(plain).get("/api/models/")
    assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")
    assert refused["WWW-Authenticate"].startswith("Bearer")
    assert as_owner.delete(address).status_code == 204
    assert as_owner.get(address).json()["state"] == "revoked"
    assert AuditEvent.objects.filter(action="key.revoke").count() == 1


def test_only_who_manages_keys_sees_and_changes_them(
    as_owner: Caller,
    developer: Caller,
    as_colleague: Caller,
    as_outsider: Caller,
    as_key: Callable[..., Caller],
    issued: tuple[ApiKey, str],
) -> None:
    address = f"{KEYS}{issued[0].pk}/"
    for allowed in (as_owner, developer, as_key("admin")):
        assert allowed.get(KEYS).status_code == 200
        assert allowed.get(address).status_code == 200
    for caller in (as_colleague, as_key("read", "upload", "deploy"), bearer(issued[1])):
        assert caller.get(KEYS).status_code == 403
        assert caller.post(KEYS, {"label": "x"}).status_code == 403
        assert caller.get(address).status_code == 403
        assert caller.delete(address).status_code == 403
    assert as_outsider.get(KEYS).json()["results"] == []
    assert as_outsider.get(address).status_code == 404
    assert as_outsider.delete(address).status_code == 404
    assert nobody().get(KEYS).status_code == 401
    assert find_usable_key(issued[1]) is not None


def test_nobody_gives_a_key_more_rights_than_they_hold(developer: Caller, as_outsider: Caller, team: Team) -> None:
    assert developer.post(KEYS, {"label": "x", "scopes": ["predict", "read"]}).status_code == 201
    for scope in ("upload", "deploy", "admin"):
        answer = developer.post(KEYS, {"label": "x", "scopes": ["read", scope]})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert scope in answer.json()["detail"]
    assert as_outsider.post(KEYS, {"label": "x", "team": "cards"}).status_code == 404


def test_an_admin_key_issues_keys_of_its_team_alone(as_key: Callable[..., Caller], other_team: Team) -> None:
    caller = as_key("admin")
    assert caller.post(KEYS, {"label": "x", "scopes": ["deploy"]}).json()["team"] == "cards"
    assert caller.post(KEYS, {"label": "x", "team": "radiology"}).status_code == 404


@pytest.mark.parametrize(("own", "given"), [(["admin"], "predict"), (["admin", "predict"], "pin")])
def test_a_key_that_may_not_ask_or_pin_issues_none_that_may(
    as_key: Callable[..., Caller], own: list[str], given: str
) -> None:
    answer = as_key(*own).post(KEYS, {"label": "x", "scopes": ["read", given]})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert given in answer.json()["detail"]
    assert as_key(*own, given).post(KEYS, {"label": "x", "scopes": ["read", given]}).status_code == 201


def test_a_key_for_one_deployment_issues_no_key_for_others(deployment: Deployment, team: Team) -> None:
    _, plain = issue_key_for(
        actor=ACTOR, team=team, label="narrow", scopes=["admin", "predict", "pin"], deployments=[deployment]
    )
    narrow = bearer(plain)
    Deployment.objects.create(team=team, name="wider", model=deployment.model)
    for names in (None, ["wider"], ["checkout", "wider"]):
        assert narrow.post(KEYS, {"label": "x", "deployments": names}).status_code == 403
    assert narrow.post(KEYS, {"label": "x", "deployments": ["checkout"]}).status_code == 201


def test_another_team_s_deployment_cannot_be_granted(as_outsider: Caller, deployment: Deployment) -> None:
    answer = as_outsider.post(KEYS, {"label": "x", "deployments": ["checkout"]})
    assert answer.status_code == 422
    assert "no deployment" in answer.json()["detail"]


def test_a_list_takes_the_same_few_queries_however_long(
    as_owner: Caller, team: Team, deployment: Deployment, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(8):
        key, _plain = new_key(team, ["predict"], every_deployment=False)
        KeyGrant.objects.create(key=key, deployment=deployment)
    with django_assert_num_queries(6):  # session, person, memberships, keys, grants, deployments
        assert len(as_owner.get(KEYS).json()["results"]) == 8


@pytest.mark.parametrize("token", ["", "sb_", "sb_" + "a" * 40, "nonsense", "sb_" + "é" * 40, "a" * 10_000])
def test_a_key_that_is_none_is_401(token: str, db: None) -> None:
    for scheme in ("Bearer", "bearer", "Basic"):
        answer = Caller(nobody().client, {"Authorization": f"{scheme} {token}"}).get(KEYS)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


# The audit log


@pytest.fixture
def events(team: Team, other_team: Team) -> None:
    for owner, label in ((team, "ours"), (other_team, "theirs"), (None, "nobody's")):
        record(
            actor=SYSTEM,
            action="split.apply",
            target_type="deployment",
            target_id=label,
            target_label=label,
            team_id=owner.pk if owner else None,
        )


@pytest.mark.usefixtures("events")
def test_the_audit_log_holds_one_s_own_team_alone(
    as_owner: Caller, as_outsider: Caller, as_colleague: Caller, as_key: Callable[..., Caller]
) -> None:
    def labels(caller: Caller) -> list[str]:
        return [row["target_label"] for row in caller.get("/api/audit/", action="split.apply").json()["results"]]

    assert labels(as_owner) == ["ours"]
    assert labels(as_outsider) == ["theirs"]
    assert labels(as_key("admin")) == ["ours"]
    assert as_colleague.get("/api/audit/").status_code == 403
    assert as_key("read", "upload", "deploy", "predict").get("/api/audit/").status_code == 403
    assert nobody().get("/api/audit/").status_code == 401
    root = User.objects.create(username="root", is_superuser=True)
    assert labels(person(root)) == ["nobody's", "theirs", "ours"]


@pytest.mark.usefixtures("events")
def test_the_audit_log_is_filtered_and_told_apart(as_owner: Caller) -> None:
    def count(**query: str) -> int:
        return len(as_owner.get("/api/audit/", **query).json()["results"])

    now = timezone.now()
    assert count(target_id="ours") == 1 and count(target_id="other") == 0
    assert count(actor="system", since="2020-01-01T00:00:00Z", until="2999-01-01") == 1
    assert count(since=now.isoformat()) == 0
    row = as_owner.get("/api/audit/").json()["results"][0]
    assert row["team"] == "cards" and row["before"] is None
    for bad in ("soon", "2026-13-01T00:00:00Z", "\x00", "9" * 400):
        answer = as_owner.get("/api/audit/", since=bad)
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["since"])
    assert as_owner.get("/api/audit/", actor="a\x00").status_code == 422
    assert as_owner.post("/api/audit/", {}).status_code == 405


@pytest.mark.usefixtures("events")
def test_the_audit_list_takes_the_same_few_queries(
    as_owner: Caller, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(5):  # session, person, memberships, events, teams
        as_owner.get("/api/audit/")


# Limits


def test_limits_are_given_at_issue_and_changed_later_published_and_audited(as_owner: Caller) -> None:
    made = as_owner.post(KEYS, {"label": "till", "rate_per_minute": 60, "quota_per_day": 5000})
    assert (made.json()["rate_per_minute"], made.json()["quota_per_day"]) == (60, 5000)
    location = made["Location"]
    changed = as_owner.patch(location, {"quota_per_day": 7000})
    assert (changed.status_code, changed.json()["rate_per_minute"], changed.json()["quota_per_day"]) == (200, 60, 7000)
    [published] = build_access().keys
    assert (published.rate_per_minute, published.quota_per_day) == (60, 7000)
    cleared = as_owner.patch(location, {"rate_per_minute": None, "quota_per_day": None}).json()
    assert (cleared["rate_per_minute"], cleared["quota_per_day"]) == (None, None)
    first, second = AuditEvent.objects.filter(action="key.limit").order_by("id")
    assert (first.before, first.after) == (
        {"rate_per_minute": 60, "quota_per_day": 5000},
        {"rate_per_minute": 60, "quota_per_day": 7000},
    )
    assert second.after == {"rate_per_minute": None, "quota_per_day": None}
    as_owner.patch(location, {})
    assert AuditEvent.objects.filter(action="key.limit").count() == 2


@pytest.mark.parametrize("change", [{"quota_per_day": 0}, {"rate_per_minute": -1}, {"quota_per_day": 10**13}])
def test_limits_that_cannot_be_are_422_and_change_nothing(as_owner: Caller, change: dict[str, int]) -> None:
    location = as_owner.post(KEYS, {"label": "till", "rate_per_minute": 60})["Location"]
    answer = as_owner.patch(location, change)
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, list(change))
    assert as_owner.get(location).json()["rate_per_minute"] == 60
    assert as_owner.post(KEYS, {"label": "till", **change}).status_code == 422


def test_a_revoked_keys_limits_stay(as_owner: Caller) -> None:
    location = as_owner.post(KEYS, {"label": "till"})["Location"]
    as_owner.delete(location)
    assert as_owner.patch(location, {"quota_per_day": 5}).status_code == 409


def test_who_may_not_manage_keys_changes_no_limit(as_owner: Caller, as_outsider: Caller, team: Team) -> None:
    location = as_owner.post(KEYS, {"label": "till"})["Location"]
    viewer = person(new_user("onlooker", team, Role.VIEWER))
    assert viewer.patch(location, {"quota_per_day": 5}).status_code == 403
    assert as_outsider.patch(location, {"quota_per_day": 5}).status_code == 404
    assert not AuditEvent.objects.filter(action="key.limit").exists()


def test_no_key_changes_its_own_limits(as_owner: Caller, team: Team) -> None:
    key, token = new_key(team, ["admin"], rate_per_minute=60)
    free, free_token = new_key(team, ["admin"])
    for asker, found in ((token, key), (free_token, free)):
        answer = bearer(asker).patch(f"{KEYS}{found.pk}/", {"rate_per_minute": 6000})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "its own limits" in answer.json()["detail"]
    assert as_owner.get(f"{KEYS}{key.pk}/").json()["rate_per_minute"] == 60
    assert not AuditEvent.objects.filter(action="key.limit").exists()


@pytest.mark.parametrize("limits", [{"rate_per_minute": 60}, {"quota_per_day": 10}])
def test_a_limited_key_changes_no_limits_and_an_unlimited_one_does(
    as_key: Callable[..., Caller], team: Team, limits: dict[str, int]
) -> None:
    other = new_key(team, ["predict"], rate_per_minute=5)[0]
    path, change = f"{KEYS}{other.pk}/", {"rate_per_minute": 6}
    assert as_key("admin", **limits).patch(path, change).status_code == 403
    assert as_key("admin").patch(path, change).json()["rate_per_minute"] == 6


def test_a_limited_key_issues_keys_within_its_limits_alone(as_key: Callable[..., Caller]) -> None:
    asker = as_key("admin", "predict", quota_per_day=10)

    def issued(**limits: int | None) -> int:
        return int(asker.post(KEYS, {"label": "till", "scopes": ["predict"], **limits}).status_code)

    assert [issued(), issued(quota_per_day=11), issued(rate_per_minute=1, quota_per_day=None)] == [403] * 3
    assert [issued(quota_per_day=10), issued(quota_per_day=3, rate_per_minute=9999)] == [201] * 2
    assert ApiKey.objects.filter(label="till").count() == 2
