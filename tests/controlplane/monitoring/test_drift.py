"""Drift of a deployment: equal to scipy's figures of the raw log, against which baseline, and at what cost."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy import stats

from controlplane.catalog.models import ModelVersion, ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.monitoring.drift import drift
from controlplane.monitoring.intervals import Interval
from controlplane.predictions import sketch_rollups
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction, SketchForm, SketchRollup
from inference.contracts import Role, Source, SpoolRecord
from inference.runtime.digest import POINTS, digest_of, pack
from tests.controlplane.deployments.rows import make_deployment, make_model, make_team, make_version
from tests.controlplane.predictions.records import served

pytestmark = pytest.mark.django_db

HOUR = 3600.0
# A tenth of an hour into it, so that no bucket is cut by an hour's end.
NOW = time.time() // HOUR * HOUR + 360


@pytest.fixture
def version() -> ModelVersion:
    return make_version(make_model(make_team()))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def last(hours: float) -> Interval:
    return Interval.of(moment(NOW - hours * HOUR), moment(NOW))


def serve(deployment: Deployment, version: ModelVersion, at: float, columns: dict[str, Any], **fields: Any) -> None:
    """One call for each row of the columns, a tenth of a second after the other, and what compaction makes of them."""
    length = len(next(iter(columns.values())))
    record_predictions(
        [
            served(
                deployment,
                version,
                at=at + index / 10,
                **{
                    "features": {name: [values[index]] for name, values in columns.items()},
                    "inputs": {name: [values[index]] for name, values in columns.items()},
                    **fields,
                },
            )
            for index in range(length)
        ],
        now=moment(NOW),
    )


def test_figures_are_those_of_the_raw_log(deployment: Deployment, version: ModelVersion) -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, 1500)
    ReferenceDigests.objects.create(version=version, packed=pack({"amount": digest_of(base.tolist(), 512)}))
    for hour in range(5):
        serve(deployment, version, NOW - (hour + 0.05) * HOUR, {"amount": rng.normal(0.8, 1.2, 250).tolist()})
    sketch_rollups.compact(moment(NOW))

    (found,) = drift(deployment, last(6))["features"]

    logged = np.array([row["amount"][0] for row in Prediction.objects.values_list("inputs", flat=True) if row])
    assert found["n"] == len(logged) == 1250
    # Two digests of now (ten minutes, an hour) after a sketch that kept all of 250 values' ranks to 1.3 %.
    error = 1 / POINTS + 0.5 / 512 + 0.013
    assert found["ks"] == pytest.approx(stats.ks_2samp(base, logged).statistic, abs=error)
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(base, logged) / base.std(), abs=0.03)
    edges = np.quantile(base, np.arange(1, 10) / 10)
    counts = np.array([np.bincount(np.searchsorted(edges, one), minlength=10) for one in (base, logged)])
    whole = stats.chi2_contingency(counts, correction=False)
    assert found["cramers_v"] == pytest.approx(np.sqrt(whole.statistic / counts.sum()), abs=0.02)


def test_the_same_hours_of_the_day_before_come_first_then_the_stretch_before(
    deployment: Deployment, version: ModelVersion
) -> None:
    # By night small amounts, by day large ones: no drift, as it is each day.
    for day in (1, 0):
        serve(deployment, version, NOW - day * 24 * HOUR - 0.3 * HOUR, {"amount": [50.0 + n % 7 for n in range(120)]})
        serve(deployment, version, NOW - day * 24 * HOUR - 1.5 * HOUR, {"amount": [5.0 + n % 7 for n in range(120)]})

    found = drift(deployment, last(1))
    assert (found["baseline"], found["same_hours"], found["features"][0]["drifting"]) == ("earlier", True, False)

    SketchRollup.objects.filter(bucket__lt=moment(NOW - 12 * HOUR)).delete()
    found = drift(deployment, last(1))
    assert (found["baseline"], found["same_hours"], found["features"][0]["drifting"]) == ("earlier", False, True)


def test_a_person_chooses_the_baseline(deployment: Deployment, version: ModelVersion) -> None:
    ReferenceDigests.objects.create(
        version=version, packed=pack({"amount": digest_of([1.0 + n % 9 for n in range(90)])})
    )
    serve(deployment, version, NOW - 1.5 * HOUR, {"amount": [50.0 + n % 9 for n in range(90)]})
    serve(deployment, version, NOW - 0.5 * HOUR, {"amount": [50.0 + n % 9 for n in range(90)]})

    by_default, earlier = drift(deployment, last(1)), drift(deployment, last(1), "earlier")

    assert (by_default["baseline"], by_default["reference_version"]) == ("reference", 1)
    assert by_default["features"][0]["drifting"]
    assert (earlier["baseline"], earlier["has_reference"], earlier["reference_version"]) == ("earlier", True, None)
    assert not earlier["features"][0]["drifting"]


def test_it_says_since_when(deployment: Deployment, version: ModelVersion) -> None:
    ReferenceDigests.objects.create(
        version=version, packed=pack({"amount": digest_of([float(n % 9) for n in range(900)])})
    )
    for hours, shift in ((5, 0.0), (4, 0.0), (3, 8.0), (2, 8.0), (1, 8.0)):
        serve(deployment, version, NOW - hours * HOUR, {"amount": [n % 9 + shift for n in range(200)]})
    sketch_rollups.compact(moment(NOW))

    found = drift(deployment, last(6))

    assert found["moved_since"] is not None
    assert abs(datetime.fromisoformat(found["moved_since"]).timestamp() - (NOW - 3 * HOUR)) < HOUR


def test_a_split_that_moves_is_no_drift_of_the_prediction(deployment: Deployment, version: ModelVersion) -> None:
    second = make_version(version.model)
    for at, first_calls, second_calls in ((1.5, 200, 60), (0.5, 60, 200)):
        serve(deployment, version, NOW - at * HOUR, {"amount": [1.0] * first_calls}, scores={"fraud": [0.1]})
        serve(deployment, second, NOW - at * HOUR, {"amount": [1.0] * second_calls}, scores={"fraud": [0.9]})

    prediction = drift(deployment, last(1))["prediction"]

    assert (prediction["version"], prediction["baseline"], prediction["drifting"]) == (2, "earlier", False)


def test_shadows_and_tests_do_not_count(deployment: Deployment, version: ModelVersion) -> None:
    serve(deployment, version, NOW - 0.2 * HOUR, {"amount": [1.0] * 60})
    serve(deployment, version, NOW - 0.2 * HOUR, {"amount": [9.0] * 60}, role=Role.SHADOW, source=Source.SHADOW)
    serve(deployment, version, NOW - 0.2 * HOUR, {"amount": [9.0] * 60}, source=Source.TEST)
    assert [(one["n"], one["mean"]) for one in drift(deployment, last(1))["features"]] == [(60, 1.0)]


def test_pictures_are_compared_by_what_can_be_said_of_them(deployment: Deployment, version: ModelVersion) -> None:
    def seen(at: float, mean: float, view: str) -> SpoolRecord:
        picture = {"width": 64, "height": 32, "mean": mean, "std": 9.0, "sharpness": 3.0, "tags": {"view": view}}
        return served(deployment, version, at=at, features=None, pictures=[picture])

    for at, mean, view in ((1.5, 120.0, "PA"), (0.5, 60.0, "AP")):
        records = [seen(NOW - at * HOUR + n / 10, mean + n % 5, view) for n in range(80)]
        record_predictions(records, now=moment(NOW))
    found = {one["name"]: one for one in drift(deployment, last(1))["features"]}
    assert {name for name, one in found.items() if one["drifting"]} == {"brightness", "view"}
    assert {"contrast", "sharpness", "size in pixels", "aspect ratio"} < found.keys()
    assert (found["size in pixels"]["mean"], found["aspect ratio"]["mean"]) == (2048.0, 2.0)
    assert {one["kind"] for one in found.values()} == {"picture"}


def test_it_costs_the_same_queries_whatever_was_served(
    deployment: Deployment, version: ModelVersion, django_assert_num_queries: Any
) -> None:
    for hours in (0.2, 1.4, 3, 9):
        serve(deployment, version, NOW - hours * HOUR, {f"f{n}": [float(row) for row in range(60)] for n in range(20)})
    # The day before has nothing, so the stretch before is read too.
    with django_assert_num_queries(4):
        drift(deployment, last(1))
    ReferenceDigests.objects.create(version=version, packed=pack({"f0": digest_of([1.0] * 60)}))
    with django_assert_num_queries(3):
        drift(deployment, last(24))


def test_compaction_folds_closes_and_widens_without_losing_a_value(
    deployment: Deployment, version: ModelVersion
) -> None:
    values = np.random.default_rng(1).normal(0, 1, 1200)
    for part, chunk in enumerate(np.split(values, 12)):
        serve(deployment, version, NOW - 50 - part, {"amount": chunk.tolist()}, scores=None)

    def told() -> tuple[int, float]:
        (one,) = drift(deployment, Interval.of(moment(NOW - 100 * 24 * HOUR), moment(NOW + HOUR)))["features"]
        assert one["mean"] is not None
        return one["n"], one["mean"]

    before = told()
    assert SketchRollup.objects.count() == 12
    for later, width_s, form in (
        (timedelta(0), 600, SketchForm.KLL),
        (timedelta(minutes=12), 600, SketchForm.DIGESTS),
        (timedelta(hours=4), 3600, SketchForm.DIGESTS),
        (timedelta(days=40), 86_400, SketchForm.DIGESTS),
    ):
        sketch_rollups.compact(moment(NOW) + later)
        assert list(SketchRollup.objects.values_list("width_s", "form")) == [(width_s, form)]
        assert told() == pytest.approx(before)
    assert sketch_rollups.compact(moment(NOW) + timedelta(days=41)) == 0


def test_what_comes_late_is_counted(deployment: Deployment, version: ModelVersion) -> None:
    for _ in range(2):
        serve(deployment, version, NOW - 10 * HOUR, {"amount": [1.0] * 80})
        sketch_rollups.compact(moment(NOW))
    assert drift(deployment, last(24))["features"][0]["n"] == 160
    assert set(SketchRollup.objects.values_list("form", flat=True)) == {SketchForm.DIGESTS}
