"""Moving traffic: what a split may be, and what a change makes of the one before."""

from decimal import Decimal
from typing import Any

import pytest

from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.deployments.services import apply_split, promote, retire_deployment, roll_back
from controlplane.deployments.settling import settle
from controlplane.deployments.shares import live_shares
from controlplane.errors import DomainError
from tests.controlplane.deployments.dataplane import StandIn, newest_route, serving_route
from tests.controlplane.deployments.rows import ACTOR, make_deployment, make_model, make_team, make_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> RegisteredModel:
    model = make_model(make_team())
    for _ in range(3):
        make_version(model)
    return model


@pytest.fixture
def deployment(model: RegisteredModel) -> Deployment:
    return make_deployment(model.team, model)


def split(deployment: Deployment, shares: dict[Any, Any], **more: Any) -> SplitRevision:
    return apply_split(actor=ACTOR, deployment=deployment, shares=shares, **more)


def served(deployment: Deployment, plane: StandIn, shares: dict[Any, Any], **more: Any) -> SplitRevision:
    """Applies a split and has the data plane serve it."""
    revision = split(deployment, shares, **more)
    assert plane.step()
    settle()
    revision.refresh_from_db()
    assert revision.state == RevisionState.ACTIVE
    return revision


def test_a_split_is_prepared_then_active_then_superseded(deployment: Deployment) -> None:
    plane = StandIn()
    first = split(deployment, {"1": 90, "2": 10}, reason="try version 2")
    assert (first.state, first.number, first.shares) == (RevisionState.PREPARING, 1, {"1": 9000, "2": 1000})
    plane.step()
    settle()
    first.refresh_from_db()
    assert first.state == RevisionState.ACTIVE
    assert first.activated_at is not None
    second = served(deployment, plane, {"1": 50, "2": 50})
    first.refresh_from_db()
    assert first.state == RevisionState.SUPERSEDED
    assert first.ended_at == second.activated_at
    assert [share.basis_points for share in serving_route("checkout").live] == [5000, 5000]
    events = AuditEvent.objects.filter(action="split.apply").order_by("id")
    assert [event.after["shares"] for event in events if event.after] == [{"1": 90, "2": 10}, {"1": 50, "2": 50}]
    assert events[0].reason == "try version 2"


@pytest.mark.parametrize(
    ("shares", "points"),
    [
        ({"1": 90, "2": 10}, {1: 9000, 2: 1000}),
        ({1: 33.33, 2: 33.33, 3: 33.34}, {1: 3333, 2: 3333, 3: 3334}),
        ({"2": "99.99", "1": Decimal("0.01")}, {1: 1, 2: 9999}),
        ({"1": 100, "2": 0}, {1: 10000, 2: 0}),
        ({"1": 0.1, "2": 0.2, "3": 99.7}, {1: 10, 2: 20, 3: 9970}),
        ({"1": "1e1", "2": "90.000"}, {1: 1000, 2: 9000}),
    ],
)
def test_shares_are_exact_decimals(shares: dict[Any, Any], points: dict[int, int]) -> None:
    assert live_shares(shares) == points


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"1": 99},
        {"1": 100, "2": 1},
        {"1": 99.99},
        {"1": 110, "2": -10},
        {"1": 100.01},
        {"1": float("nan"), "2": 100},
        {"1": float("inf")},
        {"1": "many"},
        {"1": ""},
        {"1": None, "2": 100},
        {"1": True, "2": 99},
        {"1": [100]},
        {"1": 33.333, "2": 66.667},
        {"1": "9" * 400},
    ],
)
def test_what_does_not_total_100_is_refused(deployment: Deployment, shares: dict[Any, Any]) -> None:
    with pytest.raises(DomainError) as refused:
        split(deployment, shares)
    assert (refused.value.code, refused.value.status) == ("must_total_100", 422)
    assert not SplitRevision.objects.exists()


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("9", "Version 9 of fraud does not exist."),
        ("4", "Version 4 of fraud is archived."),
        ("5", "Version 5 of fraud was rejected at validation: too big"),
        ("01", "Version 1 is named twice."),
        ("v2", "“v2” is not a version number."),
        ("-2", "“-2” is not a version number."),
        ("²", "“²” is not a version number."),
        ("0", "“0” is not a version number."),
        ("99999999999", "“99999999999” is not a version number."),
    ],
)
def test_a_version_that_cannot_take_traffic_is_named(deployment: Deployment, version: str, told: str) -> None:
    make_version(deployment.model, VersionState.ARCHIVED)
    make_version(deployment.model, VersionState.REJECTED, reason="too big")
    other = make_model(deployment.team, "other")
    for _ in range(9):
        make_version(other)
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 90, version: 10})
    assert (refused.value.code, refused.value.message) == ("unknown_version", told)
    assert refused.value.errors == [{"loc": ["shares", version], "msg": told}]


@pytest.mark.parametrize("state", [VersionState.UPLOADED, VersionState.VALIDATING])
def test_a_version_that_is_still_validated_is_not_ready(deployment: Deployment, state: str) -> None:
    make_version(deployment.model, state)
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 90, "4": 10})
    assert (refused.value.code, refused.value.status) == ("not_ready", 409)


def test_a_stale_edit_is_told_both_values(deployment: Deployment) -> None:
    split(deployment, {"1": 100}, expected_revision=0)
    split(deployment, {"1": 80, "2": 20}, expected_revision=1)
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 50, "3": 50}, expected_revision=1)
    assert (refused.value.code, refused.value.status) == ("stale_revision", 409)
    extra = refused.value.extra
    assert extra["yours"] == {"shares": {"1": 50, "3": 50}, "shadow": {}}
    assert extra["current"]["shares"] == {"1": 80, "2": 20}
    assert (extra["expected_revision"], extra["current_revision"]) == (1, 2)
    assert SplitRevision.objects.count() == 2


def test_a_newer_split_replaces_one_that_is_still_preparing(deployment: Deployment) -> None:
    plane = StandIn()
    first = split(deployment, {"1": 100})
    second = served(deployment, plane, {"2": 100})
    first.refresh_from_db()
    assert (first.state, first.activated_at) == (RevisionState.SUPERSEDED, None)
    assert serving_route("checkout").revision == second.number


def test_a_shadow_copies_and_never_answers(deployment: Deployment) -> None:
    split(deployment, {"1": 100}, shadow={"3": 20, "2": 0})
    route = newest_route("checkout")
    assert [(share.number, share.basis_points) for share in route.shadow] == [(3, 2000)]
    assert sorted(route.versions) == [1, 3]
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 100}, shadow={"1": 20})
    assert refused.value.code == "validation_error"
    assert refused.value.errors[0]["loc"] == ["shadow", "1"]


@pytest.mark.parametrize("share", [-1, 100.01, 0.001, "x", float("nan"), True, None])
def test_a_shadow_share_is_a_percentage(deployment: Deployment, share: object) -> None:
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 100}, shadow={"2": share})
    assert refused.value.code == "validation_error"


def test_rolling_back_makes_a_revision_equal_to_the_one_before(deployment: Deployment) -> None:
    plane = StandIn()
    first = served(deployment, plane, {"1": 100})
    second = served(deployment, plane, {"1": 50, "2": 50}, shadow={"3": 10})
    served(deployment, plane, {"2": 100})
    back = roll_back(actor=ACTOR, deployment=deployment, reason="too many alarms")
    assert (back.number, back.shares, back.shadow) == (4, second.shares, second.shadow)
    assert back.returns_to == second
    assert plane.step()
    again = roll_back(actor=ACTOR, deployment=deployment)
    assert (again.number, again.shares, again.returns_to) == (5, first.shares, first)
    with pytest.raises(DomainError) as refused:
        roll_back(actor=ACTOR, deployment=deployment)
    assert refused.value.code == "conflict"


def test_rolling_back_needs_no_load(deployment: Deployment) -> None:
    plane = StandIn()
    served(deployment, plane, {"1": 100})
    served(deployment, plane, {"2": 100})
    assert sorted(serving_route("checkout").versions) == [1, 2]


def test_one_may_return_to_any_revision_that_served(deployment: Deployment) -> None:
    plane = StandIn()
    for number in (1, 2, 3):
        served(deployment, plane, {number: 100})
    split(deployment, {"1": 60, "2": 40})
    split(deployment, {"1": 70, "2": 30})
    assert roll_back(actor=ACTOR, deployment=deployment, to=1).shares == {"1": 10000}
    for never in (4, 99):
        with pytest.raises(DomainError) as refused:
            roll_back(actor=ACTOR, deployment=deployment, to=never)
        assert refused.value.code == "conflict"


def test_promoting_gives_all_traffic_and_keeps_other_shadows(deployment: Deployment) -> None:
    split(deployment, {"1": 100}, shadow={"2": 20, "3": 5})
    revision = promote(actor=ACTOR, deployment=deployment, version=2)
    assert (revision.shares, revision.shadow) == ({"2": 10000}, {"3": 500})


def test_a_retired_deployment_takes_no_split(deployment: Deployment) -> None:
    retire_deployment(actor=ACTOR, deployment=deployment)
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 100})
    assert (refused.value.code, refused.value.status) == ("gone", 410)


@pytest.mark.parametrize(("reason", "code"), [("x" * 501, "validation_error"), ("a\0b", "bad_text")])
def test_a_reason_is_short_text(deployment: Deployment, reason: str, code: str) -> None:
    with pytest.raises(DomainError) as refused:
        split(deployment, {"1": 100}, reason=reason)
    assert refused.value.code == code
