"""API keys: shown once, kept as a digest, found only while usable."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from controlplane.accounts.models import ApiKey, Right, Team, User
from controlplane.accounts.queries import digest_of, find_usable_key, rights_of_key
from controlplane.accounts.services import issue_key, revoke_key
from controlplane.accounts.signals import keys_changed
from controlplane.audit.models import AuditEvent
from controlplane.audit.services import Actor
from controlplane.errors import DomainError
from tests.controlplane.cast import ACTOR, new_key

pytestmark = pytest.mark.django_db


def test_a_key_is_found_by_its_text_alone(issued: tuple[ApiKey, str]) -> None:
    key, plain = issued
    assert find_usable_key(plain) == key
    assert plain.startswith(key.prefix)
    assert key.digest == digest_of(plain)
    assert plain not in str(ApiKey.objects.values().get())


def test_a_test_key_says_so(team: Team) -> None:
    key, plain = new_key(team, ["predict"], test=True)
    assert plain.startswith("sb_test_") and key.test
    assert find_usable_key(plain) == key


def test_finding_a_key_takes_one_query_and_malformed_text_none(
    issued: tuple[ApiKey, str], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(1):
        found = find_usable_key(issued[1])
        assert found is not None and found.team.name == "cards"
    with django_assert_num_queries(0):
        for text in ("", "sb_", "sb_short", "xx_" + "a" * 40, "sb_" + "a" * 39 + "é", "sb_" + "a" * 200, "sb_ \x00"):
            assert find_usable_key(text) is None


def test_an_unknown_a_revoked_and_an_expired_key_are_not_usable(issued: tuple[ApiKey, str], team: Team) -> None:
    key, plain = issued
    assert find_usable_key("sb_" + "a" * 40) is None
    revoke_key(actor=ACTOR, key=key)
    assert find_usable_key(plain) is None
    late, text = new_key(team, ["read"], expires_at=timezone.now() + timedelta(hours=1))
    ApiKey.objects.filter(pk=late.pk).update(expires_at=timezone.now())
    assert find_usable_key(text) is None


def test_issuing_and_revoking_are_told_after_the_commit(
    team: Team, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    told: list[Any] = []

    def listen(**event: Any) -> None:
        told.append(event["team_id"])

    keys_changed.connect(listen)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            key, _ = new_key(team, ["read"])
            assert told == []
        with django_capture_on_commit_callbacks(execute=True):
            revoke_key(actor=ACTOR, key=key)
        with django_capture_on_commit_callbacks(execute=True):
            revoke_key(actor=ACTOR, key=key)
    finally:
        keys_changed.disconnect(listen)
    assert told == [team.pk, team.pk]


def test_both_are_audited_without_the_key(team: Team, owner: User) -> None:
    key, plain = issue_key(actor=Actor("user:owner", user_id=owner.pk), team=team, label="till 7")
    revoke_key(actor=ACTOR, key=key, reason="lost")
    revoke_key(actor=ACTOR, key=key)
    issued, revoked = AuditEvent.objects.order_by("id")
    assert (issued.action, issued.target_label, issued.team_id) == ("key.issue", "till 7", team.pk)
    assert (revoked.action, revoked.reason) == ("key.revoke", "lost")
    assert plain not in str(issued.after) and key.digest not in str(issued.after)
    assert key.created_by == owner


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": "  "}, "label"),
        ({"label": "a" * 101}, "label"),
        ({"label": "till\u202e7"}, "label"),
        ({"label": "a\x00b"}, "label"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read", "fly"]}, "scopes"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "expires_at"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(team: Team, change: dict[str, Any], field: str) -> None:
    with pytest.raises(DomainError) as caught:
        issue_key(actor=ACTOR, team=team, **{"label": "till", **change})
    assert (caught.value.code, caught.value.errors[0]["loc"][0]) == ("validation_error", field)
    assert not ApiKey.objects.exists() and not AuditEvent.objects.exists()


def test_scopes_are_kept_once_and_in_order(team: Team) -> None:
    key, _ = new_key(team, ["read", "predict", "read"])
    assert key.scopes == ["predict", "read"]


def test_no_scope_lets_a_key_see_payloads(team: Team) -> None:
    key, _ = new_key(team, ["admin", "read", "upload", "deploy"])
    assert rights_of_key(key) == frozenset(Right) - {Right.VIEW_PAYLOAD, Right.STUDY, Right.PREDICT}
    assert rights_of_key(new_key(team, ["predict"])[0]) == {Right.PREDICT}
