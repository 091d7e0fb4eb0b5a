"""The database itself keeps audit events as they were written."""

import pytest
from django.contrib.admin import site
from django.db import DatabaseError, connection, transaction
from django.test import RequestFactory

from controlplane.accounts.models import User
from controlplane.audit.models import AuditEvent
from controlplane.audit.requests import address_of
from controlplane.audit.services import SYSTEM, record

pytestmark = pytest.mark.django_db


@pytest.fixture
def event() -> AuditEvent:
    return record(
        actor=SYSTEM,
        action="split.apply",
        target_type="deployment",
        target_id="1",
        target_label="checkout",
        team_id=None,
        after={"shares": {"1": 90}},
    )


def test_an_event_says_who_what_and_when(event: AuditEvent) -> None:
    event.refresh_from_db()
    assert (event.actor, event.action, event.after) == ("system", "split.apply", {"shares": {"1": 90}})
    assert str(event).endswith("system split.apply checkout")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_auditevent SET actor = 'user:someone'",
        "DELETE FROM audit_auditevent",
        "TRUNCATE audit_auditevent",
    ],
)
def test_the_database_refuses_to_change_an_event(event: AuditEvent, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER audit_event_keep_table")
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            cursor.execute(statement)
    assert AuditEvent.objects.filter(actor="system").count() == 1


def test_the_site_admin_reads_events_and_changes_none(event: AuditEvent) -> None:
    admin = site._registry[AuditEvent]
    root = User.objects.create(username="root", is_staff=True, is_superuser=True)
    request = RequestFactory().get("/admin/")
    request.user = root
    assert admin.has_view_permission(request, event)
    assert not admin.has_add_permission(request)
    assert not admin.has_change_permission(request, event)
    assert not admin.has_delete_permission(request, event)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("10.0.0.1, 2001:db8::1", "2001:db8::1"),
        ("nonsense", None),
        ("203.0.113.7:443", None),
    ],
)
def test_an_address_that_is_none_is_left_out(forwarded: str, address: str | None) -> None:
    request = RequestFactory().get("/", headers={"X-Forwarded-For": forwarded})
    assert address_of(request) == address
