"""A radiology team with three doctors, and a deployment whose jobs can really be run."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.services import Actor
from controlplane.catalog.models import ModelVersion
from controlplane.celery import app
from controlplane.deployments.models import Deployment
from controlplane.jobs import dispatch
from controlplane.jobs.running import run_batch
from controlplane.studies.models import Study
from controlplane.studies.services.drafts import add_picture, open_draft
from controlplane.studies.services.sending import send_study
from controlplane.studies.services.verdicts import give_verdict, open_study, show_suggestion
from tests.controlplane.cast import new_user
from tests.controlplane.deployments.rows import make_deployment, make_model
from tests.controlplane.jobs.conftest import GREY_8, brightness, children, home, serve, store_version
from tests.inference.runtime.picture_files import chest, encoded

__all__ = ["children", "home"]

REFERENCE = "Case 2026-1187"


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> list[uuid.UUID]:
    """The ids of the messages that went to the broker."""
    messages: list[uuid.UUID] = []
    monkeypatch.setattr(app, "send_task", lambda name, args, queue: messages.append(uuid.UUID(args[0])))
    monkeypatch.setattr(dispatch, "_broker_down_until", 0.0)
    return messages


@pytest.fixture
def doctor(team: Team) -> User:
    return new_user("doctor", team, Role.DOCTOR)


@pytest.fixture
def second(team: Team) -> User:
    return new_user("second", team, Role.DOCTOR)


@pytest.fixture
def third(team: Team) -> User:
    return new_user("third", team, Role.DOCTOR)


@pytest.fixture
def foreign_doctor(other_team: Team) -> User:
    return new_user("foreign", other_team, Role.DOCTOR)


@pytest.fixture
def chest_model(home: Path, team: Team) -> ModelVersion:
    """Two findings of any picture: `dark` and `bright`, by its mean; at 0.5 each."""
    model = make_model(team, "chest")
    for _ in range(2):
        version = store_version(
            home,
            model,
            brightness(),
            task="image-multilabel",
            activation="sigmoid",
            labels=["dark", "bright"],
            thresholds={"dark": 0.5, "bright": 0.5},
            preprocessor=GREY_8,
            intended_use={"modality": "DX, CR", "view": "PA or AP", "age_range": "18-90"},
        )
    return version


@pytest.fixture
def xray(team: Team, chest_model: ModelVersion) -> Deployment:
    deployment = make_deployment(team, chest_model.model, "xray")
    serve(deployment, v1=10_000)
    return deployment


def as_actor(user: User) -> Actor:
    return Actor(f"user:{user.username}", str(user.pk), user.pk)


def picture(shade: int = 0) -> bytes:
    """A PNG that looks like a chest; another one for each shade."""
    return encoded(np.clip(chest().astype(np.int16) + shade, 0, 255).astype(np.uint8))


def draft(user: User, deployment: Deployment, *pictures: bytes, reference: str = REFERENCE) -> Study:
    study = open_draft(actor=as_actor(user), user=user, deployment=deployment, reference=reference)
    for content in pictures:
        add_picture(actor=as_actor(user), study=study, content=content)
    return study


@pytest.fixture
def sent(doctor: User, xray: Deployment) -> Study:
    """A study of one picture that waits for its worker."""
    return send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))


@pytest.fixture
def ready(sent: Study) -> Study:
    """A study whose suggestion is there: its picture is dark."""
    run_batch("x")
    return sent


Say = Callable[..., Any]


@pytest.fixture
def say() -> Say:
    """Opens the study as a person does, looks at the suggestion where it may be seen, and answers."""

    def one(study: Study, user: User, answer: str = "agree", *labels: str, number: int = 0, **fields: Any) -> Any:
        open_study(actor=as_actor(user), study=study, user=user)
        show_suggestion(actor=as_actor(user), study=study, user=user)
        return give_verdict(
            actor=as_actor(user),
            study=study,
            user=user,
            answer=answer,
            labels=labels,
            expected_number=number,
            **fields,
        )

    return one
