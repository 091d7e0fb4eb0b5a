"""What every page costs in queries: the same with few predictions as with many. Times are in docs/performance.md."""

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from tests.controlplane.predictions.records import refused, served

pytestmark = pytest.mark.django_db

# Page (as a whole, and as the live part that it asks for again), and the queries it makes.
PAGES = {
    "/": 10,
    "/?range=24h": 10,
    "/deployments/": 11,
    "/deployments/new/": 7,
    "/deployments/checkout/": 14,
    "/deployments/checkout/latency/": 10,
    "/deployments/checkout/accuracy/": 9,
    "/deployments/checkout/drift/": 10,
    "/deployments/checkout/predictions/": 9,
    "/deployments/checkout/predictions/?q=order-1": 8,
    "/deployments/checkout/predictions/?code=internal": 8,
    "/deployments/checkout/predictions/PREDICTION/": 10,
    "/deployments/checkout/try/": 12,
    "/deployments/checkout/settings/": 13,
    "/models/": 6,
    "/models/fraud/": 8,
    "/models/fraud/versions/1/": 6,
    "/models/fraud/upload/": 4,
    "/jobs/": 6,
    "/keys/": 11,
    "/audit/": 5,
    "/system/": 9,
}
LIVE = {
    "/": 9,
    "/deployments/": 9,
    "/deployments/checkout/traffic/": 7,
    "/deployments/checkout/errors/": 7,
    "/deployments/checkout/head/": 6,
    "/deployments/checkout/history/": 8,
    "/deployments/checkout/latency/": 9,
    "/deployments/checkout/accuracy/": 6,
    "/deployments/checkout/drift/": 7,
    # One finds out whether this look at scores was written down already.
    "/deployments/checkout/predictions/": 6,
    "/jobs/": 5,
    "/system/": 8,
}


@pytest.mark.parametrize(
    ("path", "live", "queries"),
    [(path, False, queries) for path, queries in PAGES.items()]
    + [(path, True, queries) for path, queries in LIVE.items()],
)
def test_a_page_costs_the_same_queries_with_more_predictions(
    owners: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    django_assert_num_queries: DjangoAssertNumQueries,
    path: str,
    live: bool,
    queries: int,
) -> None:
    headers = {"HX-Request": "true"} if live else {}
    for count in (2, 200):
        record_predictions([served(deployment, versions[index % 2]) for index in range(count)] + [refused(deployment)])
        newest = str(Prediction.objects.values_list("pk", flat=True).first())
        # What a process finds out once.
        owners.get(path.replace("PREDICTION", newest), headers=headers)
        with django_assert_num_queries(queries):
            answer = owners.get(path.replace("PREDICTION", newest), headers=headers)
        assert answer.status_code == 200
