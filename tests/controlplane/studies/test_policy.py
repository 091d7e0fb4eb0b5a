"""Research and clinical use, and how studies are read."""

from collections.abc import Callable

import pytest

from controlplane.accounts.models import User
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion
from controlplane.catalog.services import edit_version
from controlplane.deployments.models import Deployment, SplitRevision
from controlplane.deployments.services import apply_split, promote, roll_back
from controlplane.errors import DomainError
from controlplane.studies.models import ReadingPolicy
from controlplane.studies.services.policy import policy_of, set_policy, set_purpose
from controlplane.studies.services.sending import send_study
from tests.controlplane.cast import ACTOR
from tests.controlplane.jobs.conftest import serve
from tests.controlplane.studies.conftest import as_actor, draft, picture

pytestmark = pytest.mark.django_db


def test_clinical_use_needs_a_named_approver(xray: Deployment) -> None:
    for approver in ("", "   ", "x" * 201, "a\0"):
        with pytest.raises(DomainError) as refused:
            set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver=approver)
        assert refused.value.errors[0]["loc"] == ["approver"]
    with pytest.raises(DomainError):
        set_purpose(actor=ACTOR, deployment=xray, purpose="marketing", approver="Dr. May")

    clinical = set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May")

    assert (clinical.purpose, clinical.approver, clinical.approved_at is not None) == ("clinical", "Dr. May", True)
    event = AuditEvent.objects.filter(action="deployment.purpose").get()
    assert event.after == {"purpose": "clinical", "approver": "Dr. May"}
    research = set_purpose(actor=ACTOR, deployment=xray, purpose="research", approver="ignored")
    assert (research.purpose, research.approver, research.approved_at) == ("research", "", None)


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ({"thresholds": {"dark": 0.5}}, "no threshold for “bright”"),
        ({"thresholds": {}}, "no threshold for 2 labels"),
        ({"intended_use": {}}, "states no intended use"),
    ],
)
def test_clinical_use_needs_thresholds_and_an_intended_use_of_every_live_version(
    lacking: dict[str, object], words: str, xray: Deployment
) -> None:
    ModelVersion.objects.filter(number=2).update(**lacking)
    serve(xray, v1=9_000, v2=1_000)
    with pytest.raises(DomainError, match=words) as refused:
        set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May")
    assert "version 2" in refused.value.message
    # Nothing answers with it at 0 %.
    serve(xray, v1=10_000, v2=0)
    assert set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May").purpose == "clinical"


def test_a_clinical_deployment_gives_no_share_to_a_version_that_lacks_them(xray: Deployment) -> None:
    ModelVersion.objects.filter(number=2).update(intended_use={})
    serve(xray, v2=10_000)
    serve(xray, v1=10_000)
    set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May")
    changes: list[Callable[[], SplitRevision]] = [
        lambda: apply_split(actor=ACTOR, deployment=xray, shares={1: 99, 2: 1}),
        lambda: promote(actor=ACTOR, deployment=xray, version=2),
        lambda: roll_back(actor=ACTOR, deployment=xray, to=2),
    ]
    for change in changes:
        with pytest.raises(DomainError, match="clinical: version 2 states no intended use") as refused:
            change()
        assert refused.value.code == "unknown_version"
    assert apply_split(actor=ACTOR, deployment=xray, shares={1: 100, 2: 0}).percentages() == {"1": 100, "2": 0}


def test_a_version_that_answers_clinically_keeps_stating_its_intended_use(xray: Deployment) -> None:
    version, idle = (ModelVersion.objects.get(number=number) for number in (1, 2))
    set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May")
    with pytest.raises(DomainError, match="which is clinical") as refused:
        edit_version(actor=ACTOR, version=version, changes={"intended_use": {}})
    assert refused.value.code == "conflict"
    edit_version(actor=ACTOR, version=version, changes={"intended_use": {"modality": "DX"}})
    edit_version(actor=ACTOR, version=idle, changes={"intended_use": {}})


def test_a_study_keeps_the_purpose_of_its_sending(xray: Deployment, doctor: User) -> None:
    set_purpose(actor=ACTOR, deployment=xray, purpose="clinical", approver="Dr. May")
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    set_purpose(actor=ACTOR, deployment=xray, purpose="research")
    study.refresh_from_db()
    assert study.purpose == "clinical"


def test_a_policy_is_checked_and_audited(xray: Deployment) -> None:
    assert (policy_of(xray).read_first, policy_of(xray).readers, policy_of(xray).retention_days) == (False, 1, 90)
    for readers, days in ((3, 90), (0, 90), (1, 0), (1, 4000)):
        with pytest.raises(DomainError):
            set_policy(actor=ACTOR, deployment=xray, read_first=True, readers=readers, retention_days=days)
    for _ in range(2):
        set_policy(actor=ACTOR, deployment=xray, read_first=True, readers=2, retention_days=30)
    assert ReadingPolicy.objects.get().readers == 2
    assert AuditEvent.objects.filter(action="deployment.reading").count() == 1
