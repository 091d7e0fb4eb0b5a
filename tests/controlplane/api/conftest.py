"""A model whose versions can be deployed."""

import pytest

from controlplane.accounts.models import Team
from controlplane.catalog.models import RegisteredModel
from tests.controlplane.deployments.rows import make_model, make_version


@pytest.fixture
def model(team: Team) -> RegisteredModel:
    """`fraud` with three ready versions."""
    made = make_model(team)
    for _ in range(3):
        make_version(made)
    return made
