"""/api/deployments/{d}/metrics|accuracy|drift/: the figures of the pages, from rollups alone."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.accounts.models import Team
from controlplane.catalog.models import ModelVersion, ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.monitoring.estimates import wilson
from controlplane.monitoring.intervals import read_interval
from controlplane.monitoring.traffic import overview
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from inference.contracts import Role, Source
from inference.runtime.digest import digest_of, pack
from tests.controlplane.cast import Caller, bearer, new_key
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import refused, served

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(team: Team) -> ModelVersion:
    return make_version(make_model(team))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


def test_traffic_latency_and_errors_by_version(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    second = make_version(version.model)
    at = time.time() - 60
    records = [served(deployment, version, at=at, total_ms=10.0, compute_ms=8.0) for _ in range(90)]
    records += [served(deployment, second, at=at, total_ms=20.0) for _ in range(10)]
    records += [refused(deployment, at=at) for _ in range(25)]
    records.append(served(deployment, second, at=at, role=Role.SHADOW, source=Source.SHADOW, total_ms=99.0))
    record_predictions(records)

    told = as_colleague.get(f"/api/deployments/{deployment.name}/metrics/", since="1h").json()

    assert (told["calls"], told["failed"], told["error_share"]) == (125, 25, 0.2)
    live = {one["version"]: one for one in told["versions"] if one["role"] == "live"}
    assert (live[1]["calls"], live[1]["share"]) == (90, 0.9)
    assert (live[2]["calls"], live[2]["share"]) == (10, 0.1)
    assert live[1]["latency_ms"]["total"]["p50"] == pytest.approx(10, rel=0.09)
    assert live[1]["latency_ms"]["compute"]["p95"] == pytest.approx(8, rel=0.09)
    assert live[2]["latency_ms"]["total"]["p99"] == pytest.approx(20, rel=0.09)
    assert [one["calls"] for one in told["versions"] if one["role"] == "shadow"] == [1]
    assert told["errors"][0]["code"] == "wrong_type"
    assert told["errors"][0]["places"] == [{"place": "instances.0.amount", "calls": 25}]
    assert told["errors"][0]["columns"] == [{"column": "amount", "calls": 25}]
    assert told["errors"][0]["kind"] == "client"
    assert told["errors"][0]["versions"] == [{"version": None, "calls": 25}]
    assert [(kind["kind"], kind["calls"], kind["share"]) for kind in told["error_kinds"]] == [("client", 25, 0.2)]
    assert told["shadow_errors"] == []
    series = told["series"]["calls"]
    assert len(series) == len(told["at"])
    assert sum(count for count in series if count is not None) == 125
    # Silence is a gap, not a zero.
    assert series[0] is None
    assert told["series"]["total_p95"][0] is None


def test_figures_cost_the_same_after_many_predictions(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion, django_assert_max_num_queries: Any
) -> None:
    for size in (1, 400):
        record_predictions([served(deployment, version) for _ in range(size)])
        for tab, most in (("metrics", 8), ("accuracy", 8), ("drift", 9)):
            with django_assert_max_num_queries(most):
                as_colleague.get(f"/api/deployments/{deployment.name}/{tab}/")
    # They are read from rollups: without the log they say the same.
    Prediction.objects.all()._raw_delete(Prediction.objects.db)
    assert as_colleague.get(f"/api/deployments/{deployment.name}/metrics/").json()["calls"] == 401


def test_accuracy_comes_with_its_interval(as_owner: Caller, deployment: Deployment, version: ModelVersion) -> None:
    records = [served(deployment, version) for _ in range(20)]
    record_predictions(records)
    rows = [{"prediction_id": one.id, "label": "ok" if n < 15 else "fraud"} for n, one in enumerate(records)]
    as_owner.post("/api/feedback/", rows)

    told = as_owner.get(f"/api/deployments/{deployment.name}/accuracy/").json()

    (one,) = told["versions"]
    assert (one["version"], one["n"]) == (1, 20)
    assert one["metrics"]["accuracy"] == {"value": 0.75, "low": pytest.approx(0.5313, abs=1e-3),
                                          "high": pytest.approx(0.8881, abs=1e-3)}  # fmt: skip
    assert one["confusion"] == {"ok": {"ok": 15}, "fraud": {"ok": 5}}
    assert next(label for label in one["labels"] if label["label"] == "fraud")["recall"]["value"] == 0


@pytest.mark.unit
def test_wilson_agrees_with_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == {"value": pytest.approx(0.307985), "low": pytest.approx(0.2553, abs=1e-4),
                               "high": pytest.approx(0.3662, abs=1e-4)}  # fmt: skip
    assert wilson(0, 20)["high"] == pytest.approx(0.1611, abs=1e-4)
    assert wilson(0, 0) == {"value": None, "low": None, "high": None}


def numbers(mean: float, n: int = 400) -> list[float]:
    generator = random.Random(7)
    return [generator.gauss(mean, 1.0) for _ in range(n)]


def test_drift_against_the_reference_set_names_what_moved_most(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    digests = {"amount": digest_of(numbers(10.0)), "age": digest_of(numbers(40.0))}
    ReferenceDigests.objects.create(version=version, packed=pack(digests))
    moved = [
        served(deployment, version, features={"amount": [amount], "age": [age]})
        for amount, age in zip(numbers(13.0), reversed(numbers(40.0)), strict=True)
    ]
    record_predictions(moved)

    told = as_colleague.get(f"/api/deployments/{deployment.name}/drift/").json()

    assert (told["baseline"], told["reference_version"], told["n"]) == ("reference", 1, 400)
    amount, age = told["features"]
    assert (amount["name"], amount["drifting"], age["drifting"]) == ("amount", True, False)
    assert amount["wasserstein"] == pytest.approx(3.0, abs=0.3)
    assert amount["ks"] > 0.8 > 0.15 > age["ks"]
    assert amount["psi"] > 1 > age["psi"]
    assert 0 <= age["js"] < amount["js"] <= 1


def test_drift_without_a_reference_looks_at_the_time_before(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    present = time.time()
    record_predictions(
        [served(deployment, version, at=present - 5400, features={"shop": ["a"]}) for _ in range(200)]
        + [served(deployment, version, at=present - 60, features={"shop": ["b"]}) for _ in range(200)]
    )

    told = as_colleague.get(f"/api/deployments/{deployment.name}/drift/", since="1h").json()

    assert told["baseline"] == "earlier"
    assert (told["features"][0]["name"], told["features"][0]["drifting"]) == ("shop", True)
    assert told["prediction"]["drifting"] is False


def test_with_too_little_there_is_no_verdict(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record_predictions([served(deployment, version)])

    told = as_colleague.get(f"/api/deployments/{deployment.name}/drift/").json()

    assert [one["psi"] for one in told["features"]] == [None, None]
    assert as_colleague.get(f"/api/deployments/{deployment.name}/accuracy/").json()["versions"] == []


def test_the_overview_answers_for_every_deployment_at_once(
    team: Team, deployment: Deployment, version: ModelVersion, django_assert_num_queries: Any
) -> None:
    silent = make_deployment(team, version.model, "silent")
    record_predictions([served(deployment, version) for _ in range(30)])

    with django_assert_num_queries(1):
        rows = overview([deployment.pk, silent.pk], read_interval("1h", None))

    assert rows[deployment.pk]["calls"] == 30
    assert rows[deployment.pk]["p95_ms"] == pytest.approx(3.0, rel=0.09)
    assert rows[silent.pk]["p95_ms"] is None
    assert set(rows[silent.pk]["sparkline"]) == {None}


@pytest.mark.parametrize("tab", ["metrics", "accuracy", "drift"])
def test_figures_belong_to_the_team(
    as_outsider: Caller, as_key: Callable[..., Caller], deployment: Deployment, tab: str
) -> None:
    path = f"/api/deployments/{deployment.name}/{tab}/"
    assert as_outsider.get(path).status_code == 404
    assert as_key("read").get(path).status_code == 200
    assert as_key("predict").get(path).status_code == 403
    assert as_key("read").get(path, since="1h", until="2h").status_code == 422
    assert as_key("read").get(path, since="nonsense").status_code == 422


def test_a_keys_use_and_failed_calls(
    as_owner: Caller, as_colleague: Caller, team: Team, deployment: Deployment
) -> None:
    key, text = new_key(team, ["predict"])
    record_predictions([refused(deployment, key_id=str(key.pk)) for _ in range(3)])

    told = as_owner.get(f"/api/keys/{key.pk}/use/").json()

    assert [(hour["calls"], hour["failed"]) for hour in told["hours"]] == [(3, 3)]
    assert {call["code"] for call in told["failed_calls"]} == {"wrong_type"}
    assert as_colleague.get(f"/api/keys/{key.pk}/use/").status_code == 403
    assert bearer(text).get(f"/api/keys/{key.pk}/use/").status_code == 403
