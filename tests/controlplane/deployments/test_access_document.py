"""Keys as the data plane learns of them."""

from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.services import issue_key, revoke_key
from controlplane.deployments.models import DataplaneDocument, KeyGrant
from controlplane.deployments.publishing import publish_access
from controlplane.deployments.services import issue_key_for
from controlplane.deployments.settling import reconcile
from controlplane.errors import DomainError
from inference.contracts import Access, AccessKey
from inference.snapshot import derive_secret, open_access
from tests.controlplane.deployments.rows import ACTOR, make_deployment, make_model, make_team

pytestmark = pytest.mark.django_db


@pytest.fixture
def team() -> Team:
    return make_team()


def published() -> Access:
    from django.conf import settings

    document = DataplaneDocument.objects.get(kind="access", state="active")
    return open_access(derive_secret(settings.SECRET_KEY), document.body.encode(), document.signature)


def entry(key: ApiKey) -> AccessKey:
    return next(found for found in published().keys if found.id == str(key.pk))


def test_a_key_for_single_deployments_names_them(team: Team) -> None:
    model = make_model(team)
    one, two = make_deployment(team, model, "one"), make_deployment(team, model, "two")
    make_deployment(team, model, "three")
    key, plain = issue_key_for(
        actor=ACTOR, team=team, label="app", deployments=[one, two, one], test=True, rate_per_minute=60
    )
    told = entry(key)
    assert plain.startswith("sb_test_")
    assert set(told.deployments or ()) == {str(one.pk), str(two.pk)}
    assert (told.test, told.rate_per_minute, told.revoked, told.team_id) == (True, 60, False, str(team.pk))
    assert plain not in DataplaneDocument.objects.get(kind="access", state="active").body


def test_a_key_for_all_deployments_names_none(team: Team) -> None:
    key, _ = issue_key_for(actor=ACTOR, team=team, label="app", expires_at=timezone.now() + timedelta(days=1))
    told = entry(key)
    assert told.deployments is None
    assert key.expires_at is not None
    assert told.expires_at == key.expires_at.timestamp()


def test_a_key_cannot_be_granted_another_teams_deployment(team: Team) -> None:
    elsewhere = make_team("elsewhere")
    theirs = make_deployment(elsewhere, make_model(elsewhere))
    for deployments in ([theirs], []):
        with pytest.raises(DomainError) as refused:
            issue_key_for(actor=ACTOR, team=team, label="app", deployments=deployments)
        assert refused.value.code == "validation_error"
    assert not ApiKey.objects.exists()
    assert not KeyGrant.objects.exists()


def test_a_revocation_is_published_at_its_commit(
    team: Team, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    key, _ = issue_key_for(actor=ACTOR, team=team, label="app")
    assert not entry(key).revoked
    with django_capture_on_commit_callbacks(execute=True):
        revoke_key(actor=ACTOR, key=key)
    assert entry(key).revoked


def test_what_a_crash_kept_from_being_published_is_published_later(team: Team) -> None:
    key, _ = issue_key(actor=ACTOR, team=team, label="app")
    assert reconcile()
    assert not entry(key).revoked
    generation = published().generation
    assert not reconcile()
    assert published().generation == generation


def test_publishing_keys_costs_the_same_however_many_there_are(
    team: Team, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    deployment = make_deployment(team, make_model(team))
    issue_key_for(actor=ACTOR, team=team, label="first", deployments=[deployment])
    # Savepoint and lock; what is in force; keys and grants.
    with django_assert_num_queries(6):
        assert publish_access() is None
    for number in range(5):
        issue_key_for(actor=ACTOR, team=team, label=f"key {number}", deployments=[deployment])
    with django_assert_num_queries(6):
        assert publish_access() is None
