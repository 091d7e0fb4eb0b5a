"""The overview of forty deployments in three teams: order, sentence, search, and what it costs."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.services import Actor
from controlplane.catalog.models import ModelVersion
from controlplane.dashboard.charts import sparkline
from controlplane.dashboard.pages.figures import read_window
from controlplane.dashboard.pages.overview import Filters, OverviewPage, Severity, overview
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.monitoring.models import DriftVerdict
from controlplane.predictions.feedback import Asker, give_feedback
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Prediction
from controlplane.predictions.truths import Statement
from inference.contracts import Task
from tests.controlplane.cast import signed_in
from tests.controlplane.deployments.rows import make_model, make_version
from tests.controlplane.predictions.records import refused, served

pytestmark = pytest.mark.django_db

TEAMS = ("cards", "radiology", "shop")


def deploy(team: Team, name: str, *, serves: bool = True, **version: Any) -> tuple[Deployment, ModelVersion]:
    """A deployment of a model of its own, all traffic on its one version."""
    made = make_version(make_model(team, f"{name}-model"), **version)
    # The row alone: nothing is published forty times over.
    deployment = Deployment.objects.create(team=team, name=name, model=made.model)
    if serves:
        SplitRevision.objects.create(
            deployment=deployment,
            number=1,
            shares={"1": 10_000},
            state=RevisionState.ACTIVE,
            actor="user:owner",
            activated_at=timezone.now(),
        )
    return deployment, made


def label(deployment: Deployment, version: ModelVersion, truths: list[dict[str, Any]], **fields: Any) -> None:
    """As many served calls as truths, each with its truth."""
    records = [served(deployment, version, at=time.time() - 60, **fields) for _ in truths]
    record_predictions(records)
    known = {str(pk): pk for pk in Prediction.objects.values_list("pk", flat=True)}
    given = give_feedback(
        asker=Asker(Actor("user:owner"), {deployment.pk: deployment}),
        statements=[
            Statement(truth=truth, prediction_id=known[record.id])
            for record, truth in zip(records, truths, strict=True)
        ],
    )
    assert all(one.error is None for one in given)


def shown(user: User, **filters: str) -> OverviewPage:
    # A person keeps their memberships for one request.
    asked = User.objects.get(pk=user.pk)
    return overview(asked, read_window({"range": "1h"}, timezone.now()), Filters(**filters))


@pytest.fixture
def teams(owner: User, team: Team) -> list[Team]:
    others = [Team.objects.create(name=name) for name in TEAMS[1:]]
    for other in others:
        other.memberships.create(user=owner, role=Role.VIEWER)
    return [team, *others]


@pytest.fixture
def forty(teams: list[Team]) -> list[tuple[Deployment, ModelVersion]]:
    return [deploy(teams[index % 3], f"service-{index:02d}") for index in range(40)]


def test_all_well_is_said_in_one_line(owner: User, teams: list[Team]) -> None:
    assert (shown(owner).sentence, shown(owner).rows) == ("", [])
    deploy(teams[0], "one")
    assert shown(owner).sentence == "The one deployment is healthy."
    deploy(teams[1], "two")
    assert (shown(owner).sentence, shown(owner).tone) == ("All 2 deployments are healthy.", "good")


def test_the_worst_stand_first_and_are_named(owner: User, forty: list[tuple[Deployment, ModelVersion]]) -> None:
    failing, version = forty[30]
    record_predictions([served(failing, version) for _ in range(8)] + [refused(failing) for _ in range(2)])
    deploy(failing.team, "unsplit", serves=False)
    drifting = forty[10][0]
    DriftVerdict.objects.create(
        deployment=drifting,
        checked_at=timezone.now(),
        compared=30,
        moved=3,
        most="amount",
        since=datetime(2026, 3, 1, 14, 5, tzinfo=UTC),
        baseline="reference",
    )
    poor, version = forty[20]
    label(poor, version, [{"label": "fraud" if index % 5 else "ok"} for index in range(40)])

    page = shown(owner)

    worst = [(row.deployment.name, row.severity) for row in page.rows[:5]]
    assert worst == [
        ("service-30", Severity.FAILING),
        ("service-10", Severity.DRIFTING),
        ("unsplit", Severity.NOT_SERVING),
        ("service-20", Severity.WORSE),
        ("service-00", Severity.HEALTHY),
    ]
    assert page.sentence == (
        "service-30: 20% failing; service-10: drifting since 14:05 UTC: 3 of 30 features moved, amount most; "
        "unsplit: no split yet; and 1 more. The other 37 are healthy."
    )
    assert page.worst is not None
    assert (page.tone, page.worst.deployment) == ("bad", failing)
    assert page.rows[1].url == f"/deployments/{drifting.name}/drift/"
    assert page.rows[3].said == "worse than a constant answer"


@pytest.mark.parametrize(
    ("verdict", "words", "tone"),
    [
        (None, "not looked at yet", ""),
        ({"compared": 0}, "no reference", ""),
        ({"compared": 0, "baseline": "reference"}, "not enough data", ""),
        ({"compared": 4, "baseline": "earlier", "prediction": False}, "steady", "good"),
        ({"compared": 4, "moved": 2, "most": "amount", "baseline": "earlier"}, "2 of 4 moved", "warn"),
        ({"compared": 4, "prediction": True, "baseline": "earlier"}, "answers moved", "warn"),
    ],
)
def test_the_drift_light_has_a_word(
    owner: User, teams: list[Team], verdict: dict[str, Any] | None, words: str, tone: str
) -> None:
    deployment, _ = deploy(teams[0], "one")
    if verdict is not None:
        DriftVerdict.objects.create(deployment=deployment, checked_at=timezone.now(), **{"moved": 0, **verdict})
    (row,) = shown(owner).rows
    assert (row.drift.words, row.drift.tone) == (words, tone)
    assert (row.severity is Severity.DRIFTING) is (tone == "warn")


def test_it_finds_by_deployment_model_team_and_id(
    owner: User, owners: Client, forty: list[tuple[Deployment, ModelVersion]]
) -> None:
    wanted = forty[7][0]
    for text in ("service-07", "SERVICE-07-MODEL", str(wanted.pk), str(wanted.pk)[4:18]):
        assert [row.deployment for row in shown(owner, text=text).rows] == [wanted], text
    assert len(shown(owner, text="radiology").rows) == len(shown(owner, team="radiology").rows) == 13
    both = shown(owner, team="radiology", text="service-1")
    assert [row.deployment.name for row in both.rows] == ["service-10", "service-13", "service-16", "service-19"]
    assert shown(owner, text="100%_").rows == []
    page = owners.get("/", {"q": "<b>none</b>\x00", "team": "shop"}).content.decode()
    assert "&lt;b&gt;none&lt;/b&gt;" in page
    assert "<b>none" not in page
    assert "Show all 40" in page


def test_only_who_is_in_several_teams_may_choose_one(
    owners: Client, forty: list[tuple[Deployment, ModelVersion]], colleague: User
) -> None:
    assert 'value="radiology"' in owners.get("/").content.decode()
    page = signed_in(colleague).get("/").content.decode()
    assert 'name="team"' not in page
    assert "14 deployments" in page
    other = signed_in(colleague).get("/", {"team": "radiology"}).content.decode()
    assert "service-01" not in other


def test_the_live_part_keeps_the_search(owners: Client, forty: list[tuple[Deployment, ModelVersion]]) -> None:
    page = owners.get("/", {"q": "service-07", "range": "1h"}).content.decode()
    assert 'hx-get="/?range=1h&amp;q=service-07"' in page
    part = owners.get("/?range=1h&q=service-07", headers={"HX-Request": "true"}).content.decode()
    assert "service-07" in part
    assert "service-08" not in part


def test_each_task_has_its_own_headline_with_an_interval(owner: User, teams: list[Team]) -> None:
    names = {}
    for name, task, scores, truths, labels in (
        (
            "classes",
            Task.TABULAR_CLASSIFICATION,
            {"ok": [0.9], "fraud": [0.1]},
            [{"label": "ok"}] * 30,
            ["ok", "fraud"],
        ),
        ("numbers", Task.TABULAR_REGRESSION, {"y": [3.0]}, [{"value": 2.0 + index / 10} for index in range(30)], []),
        ("items", Task.RANKING, {"a": [0.9], "b": [0.5]}, [{"labels": ["b"]}, {"labels": ["a"]}] * 15, []),
    ):
        deployment, version = deploy(teams[0], name, task=task.value, labels=labels)
        label(deployment, version, truths, scores=scores)
        (row,) = shown(owner, text=name).rows
        names[name] = (row.accuracy.name, row.accuracy.labels, "±" in row.accuracy.words)
    assert names == {
        "classes": ("Accuracy", 30, True),
        "numbers": ("RMSE", 30, True),
        "items": ("NDCG at 10", 30, True),
    }


def test_the_last_change_says_who_made_it(owner: User, teams: list[Team], owners: Client) -> None:
    deployment, _ = deploy(teams[0], "one")
    revision = SplitRevision.objects.get()
    SplitRevision.objects.filter(pk=revision.pk).update(state=RevisionState.SUPERSEDED)
    SplitRevision.objects.create(
        deployment=deployment,
        number=2,
        shares={"1": 10_000},
        state=RevisionState.ACTIVE,
        actor="key:robot",
        returns_to=revision,
    )
    (row,) = shown(owner).rows
    assert row.change is not None
    assert (row.change.words, row.change.by) == ("rolled back", "key robot")
    assert "by key robot" in owners.get("/").content.decode()


def test_forty_deployments_cost_the_queries_of_one(
    owner: User, owners: Client, teams: list[Team], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    deploy(teams[0], "first")
    owners.get("/")
    for count in (0, 39):
        made = [deploy(teams[index % 3], f"service-{index:02d}") for index in range(count)]
        record_predictions([served(deployment, version) for deployment, version in made])
        with django_assert_num_queries(10):
            page = owners.get("/").content.decode()
        assert page.count("<tr>") == count + 2


def test_a_sparkline_shows_gaps_and_lone_points() -> None:
    line, area = sparkline([1.0, 2.0, None, None, 1.0, None, 2.0, 2.0])
    assert line.count("M") == 3
    assert line.count("h1") == 1
    assert area.count("Z") == 2
