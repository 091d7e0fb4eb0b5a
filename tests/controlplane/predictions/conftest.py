import pytest

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from tests.controlplane.deployments.rows import make_deployment, make_model, make_team, make_version


@pytest.fixture
def version(db: None) -> ModelVersion:
    return make_version(make_model(make_team()))


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return make_deployment(version.model.team, version.model)
