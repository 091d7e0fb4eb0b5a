"""The worklist: what is shown to whom, by status, in pages, at a constant number of queries."""

import uuid

import pytest

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.studies import queries
from controlplane.studies.models import Study
from controlplane.studies.queries import find_picture, find_study, image_deployments, worklist
from controlplane.studies.services.policy import set_policy
from controlplane.studies.services.sending import send_study
from tests.controlplane.cast import new_user
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.studies.conftest import Say, as_actor, draft, picture

pytestmark = pytest.mark.django_db


def sent_by(user: User, deployment: Deployment, reference: str) -> Study:
    return send_study(actor=as_actor(user), study=draft(user, deployment, picture(), reference=reference))


def references(*arguments: User, **filters: object) -> list[str]:
    return [row.reference for row in worklist(*arguments, **filters).rows]  # type: ignore[arg-type]  # of several types


def test_each_status_is_found(doctor: User, second: User, xray: Deployment, say: Say) -> None:
    actor = as_actor(doctor)
    unread, failed, read = (sent_by(doctor, xray, name) for name in ("unread", "failed", "read"))
    set_policy(actor=actor, deployment=xray, read_first=False, readers=2, retention_days=90)
    one, two = sent_by(doctor, xray, "one reader"), sent_by(doctor, xray, "differ")
    run_batch("x")
    Job.objects.filter(study_picture__study=failed).update(status="failed", error={"code": "internal"})
    for study in (read, one, two):
        say(study, doctor)
    say(two, second, "correct", "bright")
    sent_by(doctor, xray, "waiting")
    draft(doctor, xray, reference="draft")

    found = {row.reference: row.status.value for row in worklist(doctor).rows}

    assert found == {
        "unread": "ready",
        "failed": "failed",
        "read": "read",
        "one reader": "needs_second",
        "differ": "needs_adjudication",
        "waiting": "waiting",
        "draft": "draft",
    }
    for reference, status in found.items():
        assert references(doctor, status=status) == [reference]
    assert worklist(doctor, status="needs_adjudication").rows[0].readers == ["doctor", "second"]
    assert unread.pk in {row.study.pk for row in worklist(second).rows}
    assert "draft" not in references(second)


def test_filters_and_pages(
    doctor: User, second: User, xray: Deployment, team: Team, other_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A 1", "a  1", "B", "C"):
        sent_by(doctor if name != "C" else second, xray, name)
    assert references(doctor, reference="A 1") == ["a  1", "A 1"]
    assert references(doctor, reference="A") == []
    assert references(doctor, mine=True) == ["B", "a  1", "A 1"]
    assert references(doctor, team=other_team) == []
    assert len(references(doctor, team=team, status="nonsense")) == 4
    monkeypatch.setattr(queries, "PAGE_SIZE", 3)
    first = worklist(doctor)
    assert [row.reference for row in first.rows] == ["C", "B", "a  1"]
    last = worklist(doctor, page=first.next_page)
    assert ([row.reference for row in last.rows], last.next_page) == (["A 1"], "")
    assert len(worklist(doctor, page="x' OR 1=1").rows) == 3


def test_more_studies_cost_no_more_queries(
    doctor: User, xray: Deployment, django_assert_num_queries: object, say: Say
) -> None:
    for number in range(2):
        sent_by(doctor, xray, str(number))
    run_batch("x")
    say(Study.objects.first(), doctor)
    for more in ("", "2", "3"):
        if more:
            sent_by(doctor, xray, more)
        fresh = User.objects.get(pk=doctor.pk)
        with django_assert_num_queries(3):  # type: ignore[operator]  # a fixture typed as object
            worklist(fresh)


def test_outsiders_find_nothing_and_their_attempt_is_written_down(
    sent: Study, foreign_doctor: User, colleague: User, owner: User, doctor: User
) -> None:
    root = User.objects.create(username="root", is_superuser=True)
    for user in (foreign_doctor, owner, root):
        assert worklist(user).rows == [] or user == owner
    for user in (foreign_doctor, colleague, root):
        with pytest.raises(DomainError) as refused:
            find_study(user, sent.pk, actor=as_actor(user))
        assert refused.value.code == "not_found"
        with pytest.raises(DomainError):
            find_picture(user, sent.pk, sent.pictures.get().pk, actor=as_actor(user))
    denied = AuditEvent.objects.filter(action="study.denied", target_id=str(sent.pk))
    assert denied.count() == 6
    assert {event.team_id for event in denied} == {sent.team_id}
    with pytest.raises(DomainError):
        find_study(foreign_doctor, uuid.uuid4(), actor=as_actor(foreign_doctor))
    assert denied.count() == 6
    assert find_picture(doctor, sent.pk, sent.pictures.get().pk, actor=as_actor(doctor)).study == sent


def test_a_draft_is_its_makers_alone(doctor: User, second: User, xray: Deployment) -> None:
    study = draft(doctor, xray)
    assert find_study(doctor, study.pk, actor=as_actor(doctor)).status == "draft"  # type: ignore[attr-defined]  # annotated by with_status
    with pytest.raises(DomainError):
        find_study(second, study.pk, actor=as_actor(second))


def test_only_deployments_of_pictures_in_ones_own_teams_are_offered(
    doctor: User, foreign_doctor: User, team: Team, xray: Deployment
) -> None:
    table = make_model(team, "fraud")
    make_version(table)
    make_deployment(team, table, "checkout")
    both = new_user("both", team, Role.VIEWER)
    assert [deployment.name for deployment in image_deployments(doctor)] == ["xray"]
    assert image_deployments(foreign_doctor) == image_deployments(both) == []
