"""The site admin's tables: people and teams may be changed, with an audit event; the rest is to read."""

import pytest
from django.contrib.admin import site
from django.test import Client, RequestFactory

from controlplane.accounts.models import ApiKey, Membership, Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion, RegisteredModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(db: None) -> User:
    return User.objects.create(username="root", is_staff=True, is_superuser=True)


def request_of(user: User) -> object:
    request = RequestFactory().get("/admin/", headers={"X-Forwarded-For": "203.0.113.7"})
    request.user = user
    return request


@pytest.mark.parametrize("model", [ApiKey, RegisteredModel, ModelVersion, AuditEvent])
def test_what_services_change_is_only_to_read(root: User, model: type) -> None:
    admin, request = site._registry[model], request_of(root)
    assert admin.has_view_permission(request)  # type: ignore[arg-type]  # a request with a user alone
    assert not admin.has_add_permission(request)  # type: ignore[arg-type]  # a request with a user alone
    assert not admin.has_change_permission(request)  # type: ignore[arg-type]  # a request with a user alone
    assert not admin.has_delete_permission(request)  # type: ignore[arg-type]  # a request with a user alone


def test_a_key_s_digest_is_not_shown(root: User, issued: tuple[ApiKey, str]) -> None:
    client = Client()
    client.force_login(root)
    page = client.get(f"/admin/accounts/apikey/{issued[0].pk}/change/")
    assert page.status_code == 200
    assert issued[0].digest not in page.content.decode() and issued[0].prefix in page.content.decode()


def test_a_person_gets_a_role_there_and_the_audit_log_says_so(root: User, team: Team) -> None:
    client = Client()
    client.force_login(root)
    nurse = User.objects.create(username="nurse")
    address = f"/admin/accounts/user/{nurse.pk}/change/"
    assert client.get(address).status_code == 200
    answer = client.post(
        address,
        {
            "username": "nurse",
            "is_active": "on",
            "memberships-TOTAL_FORMS": "1",
            "memberships-INITIAL_FORMS": "0",
            "memberships-0-team": str(team.pk),
            "memberships-0-role": Role.DOCTOR,
        },
    )
    assert answer.status_code == 302, answer.content
    assert Membership.objects.get(user=nurse).role == Role.DOCTOR
    event = AuditEvent.objects.get(action="user.change")
    assert (event.actor, event.target_label) == ("user:root", "nurse")
    assert event.after is not None and "membership" in str(event.after).lower()


def test_a_team_is_made_there(root: User) -> None:
    client = Client()
    client.force_login(root)
    form = {"name": "nights", "memberships-TOTAL_FORMS": "0", "memberships-INITIAL_FORMS": "0"}
    assert client.post("/admin/accounts/team/add/", form).status_code == 302
    event = AuditEvent.objects.get(action="team.add")
    assert event.team_id == Team.objects.get().pk


def test_who_is_no_site_admin_stays_outside(owner: User) -> None:
    client = Client()
    client.force_login(owner)
    assert client.get("/admin/accounts/user/").status_code in (302, 403)
