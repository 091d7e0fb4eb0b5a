"""The last word on each deployment's drift: kept by the scheduler, read for many at once."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from controlplane.catalog.models import ModelVersion, ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.monitoring import drift_state
from controlplane.monitoring.models import DriftVerdict
from controlplane.predictions.ingest import record_predictions
from inference.runtime.digest import digest_of, pack
from tests.controlplane.deployments.rows import make_deployment, make_model, make_team, make_version
from tests.controlplane.predictions.records import served

pytestmark = pytest.mark.django_db


@pytest.fixture
def version() -> ModelVersion:
    return make_version(make_model(make_team()))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


def test_the_oldest_verdict_is_renewed_first_and_none_too_often(deployment: Deployment, version: ModelVersion) -> None:
    other = make_deployment(version.model.team, version.model, "other")
    now = timezone.now()
    assert [drift_state.refresh_one(now) for _ in range(3)] == [True, True, False]
    assert DriftVerdict.objects.count() == 2
    assert drift_state.refresh_one(now + timedelta(minutes=6))
    assert DriftVerdict.objects.filter(checked_at__gt=now).count() == 1
    Deployment.objects.update(retired_at=now)
    assert not drift_state.refresh_one(now + timedelta(minutes=6))
    assert set(drift_state.states([other.pk])) == {other.pk}


def test_one_that_cannot_be_looked_at_holds_up_no_other(deployment: Deployment, version: ModelVersion) -> None:
    broken = make_version(make_model(version.model.team, "broken"))
    ReferenceDigests.objects.create(version=broken, packed=b"no digests")
    other = make_deployment(version.model.team, broken.model, "other")
    record_predictions([served(other, broken, features={"amount": [1.0]})])
    now = timezone.now()
    outcomes: list[bool | None] = []
    for _ in range(3):
        try:
            outcomes.append(drift_state.refresh_one(now))
        except msgspec.DecodeError:
            outcomes.append(None)
    assert sorted(outcomes, key=str) == [False, None, True]
    assert drift_state.states([other.pk])[other.pk].word == "unknown"


def test_it_tells_moved_steady_and_unknown(deployment: Deployment, version: ModelVersion) -> None:
    def word() -> drift_state.DriftState:
        DriftVerdict.objects.all().delete()
        drift_state.refresh_one()
        return drift_state.states([deployment.pk])[deployment.pk]

    assert drift_state.states([deployment.pk])[deployment.pk] == drift_state.DriftState("unknown")
    assert word().word == "unknown"
    ReferenceDigests.objects.create(version=version, packed=pack({"amount": digest_of([n % 9 for n in range(90)])}))
    record_predictions([served(deployment, version, features={"amount": [n % 9]}) for n in range(90)])
    assert (word().word, word().compared, word().baseline) == ("steady", 1, "reference")
    record_predictions([served(deployment, version, features={"amount": [99.0]}) for _ in range(900)])
    moved = word()
    assert (moved.word, moved.moved, moved.most, moved.prediction) == ("moved", 1, "amount", None)
    assert moved.since is not None


def test_forty_deployments_cost_one_query(version: ModelVersion, django_assert_num_queries: Any) -> None:
    made = [make_deployment(version.model.team, version.model, f"d-{n}").pk for n in range(40)]
    drift_state.refresh_one()
    with django_assert_num_queries(1):
        found = drift_state.states(made)
    assert set(found) == set(made)
