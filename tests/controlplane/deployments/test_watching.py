"""The scheduler finds what has not been published, without making the documents at each look."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.services import issue_key
from controlplane.deployments.models import Deployment
from controlplane.deployments.watching import AT_LEAST_EVERY_S, Watch
from tests.controlplane.deployments.rows import ACTOR, make_deployment, make_model, make_team

pytestmark = pytest.mark.django_db


def settled() -> tuple[Watch, list[float]]:
    """A watch that found nothing to do at its last look, and its clock."""
    clock = [0.0]
    watch = Watch(lambda: clock[0])
    while watch.look():
        pass
    return watch, clock


def test_a_look_at_rows_that_nobody_wrote_is_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    team = make_team()
    make_deployment(team, make_model(team))
    watch, _ = settled()
    with django_assert_num_queries(1):
        assert not watch.look()


def test_what_was_not_published_is_found_by_the_next_look() -> None:
    team = make_team()
    deployment = make_deployment(team, make_model(team))
    watch, _ = settled()
    issue_key(actor=ACTOR, team=team, label="app")
    assert watch.look()
    assert not watch.look()
    Deployment.objects.filter(pk=deployment.pk).update(max_rows=7)
    assert watch.look()
    assert not watch.look()
    deployment.delete()
    assert watch.look()


def test_what_changes_by_mere_time_is_looked_at_now_and_then(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    watch, clock = settled()
    clock[0] = AT_LEAST_EVERY_S - 1
    with django_assert_num_queries(1):
        assert not watch.look()
    clock[0] = AT_LEAST_EVERY_S
    with CaptureQueriesContext(connection) as asked:
        assert not watch.look()
    assert len(asked) > 1
