"""The commands deploy and issue_api_key, as scripts call them."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.queries import find_usable_key
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, SplitRevision
from tests.controlplane.deployments import rows
from tests.controlplane.deployments.dataplane import StandIn

pytestmark = pytest.mark.django_db


@pytest.fixture
def team() -> Team:
    return rows.make_team("default")


@pytest.fixture
def model(team: Team) -> RegisteredModel:
    model = rows.make_model(team)
    for _ in range(3):
        rows.make_version(model)
    rows.make_version(model, VersionState.VALIDATING)
    return model


def run(*arguments: str, **options: Any) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue().strip()


def test_deploy_makes_the_deployment_and_says_that_it_waits(model: RegisteredModel) -> None:
    line = run("deploy", "checkout", "fraud")
    assert line == "checkout revision 1: version 3 100 %; recorded: it will serve when a data plane comes up"
    assert Deployment.objects.get().name == "checkout"
    assert {event.actor for event in AuditEvent.objects.all()} == {"command"}


def test_deploy_takes_split_shadow_and_lane(model: RegisteredModel) -> None:
    line = run("deploy", "checkout", "fraud", "--split", "1=90,2=10", "--shadow", "3=20", "--lane", "executor")
    assert line.startswith("checkout revision 1: version 1 90 %, version 2 10 %; shadow version 3 20 %; recorded")
    assert Deployment.objects.get().lane == "executor"


def test_deploy_twice_is_one_revision_and_says_that_it_serves(model: RegisteredModel) -> None:
    run("deploy", "checkout", "fraud", "--split", "1=90,2=10")
    StandIn().step()
    line = run("deploy", "checkout", "fraud", "--split", "2=10.00,1=90")
    assert line == "checkout revision 1: version 1 90 %, version 2 10 %; serving"
    assert SplitRevision.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["checkout", "nonesuch"], "The team default has no model “nonesuch”."),
        (["checkout", "fraud", "--team", "nobody"], "There is no team “nobody”."),
        (["../x", "fraud"], "A deployment's name has 1 to 60 characters"),
        (["checkout", "fraud", "--split", "1=90"], "must total exactly 100.00 %"),
        (["checkout", "fraud", "--split", "1"], "“1” is not VERSION=PERCENT"),
        (["checkout", "fraud", "--split", "1=50,1=50"], "Version 1 is named twice."),
        (["checkout", "fraud", "--split", "9=100"], "Version 9 of fraud does not exist."),
        (["checkout", "fraud", "--split", "4=100"], "Version 4 of fraud is still being validated."),
    ],
)
def test_deploy_says_in_a_sentence_what_is_wrong(model: RegisteredModel, arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError) as refused:
        run("deploy", *arguments)
    assert told in str(refused.value)
    assert not SplitRevision.objects.exists()


def test_deploy_refuses_a_name_that_serves_another_model(team: Team, model: RegisteredModel) -> None:
    run("deploy", "checkout", "fraud")
    rows.make_version(rows.make_model(team, "other"))
    with pytest.raises(CommandError, match="serves another model"):
        run("deploy", "checkout", "other")


def test_issue_api_key_prints_the_key_alone(model: RegisteredModel) -> None:
    plain = run("issue_api_key", "the shop")
    key = find_usable_key(plain)
    assert key is not None
    assert (key.label, key.scopes, key.every_deployment) == ("the shop", ["predict", "pin", "feedback"], True)


def test_issue_api_key_takes_scopes_deployments_and_test(model: RegisteredModel) -> None:
    run("deploy", "checkout", "fraud")
    plain = run("issue_api_key", "t", "--scope", "predict", "--scope", "read", "--deployment", "checkout", "--test")
    key = find_usable_key(plain)
    assert key is not None
    assert plain.startswith("sb_test_")
    assert (key.scopes, key.every_deployment, key.test) == (["predict", "read"], False, True)
    with pytest.raises(CommandError, match="no deployment “nonesuch”"):
        run("issue_api_key", "t", "--deployment", "nonesuch")
    with pytest.raises(CommandError):
        run("issue_api_key", "t", "--scope", "everything")
    assert ApiKey.objects.count() == 1
