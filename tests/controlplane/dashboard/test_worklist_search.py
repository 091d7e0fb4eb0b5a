"""The search of the worklist: by filters, by an exact case reference that stands in no address, in pages."""

from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client

from controlplane.accounts.models import Role, Team, User
from controlplane.deployments.models import Deployment
from controlplane.studies import queries
from tests.controlplane.cast import new_user, signed_in
from tests.controlplane.dashboard.test_studies import doctors
from tests.controlplane.studies.conftest import broker, chest_model, children, doctor, draft, home, xray

__all__ = ["broker", "chest_model", "children", "doctor", "doctors", "home", "xray"]
pytestmark = pytest.mark.django_db


def searched(client: Client, **typed: str) -> str:
    """The address that a search leads to."""
    answer = client.post("/studies/", typed)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (302, "no-store")
    return answer.headers["Location"]


def test_a_case_is_found_and_its_reference_stands_in_no_address(
    doctors: Client, doctor: User, xray: Deployment
) -> None:
    for number in (3, 4):
        draft(doctor, xray, reference=f"case {number}")
    address = searched(doctors, reference=" CASE 3 ", mine="1", status="draft")
    assert "case" not in parse_qs(urlsplit(address).query)["case"][0].lower()
    answer = doctors.get(address)
    page = answer.content.decode()
    assert answer.headers["Cache-Control"] == "no-store"
    assert "case 3" in page
    assert "case 4" not in page
    assert 'value="CASE 3"' in page
    assert '<option value="draft" selected>' in page


def test_the_form_is_posted_and_needs_its_token(doctor: User, doctors: Client) -> None:
    assert '<form class="filters" method="post" action="/studies/"' in doctors.get("/studies/").content.decode()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(doctor)
    assert strict.post("/studies/", {"reference": "case 3"}).status_code == 403


def test_a_reference_in_an_address_is_not_looked_for(doctors: Client, doctor: User, xray: Deployment) -> None:
    draft(doctor, xray, reference="case 4")
    page = doctors.get("/studies/?reference=case+3").content.decode()
    assert "case 4" in page
    assert "case 3" not in page


def test_filters_alone_make_an_address_that_can_be_kept(doctors: Client) -> None:
    assert searched(doctors, reference=" ", status="read", mine="1", page="x") == "/studies/?status=read&mine=1"
    assert searched(doctors, reference="\0", status="nonsense") == "/studies/"


def test_an_address_tells_a_reference_to_nobody_else(doctors: Client, team: Team) -> None:
    address = searched(doctors, reference="case 3")
    colleague = signed_in(new_user("colleague doctor", team, Role.DOCTOR))
    assert "case 3" in doctors.get(address).content.decode()
    assert "case 3" not in colleague.get(address).content.decode()


def test_older_rows_of_a_search_stand_in_no_address_either(
    doctors: Client, doctor: User, xray: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE_SIZE", 2)
    for _ in range(3):
        draft(doctor, xray, reference="case 3")
    draft(doctor, xray, reference="case 4")
    page = doctors.get(searched(doctors, reference="case 3")).content.decode()
    assert page.count("data-row") == 2
    older = page.split('class="btn" href="?')[1].split('"')[0].replace("&amp;", "&")
    assert "3" not in parse_qs(older).get("reference", [])
    last = doctors.get(f"/studies/?{older}").content.decode()
    assert last.count("data-row") == 1
    assert "case 4" not in last


@pytest.mark.parametrize("who", ["viewer", "developer"])
def test_who_may_not_read_studies_may_not_search_them(team: Team, who: str) -> None:
    client = signed_in(new_user(who, team, Role(who)))
    assert client.post("/studies/", {"reference": "case 3"}).status_code == 403
