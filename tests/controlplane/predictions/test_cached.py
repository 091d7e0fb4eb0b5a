"""Answers out of the cache, from the spool to the log, the figures and the pages."""

import time
from datetime import timedelta

import pytest
from django.test import Client

from controlplane.accounts.models import Team
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction, Rollup
from controlplane.predictions.rollups import compact
from tests.controlplane.cast import Caller
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import now, served

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(team: Team) -> ModelVersion:
    return make_version(make_model(team))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)


def record_some(deployment: Deployment, version: ModelVersion) -> str:
    """Three hits and two that were computed; returns a hit's id."""
    at = time.time() - 30
    hits = [served(deployment, version, at=at, cached=True, compute_ms=0.0, queue_ms=0.0) for _ in range(3)]
    record_predictions([*hits, *(served(deployment, version, at=at) for _ in range(2))])
    return hits[0].id


def test_the_log_and_the_rollups_tell_hits_apart(deployment: Deployment, version: ModelVersion) -> None:
    hit = record_some(deployment, version)
    assert Prediction.objects.get(pk=hit).cached
    assert Prediction.objects.filter(cached=False).count() == 2
    rollup = Rollup.objects.get()
    assert (rollup.calls, rollup.rows, rollup.cached) == (5, 5, 3)
    assert sum(rollup.latency["total"].values()) == 5
    # What a run takes is not told by answers that needed none.
    assert sum(rollup.latency["compute"].values()) == 2


def test_compaction_keeps_the_count(deployment: Deployment, version: ModelVersion) -> None:
    record_some(deployment, version)
    record_some(deployment, version)
    compact(now() + timedelta(days=2))
    assert [(rollup.calls, rollup.cached) for rollup in Rollup.objects.all()] == [(10, 6)]


def test_the_api_tells_them(as_colleague: Caller, deployment: Deployment, version: ModelVersion) -> None:
    hit = record_some(deployment, version)
    told = as_colleague.get(f"/api/deployments/{deployment.name}/metrics/", since="1h").json()
    assert (told["calls"], told["cached"]) == (5, 3)
    assert [(one["calls"], one["cached"]) for one in told["versions"]] == [(5, 3)]
    assert as_colleague.get(f"/api/predictions/{hit}/").json()["cached"] is True


def test_the_pages_tell_them(owners: Client, deployment: Deployment, version: ModelVersion) -> None:
    latency = f"/deployments/{deployment.name}/latency/"
    assert b"From cache" not in owners.get(latency).content
    hit = record_some(deployment, version)
    page = owners.get(latency).content.decode()
    assert '<td class="num" data-label="From cache">3</td>' in page
    assert '<td class="num" data-label="Computed">2</td>' in page
    assert b"answered from the cache" in owners.get(f"/deployments/{deployment.name}/predictions/{hit}/").content
