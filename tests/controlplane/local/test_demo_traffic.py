"""The truths of the demo's traffic: given in the name of its key, whatever the public address is."""

from typing import Any

import pytest

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.services import revoke_key
from controlplane.audit.services import COMMAND
from controlplane.local.demo.traffic import give_truths
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Feedback
from inference.routing import uuid7
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import served


@pytest.mark.django_db
def test_truths_arrive_also_where_the_public_address_is_https(
    team: Team, issued: tuple[ApiKey, str], settings: Any
) -> None:
    settings.SECURE_SSL_REDIRECT = True
    key, plain = issued
    version = make_version(make_model(team))
    logged = served(make_deployment(team, version.model), version, key_id=str(key.pk))
    record_predictions([logged])
    assert give_truths(plain, {logged.id: "fraud", uuid7(): "ok"}) == 2
    assert str(Feedback.objects.get(state="counted").prediction_id) == logged.id
    revoke_key(actor=COMMAND, key=key)
    assert give_truths(plain, {logged.id: "ok"}) == 0
    assert Feedback.objects.count() == 2
