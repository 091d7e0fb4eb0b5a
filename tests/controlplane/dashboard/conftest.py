"""A deployment with two versions at 90/10."""

import pytest
from django.utils import timezone

from controlplane.accounts.models import Team
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version


@pytest.fixture
def versions(team: Team) -> list[ModelVersion]:
    model = make_model(team)
    return [make_version(model), make_version(model)]


@pytest.fixture
def deployment(team: Team, versions: list[ModelVersion]) -> Deployment:
    made = make_deployment(team, versions[0].model)
    now = timezone.now()
    SplitRevision.objects.create(
        deployment=made,
        number=1,
        shares={"1": 9000, "2": 1000},
        state=RevisionState.ACTIVE,
        actor="user:owner",
        created_at=now,
        activated_at=now,
    )
    Deployment.objects.filter(pk=made.pk).update(next_revision=2)
    return made
