"""Records become rows of the log and counts in the rollups, once."""

import time
import uuid
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.db import connection

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions import sketch_rollups
from controlplane.predictions.histograms import Histogram, merge, quantile
from controlplane.predictions.ingest import record_lines, record_predictions
from controlplane.predictions.models import FailedCall, Feedback, FeedbackState, KeyUse, Prediction, Rollup
from controlplane.predictions.partitions import (
    delete_expired,
    drop_expired,
    make_ahead,
    partition_days,
)
from controlplane.predictions.rollups import compact
from controlplane.predictions.sketch_rollups import merged
from inference.contracts import Outcome, Role, Source
from inference.runtime.digest import Digest
from tests.controlplane.predictions.records import id_at, now, refused, served

pytestmark = pytest.mark.django_db


def calls(**filters: object) -> int:
    return sum(Rollup.objects.filter(**filters).values_list("calls", flat=True))


def sketched(deployment: Deployment) -> dict[str, dict[str, Digest]]:
    """What is sketched of the last day, by kind and column."""
    found: dict[str, dict[str, list[Digest]]] = {}
    moment = now()
    for one in sketch_rollups.read(
        deployment.pk, ["features", "scores", "pictures"], moment - timedelta(days=1), moment + timedelta(1), ["live"]
    ):
        for name, column in one.columns.items():
            found.setdefault(one.kind, {}).setdefault(name, []).append(column)
    return {kind: {name: merged(parts) for name, parts in columns.items()} for kind, columns in found.items()}


def test_a_served_call_is_logged_and_counted(deployment: Deployment, version: ModelVersion) -> None:
    record = served(deployment, version, client_id="order-7", context={"shop": "berlin"})

    landed = record_predictions([record])

    assert landed.inserted == [record.id]
    row = Prediction.objects.get()
    assert (str(row.id), row.client_id, row.version) == (record.id, "order-7", version.number)
    assert row.inputs == {"amount": [12.5], "age": [30]}
    assert row.context == {"shop": "berlin"}
    assert abs(row.at.timestamp() - record.at) < 0.001
    rollup = Rollup.objects.get()
    assert (rollup.calls, rollup.rows, rollup.failed, rollup.width_s) == (1, 1, 0, 10)
    total = merge({}, rollup.latency["total"])
    assert quantile(total, 0.5) == pytest.approx(3.0, rel=0.09)
    assert sketched(deployment)["features"]["amount"].n == 1
    assert sketched(deployment)["scores"]["fraud"].total == pytest.approx(0.1)


def test_the_same_records_again_change_nothing(deployment: Deployment, version: ModelVersion) -> None:
    records = [served(deployment, version) for _ in range(20)]
    record_predictions(records)

    landed = record_predictions([*records, served(deployment, version)])

    assert (len(landed.inserted), landed.repeated) == (1, 20)
    assert Prediction.objects.count() == 21
    assert calls() == 21


def test_a_record_twice_in_one_batch_counts_once(deployment: Deployment, version: ModelVersion) -> None:
    record = served(deployment, version)

    record_predictions([record, record])

    assert (Prediction.objects.count(), calls()) == (1, 1)


def test_a_batch_takes_the_same_number_of_queries_however_long(
    deployment: Deployment, version: ModelVersion, django_assert_max_num_queries: object
) -> None:
    record_predictions([served(deployment, version)])
    with django_assert_max_num_queries(14):  # type: ignore[operator]  # a fixture typed as object
        record_predictions([served(deployment, version) for _ in range(500)])


def test_poison_text_is_stored_cleaned_and_stops_nothing(deployment: Deployment, version: ModelVersion) -> None:
    poison = "a\0b"
    record = served(
        deployment,
        version,
        client_id=poison,
        inputs={poison: [poison, {"deep": poison}]},
        features={poison: [poison], "big": [1e300, float("nan"), None]},
        context={poison: poison},
        warnings=[poison],
        idempotency_key=poison,
    )

    landed = record_predictions([record, served(deployment, version)])

    assert (len(landed.inserted), landed.bad) == (2, [])
    row = Prediction.objects.get(id=record.id)
    assert row.client_id == "a\ufffdb"
    assert row.inputs == {"a\ufffdb": ["a\ufffdb", {"deep": "a\ufffdb"}]}


@pytest.mark.parametrize(
    "refused_json",
    [
        pytest.param(b"1" * 131_073, id="a number with more digits than jsonb takes"),
        pytest.param(b'"\xff\xfe"', id="no UTF-8"),
        pytest.param(b'"\\ud800"', id="half of a surrogate pair"),
        pytest.param(b'"\\ud800\\u0000"', id="half of a surrogate pair that is to be cleaned"),
    ],
)
def test_what_the_database_refuses_is_handed_back_and_the_rest_lands(
    deployment: Deployment, version: ModelVersion, refused_json: bytes
) -> None:
    refused_line = msgspec.json.encode(served(deployment, version)).replace(
        b'"inputs":{"amount":[12.5]', b'"inputs":{"amount":[' + refused_json + b"]"
    )
    lines = [msgspec.json.encode(served(deployment, version)) for _ in range(7)]

    landed = record_lines([*lines[:3], refused_line, *lines[3:]])

    assert landed.bad == [refused_line]
    assert len(landed.inserted) == 7
    assert landed.repeated == 0
    assert calls() == 7


def test_payloads_are_stored_as_they_were_spooled(deployment: Deployment, version: ModelVersion) -> None:
    odd = {"back\\slash": ["\t\n\r", "\\N", '"'], "ü\u2028": [1e-7, 2**70, True, None]}
    record = served(
        deployment,
        version,
        client_id="a\tb\\c\n",
        inputs=odd,
        outputs={"y": []},
        pictures=[{"width": 2}],
        warnings=["\\"],
    )

    record_predictions([record])

    row = Prediction.objects.get()
    assert (row.client_id, row.inputs, row.outputs) == ("a\tb\\c\n", odd, {"y": []})
    assert (row.pictures, row.warnings, row.context) == ([{"width": 2}], ["\\"], None)


def test_large_payloads_are_not_stored_with_the_slow_compression(deployment: Deployment, version: ModelVersion) -> None:
    record_predictions([served(deployment, version)])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT attstorage, attcompression FROM pg_attribute JOIN pg_inherits ON inhrelid = attrelid "
            "WHERE inhparent = 'prediction'::regclass AND attname IN ('inputs', 'outputs', 'scores')"
        )
        # Extended storage with LZ4, or external storage: none.
        assert cursor.fetchall() in ([("x", "l")], [("e", "")])


def test_calls_of_any_shape_are_sketched(deployment: Deployment, version: ModelVersion) -> None:
    shapes: list[dict[str, list[Any]]] = [
        {"amount": [1.0], "age": [2]},
        {"age": [3], "amount": [4.0]},
        {"amount": [5.0, 6.0], "age": [7, 8]},
        {"amount": [None], "age": [True]},
        {"amount": ["dear"], "age": [10**400]},
        {"amount": [1e300]},
        {},
    ]
    record_predictions([served(deployment, version, features=features) for features in shapes])

    found = sketched(deployment)["features"]
    assert (found["amount"].n, found["amount"].missing, found["amount"].total) == (5, 2, 16.0)
    assert found["amount"].categories == {"dear": 1}
    assert (found["age"].n, found["age"].missing, found["age"].total) == (5, 1, 21.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "not-an-id"},
        {"id": "6f1c1d7a-6a8e-4d0e-9d6e-1b1f6f3f0a11"},  # version 4
        {"id": id_at(time.time() + 90 * 86400)},
        {"id": id_at(1000.0)},
        {"deployment_id": "x"},
        {"revision": 2**40},
        {"rows": -1},
        {"status": 70000},
    ],
)
def test_impossible_records_are_handed_back(
    deployment: Deployment, version: ModelVersion, fields: dict[str, object]
) -> None:
    landed = record_predictions([served(deployment, version, **fields), served(deployment, version)])

    assert (len(landed.inserted), len(landed.bad)) == (1, 1)


def test_old_late_and_future_records_find_their_days(deployment: Deployment, version: ModelVersion) -> None:
    present = time.time()
    moments = [present - 2 * 86400, present + 3600 * 30, present - 3600, present, present - 86400 * 1.5]

    record_predictions([served(deployment, version, at=moment) for moment in moments])

    assert Prediction.objects.count() == 5
    assert calls() == 5
    widths = dict(Rollup.objects.values_list("width_s", "calls"))
    assert widths.keys() == {10, 60, 3600}


def test_shadow_copies_stand_apart_and_test_traffic_is_not_counted(
    deployment: Deployment, version: ModelVersion
) -> None:
    live = served(deployment, version)
    shadow = served(deployment, version, role=Role.SHADOW, source=Source.SHADOW, shadow_of=live.id)
    test = served(deployment, version, source=Source.TEST)

    record_predictions([live, shadow, test])

    assert Prediction.objects.count() == 3
    assert calls(role="live") == 1
    assert calls(role="shadow") == 1
    assert calls() == 2


@pytest.mark.parametrize("retry_first", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("same_process", [False, True])
def test_a_retry_counts_once_in_whichever_order_the_two_arrive(
    deployment: Deployment, version: ModelVersion, retry_first: bool, together: bool, same_process: bool
) -> None:
    present = time.time()
    first = served(deployment, version, at=present - 1, idempotency_key="k")
    retry = served(deployment, version, idempotency_key="k", retry_of=first.id if same_process else "")
    records = [retry, first] if retry_first else [first, retry]

    if together:
        record_predictions(records)
    else:
        for record in records:
            record_predictions([record])

    assert Prediction.objects.count() == 2
    assert calls() == 1
    if together or not retry_first:
        assert str(Prediction.objects.get(id=retry.id).retry_of) == first.id


def test_one_key_for_different_calls_hides_none_of_them(deployment: Deployment, version: ModelVersion) -> None:
    for amount in (1.0, 2.0, 1.0):
        fields = {"inputs": {"amount": [amount]}, "features": {"amount": [amount]}}
        record_predictions([served(deployment, version, idempotency_key="always-the-same", **fields)])

    assert calls() == 2


def test_refusals_count_by_code_and_place_and_are_no_predictions(deployment: Deployment, version: ModelVersion) -> None:
    key = uuid.uuid4()
    record_predictions(
        [
            refused(deployment, key_id=str(key), context={"request_id": "from-the-caller"}),
            refused(deployment, key_id=str(key), version_id=str(version.pk), version=version.number),
            refused(None, code="not_authenticated", status=401, loc="", rows=40),
        ]
    )

    assert not Prediction.objects.exists()
    assert calls() == 42
    assert calls(deployment_id=deployment.pk) == 2
    by_code = Rollup.objects.get(deployment_id=deployment.pk, version_id=None)
    assert by_code.codes == {"wrong_type": 1}
    assert by_code.places == {"wrong_type|instances.0.amount": 1}
    assert FailedCall.objects.filter(key_id=key).count() == 2
    assert FailedCall.objects.filter(request_id="from-the-caller").exists()
    use = KeyUse.objects.get()
    assert (use.key_id, use.calls, use.failed) == (key, 2, 2)


def test_the_last_hundred_failed_calls_of_a_key_are_kept(deployment: Deployment, version: ModelVersion) -> None:
    key, other = str(uuid.uuid4()), str(uuid.uuid4())
    present = time.time()
    record_predictions([refused(deployment, key_id=other)])
    for start in (0, 80, 160):
        record_predictions([refused(deployment, key_id=key, at=present - 300 + start + n) for n in range(80)])

    kept = FailedCall.objects.filter(key_id=key)
    assert kept.count() == 100
    assert kept.last() is not None
    oldest = min(call.at.timestamp() for call in kept)
    assert oldest == pytest.approx(present - 300 + 140, abs=0.01)
    assert FailedCall.objects.filter(key_id=other).count() == 1


def test_a_failure_of_ours_counts_under_its_version_and_is_no_prediction(
    deployment: Deployment, version: ModelVersion
) -> None:
    fields = {"outcome": Outcome.TIMEOUT, "status": 504, "code": "deadline_exceeded", "scores": None}
    record_predictions([served(deployment, version, **fields), served(deployment, version, rows=7, **fields)])

    assert not Prediction.objects.exists()
    rollup = Rollup.objects.get()
    assert (rollup.version, rollup.calls, rollup.failed, rollup.codes) == (1, 8, 8, {"deadline_exceeded": 8})
    assert rollup.latency == {}


def test_a_shadows_failure_is_logged(deployment: Deployment, version: ModelVersion) -> None:
    record_predictions(
        [served(deployment, version, role=Role.SHADOW, source=Source.SHADOW, outcome=Outcome.SERVER_ERROR, status=500)]
    )

    assert Prediction.objects.get().outcome == "server_error"
    assert Rollup.objects.get().failed == 1


def test_compaction_keeps_every_count(deployment: Deployment, version: ModelVersion) -> None:
    start = time.time() - 7200
    for minute in range(3):
        record_predictions(
            [served(deployment, version, at=start + minute * 60 + n, features={"amount": [n]}) for n in range(50)],
            now=now() - timedelta(hours=2),
        )
    narrow = Rollup.objects.count()
    assert set(Rollup.objects.values_list("width_s", flat=True)) == {10}

    compact()

    assert Rollup.objects.count() < narrow / 3
    assert set(Rollup.objects.values_list("width_s", flat=True)) == {300}
    assert calls() == 150
    bins: Histogram = {}
    for rollup in Rollup.objects.all():
        merge(bins, rollup.latency["total"])
    assert sum(bins.values()) == 150

    compact(now() + timedelta(days=2))

    assert set(Rollup.objects.values_list("width_s", flat=True)) == {3600}
    assert calls() == 150


def test_days_are_made_ahead_and_dropped_after_the_longest_retention(
    deployment: Deployment, version: ModelVersion
) -> None:
    Deployment.objects.update(retention_days=3)
    make_ahead()
    ahead = len(partition_days())
    assert ahead >= 4
    present = time.time()
    record_predictions([served(deployment, version, at=present - days * 86400) for days in (0, 2, 6)])

    assert drop_expired() == 1
    assert Prediction.objects.count() == 2
    assert make_ahead() == 0


def test_rows_past_their_own_deployments_retention_go(deployment: Deployment, version: ModelVersion) -> None:
    Deployment.objects.update(retention_days=1)
    other = Deployment.objects.create(team=deployment.team, name="longer", model=deployment.model, retention_days=9)
    at = time.time() - 2 * 86400
    record_predictions([served(deployment, version, at=at), served(other, version, at=at), served(deployment, version)])

    assert delete_expired() == 1
    assert Prediction.objects.filter(deployment_id=deployment.pk).count() == 1
    assert Prediction.objects.filter(deployment_id=other.pk).count() == 1


def test_what_was_said_of_a_prediction_goes_with_its_retention(deployment: Deployment, version: ModelVersion) -> None:
    Deployment.objects.update(retention_days=1)
    moment = now()

    def said(days: float, **fields: Any) -> Feedback:
        at = moment - timedelta(days=days)
        named = {"prediction_id": uuid.UUID(id_at(at.timestamp())), "deployment_id": deployment.pk}
        row = {**named, "state": FeedbackState.COUNTED, "comment": "Mrs. A", "truth": {"label": "a"}, **fields}
        return Feedback.objects.create(team_id=deployment.team_id, given_at=at, given_by="user:owner", **row)

    kept = [said(0.5), said(3, state=FeedbackState.PENDING)]
    said(2)
    said(2, prediction_id=None, client_id="c", state=FeedbackState.REJECTED)
    said(2, deployment_id=None, state=FeedbackState.REJECTED)

    assert delete_expired() == 3
    assert set(Feedback.objects.all()) == set(kept)
