"""Two people, two tabs, two processes at once."""

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from controlplane.catalog.services import archive_version
from controlplane.deployments.models import DataplaneDocument, Deployment, SplitRevision
from controlplane.deployments.publishing import opened
from controlplane.deployments.services import apply_split, edit_deployment
from controlplane.errors import DomainError
from tests.controlplane.deployments.rows import ACTOR, make_deployment, make_model, make_team, make_version


@pytest.fixture
def deployment(own_database: str) -> Deployment:
    model = make_model(make_team())
    for _ in range(3):
        make_version(model)
    return make_deployment(model.team, model)


def at_once(*actions: Callable[[], object]) -> list[str]:
    """Runs the actions in a thread each; returns "done" or the code of the DomainError, in their order."""
    outcomes = [""] * len(actions)
    start = threading.Barrier(len(actions))

    def run(index: int, action: Callable[[], object]) -> None:
        start.wait()
        try:
            action()
            outcomes[index] = "done"
        except DomainError as error:
            outcomes[index] = error.code
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_edits_of_one_revision_one_wins(deployment: Deployment) -> None:
    outcomes = at_once(
        *(
            lambda share=share: apply_split(
                actor=ACTOR, deployment=deployment, shares={"1": share, "2": 100 - share}, expected_revision=0
            )
            for share in (10, 20, 30, 40)
        )
    )
    assert sorted(outcomes) == ["done", "stale_revision", "stale_revision", "stale_revision"]
    assert SplitRevision.objects.count() == 1


def test_unchecked_edits_all_count_and_generations_are_in_order(deployment: Deployment) -> None:
    outcomes = at_once(
        lambda: apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100}),
        lambda: apply_split(actor=ACTOR, deployment=deployment, shares={"2": 100}),
        lambda: edit_deployment(actor=ACTOR, deployment=deployment, max_rows=7),
        lambda: edit_deployment(actor=ACTOR, deployment=deployment, lane="executor"),
    )
    assert outcomes == ["done"] * 4
    documents = list(DataplaneDocument.objects.filter(kind="routes").order_by("generation"))
    assert [document.generation for document in documents] == [1, 2, 3, 4, 5]
    (route,) = opened(documents[-1]).deployments
    assert (route.revision, route.max_rows, route.lane) == (2, 7, "executor")


def test_a_version_is_archived_or_gets_traffic_never_both(deployment: Deployment) -> None:
    version = deployment.model.versions.get(number=3)
    outcomes = at_once(
        lambda: archive_version(actor=ACTOR, version=version),
        lambda: apply_split(actor=ACTOR, deployment=deployment, shares={"3": 100}),
    )
    assert outcomes in (["done", "unknown_version"], ["conflict", "done"])
