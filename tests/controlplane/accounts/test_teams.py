"""Teams, members and the site admin."""

import pytest
from django.core.cache import cache

from controlplane.accounts.models import Membership, Right, Role, Team, User
from controlplane.accounts.services import (
    add_member,
    create_team,
    create_user,
    ensure_site_admin,
    remove_member,
)
from controlplane.audit.models import AuditEvent
from controlplane.errors import DomainError
from tests.controlplane.cast import ACTOR, new_user

pytestmark = pytest.mark.django_db


def test_the_site_admin_is_made_once_and_keeps_the_password() -> None:
    assert ensure_site_admin(password="first-password-of-all")
    assert not ensure_site_admin(password="another-password")
    admin = User.objects.get()
    assert admin.check_password("first-password-of-all") and not admin.check_password("another-password")
    assert admin.is_superuser and admin.is_staff
    assert Team.objects.get().name == "default"
    assert AuditEvent.objects.get().action == "user.create"


def test_the_site_admin_sees_payloads_in_the_default_team_alone(team: Team) -> None:
    ensure_site_admin(password="first-password-of-all")
    admin, default = User.objects.get(), Team.objects.get(name="default")
    assert admin.has_right(Right.VIEW_PAYLOAD, default.pk)
    assert admin.has_right(Right.DEPLOY, team.pk) and not admin.has_right(Right.VIEW_PAYLOAD, team.pk)


def test_a_team_is_made_and_audited() -> None:
    team = create_team(actor=ACTOR, name="fraud-watch")
    assert AuditEvent.objects.get().team_id == team.pk


@pytest.mark.parametrize("name", ["", "Cards", "../x", "a" * 61, "é", "-a", "a b", "cаrds", "a\n"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(DomainError) as caught:
        create_team(actor=ACTOR, name=name)
    assert caught.value.code == "bad_name"


def test_a_team_name_is_taken_once(team: Team) -> None:
    with pytest.raises(DomainError) as caught:
        create_team(actor=ACTOR, name="cards")
    assert caught.value.code == "conflict"
    assert Team.objects.count() == 1


def test_a_role_is_given_once_and_taken_away(team: Team, owner: User) -> None:
    nurse = new_user("nurse")
    add_member(actor=ACTOR, team=team, user=nurse, role=Role.DOCTOR)
    add_member(actor=ACTOR, team=team, user=nurse, role=Role.DOCTOR)
    add_member(actor=ACTOR, team=team, user=nurse, role=Role.VIEWER)
    assert remove_member(actor=ACTOR, team=team, user=nurse, role=Role.DOCTOR) == 1
    assert remove_member(actor=ACTOR, team=team, user=nurse) == 1
    assert [event.action for event in AuditEvent.objects.order_by("id")] == [
        *("member.add", "member.add", "member.remove", "member.remove")
    ]


def test_the_last_admin_of_a_team_stays(team: Team, owner: User) -> None:
    with pytest.raises(DomainError) as caught:
        remove_member(actor=ACTOR, team=team, user=owner)
    assert caught.value.code == "conflict"
    assert Membership.objects.filter(user=owner).count() == 2
    assert remove_member(actor=ACTOR, team=team, user=owner, role=Role.DATA_SCIENTIST) == 1


def test_an_unknown_role_and_a_stranger_are_refused(team: Team, outsider: User) -> None:
    with pytest.raises(DomainError, match="A role is one of"):
        add_member(actor=ACTOR, team=team, user=outsider, role="king")
    with pytest.raises(DomainError, match="no such role"):
        remove_member(actor=ACTOR, team=team, user=outsider)


def test_a_person_needs_a_free_name_and_a_long_password() -> None:
    create_user(actor=ACTOR, username="ada", password="correct horse battery")
    for username, password, code in (
        ("Ada", "correct horse battery", "conflict"),
        ("bo", "short", "validation_error"),
        ("b o", "correct horse battery", "validation_error"),
    ):
        with pytest.raises(DomainError) as caught:
            create_user(actor=ACTOR, username=username, password=password)
        assert caught.value.code == code
    assert User.objects.count() == 1


def test_the_database_cache_has_its_table() -> None:
    cache.set("failed-sign-ins", 3)
    assert cache.get("failed-sign-ins") == 3
