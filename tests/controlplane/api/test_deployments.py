"""/api/deployments/: create, list, edit, retire, and the description of the prediction API."""

from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.models import Team
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import Artifact, RegisteredModel
from controlplane.deployments.models import Deployment
from controlplane.deployments.services import apply_split, set_label
from tests.controlplane.catalog.uploads import draft
from tests.controlplane.deployments.dataplane import StandIn, newest_route
from tests.controlplane.deployments.rows import (
    ACTOR,
    make_deployment,
    make_model,
    make_team,
)

pytestmark = pytest.mark.django_db


def create(client: Client, **body: Any) -> Any:
    return client.post("/api/deployments/", body, content_type="application/json")


def test_a_deployment_is_made_without_a_split(owners: Client, model: RegisteredModel) -> None:
    response = create(
        owners, name="checkout", model="fraud", lane="executor", capture={"payload_share": 0.5}, max_rows=100
    )
    assert response.status_code == 201
    told = response.json()
    assert (told["name"], told["model"], told["team"], told["lane"]) == ("checkout", "fraud", "cards", "executor")
    assert told["capture"] == {"payload_share": 0.5, "retention_days": 30, "columns": {}}
    assert (told["split"], told["preparing"], told["labels"]) == (None, None, {})
    assert response["ETag"] == '"0"'
    route = newest_route("checkout")
    assert (route.live, route.versions, route.revision, route.max_rows) == ((), {}, 0, 100)
    assert AuditEvent.objects.get(action="deployment.create").actor == "user:owner"


@pytest.mark.parametrize(
    "name", ["../x", "a" * 61, "Checkout", "é", "a b", "", "new", "-a", "a.b", "чeckout", "a\u202eb"]
)
def test_a_name_that_is_no_name_is_422(owners: Client, model: RegisteredModel, name: str) -> None:
    response = create(owners, name=name, model="fraud")
    assert (response.status_code, response.json()["code"]) == (422, "bad_name" if name else "validation_error")
    assert not Deployment.objects.exists()


def test_a_name_is_used_once_also_after_retirement(owners: Client, model: RegisteredModel) -> None:
    assert create(owners, name="checkout", model="fraud").status_code == 201
    assert create(owners, name="checkout", model="fraud").status_code == 409
    assert owners.delete("/api/deployments/checkout/").status_code == 204
    response = create(owners, name="checkout", model="fraud")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


def test_a_model_of_another_team_is_not_found(owners: Client, team: Team) -> None:
    make_model(make_team("elsewhere"), "theirs")
    for name in ("theirs", "nobodys"):
        response = create(owners, name="checkout", model=name)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_who_may_not_deploy_makes_no_deployment(colleagues: Client, outsiders: Client, model: RegisteredModel) -> None:
    assert create(Client(), name="checkout", model="fraud").status_code == 401
    assert create(colleagues, name="checkout", model="fraud").status_code == 403
    assert create(outsiders, name="checkout", model="fraud").status_code == 404
    assert create(outsiders, name="checkout", model="fraud", team="cards").status_code == 404


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lane": "fast"}, "validation_error"),
        ({"capture": {"payload_share": 1.5}}, "validation_error"),
        ({"capture": {"payload_share": "NaN"}}, "validation_error"),
        ({"capture": {"retention_days": 0}}, "validation_error"),
        ({"capture": {"columns": {"nonesuch": "drop"}}}, "bad_columns"),
        ({"capture": {"columns": {"amount": "shred"}}}, "bad_columns"),
        ({"max_rows": 0}, "validation_error"),
        ({"max_body_bytes": 10**12}, "validation_error"),
        ({"max_batch_rows": 0}, "validation_error"),
        ({"max_batch_rows": 10**6}, "validation_error"),
        ({"max_wait_ms": -1}, "validation_error"),
        ({"max_wait_ms": "NaN"}, "validation_error"),
        ({"max_wait_ms": 60_000}, "validation_error"),
        ({"cache_ttl_s": -1}, "validation_error"),
        ({"cache_ttl_s": "NaN"}, "validation_error"),
        ({"cache_ttl_s": 100_000}, "validation_error"),
        ({"cache_bytes": 1024}, "validation_error"),
        ({"cache_bytes": 2**31}, "validation_error"),
        ({"max_in_flight": 0}, "validation_error"),
        ({"max_in_flight": 513}, "validation_error"),
        ({"description": "x" * 2001}, "validation_error"),
        ({"name": "other"}, "validation_error"),
        ({"model": "other"}, "validation_error"),
    ],
)
def test_a_setting_that_cannot_be_is_422(owners: Client, model: RegisteredModel, change: Any, code: str) -> None:
    make_deployment(model.team, model)
    response = owners.patch("/api/deployments/checkout/", change, content_type="application/json")
    assert (response.status_code, response.json()["code"]) == (422, code)


def test_settings_are_edited_published_and_audited(owners: Client, model: RegisteredModel) -> None:
    deployment = make_deployment(model.team, model)
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100})
    change: dict[str, Any] = {"lane": "inline", "capture": {"columns": {"amount": "hash"}, "retention_days": 7}}
    change |= {"max_batch_rows": 1, "max_wait_ms": 0.5, "max_in_flight": 32}
    change |= {"cache_ttl_s": 1.5, "cache_bytes": 65_536}
    response = owners.patch("/api/deployments/checkout/", change, content_type="application/json")
    assert response.status_code == 200
    assert response.json()["capture"] == {"payload_share": 1.0, "retention_days": 7, "columns": {"amount": "hash"}}
    route = newest_route("checkout")
    assert (route.lane, route.capture.retention_days) == ("inline", 7)
    assert (route.max_batch_rows, route.max_wait_ms, route.max_in_flight) == (1, 0.5, 32)
    assert (route.cache_ttl_s, route.cache_bytes) == (1.5, 65_536)
    assert {column.name: column.keep for column in route.versions[1].columns} == {"amount": "hash", "age": "keep"}
    event = AuditEvent.objects.get(action="deployment.edit")
    assert event.before and event.after
    assert (event.before["lane"], event.after["lane"]) == ("auto", "inline")


def test_a_retired_deployment_is_gone_and_out_of_the_list(owners: Client, model: RegisteredModel) -> None:
    deployment = make_deployment(model.team, model)
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100})
    assert owners.delete("/api/deployments/checkout/").status_code == 204
    route = newest_route("checkout")
    assert (route.retired, route.live, route.versions) == (True, (), {})
    assert owners.get("/api/deployments/").json()["results"] == []
    assert owners.get("/api/deployments/?retired=1").json()["results"][0]["retired_at"]
    assert owners.get("/api/deployments/checkout/openapi.json").status_code == 410
    assert owners.delete("/api/deployments/checkout/").status_code == 410


def test_the_list_costs_the_same_however_long_it_is(
    owners: Client, model: RegisteredModel, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    plane = StandIn()

    def add(name: str) -> None:
        deployment = make_deployment(model.team, model, name)
        apply_split(actor=ACTOR, deployment=deployment, shares={"1": 90, "2": 10})
        plane.step()
        set_label(actor=ACTOR, deployment=deployment, label="stable", version=1)

    add("first")
    # Session, person, memberships; deployments with team and model, current splits, labels with versions.
    with django_assert_num_queries(6):
        owners.get("/api/deployments/")
    for number in range(4):
        add(f"more-{number}")
    with django_assert_num_queries(6):
        told = owners.get("/api/deployments/").json()
    assert [row["name"] for row in told["results"]] == ["more-3", "more-2", "more-1", "more-0", "first"]
    assert told["results"][4]["split"]["shares"] == {"1": 90, "2": 10}
    assert told["results"][4]["labels"] == {"stable": 1}


def test_the_list_is_paged_by_cursor(owners: Client, model: RegisteredModel) -> None:
    for number in range(3):
        make_deployment(model.team, model, f"d{number}")
    told = owners.get("/api/deployments/?page_size=2").json()
    assert [row["name"] for row in told["results"]] == ["d2", "d1"]
    assert [row["name"] for row in owners.get(told["next"]).json()["results"]] == ["d0"]


def test_the_prediction_api_is_described(owners: Client, model: RegisteredModel) -> None:
    deployment = make_deployment(model.team, model)
    url = "/api/deployments/checkout/openapi.json"
    response = owners.get(url)
    assert (response.status_code, response.json()["code"]) == (409, "not_ready")
    plane = StandIn()
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 30, "2": 70})
    plane.step()
    owners.get("/api/deployments/checkout/")
    document = owners.get(url).json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/models/checkout:predict" in document["paths"]
    assert document["info"]["version"] == "2"
    assert document["servers"] == [{"url": "http://testserver"}]
    assert owners.get(f"{url}?version=1").json()["info"]["version"] == "1"
    example = document["paths"]["/v1/models/checkout:predict"]["post"]["requestBody"]["content"]["application/json"]
    assert example["example"] == {"instances": [{"amount": 0.5, "age": 0.5}]}
    for version in ("9", "x", "²"):
        assert owners.get(f"{url}?version={version}").status_code == 404


def test_examples_are_of_the_reference_set_but_for_hidden_columns(
    owners: Client, model: RegisteredModel, store: Path
) -> None:
    deployment = make_deployment(model.team, model)
    stored = draft(b"amount,age,target\n12.25,31,ok\n12.5,32,ok\n900,99,fraud\n").keep()
    artifact = Artifact.objects.create(sha256=stored.sha256, size_bytes=stored.size_bytes)
    model.versions.update(reference_artifact=artifact)
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100})
    StandIn().step()
    url = "/api/deployments/checkout/openapi.json"

    def shown() -> tuple[Any, list[str]]:
        operation = owners.get(url).json()["paths"]["/v1/models/checkout:predict"]["post"]
        programs = [program["source"] for program in operation["x-codeSamples"]]
        return operation["requestBody"]["content"]["application/json"]["example"]["instances"], programs

    row, programs = shown()
    assert row == [{"amount": 12.5, "age": 32.0}]
    assert len(programs) == 3 and all("12.5" in program and "32.0" in program for program in programs)
    page = owners.get("/deployments/checkout/try/").content.decode()
    assert 'value="12.5"' in page and 'value="32.0"' in page
    for policy in ("hash", "drop"):
        Deployment.objects.filter(pk=deployment.pk).update(column_policy={"age": policy})
        row, programs = shown()
        assert row == [{"amount": 12.5, "age": 0.5}]
        page = owners.get("/deployments/checkout/try/").content.decode()
        assert not any("32.0" in text for text in (*programs, page))
