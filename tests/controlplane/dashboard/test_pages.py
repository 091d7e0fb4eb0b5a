"""Every page: who may see it, what it costs, and that nothing from a model file or a caller becomes markup."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment, SplitRevision
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from tests.controlplane.predictions.records import refused, served

PAGES = ["/", "/deployments/", "/models/", "/jobs/", "/keys/", "/audit/", "/system/", "/deployments/new/"]
OF_THE_DEPLOYMENT = ["", "latency/", "predictions/", "try/", "settings/", "head/", "traffic/", "history/"]
EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_a_signed_in_person(client: Client, db: None, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 302
    assert response.headers["Location"].startswith("/accounts/login/")


@pytest.mark.parametrize("path", PAGES)
def test_it_shows_the_page_to_an_owner(owners: Client, path: str) -> None:
    response = owners.get(path)
    assert response.status_code == 200
    assert b"<h1>" in response.content


@pytest.mark.parametrize("tab", OF_THE_DEPLOYMENT)
def test_a_deployments_tabs_are_the_teams_alone(
    owners: Client, outsiders: Client, deployment: Deployment, tab: str
) -> None:
    assert owners.get(f"/deployments/checkout/{tab}").status_code == 200
    assert outsiders.get(f"/deployments/checkout/{tab}").status_code == 404


@pytest.mark.parametrize("path", ["", "upload/", "versions/1/"])
def test_a_models_pages_are_the_teams_alone(
    owners: Client, outsiders: Client, versions: list[ModelVersion], path: str
) -> None:
    assert owners.get(f"/models/fraud/{path}").status_code == 200
    assert outsiders.get(f"/models/fraud/{path}").status_code == 404


@pytest.mark.parametrize("path", ["/keys/", "/audit/", "/system/", "/models/fraud/upload/"])
def test_a_viewer_is_not_let_into_rooms_of_others(colleagues: Client, versions: list[ModelVersion], path: str) -> None:
    assert colleagues.get(path).status_code == 403


def test_the_rail_shows_only_what_a_role_may_use(owners: Client, colleagues: Client) -> None:
    assert b'href="/keys/"' in owners.get("/").content
    assert b'href="/keys/"' not in colleagues.get("/").content


def test_an_overview_costs_the_same_queries_with_more_traffic(
    owners: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    owners.get("/")
    with django_assert_max_num_queries(12) as few:
        owners.get("/")
    record_predictions([served(deployment, versions[index % 2]) for index in range(200)])
    with django_assert_max_num_queries(12) as many:
        response = owners.get("/")
    assert len(many) == len(few)
    assert b"checkout" in response.content


@pytest.mark.parametrize("tab", ["", "latency/", "predictions/"])
def test_a_tab_costs_a_bounded_number_of_queries(
    owners: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    django_assert_max_num_queries: DjangoAssertNumQueries,
    tab: str,
) -> None:
    record_predictions([served(deployment, versions[index % 2]) for index in range(100)])
    with django_assert_max_num_queries(16):
        assert owners.get(f"/deployments/checkout/{tab}").status_code == 200


def test_figures_of_the_traffic_tab_are_those_of_the_log(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    record_predictions([served(deployment, versions[0]) for _ in range(9)])
    record_predictions([served(deployment, versions[1]), refused(deployment)])
    page = owners.get("/deployments/checkout/?range=1h").content.decode()
    assert "11 calls" in page
    assert "90.00 %" in page
    assert "wrong_type" in page


def test_the_latency_tab_sets_waiting_in_the_queue_against_computing(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    waits = [(1.0, 40.0)] * 9 + [(300.0, 700.0)]
    record_predictions([served(deployment, versions[0], queue_ms=wait, compute_ms=run) for wait, run in waits])
    page = owners.get("/deployments/checkout/latency/?range=1h").content.decode()
    cells = dict(re.findall(r'data-label="((?:Queue|Compute) p\d\d)">([\d.]+) ms<', page))
    # As near as a rollup's logarithmic bins tell.
    told = {"Queue p50": 1.0, "Queue p95": 300.0, "Compute p50": 40.0, "Compute p95": 700.0}
    assert {name: float(value) for name, value in cells.items()} == pytest.approx(told, rel=0.1)


def test_a_live_region_that_did_not_change_is_not_sent_again(owners: Client, deployment: Deployment) -> None:
    # Times are told relative to now; these were long enough ago not to change while we look.
    SplitRevision.objects.update(activated_at=timezone.now() - timedelta(days=3))
    SplitRevision.objects.update(created_at=timezone.now() - timedelta(days=3, hours=1))
    first = owners.get("/deployments/checkout/history/")
    again = owners.get("/deployments/checkout/history/", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


def test_text_of_callers_and_files_is_escaped(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    ModelVersion.objects.filter(pk=versions[0].pk).update(file_name=EVIL, notes=EVIL, labels=[EVIL, "b"])
    record = served(deployment, versions[0], client_id=EVIL, context={"k": EVIL}, inputs={EVIL: [EVIL]})
    record_predictions([record])
    found = Prediction.objects.get()
    for path in (
        "/models/fraud/",
        "/models/fraud/versions/1/",
        "/deployments/checkout/predictions/",
        f"/deployments/checkout/predictions/{found.pk}/",
        "/deployments/checkout/try/",
    ):
        assert EVIL.encode() not in owners.get(path).content, path


def test_seeing_a_payload_is_written_down_and_needs_the_right(
    owners: Client, colleagues: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    record_predictions([served(deployment, versions[0])])
    path = f"/deployments/checkout/predictions/{Prediction.objects.get().pk}/"
    assert b"12.5" not in colleagues.get(path).content
    assert not AuditEvent.objects.filter(action="payload.view").exists()
    assert b"12.5" in owners.get(path).content
    assert AuditEvent.objects.filter(action="payload.view", actor="user:owner").count() == 1


def test_another_teams_prediction_is_not_found_under_ones_own_deployment(
    owners: Client, outsiders: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    record_predictions([served(deployment, versions[0])])
    path = f"/deployments/checkout/predictions/{Prediction.objects.get().pk}/"
    assert outsiders.get(path).status_code == 404


def test_the_log_is_searched_by_client_id_version_and_outcome(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    record_predictions([served(deployment, versions[0], client_id="order-1")])
    record_predictions([served(deployment, versions[1], client_id="order-2")])
    search = "/deployments/checkout/predictions/"
    assert b"order-2" not in owners.get(search, {"q": "order-1"}).content
    assert b"order-1" not in owners.get(search, {"version": "2"}).content
    assert b"order-1" not in owners.get(search, {"outcome": "timeout"}).content
    for nonsense in ("\x00", "no-such-id", "0" * 500):
        assert owners.get(search, {"q": nonsense, "version": "x", "before": "y"}).status_code == 200


def test_the_theme_is_kept_in_a_cookie_and_leads_nowhere_else(owners: Client) -> None:
    response = owners.post("/theme/", {"theme": "dark", "next": "https://evil.example/"})
    assert response.headers["Location"] == "/"
    assert b'data-theme="dark"' in owners.get("/").content


def test_an_unknown_address_is_a_page_for_people_and_a_problem_for_programs(owners: Client) -> None:
    assert b"There is nothing here" in owners.get("/no/such/page/").content
    answer = owners.get("/api/no/such/thing/")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == "not_found"


def test_pages_forbid_inline_scripts_and_frames(owners: Client) -> None:
    policy = owners.get("/").headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy


def test_programs_on_the_try_it_page_need_nothing_but_a_key_put_in(owners: Client, deployment: Deployment) -> None:
    page = owners.get("/deployments/checkout/try/").content.decode()
    assert "Authorization: Bearer sb_YOUR_KEY" in page
    assert "$SIGNALBOX_KEY" not in page
