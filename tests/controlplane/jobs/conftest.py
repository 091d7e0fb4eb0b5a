"""Deployments whose jobs a worker can really run: tiny models, stored as uploads are."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from django.utils import timezone

from controlplane.accounts.models import Team
from controlplane.catalog.models import Artifact, ModelVersion, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.jobs import running
from inference.runtime import picture_child
from inference.runtime.onnx import load_model
from tests.controlplane.deployments.rows import make_deployment, make_model
from tests.inference import toys

GREY_8 = {
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
    "do_grayscale": True,
}


@pytest.fixture(scope="session", autouse=True)
def children() -> Iterator[None]:
    """The runtime and the picture decoder of this process, ended with its tests."""
    yield
    running.close_runtime()
    picture_child.close_children()


@pytest.fixture
def home(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone, for artifacts and encrypted files."""
    settings.SIGNALBOX_ARTIFACTS = tmp_path / "artifacts"
    settings.SIGNALBOX_PICTURES = tmp_path / "pictures"
    return tmp_path


def brightness() -> bytes:
    """Two logits of a grey 8 x 8 picture: -8 times, and 8 times (mean - 0.5)."""
    weights = np.tile(np.array([[-8 / 64, 8 / 64]], np.float32), (64, 1))
    return toys.saved(
        [
            toys.node("Flatten", ["picture"], ["flat"], axis=1),
            toys.node("MatMul", ["flat", "weights"], ["sum"]),
            toys.node("Add", ["sum", "offset"], ["logits"]),
        ],
        [toys.tensor("picture", toys.FLOAT, ["n", 1, 8, 8])],
        [toys.tensor("logits", toys.FLOAT, ["n", 2])],
        [toys.constant("weights", weights), toys.constant("offset", np.array([4.0, -4.0], np.float32))],
    )


def store_version(home: Path, model: Any, data: bytes, **fields: Any) -> ModelVersion:
    """A ready version whose file lies in the artifact store."""
    digest = hashlib.sha256(data).hexdigest()
    file = home / "artifacts" / digest[:2] / digest
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    artifact, _ = Artifact.objects.get_or_create(sha256=digest, defaults={"size_bytes": len(data)})
    number = model.next_number
    model.next_number += 1
    model.save(update_fields=["next_number"])
    return ModelVersion.objects.create(
        model=model,
        number=number,
        state=VersionState.READY,
        uploaded_artifact=artifact,
        artifact=artifact,
        identity=f"{digest[:50]}-{number}",
        signature=msgspec.to_builtins(load_model(data).signature),
        **fields,
    )


def serve(deployment: Deployment, **shares: int) -> SplitRevision:
    """Makes a split active, as the data plane would: serve(d, v1=10_000)."""
    number = deployment.next_revision
    deployment.next_revision += 1
    deployment.save(update_fields=["next_revision"])
    now = timezone.now()
    deployment.revisions.filter(state=RevisionState.ACTIVE).update(state=RevisionState.SUPERSEDED)
    return SplitRevision.objects.create(
        deployment=deployment,
        number=number,
        shares={name.removeprefix("v"): points for name, points in shares.items()},
        state=RevisionState.ACTIVE,
        actor="user:owner",
        activated_at=now,
    )


@pytest.fixture
def pictures(home: Path, team: Team) -> Deployment:
    """A deployment of pictures: `bright` and `dark`."""
    model = make_model(team, "brightness")
    for _ in range(2):
        store_version(
            home,
            model,
            brightness(),
            task="image-classification",
            activation="softmax",
            labels=["dark", "bright"],
            preprocessor=GREY_8,
        )
    deployment = make_deployment(team, model, "xray")
    serve(deployment, v1=10_000)
    return deployment


@pytest.fixture
def table(home: Path, team: Team) -> Deployment:
    """A deployment of rows with three named columns."""
    model = make_model(team, "line")
    store_version(
        home,
        model,
        toys.linear_regression(),
        task="tabular-regression",
        activation="none",
        labels=[],
        columns=[{"name": name} for name in ("a", "b", "c")],
    )
    deployment = make_deployment(team, model, "line")
    serve(deployment, v1=10_000)
    return deployment
