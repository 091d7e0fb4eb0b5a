"""The fixed cast, and a database whose audit log may be emptied between tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.test import Client

from controlplane.accounts.models import ApiKey, Role, Team, User
from tests.controlplane.cast import Caller, bearer, new_key, new_user, person, signed_in

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker, Settings


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: "DjangoDbBlocker") -> None:
    """Transactional tests end by emptying every table, which the audit log refuses; its own tests switch that on."""
    from django.db import connection

    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_event_keep_table")


@pytest.fixture
def team(db: None) -> Team:
    return Team.objects.create(name="cards")


@pytest.fixture
def other_team(db: None) -> Team:
    return Team.objects.create(name="radiology")


@pytest.fixture
def owner(team: Team) -> User:
    """Admin and data scientist of the team: may do everything in it."""
    return new_user("owner", team, Role.ADMIN, Role.DATA_SCIENTIST)


@pytest.fixture
def colleague(team: Team) -> User:
    """Sees the team's things, and may change none of them."""
    return new_user("colleague", team, Role.VIEWER)


@pytest.fixture
def outsider(other_team: Team) -> User:
    """May do everything, in another team."""
    return new_user("outsider", other_team, Role.ADMIN, Role.DATA_SCIENTIST)


@pytest.fixture
def as_owner(owner: User) -> Caller:
    return person(owner)


@pytest.fixture
def as_colleague(colleague: User) -> Caller:
    return person(colleague)


@pytest.fixture
def as_outsider(outsider: User) -> Caller:
    return person(outsider)


@pytest.fixture
def owners(owner: User) -> Client:
    """The owner's browser."""
    return signed_in(owner)


@pytest.fixture
def colleagues(colleague: User) -> Client:
    return signed_in(colleague)


@pytest.fixture
def outsiders(outsider: User) -> Client:
    return signed_in(outsider)


@pytest.fixture
def as_key(team: Team) -> Callable[..., Caller]:
    """`as_key("read", "upload")`: a caller with a key of the team."""

    def make(*scopes: str, **options: Any) -> Caller:
        return bearer(new_key(team, scopes, **options)[1])

    return make


@pytest.fixture
def issued(team: Team) -> tuple[ApiKey, str]:
    """A key of the team with the default scopes, and its text."""
    return new_key(team, ["predict", "pin", "feedback"])


@pytest.fixture
def store(settings: "Settings", tmp_path: Path) -> Path:
    """An empty artifact store of this test alone."""
    settings.SIGNALBOX_ARTIFACTS = tmp_path / "artifacts"
    return tmp_path / "artifacts"


@pytest.fixture(scope="session")
def sandbox() -> Iterator[None]:
    """Validation's warm parent, shared by the tests of this process and ended with them."""
    from controlplane.catalog.services import validation

    yield
    if validation._sandbox.cache_info().currsize:
        validation._sandbox().close()
