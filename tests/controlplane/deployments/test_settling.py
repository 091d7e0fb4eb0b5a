"""What becomes of a change when the data plane activates it, refuses it, dies, or is not there."""

from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import RegisteredModel
from controlplane.catalog.services import archive_version
from controlplane.deployments import settling
from controlplane.deployments.models import DataplaneDocument, Deployment, RevisionState, SplitRevision
from controlplane.deployments.publishing import KEPT_DOCUMENTS, publish_routes
from controlplane.deployments.services import (
    apply_split,
    edit_deployment,
    retire_deployment,
    set_label,
    wait_until_settled,
)
from controlplane.deployments.settling import reconcile, settle
from controlplane.errors import DomainError
from tests.controlplane.deployments.dataplane import StandIn, newest_route, serving_route
from tests.controlplane.deployments.rows import ACTOR, make_deployment, make_model, make_team, make_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> RegisteredModel:
    model = make_model(make_team())
    for _ in range(9):
        make_version(model)
    return model


@pytest.fixture
def deployment(model: RegisteredModel) -> Deployment:
    return make_deployment(model.team, model)


def split(deployment: Deployment, shares: dict[Any, Any], **more: Any) -> SplitRevision:
    return apply_split(actor=ACTOR, deployment=deployment, shares=shares, **more)


def served(deployment: Deployment, plane: StandIn, shares: dict[Any, Any]) -> SplitRevision:
    revision = split(deployment, shares)
    assert plane.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.ACTIVE
    return revision


def id_of(deployment: Deployment, number: int) -> str:
    return str(deployment.model.versions.get(number=number).pk)


def test_a_version_that_does_not_load_moves_no_traffic(deployment: Deployment) -> None:
    plane = StandIn()
    first = served(deployment, plane, {"1": 100})
    plane.broken[id_of(deployment, 2)] = "The model's file cannot be read."
    second = split(deployment, {"1": 50, "2": 50})
    assert not plane.step()
    assert settle()
    second.refresh_from_db()
    first.refresh_from_db()
    assert (second.state, first.state) == (RevisionState.FAILED, RevisionState.ACTIVE)
    assert second.failure == "Version 2 does not load: The model's file cannot be read."
    assert serving_route("checkout").revision == 1
    # What serves is what is wanted again, so there is nothing to publish.
    assert DataplaneDocument.objects.filter(kind="routes").latest("generation").state == RevisionState.FAILED
    event = AuditEvent.objects.get(action="split.fail")
    assert (event.actor, event.reason) == ("system", second.failure)
    assert not settle()


def test_the_split_may_be_tried_again_once_the_version_loads(deployment: Deployment) -> None:
    plane = StandIn()
    plane.broken[id_of(deployment, 2)] = "Not enough memory."
    split(deployment, {"2": 100})
    plane.step()
    settle()
    plane.broken.clear()
    assert served(deployment, plane, {"2": 100}).number == 2


def test_another_deployments_change_goes_through(deployment: Deployment) -> None:
    other = make_deployment(deployment.team, deployment.model, "other")
    plane = StandIn()
    plane.broken[id_of(deployment, 2)] = "Broken."
    bad, good = split(deployment, {"2": 100}), split(other, {"3": 100})
    assert not plane.step()
    settle()
    assert plane.step()
    settle()
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, good.state) == (RevisionState.FAILED, RevisionState.ACTIVE)
    assert (newest_route("checkout").live, newest_route("checkout").revision) == ((), 0)


def test_a_broken_shadow_fails_its_split(deployment: Deployment) -> None:
    plane = StandIn()
    plane.broken[id_of(deployment, 2)] = "Broken."
    revision = split(deployment, {"1": 100}, shadow={"2": 5})
    plane.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.FAILED


def test_an_old_version_that_no_longer_loads_is_left_out_and_fails_nothing(deployment: Deployment) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    served(deployment, plane, {"2": 100})
    plane.broken[id_of(deployment, 1)] = "Broken."
    revision = split(deployment, {"3": 100})
    assert not plane.step()
    settle()
    assert plane.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.ACTIVE
    assert sorted(serving_route("checkout").versions) == [2, 3]


def test_an_old_version_that_once_did_not_fit_into_memory_can_still_be_pinned(deployment: Deployment) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    served(deployment, plane, {"2": 100})
    plane.broken[id_of(deployment, 1)], plane.code = "It needs 9 MB of memory.", "model_memory"
    again = split(deployment, {"1": 100})
    assert not plane.step()
    settle()
    again.refresh_from_db()
    assert again.failure == "Version 1 does not load: It needs 9 MB of memory."
    plane.broken.clear()
    served(deployment, plane, {"3": 100})
    assert sorted(serving_route("checkout").versions) == [1, 2, 3]


def test_a_serving_version_that_a_new_process_cannot_load_fails_the_change_and_is_named(
    deployment: Deployment,
) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    other = make_deployment(deployment.team, deployment.model, "other")
    plane.broken[id_of(deployment, 1)] = "Broken."
    revision = split(other, {"3": 100})
    plane.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.FAILED
    assert revision.failure == "Nothing was changed. Version 1 of checkout does not load: Broken."
    assert serving_route("checkout").revision == 1


def test_a_failure_without_a_version_fails_the_change_once(deployment: Deployment) -> None:
    """The front door reports a document whose signature it cannot accept under no version."""
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    revision = split(deployment, {"2": 100})
    generation = DataplaneDocument.objects.filter(kind="routes").latest("generation").generation
    DataplaneDocument.objects.filter(kind="routes", generation=generation).update(
        state=RevisionState.FAILED, failure="The document's signature is wrong."
    )
    settle()
    revision.refresh_from_db()
    assert revision.failure == "Nothing was changed. The document's signature is wrong."
    assert not settle()


def test_a_setting_that_failed_is_not_tried_again_at_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    plane.broken[id_of(deployment, 1)] = "Broken."
    edit_deployment(actor=ACTOR, deployment=deployment, max_rows=10)
    assert not plane.step()
    settle()
    count = DataplaneDocument.objects.filter(kind="routes").count()
    reconcile()
    assert DataplaneDocument.objects.filter(kind="routes").count() == count
    plane.broken.clear()
    monkeypatch.setattr(settling, "RETRY_AFTER", -settling.RETRY_AFTER)
    assert reconcile()
    assert plane.step()
    assert serving_route("checkout").max_rows == 10


def test_every_live_process_must_be_prepared(deployment: Deployment) -> None:
    one, two = StandIn(), StandIn()
    revision = split(deployment, {"1": 100})
    assert not one.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.PREPARING
    assert two.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.ACTIVE


def test_a_dead_process_is_not_waited_for(deployment: Deployment) -> None:
    one, two = StandIn(), StandIn()
    revision = split(deployment, {"1": 100})
    two.die()
    assert one.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.ACTIVE


def test_with_no_data_plane_a_split_is_recorded_and_waits(deployment: Deployment) -> None:
    revision = wait_until_settled(split(deployment, {"1": 100}), 60)
    assert revision.state == RevisionState.PREPARING
    assert StandIn().step()
    assert wait_until_settled(revision, 60).state == RevisionState.ACTIVE


def test_waiting_ends_at_its_time(deployment: Deployment) -> None:
    StandIn()
    assert wait_until_settled(split(deployment, {"1": 100}), 0.2).state == RevisionState.PREPARING


def test_settling_what_is_settled_is_one_query(
    deployment: Deployment, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    served(deployment, StandIn(), {"1": 100})
    with django_assert_num_queries(1):
        assert not settle()


def test_publishing_costs_the_same_however_many_deployments_there_are(
    deployment: Deployment, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    # Savepoint and lock; what is in force; five for the content; and nothing to write.
    with django_assert_num_queries(9):
        assert publish_routes() is None
    for name in ("a", "b", "c"):
        other = make_deployment(deployment.team, deployment.model, name)
        served(other, plane, {"2": 100})
        set_label(actor=ACTOR, deployment=other, label="stable", version=2)
    with django_assert_num_queries(9):
        assert publish_routes() is None


def test_old_documents_are_pruned(deployment: Deployment) -> None:
    for rows in range(1, KEPT_DOCUMENTS + 20):
        edit_deployment(actor=ACTOR, deployment=deployment, max_rows=rows)
    documents = DataplaneDocument.objects.filter(kind="routes")
    assert documents.count() == KEPT_DOCUMENTS
    assert documents.filter(state=RevisionState.PREPARING).count() == 1


def test_versions_of_the_last_splits_stay_loaded_and_older_ones_do_not(deployment: Deployment) -> None:
    plane = StandIn()
    for number in range(1, 9):
        served(deployment, plane, {number: 100})
    assert sorted(serving_route("checkout").versions) == [3, 4, 5, 6, 7, 8]
    set_label(actor=ACTOR, deployment=deployment, label="golden", version=3)
    served(deployment, plane, {9: 100})
    assert sorted(serving_route("checkout").versions) == [3, 4, 5, 6, 7, 8, 9]
    assert serving_route("checkout").labels == {"golden": 3}


def test_a_version_that_holds_traffic_or_a_label_is_not_archived(deployment: Deployment) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 99.5, "2": 0.5, "3": 0})
    set_label(actor=ACTOR, deployment=deployment, label="canary", version=3)
    told = {}
    for number in (1, 2, 3):
        with pytest.raises(DomainError) as refused:
            archive_version(actor=ACTOR, version=deployment.model.versions.get(number=number))
        assert (refused.value.code, refused.value.status) == ("conflict", 409)
        told[number] = refused.value.message
    assert "99.5 % of the traffic of “checkout”" in told[1]
    assert "0.5 %" in told[2]
    assert "“canary”" in told[3]


def test_a_version_at_0_percent_may_be_archived_and_is_unloaded(deployment: Deployment) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100, "2": 0})
    archive_version(actor=ACTOR, version=deployment.model.versions.get(number=2))
    assert reconcile()
    assert plane.step()
    assert sorted(serving_route("checkout").versions) == [1]


def test_a_retired_deployment_is_published_as_gone_for_a_while(deployment: Deployment) -> None:
    plane = StandIn()
    revision = served(deployment, plane, {"1": 100})
    retire_deployment(actor=ACTOR, deployment=deployment)
    revision.refresh_from_db()
    assert revision.state == RevisionState.SUPERSEDED
    assert plane.step()
    assert serving_route("checkout").retired
    retired = Deployment.objects.get(pk=deployment.pk)
    assert retired.retired_at
    retired.retired_at -= settling.timedelta(days=31)
    retired.save(update_fields=["retired_at"])
    assert reconcile()
    with pytest.raises(StopIteration):
        newest_route("checkout")
