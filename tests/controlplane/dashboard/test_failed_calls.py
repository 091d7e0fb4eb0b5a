"""Failed calls of a deployment: by kind, code and column, on the traffic tab and in the API."""

import time

import pytest
from django.test import Client

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.monitoring.failures import FailureKind, kind_of
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from inference.contracts import Outcome, Role, Source
from inference.errors import TABLE
from tests.controlplane.cast import Caller
from tests.controlplane.predictions.records import refused, served

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def failures(deployment: Deployment, versions: list[ModelVersion]) -> None:
    at = time.time() - 120
    second = {"version_id": str(versions[1].pk), "version": 2}
    shadow = {"role": Role.SHADOW, "source": Source.SHADOW, "outcome": Outcome.SERVER_ERROR, "status": 500}
    record_predictions(
        [served(deployment, versions[0], at=at) for _ in range(80)]
        + [refused(deployment, at=at, loc=f"instances.{row}.amount") for row in range(10)]
        + [refused(deployment, at=at + 60, loc="inputs.age")]
        + [refused(deployment, at=at, code="overloaded", outcome=Outcome.SHED, status=503, loc="")]
        + [refused(deployment, at=at, code="model_rejected_input", loc="", **second) for _ in range(5)]
        + [refused(deployment, at=at, code="internal", outcome=Outcome.SERVER_ERROR, status=500, loc="", **second)] * 3
        + [served(deployment, versions[1], at=at, code="non_finite_output", **shadow)]
    )


@pytest.mark.unit
def test_every_code_has_a_kind() -> None:
    by_kind = {kind: {code for code in TABLE if kind_of(code) is kind} for kind in FailureKind}
    assert by_kind[FailureKind.MODEL] == {"model_rejected_input", "non_finite_output"}
    assert {"rate_limited", "overloaded", "deadline_exceeded"} <= by_kind[FailureKind.OVERLOAD]
    assert {"internal", "worker_lost", "upstream_unavailable"} <= by_kind[FailureKind.SERVER]
    assert {"wrong_type", "bad_json", "not_authenticated"} <= by_kind[FailureKind.CLIENT]
    assert kind_of("of a later release") is FailureKind.SERVER


@pytest.mark.django_db
@pytest.mark.usefixtures("failures")
def test_the_api_tells_kinds_codes_columns_versions_and_times(as_colleague: Caller, deployment: Deployment) -> None:
    told = as_colleague.get(f"/api/deployments/{deployment.name}/metrics/", since="1h").json()

    assert (told["calls"], told["failed"]) == (100, 20)
    assert {kind["kind"]: kind["calls"] for kind in told["error_kinds"]} == {
        "client": 11,
        "model": 5,
        "server": 3,
        "overload": 1,
    }
    for kind in told["error_kinds"]:
        assert len(kind["series"]) == len(told["at"])
        assert sum(count or 0 for count in kind["series"]) == kind["calls"]
    worst, rejected, _, _ = told["errors"]
    assert (worst["code"], worst["share"], worst["status"]) == ("wrong_type", 0.11, 422)
    assert worst["meaning"] == TABLE["wrong_type"].meaning
    assert worst["columns"] == [{"column": "amount", "calls": 10}, {"column": "age", "calls": 1}]
    assert worst["versions"] == [{"version": None, "calls": 11}]
    assert worst["first_at"] < worst["last_at"]
    assert rejected["versions"] == [{"version": 2, "calls": 5}]
    (shadow,) = told["shadow_errors"]
    assert (shadow["code"], shadow["kind"], shadow["calls"], shadow["share"]) == ("non_finite_output", "model", 1, 1.0)


@pytest.mark.django_db
@pytest.mark.usefixtures("failures")
def test_the_traffic_tab_shows_them_and_links_to_the_rows_that_exist(owners: Client, deployment: Deployment) -> None:
    page = owners.get("/deployments/checkout/?range=1h").content.decode()
    for words in ("wrong_type", TABLE["wrong_type"].meaning, "amount", "before routing 11", "v2 5", "11.00 %"):
        assert words in page, words
    assert page.count("show them") == 1
    live = owners.get("/deployments/checkout/errors/?range=1h", headers={"HX-Request": "true"}).content.decode()
    assert "wrong_type" in live
    assert '"barmode":"stack"' in live

    listed = owners.get("/deployments/checkout/predictions/", {"range": "1h", "code": "non_finite_output"})

    (failed,) = Prediction.objects.exclude(outcome="ok")
    assert f"/predictions/{failed.pk}/" in listed.content.decode()
    assert listed.content.decode().count("<tr>") == 2
    assert (
        b"No prediction in this window matches"
        in owners.get("/deployments/checkout/predictions/", {"code": "no such code\x00"}).content
    )


@pytest.mark.django_db
def test_places_that_callers_made_up_are_escaped(owners: Client, deployment: Deployment) -> None:
    record_predictions([refused(deployment, loc=f"instances.0.{EVIL}", code=EVIL)])
    page = owners.get("/deployments/checkout/?range=1h").content.decode()
    assert EVIL not in page
    assert "Failed calls" in page


@pytest.mark.django_db
def test_none_failed_is_said(owners: Client, deployment: Deployment, versions: list[ModelVersion]) -> None:
    record_predictions([served(deployment, versions[0]) for _ in range(3)])
    assert b"None of the 3 calls in this window failed." in owners.get("/deployments/checkout/?range=1h").content
