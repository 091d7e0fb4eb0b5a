"""/api/predictions/: the log, and one prediction with all that is known of it."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.accounts.models import Team
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions.ingest import record_predictions
from inference.contracts import Outcome, Role, Source
from tests.controlplane.cast import Caller, bearer, new_key
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import served

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(team: Team) -> ModelVersion:
    return make_version(make_model(team))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


def test_the_list_is_newest_first_and_counted(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    present = time.time()
    records = [served(deployment, version, at=present - 60 + n) for n in range(5)]
    record_predictions(records)

    told = as_colleague.get("/api/predictions/", deployment=deployment.name).json()

    assert (told["count"], told["count_is_exact"]) == (5, True)
    assert [row["id"] for row in told["results"]] == [record.id for record in reversed(records)]
    first = told["results"][0]
    assert first["deployment"] == deployment.name
    assert first["timings_ms"] == {"queue": 0.5, "compute": 2.0, "total": 3.0}
    assert "inputs" not in first


def test_it_pages_by_cursor_in_a_constant_number_of_queries(
    as_colleague: Caller, deployment: Deployment, version: ModelVersion, django_assert_max_num_queries: Any
) -> None:
    record_predictions([served(deployment, version) for _ in range(25)])
    with django_assert_max_num_queries(10):
        first = as_colleague.get("/api/predictions/", page_size=10).json()
    assert len(first["results"]) == 10
    seen = [row["id"] for row in first["results"]]
    following = first["next"]
    while following:
        page = as_colleague.get(following).json()
        seen += [row["id"] for row in page["results"]]
        following = page["next"]
    assert len(set(seen)) == len(seen) == 25

    record_predictions([served(deployment, version) for _ in range(200)])
    with django_assert_max_num_queries(10):
        as_colleague.get("/api/predictions/", page_size=100)


def test_it_filters(as_colleague: Caller, deployment: Deployment, version: ModelVersion) -> None:
    present = time.time()
    old = served(deployment, version, at=present - 7200)
    pinned = served(deployment, version, pinned=True, client_id="mine")
    shadow_fields = {"role": Role.SHADOW, "source": Source.SHADOW, "shadow_of": pinned.id}
    failed = served(deployment, version, outcome=Outcome.SERVER_ERROR, status=500, code="internal", **shadow_fields)
    shadow = served(deployment, version, **shadow_fields)
    record_predictions([old, pinned, failed, shadow])

    def found(**query: Any) -> set[str]:
        told = as_colleague.get("/api/predictions/", **query).json()
        assert told["count"] == len(told["results"])
        return {row["id"] for row in told["results"]}

    assert found(since="1h") == {pinned.id, failed.id, shadow.id}
    assert found(until="1h") == {old.id}
    assert found(client_id="mine") == {pinned.id}
    assert found(outcome="server_error") == {failed.id}
    assert found(role="shadow") == {shadow.id, failed.id}
    assert found(pinned="true") == {pinned.id}
    assert found(version=version.number + 1) == set()


@pytest.mark.parametrize(
    "query", [{"since": "soon"}, {"version": "x"}, {"outcome": "fine"}, {"since": "9999-01-01T00:00:00Z"}]
)
def test_a_filter_that_cannot_be_read_is_422(as_colleague: Caller, query: dict[str, str]) -> None:
    response = as_colleague.get("/api/predictions/", **query)
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")


def test_another_teams_deployment_does_not_exist(
    as_outsider: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version)
    record_predictions([record])

    assert as_outsider.get("/api/predictions/", deployment=deployment.name).status_code == 404
    assert as_outsider.get("/api/predictions/").json()["count"] == 0
    assert as_outsider.get(f"/api/predictions/{record.id}/").status_code == 404
    assert as_outsider.get("/api/predictions/garbage/").status_code == 404


def test_payload_needs_its_right_and_each_view_is_audited(
    as_owner: Caller, as_colleague: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version, context={"shop": "berlin"})
    record_predictions([record])
    path = f"/api/predictions/{record.id}/"

    plain = as_colleague.get(path).json()
    assert (plain["payload"], plain["inputs"], plain["outputs"]) == ("withheld", None, None)
    assert plain["context"] == {"shop": "berlin"}
    assert not AuditEvent.objects.filter(action="prediction.view_payload").exists()

    whole = as_owner.get(path).json()
    assert whole["inputs"] == {"amount": [12.5], "age": [30]}
    assert whole["scores"] == {"ok": [0.9], "fraud": [0.1]}
    event = AuditEvent.objects.get(action="prediction.view_payload")
    assert (event.actor, event.target_id) == ("user:owner", record.id)


def test_a_prediction_shows_its_shadows_and_feedback(
    as_owner: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version)
    shadow = served(deployment, version, role=Role.SHADOW, source=Source.SHADOW, shadow_of=record.id)
    record_predictions([record, shadow])
    as_owner.post(f"/api/predictions/{record.id}/feedback/", {"label": "fraud"})

    told = as_owner.get(f"/api/predictions/{record.id}/").json()

    assert told["shadows"] == [{"id": shadow.id, "version": version.number}]
    assert [one["label"] for one in told["feedback"]] == ["fraud"]
    listed = {row["id"]: row["feedback"] for row in as_owner.get("/api/predictions/").json()["results"]}
    assert [one["label"] for one in listed[record.id]] == ["fraud"]
    assert listed[shadow.id] == []


def test_a_predict_key_reads_what_it_asked_itself(team: Team, deployment: Deployment, version: ModelVersion) -> None:
    key, text = new_key(team, ["predict"])
    mine, other = served(deployment, version, key_id=str(key.pk)), served(deployment, version)
    record_predictions([mine, other])

    told = bearer(text).get("/api/predictions/").json()

    assert (told["count"], told["results"][0]["id"]) == (1, mine.id)
    assert bearer(text).get(f"/api/predictions/{mine.id}/").status_code == 200
    assert bearer(text).get(f"/api/predictions/{other.id}/").status_code == 404


def test_a_key_for_one_deployment_sees_that_one(
    as_key: Callable[..., Caller], team: Team, deployment: Deployment, version: ModelVersion
) -> None:
    from controlplane.deployments.models import KeyGrant

    other = make_deployment(team, version.model, "second")
    record_predictions([served(deployment, version), served(other, version)])
    key, text = new_key(team, ["read"], every_deployment=False)
    KeyGrant.objects.create(key=key, deployment=other)

    assert bearer(text).get("/api/predictions/").json()["count"] == 1
    assert as_key("read").get("/api/predictions/").json()["count"] == 2
    assert as_key("upload").get("/api/predictions/").status_code == 200
    assert as_key("feedback").get("/api/predictions/").status_code == 403
