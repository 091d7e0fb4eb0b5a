"""Two people, two tabs, two processes at once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from controlplane.catalog.models import ModelVersion
from controlplane.catalog.services import archive_version, edit_version, usage
from controlplane.deployments.models import DataplaneDocument, Deployment, SplitRevision
from controlplane.deployments.publishing import opened
from controlplane.deployments.services import apply_split, edit_deployment, purpose
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


@pytest.fixture
def fit(deployment: Deployment) -> ModelVersion:
    """A version that has all the traffic and states what clinical use demands."""
    stated = {"labels": ["ok"], "thresholds": {"ok": 0.5}, "intended_use": {"modality": "DX"}}
    ModelVersion.objects.filter(model=deployment.model, number=1).update(**stated)
    apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100})
    return deployment.model.versions.get(number=1)


@pytest.mark.parametrize("first", ["declared clinical", "cleared"])
def test_no_clinical_deployment_loses_the_intended_use_of_its_version(
    deployment: Deployment, fit: ModelVersion, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whoever comes first holds on after its checks, until the other has begun and waits, or has ended."""
    outcomes: dict[str, str] = {}
    threads: list[threading.Thread] = []

    def declare() -> None:
        purpose.set_purpose(actor=ACTOR, deployment=deployment, purpose="clinical", approver="Dr. Berg")

    def clear() -> None:
        edit_version(actor=ACTOR, version=fit, changes={"intended_use": {}})

    actions = {"declared clinical": declare, "cleared": clear}
    other = next(name for name in actions if name != first)

    def run(name: str) -> None:
        try:
            actions[name]()
            outcomes[name] = "done"
        except DomainError as error:
            outcomes[name] = error.code
        finally:
            if name == other:
                connection.close()

    def let_the_other_in() -> None:
        threads.append(threading.Thread(target=run, args=[other]))
        threads[0].start()
        with connection.cursor() as cursor:
            while threads[0].is_alive():
                # It waits for a lock that this transaction holds.
                cursor.execute("SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")
                if cursor.fetchone() != (0,):
                    break

    if first == "declared clinical":
        lacking = purpose.lacking_for_clinical

        def looked(*args: Any) -> str:
            found = lacking(*args)
            if not threads:
                let_the_other_in()
            return found

        monkeypatch.setattr(purpose, "lacking_for_clinical", looked)
    else:

        def allowed(version: ModelVersion) -> None:
            if not threads:
                let_the_other_in()

        monkeypatch.setattr(usage, "intended_use_checks", [*usage.intended_use_checks, allowed])
    run(first)
    threads[0].join()

    deployment.refresh_from_db()
    fit.refresh_from_db()
    assert outcomes[first] == "done"
    assert outcomes[other] in ("conflict", "validation_error")
    assert deployment.purpose != "clinical" or fit.intended_use
