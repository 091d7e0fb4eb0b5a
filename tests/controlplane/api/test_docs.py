"""/api/docs/ and /api/schema/: described without inline script, for whoever is signed in."""

import json
import re

import pytest
from django.contrib.staticfiles import finders
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator

from controlplane.accounts.models import Team
from controlplane.catalog.models import RegisteredModel
from controlplane.deployments.models import Deployment
from tests.controlplane.cast import Caller, nobody

pytestmark = [pytest.mark.urls("tests.controlplane.api.catalog_urls"), pytest.mark.django_db]


@pytest.fixture(autouse=True)
def deployment(team: Team) -> Deployment:
    model = RegisteredModel.objects.create(team=team, name="fraud")
    return Deployment.objects.create(team=team, name="checkout", model=model)


def setup_of(page: str) -> dict[str, object]:
    found = re.search(r'<script id="setup" type="application/json">(.*?)</script>', page)
    assert found is not None
    setup: dict[str, object] = json.loads(found[1])
    return setup


def test_the_page_offers_the_control_api_and_one_s_own_deployments(as_owner: Caller, as_outsider: Caller) -> None:
    setup = setup_of(as_owner.get("/api/docs/").content.decode())
    assert setup["urls"] == [
        {"name": "Control API", "url": "/api/schema/"},
        {"name": "Prediction API: checkout", "url": "/api/deployments/checkout/openapi.json"},
    ]
    assert setup["primary"] == "Control API"
    chosen = setup_of(as_owner.get("/api/docs/", deployment="checkout").content.decode())
    assert chosen["primary"] == "Prediction API: checkout"
    assert len(setup_of(as_outsider.get("/api/docs/").content.decode())["urls"]) == 1  # type: ignore[arg-type]  # a JSON object


def test_the_page_passes_the_content_security_policy(as_owner: Caller) -> None:
    answer = as_owner.get("/api/docs/")
    assert "script-src 'self'" in answer["Content-Security-Policy"]
    page = answer.content.decode()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert all("src=" in attributes or "application/json" in attributes for attributes, _ in scripts)
    assert " on" not in re.sub(r">[^<]*<", "><", page)
    assert "http://" not in page and "https://" not in page


def test_everything_that_the_page_loads_is_ours_to_serve(as_owner: Caller) -> None:
    page = as_owner.get("/api/docs/").content.decode()
    loaded = re.findall(r'(?:src|href)="/static/([^"]+)"', page)
    assert len(loaded) == 5
    assert all(finders.find(path) for path in loaded)


def test_who_is_not_signed_in_is_sent_to_the_sign_in_page() -> None:
    answer = nobody().get("/api/docs/")
    assert answer.status_code == 302 and answer["Location"].startswith("/accounts/login/")
    assert nobody().get("/api/schema/").status_code == 401


def test_the_schema_describes_every_address_of_these_rooms(as_owner: Caller) -> None:
    answer = as_owner.get("/api/schema/", format="json")
    assert answer.status_code == 200
    paths = json.loads(answer.content)["paths"]
    assert set(paths) >= {
        "/api/models/",
        "/api/models/{name}/",
        "/api/models/{name}/versions/",
        "/api/models/{name}/versions/{number}/",
        "/api/models/{name}/versions/{number}/report/",
        "/api/keys/",
        "/api/keys/{key_id}/",
        "/api/audit/",
    }
    upload = paths["/api/models/{name}/versions/"]["post"]["requestBody"]["content"]
    assert set(upload) == {"multipart/form-data"}


def test_the_schema_of_these_rooms_is_made_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    GENERATOR_STATS.reset()
    SchemaGenerator().get_schema(public=True)
    complaints = [line for line in capsys.readouterr().err.splitlines() if re.search(r"api/(keys|catalog|docs)", line)]
    assert complaints == []
