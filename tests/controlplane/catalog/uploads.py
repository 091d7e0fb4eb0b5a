"""Uploads for tests: drafts from bytes, a version validated in the real sandbox, an MLflow folder."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from controlplane.accounts.models import Team
from controlplane.catalog.descriptions import describe
from controlplane.catalog.models import ModelVersion, RegisteredModel
from controlplane.catalog.services import Upload, register_model, upload_version, validate_now
from controlplane.catalog.storage import Draft, draft_from
from tests.controlplane.cast import ACTOR
from tests.inference import toys


class Usage(NamedTuple):
    """What shutil.disk_usage answers."""

    total: int
    used: int
    free: int


def files_below(folder: Path) -> list[str]:
    """Names of the files in a folder and below."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def draft(content: bytes) -> Draft:
    return draft_from(io.BytesIO(content), most=64 * 1024 * 1024)


def new_model(team: Team, name: str = "fraud") -> RegisteredModel:
    return register_model(actor=ACTOR, team=team, name=name)


def upload(
    model: RegisteredModel,
    content: bytes | None = None,
    *,
    golden: bytes | None = None,
    reference: bytes | None = None,
    number: int | None = None,
    **said: Any,
) -> tuple[ModelVersion, bool]:
    """Uploads the classifier, or `content`, without asking a worker to validate it."""
    return upload_version(
        actor=ACTOR,
        model=model,
        upload=Upload(
            draft(toys.classifier() if content is None else content),
            file_name="model.onnx",
            golden=draft(golden) if golden is not None else None,
            reference=draft(reference) if reference is not None else None,
            reference_name="reference.csv" if reference is not None else "",
        ),
        description=describe(said),
        number=number,
        validate=False,
    )


def ready(model: RegisteredModel, content: bytes | None = None, **said: Any) -> ModelVersion:
    version = validate_now(upload(model, content, **said)[0])
    assert version.state == "ready", version.reason
    return version


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def mlmodel(columns: list[str], data: str = "model.onnx") -> bytes:
    """An MLmodel file as MLflow writes it, which is YAML; JSON is YAML too."""
    inputs = json.dumps([{"type": "double", "name": name, "required": True} for name in columns])
    return json.dumps(
        {"flavors": {"onnx": {"data": data}}, "run_id": "0123456789abcdef", "signature": {"inputs": inputs}}
    ).encode()
