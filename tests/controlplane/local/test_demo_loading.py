"""Loading the demo: into a database, with a stand-in for the data plane."""

import stat
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone

from controlplane.accounts.models import Right, Role, Team, User
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment, Purpose
from controlplane.deployments.settling import settle
from controlplane.jobs import dispatch
from controlplane.local.demo import history, loading
from controlplane.local.demo.cases import Case, named
from controlplane.local.demo.studies import PLANNED, dicom
from controlplane.local.home import Home
from controlplane.monitoring.accuracy import accuracy
from controlplane.monitoring.intervals import Interval
from controlplane.predictions.models import Feedback, FeedbackState, Prediction
from controlplane.studies.models import Study, StudyPicture
from inference.runtime import picture_child
from tests.controlplane.cast import new_user
from tests.controlplane.deployments.dataplane import StandIn
from tests.controlplane.deployments.rows import make_team

HISTORY = {"card-fraud": 900, "recommender": 300, "chest-xray": 150}


def small(case: Case) -> Case:
    return replace(case, history=HISTORY[case.name])


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone, a default team, a broker that takes everything, and a short history."""
    settings.SIGNALBOX_HOME = tmp_path
    settings.SIGNALBOX_ARTIFACTS = tmp_path / "artifacts"
    settings.SIGNALBOX_PICTURES = tmp_path / "pictures"
    monkeypatch.setattr(dispatch.app, "send_task", lambda name, args, queue: None)
    monkeypatch.setattr(dispatch, "_broker_down_until", 0.0)
    short = tuple(small(named(name)) for name in HISTORY)
    monkeypatch.setattr(loading, "cases", lambda: short)
    return tmp_path


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    yield
    picture_child.close_children()


@pytest.fixture
def default_team(db: None) -> Team:
    return make_team("default")


def serve_all() -> None:
    """A data plane comes up and serves what was deployed."""
    plane = StandIn()
    assert plane.step()
    settle()
    plane.die()


def test_the_demo_is_loaded_in_two_steps_where_no_data_plane_is_up(default_team: Team, home: Path) -> None:
    lines = loading.ensure_demo()
    assert sum("waits for a data plane" in line for line in lines) == 3
    assert not Prediction.objects.exists() and not Study.objects.exists()
    doctor = User.objects.get(username="doctor")
    assert [m.role for m in doctor.memberships.filter(team=default_team)] == [Role.DOCTOR]
    assert doctor.rights_in(default_team.pk) == {Right.STUDY, Right.PREDICT}
    file = home / "doctor-password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert doctor.check_password(file.read_text().strip())

    serve_all()
    loading.ensure_demo()
    for name, calls in HISTORY.items():
        deployment = Deployment.objects.get(name=name)
        assert deployment.demo and deployment.purpose == Purpose.RESEARCH
        answered = Prediction.objects.filter(deployment_id=deployment.pk)
        assert 0.98 * calls <= answered.count() <= calls
        assert set(answered.values_list("source", flat=True)) == {"demo"}
        versions = ModelVersion.objects.filter(model__name=name)
        assert [(version.reference_summary or {})["has_target"] for version in versions] == [True, True]
        truths = Feedback.objects.filter(deployment_id=deployment.pk)
        assert set(truths.values_list("state", flat=True)) == {FeedbackState.COUNTED}
    xrays = ModelVersion.objects.get(model__name="chest-xray", number=2)
    assert xrays.thresholds == {"pneumonia": xrays.performance["labels"]["pneumonia"]["threshold"]}
    assert xrays.intended_use["age_range"] == "1-5 years"
    assert "accuracy 89.6% (86.9% to 91.7%, 559 of 624)" in xrays.notes
    assert Prediction.objects.filter(version_id=xrays.pk).first().context == {"picture": "synthetic"}  # type: ignore[union-attr]  # there is one
    assert Study.objects.filter(created_by=doctor).count() == len(PLANNED)
    # The adult's picture is said to be what the model is not for; the children's are not.
    mismatched = [bool(picture.mismatches) for picture in StudyPicture.objects.order_by("study_id")]
    assert mismatched == [planned.age == "054Y" for planned in PLANNED]

    before = Prediction.objects.count(), Feedback.objects.count(), Study.objects.count(), ModelVersion.objects.count()
    assert all("is there already" in line for line in loading.ensure_demo())
    after = Prediction.objects.count(), Feedback.objects.count(), Study.objects.count(), ModelVersion.objects.count()
    assert after == before


def test_somebody_elses_account_called_doctor_is_left_alone(default_team: Team, home: Path) -> None:
    other = new_user("doctor", default_team, Role.VIEWER)
    found, line = loading._ensure_doctor(Home(home))
    assert found is None and "already" in line
    assert [m.role for m in other.memberships.all()] == [Role.VIEWER]
    assert not (home / "doctor-password").exists()


@pytest.fixture
def fraud(default_team: Team) -> Deployment:
    """The fraud demo, deployed and serving, without a history."""
    deployment = loading.deploy_case(named("card-fraud"))
    serve_all()
    return deployment


def test_a_history_that_was_cut_off_leaves_nothing_behind(fraud: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(**_: Any) -> None:
        raise OSError("the machine went down")

    with monkeypatch.context() as patched:
        patched.setattr(history, "give_feedback", cut_off)
        with pytest.raises(OSError, match="went down"):
            history.write_history(small(named("card-fraud")), fraud, timezone.now().timestamp())
    assert not Prediction.objects.exists()
    fraud.refresh_from_db()
    assert not fraud.demo


def test_a_history_has_truths_that_came_in_time_and_versions_as_the_split_says(fraud: Deployment) -> None:
    until = timezone.now()
    written = history.write_history(replace(named("card-fraud"), history=3_000, known=0.8), fraud, until.timestamp())
    assert written == 3_000
    rows = list(Prediction.objects.values_list("id", "at", "version"))
    assert 0.06 < np.mean([version == 2 for _, _, version in rows]) < 0.14
    made_at: dict[uuid.UUID, Any] = {identity: at for identity, at, _ in rows}
    for prediction_id, given_at in Feedback.objects.values_list("prediction_id", "given_at"):
        assert prediction_id is not None
        assert made_at[prediction_id] < given_at <= until
    day = Interval(until - timedelta(days=2), until, 3600)
    found = {one["version"]: one for one in accuracy(fraud.pk, fraud.name, day)["versions"]}
    assert set(found) == {1, 2}
    assert all((one["metrics"]["accuracy"]["value"] or 0) > 0.9 for one in found.values())


def test_a_synthetic_dicom_picture_says_whose_it_would_be() -> None:
    from io import BytesIO

    from pydicom import dcmread

    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    read = dcmread(BytesIO(dicom(pixels, "004Y")))
    assert (read.PatientAge, read.Modality, read.ViewPosition) == ("004Y", "DX", "AP")
    assert np.array_equal(read.pixel_array, pixels)
