"""/api/predictions/{id}/feedback/ and /api/feedback/: what really happened. Table B rows 61 to 64."""

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.accounts.models import ApiKey, Team
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions import matching, tallies
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Feedback, FeedbackRollup
from inference.contracts import Source, SpoolRecord
from inference.routing import uuid7
from tests.controlplane.cast import Caller, bearer, new_key
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import id_at, served

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(team: Team) -> ModelVersion:
    return make_version(make_model(team))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


@pytest.fixture
def prediction(deployment: Deployment, version: ModelVersion) -> SpoolRecord:
    record = served(deployment, version, client_id="order-1")
    record_predictions([record])
    return record


@pytest.fixture
def app(as_key: Callable[..., Caller]) -> Caller:
    return as_key("feedback")


def address(prediction: SpoolRecord | str) -> str:
    identity = prediction if isinstance(prediction, str) else prediction.id
    return f"/api/predictions/{identity}/feedback/"


def tally() -> tallies.Tally:
    total: tallies.Tally = {"n": 0}
    for rollup in FeedbackRollup.objects.all():
        tallies.merge(total, rollup.tally)
    return total


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_feedback_is_counted_at_the_time_of_its_prediction(app: Caller, prediction: SpoolRecord) -> None:
    response = app.post(address(prediction), {"label": "fraud", "certainty": 0.9, "comment": "<b>chargeback</b>"})

    assert response.status_code == 201
    assert response.json()["label"] == "fraud"
    assert tally()["confusion"] == {"fraud": {"ok": 1}}
    rollup = FeedbackRollup.objects.get()
    assert abs(rollup.bucket.timestamp() - prediction.at) <= 10
    assert Feedback.objects.get().comment == "<b>chargeback</b>"


def test_the_same_again_is_one_feedback(app: Caller, prediction: SpoolRecord) -> None:
    app.post(address(prediction), {"label": "fraud"})

    again = app.post(address(prediction), {"label": "fraud"})

    assert again.status_code == 200
    assert Feedback.objects.count() == 1
    assert tally()["n"] == 1


def test_another_word_is_a_new_version_and_counts_instead(app: Caller, prediction: SpoolRecord) -> None:
    app.post(address(prediction), {"label": "fraud"})

    revised = app.post(address(prediction), {"label": "ok"})

    assert (revised.status_code, revised.json()["number"]) == (201, 2)
    assert tally()["confusion"] == {"ok": {"ok": 1}}
    assert tally()["n"] == 1
    history = app.get(f"/api/predictions/{prediction.id}/feedback/")
    assert history.status_code == 403  # a key that may only speak reads nothing


def test_the_history_of_a_prediction_reads_latest_first(
    as_key: Callable[..., Caller], app: Caller, prediction: SpoolRecord
) -> None:
    for label in ("fraud", "ok"):
        app.post(address(prediction), {"label": label})

    results = as_key("read").get(address(prediction)).json()["results"]

    assert [(one["label"], one["latest"]) for one in results] == [("ok", True), ("fraud", False)]


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("not-an-id", (422, "validation_error")),
        (str(uuid.uuid4()), (404, "not_found")),
        (id_at(time.time() - 3 * 86400), (404, "not_found")),
        (id_at(time.time() + 3600), (404, "not_found")),
        (id_at(time.time() - 90 * 86400), (410, "feedback_window_closed")),
    ],
    # Named, for the ids themselves differ from process to process and parallel runs compare names.
    ids=["no id", "another kind of id", "days ago", "in an hour", "months ago"],
)
def test_row_61_unknown_and_malformed_ids(
    app: Caller, deployment: Deployment, identity: str, expected: tuple[int, str]
) -> None:
    assert code(app.post(address(identity), {"label": "ok"})) == expected
    assert not Feedback.objects.exists()


def test_row_61_another_tenants_prediction_does_not_exist(
    as_outsider: Caller, other_team: Team, prediction: SpoolRecord
) -> None:
    stranger = bearer(new_key(other_team, ["feedback"])[1])
    make_deployment(other_team, make_model(other_team, "own"), "own")

    assert code(stranger.post(address(prediction), {"label": "ok"})) == (404, "not_found")
    assert code(as_outsider.post(address(prediction), {"label": "ok"})) == (404, "not_found")


def test_row_62_feedback_before_the_log_row_waits_and_is_counted(
    app: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version)
    early = app.post(address(record), {"label": "fraud"})
    assert (early.status_code, early.json()["state"]) == (202, "pending")
    assert app.post(address(record), {"label": "fraud"}).status_code == 202
    assert Feedback.objects.count() == 1

    record_predictions([record])

    assert Feedback.objects.get().state == "counted"
    assert tally()["confusion"] == {"fraud": {"ok": 1}}
    assert app.post(address(record), {"label": "fraud"}).status_code == 200


def test_row_62_a_prediction_that_slipped_past_is_matched_by_the_sweep(
    app: Caller, deployment: Deployment, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = served(deployment, version, client_id="c-9")
    app.post(address(record), {"label": "fraud"})
    app.post("/api/feedback/", [{"deployment": deployment.name, "client_id": "c-9", "label": "ok"}])
    with monkeypatch.context() as patched:
        patched.setattr(matching, "match_arrived", lambda rows: 0)
        record_predictions([record])

    assert matching.match_pending() == 2

    assert tally()["confusion"] == {"ok": {"ok": 1}}


def test_waiting_feedback_that_does_not_fit_is_rejected_when_its_prediction_comes(
    app: Caller, other_team: Team, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version)
    app.post(address(record), {"label": "no such label"})
    make_deployment(other_team, make_model(other_team, "own"), "own")
    bearer(new_key(other_team, ["feedback"])[1]).post(address(record), {"label": "ok"})

    record_predictions([record])

    assert set(Feedback.objects.values_list("state", "code")) == {
        ("rejected", "unknown_label"),
        ("rejected", "not_found"),
    }
    assert tally() == {"n": 0}


def test_row_63_after_the_retention_it_is_too_late(app: Caller, deployment: Deployment, version: ModelVersion) -> None:
    record = served(deployment, version, at=time.time() - 3 * 86400)
    record_predictions([record])
    Deployment.objects.update(retention_days=2)

    assert code(app.post(address(record), {"label": "ok"})) == (410, "feedback_window_closed")


def iso(delta: timedelta) -> str:
    return (datetime.now(UTC) + delta).isoformat()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"label": "elephant"}, (422, "unknown_label")),
        ({"value": 3.5}, (422, "validation_error")),
        ({"label": "ok", "value": 1}, (422, "validation_error")),
        ({}, (422, "validation_error")),
        ([], (422, "validation_error")),
        ({"labels": ["ok", "fraud"]}, (422, "validation_error")),
        ({"label": "ok", "observed_at": iso(timedelta(days=1))}, (422, "validation_error")),
        ({"label": "ok", "observed_at": iso(timedelta(days=-1))}, (422, "validation_error")),
        ({"label": "ok", "observed_at": "yesterday"}, (422, "validation_error")),
        ({"label": "ok", "comment": "x" * 1_000_000}, (422, "validation_error")),
        ({"label": "ok", "comment": "a\0b"}, (422, "bad_text")),
        ({"label": "a\0b"}, (422, "bad_text")),
        ({"label": "ok", "comment": 5}, (422, "validation_error")),
        ({"label": "ok", "certainty": 2}, (422, "validation_error")),
        ({"label": "ok", "ungradable": "yes"}, (422, "validation_error")),
        ({"label": "ok", "colour": "red"}, (422, "validation_error")),
    ],
)
def test_row_64_what_feedback_may_not_say(
    app: Caller, prediction: SpoolRecord, body: Any, expected: tuple[int, str]
) -> None:
    assert code(app.post(address(prediction), body)) == expected
    assert not Feedback.objects.exists()


def test_a_regression_takes_values_alone(app: Caller, team: Team) -> None:
    version = make_version(make_model(team, "price"), task="tabular-regression", labels=[])
    deployment = make_deployment(team, version.model, "prices")
    record = served(deployment, version, scores={"y": [10.0]})
    record_predictions([record])

    assert code(app.post(address(record), {"label": "ok"})) == (422, "validation_error")
    assert app.post(address(record), {"value": 12.5}).status_code == 201
    assert tally()["regression"][1:4] == [-2.5, 2.5, 6.25]


def test_an_ungradable_case_counts_apart(app: Caller, prediction: SpoolRecord) -> None:
    assert app.post(address(prediction), {"ungradable": True}).status_code == 201
    assert tally() == {"n": 0, "ungradable": 1}


def test_test_traffic_takes_feedback_and_counts_none(
    app: Caller, deployment: Deployment, version: ModelVersion
) -> None:
    record = served(deployment, version, source=Source.TEST)
    record_predictions([record])

    assert app.post(address(record), {"label": "ok"}).status_code == 201
    assert tally() == {"n": 0}


def test_a_predict_key_speaks_of_what_it_asked_itself(
    team: Team, deployment: Deployment, version: ModelVersion
) -> None:
    key, text = new_key(team, ["predict"])
    mine, other = served(deployment, version, key_id=str(key.pk)), served(deployment, version)
    record_predictions([mine, other])

    assert bearer(text).post(address(mine), {"label": "ok"}).status_code == 201
    assert code(bearer(text).post(address(other), {"label": "ok"})) == (404, "not_found")


def test_people_need_the_right_to_predict(as_owner: Caller, as_colleague: Caller, prediction: SpoolRecord) -> None:
    assert code(as_colleague.post(address(prediction), {"label": "ok"})) == (403, "forbidden")
    assert as_owner.post(address(prediction), {"label": "ok"}).status_code == 201


def test_a_reading_key_gives_none(as_key: Callable[..., Caller], prediction: SpoolRecord) -> None:
    assert code(as_key("read").post(address(prediction), {"label": "ok"})) == (403, "forbidden")


def test_in_bulk_each_row_stands_by_itself(
    app: Caller, deployment: Deployment, version: ModelVersion, django_assert_max_num_queries: Any
) -> None:
    records = [served(deployment, version, client_id=f"c{n}") for n in range(120)]
    record_predictions([served(deployment, version, client_id="c0"), *records])
    rows: list[Any] = [{"prediction_id": record.id, "label": "ok"} for record in records[:100]]
    rows += [{"deployment": deployment.name, "client_id": f"c{n}", "label": "fraud"} for n in range(100, 120)]
    rows += [{"prediction_id": "x", "label": "ok"}, {"label": "ok"}, {"prediction_id": records[0].id, "label": "cat"}]
    rows += [{"prediction_id": uuid7(), "label": "ok"} for _ in range(30)]

    with django_assert_max_num_queries(25):
        response = app.post("/api/feedback/", {"feedback": rows})

    told = response.json()
    assert response.status_code == 200
    assert (told["counted"], told["pending"], told["failed"]) == (120, 30, 3)
    assert [row["code"] for row in told["results"][120:123]] == [
        "validation_error",
        "validation_error",
        "unknown_label",
    ]
    assert tally()["n"] == 120


def test_a_client_id_means_its_latest_prediction(app: Caller, deployment: Deployment, version: ModelVersion) -> None:
    # Two ids of one millisecond have no order of their own.
    at = time.time()
    first = served(deployment, version, at=at - 1, client_id="same")
    second = served(deployment, version, at=at, client_id="same")
    record_predictions([first, second])

    told = app.post("/api/feedback/", [{"deployment": deployment.name, "client_id": "same", "label": "ok"}]).json()

    assert told["results"][0]["prediction_id"] == second.id


def test_too_many_rows_at_once_are_refused(app: Caller) -> None:
    assert code(app.post("/api/feedback/", [{}] * 1001)) == (413, "batch_too_large")
    assert code(app.post("/api/feedback/", [])) == (422, "validation_error")
    assert code(app.post("/api/feedback/", {"feedback": "x"})) == (422, "validation_error")


def test_without_a_key_nothing_is_told(issued: tuple[ApiKey, str], prediction: SpoolRecord) -> None:
    assert bearer("sb_" + "x" * 40).post(address(prediction), {"label": "ok"}).status_code == 401
