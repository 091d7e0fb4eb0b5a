"""`demo_traffic --drift` names what it shifted first; without it nothing is called drifting. On the running product."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from examples.card_fraud import generator as payments
from tests.e2e.control import Control, control_of
from tests.services import Product, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

# Deployed as load_demo does, without its two days of history: that is its own test's.
DEPLOY = (
    "from controlplane.local.demo.cases import cases; from controlplane.local.demo.loading import deploy_case; "
    "[deploy_case(case) for case in cases()]"
)
SECONDS, RATE = 8, 150


@pytest.fixture(scope="module")
def control(product: Product) -> Iterator[Control]:
    product.manage("shell", "-c", DEPLOY, within_s=200)
    with control_of(product) as control:
        yield control


def moved(control: Control, name: str, since: str) -> list[str]:
    """Names of what moved, the most moved first, once the log has what was sent."""
    told: dict[str, Any] = {}

    def has_all() -> bool:
        seen = told.get("n", 0)
        told.update(control.got(f"/api/deployments/{name}/drift/?since={since}"))
        return told["n"] >= 60 and told["n"] == seen

    wait_for(has_all, 60, f"the log of {name}", every_s=1.0)
    assert told["baseline"] == "reference"
    return [feature["name"] for feature in told["features"] if feature["drifting"]]


def sent(product: Product, *options: str) -> str:
    since = datetime.now(UTC).isoformat()
    product.manage("demo_traffic", "--seconds", str(SECONDS), "--rate", str(RATE), *options)
    return since.replace("+", "%2B")


def test_traffic_like_training_moves_nothing(product: Product, control: Control) -> None:
    since = sent(product)
    for name in ("card-fraud", "recommender"):
        assert moved(control, name, since) == []


def test_shifted_traffic_is_named_feature_by_feature(product: Product, control: Control) -> None:
    since = sent(product, "--drift")
    features = moved(control, "card-fraud", since)
    assert features
    assert set(features) <= set(payments.SHIFTED)
    assert features[0] in payments.SHIFTED
    pictures = moved(control, "chest-xray", since)
    assert "brightness" in pictures[0]
