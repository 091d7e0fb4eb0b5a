"""Query strings that make no sense are refused or find nothing; none is a server error (the caller asserts that)."""

import pytest

from controlplane.accounts.models import Team
from tests.controlplane.cast import Caller
from tests.controlplane.deployments.rows import make_deployment, make_model

pytestmark = pytest.mark.django_db

TIMES = [
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "1600-01-01T00:00:00Z",
    "99999999999d",
    "-1h",
    "1e9d",
    "٣h",
    "2026-02-30",
    "\x00",
    "9" * 400,
    "2026-01-01T00:00:00+99:99",
]


@pytest.mark.parametrize("time", TIMES)
def test_a_time_that_is_none_is_no_server_error(as_owner: Caller, team: Team, time: str) -> None:
    make_deployment(team, make_model(team), "x")
    for path in ("audit/", "predictions/", "deployments/x/metrics/", "deployments/x/drift/", "deployments/x/accuracy/"):
        for name in ("since", "until"):
            assert as_owner.get(f"/api/{path}", **{name: time}).status_code in (200, 422)


@pytest.mark.parametrize(
    "value", ["9" * 5000, "-1", "1e400", "\x00", "\ud800".encode("utf-8", "surrogatepass"), "٣", "x" * 3000]
)
def test_a_filter_or_page_that_is_none_is_no_server_error(as_owner: Caller, value: str) -> None:
    asked = {
        "audit/": ("actor", "target_id", "cursor", "page_size"),
        "predictions/": ("deployment", "version", "client_id", "outcome", "cursor", "page_size", "count", "pinned"),
        "keys/": ("cursor", "page_size"),
        "models/": ("archived", "cursor", "page_size"),
        "deployments/": ("retired", "cursor", "page_size"),
    }
    for path, names in asked.items():
        for name in names:
            assert as_owner.get(f"/api/{path}", **{name: value}).status_code in (200, 404, 422)
    for page in (
        "audit/?before=",
        "audit/?q=",
        "jobs/?before=",
        "jobs/?status=",
        "deployments/?range=",
        "deployments/new/?model=",
    ):
        path, _, name = page.rstrip("=").partition("?")
        assert as_owner.get(f"/{path}", **{name: value}).status_code == 200
