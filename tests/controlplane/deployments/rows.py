"""Rows to deploy: a team, a model with versions, a deployment. Versions look ready; their files need not exist."""

import hashlib
from uuid import uuid4

import msgspec

from controlplane.accounts.models import Membership, Role, Team, User
from controlplane.audit.services import Actor
from controlplane.catalog.models import Artifact, ModelVersion, RegisteredModel, VersionState
from controlplane.deployments.models import Deployment
from controlplane.deployments.services import create_deployment
from inference.contracts import Datatype, Signature, Task, TensorSpec

ACTOR = Actor("user:owner")
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
)


def make_team(name: str = "cards") -> Team:
    return Team.objects.get_or_create(name=name)[0]


def make_user(name: str, team: Team, role: str = Role.DATA_SCIENTIST) -> User:
    user = User.objects.create(username=name)
    Membership.objects.create(user=user, team=team, role=role)
    return user


def make_model(team: Team, name: str = "fraud") -> RegisteredModel:
    return RegisteredModel.objects.create(team=team, name=name)


def make_version(
    model: RegisteredModel, state: str = VersionState.READY, content: bytes | None = None, **fields: object
) -> ModelVersion:
    """The model's next version. `content`: the bytes that its artifact's hash is of; made up where absent."""
    data = content if content is not None else uuid4().bytes
    artifact, _ = Artifact.objects.get_or_create(
        sha256=hashlib.sha256(data).hexdigest(), defaults={"size_bytes": len(data)}
    )
    number = model.next_number
    model.next_number += 1
    model.save(update_fields=["next_number"])
    values: dict[str, object] = {
        "task": Task.TABULAR_CLASSIFICATION.value,
        "activation": "none",
        "labels": ["ok", "fraud"],
        "columns": [{"name": "amount"}, {"name": "age"}],
        "signature": msgspec.to_builtins(SIGNATURE),
    }
    return ModelVersion.objects.create(
        model=model,
        number=number,
        state=state,
        uploaded_artifact=artifact,
        artifact=artifact,
        identity=uuid4().hex,
        **{**values, **fields},
    )


def make_deployment(team: Team, model: RegisteredModel, name: str = "checkout") -> Deployment:
    return create_deployment(actor=ACTOR, team=team, name=name, model=model)
