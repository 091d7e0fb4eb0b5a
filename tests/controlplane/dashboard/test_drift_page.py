"""The drift tab: what it says, draws and links; for whom; and that no name of a caller becomes markup."""

import time
from collections.abc import Sequence

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from controlplane.catalog.models import ModelVersion, ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.predictions.ingest import record_predictions
from inference.runtime.digest import digest_of, pack
from tests.controlplane.predictions.records import served

EVIL = "<script>alert(1)</script>&'\""
PAGE = "/deployments/checkout/drift/"


def serve(
    deployment: Deployment, version: ModelVersion, rows: int = 90, shift: float = 0.0, more: Sequence[str] = ()
) -> None:
    at = time.time() - 60
    record_predictions(
        [
            served(
                deployment,
                version,
                at=at + n / 100,
                features={"amount": [n % 9 + shift], "age": [float(n % 7)], **{name: [1.0] for name in more}},
            )
            for n in range(rows)
        ]
    )


def give_reference(version: ModelVersion) -> None:
    columns = {"amount": digest_of([float(n % 9) for n in range(900)]), "age": digest_of([n % 7 for n in range(900)])}
    ReferenceDigests.objects.create(version=version, packed=pack(columns))


def test_it_names_what_moved_most_and_against_what(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    give_reference(versions[0])
    serve(deployment, versions[0], shift=20.0)
    page = owners.get(PAGE).content.decode()
    assert "1 of 2 features moved since" in page
    assert "; amount most." in page
    assert "against the reference set of version 1" in page
    assert page.index(">amount</a>") < page.index(">age</a>")
    assert 'class="hist"' in page
    assert "?range=24h&amp;baseline=earlier" in page


def test_a_reference_set_without_digests_is_to_be_added_again(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    serve(deployment, versions[0])
    serve(deployment, versions[1])
    ModelVersion.objects.update(reference_artifact=versions[0].artifact)
    page = owners.get(PAGE).content.decode()
    for number in (1, 2):
        assert f"The reference set of version {number} was accepted before" in page
        assert f'<a href="/models/fraud/versions/{number}/">add the reference set again</a>' in page
    assert "no version that answers has a reference set" not in page
    give_reference(versions[0])
    page = owners.get(PAGE).content.decode()
    assert "against the reference set of version 1" in page
    assert "The reference set of version 2 was accepted before" in page
    assert "The reference set of version 1 was accepted before" not in page
    give_reference(versions[1])
    assert "add the reference set again" not in owners.get(PAGE).content.decode()


def test_a_column_opens_large_without_a_script(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    give_reference(versions[0])
    serve(deployment, versions[0], shift=20.0)
    page = owners.get(PAGE, {"column": "amount", "range": "1h"}).content.decode()
    for words in ("Kolmogorov–Smirnov", "Wasserstein", "Jensen–Shannon", "PSI over time", "Quantile", "histogram-data"):
        assert words in page
    assert "?range=1h&amp;column=amount" in page
    assert 'id="column"' not in owners.get(PAGE, {"column": "nonsense"}).content.decode()
    assert 'id="column"' in owners.get(PAGE, {"column": "score:fraud"}).content.decode()


def test_it_teaches_where_there_is_nothing_or_too_little(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    assert "Nothing was served in this window." in owners.get(PAGE).content.decode()
    serve(deployment, versions[0], rows=34)
    assert "There is nothing to compare with yet" in owners.get(PAGE).content.decode()
    give_reference(versions[0])
    page = owners.get(PAGE).content.decode()
    assert "Not enough data: 16 more rows now are needed, 50 on each side." in page
    assert "not enough data: 16 more of 50 rows needed" in page


@pytest.mark.parametrize("query", ["", "?column=amount", "?baseline=earlier", "?baseline=%27&column=%00&range=x"])
def test_it_is_the_teams_alone_whole_and_in_part(
    owners: Client,
    colleagues: Client,
    outsiders: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    query: str,
) -> None:
    serve(deployment, versions[0])
    for headers in ({}, {"HX-Request": "true"}):
        assert outsiders.get(PAGE + query, headers=headers).status_code == 404
        assert colleagues.get(PAGE + query, headers=headers).status_code == 200
    part = owners.get(PAGE, headers={"HX-Request": "true"})
    again = owners.get(PAGE, headers={"HX-Request": "true", "If-None-Match": part.headers["ETag"]})
    assert b"<html" not in part.content
    assert (again.status_code, again.content) == (304, b"")


def test_names_of_features_are_text(owners: Client, deployment: Deployment, versions: list[ModelVersion]) -> None:
    serve(deployment, versions[0], more=[EVIL])
    for query in ({}, {"column": EVIL}):
        assert b"<script>alert(1)" not in owners.get(PAGE, query).content
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in owners.get(PAGE, {"column": EVIL}).content


def test_of_very_many_columns_the_most_moved_come_first_in_pages(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    give_reference(versions[0])
    serve(deployment, versions[0], shift=20.0, more=[f"Column {n:04}" for n in range(210)])
    first = owners.get(PAGE).content.decode()
    assert first.count('class="hist"') == 100 + 2
    assert "1 to 100 of 212 columns" in first
    assert first.index(">amount</a>") < first.index(">Column 0000</a>")
    assert ">Less moved</a>" in first
    assert ">More moved</a>" not in first
    last = owners.get(PAGE, {"page": "3"}).content.decode()
    assert "201 to 212 of 212 columns" in last
    assert "?range=24h&amp;page=2" in last
    assert ">Less moved</a>" not in last
    assert "201 to 212" in owners.get(PAGE, {"page": "99999"}).content.decode()
    found = owners.get(PAGE, {"find": "column 019", "column": "Column 0191"}).content.decode()
    assert found.count('class="hist"') == 10 + 2
    assert 'value="column 019"' in found
    assert "find=column+019&amp;column=Column+0191" in found
    assert 'id="column"' in found
    part = owners.get(PAGE, {"find": "column 019"}, headers={"HX-Request": "true"}).content.decode()
    assert ">Column 0191</a>" in part
    assert ">amount</a>" not in part


@pytest.mark.parametrize(
    "query", [{"find": EVIL}, {"find": "\0"}, {"page": "-1"}, {"page": "x"}, {"page": "²"}, {"page": "0"}]
)
def test_a_search_for_nonsense_still_answers(
    owners: Client, deployment: Deployment, versions: list[ModelVersion], query: dict[str, str]
) -> None:
    serve(deployment, versions[0])
    answer = owners.get(PAGE, query)
    assert answer.status_code == 200
    assert b"<script>alert(1)" not in answer.content
    assert (b"No column has" in answer.content) == (query.get("find") == EVIL)


def test_it_costs_the_same_queries_with_more_columns(
    owners: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    owners.get(PAGE)
    serve(deployment, versions[0])
    with django_assert_num_queries(PAGE_QUERIES):
        owners.get(PAGE, {"column": "amount"})
    serve(deployment, versions[1], more=[f"f{n}" for n in range(40)])
    with django_assert_num_queries(PAGE_QUERIES):
        owners.get(PAGE, {"column": "amount"})


# The session, the person, their teams, the deployment, the head, drift (four), the marks of its chart.
PAGE_QUERIES = 11
