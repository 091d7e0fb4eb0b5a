"""`register_model NAME FILE.onnx`: uploads a version and waits for its validation; prints the version's number."""

import argparse
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from controlplane.accounts.models import Team
from controlplane.audit.services import COMMAND
from controlplane.catalog.descriptions import Description, describe
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.packages import open_mlflow_folder, pack_golden
from controlplane.catalog.services import Upload, register_model, upload_version, validate_now
from controlplane.catalog.storage import Draft, draft_of
from controlplane.catalog.uploads import GOLDEN_BYTES, REFERENCE_BYTES, SMALL_BYTES
from controlplane.errors import DomainError
from inference.contracts import Activation, Task


class Command(BaseCommand):
    help = "Upload a version of a model, wait for its validation, and print its number. Exits 1 where it is rejected."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", help="the model's name; it is registered where it is new")
        parser.add_argument("file", type=Path, help="an ONNX file, or an MLflow model folder or its zip")
        parser.add_argument("--task", choices=list(Task), help="default: read from the graph")
        parser.add_argument("--activation", choices=list(Activation), help="what is still to be applied to the scores")
        parser.add_argument("--labels", help="a,b or a JSON file: a list, id2label, or a config.json")
        parser.add_argument("--columns", help="a,b or a JSON file")
        parser.add_argument("--thresholds", help="a JSON file: label to threshold")
        parser.add_argument("--preprocessor", type=Path, help="a preprocessor_config.json")
        parser.add_argument("--reference", type=Path, help="CSV, Parquet, NPZ, or a zip of pictures")
        parser.add_argument("--golden", type=Path, help="a folder with test_data_set_*, a zip of it, or .npz")
        parser.add_argument("--commit", default="", help="the commit that the model was made with")
        parser.add_argument("--run-url", default="", help="where the training run is shown")
        parser.add_argument("--data-sha256", default="", help="the hash of the training data")
        parser.add_argument("--notes", default="")
        parser.add_argument("--team", default="default")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            version = self._register(options)
        except DomainError as error:
            raise CommandError(error.message) from None
        except TimeoutError as error:
            raise CommandError(f"{error}.") from None
        except OSError as error:
            raise CommandError(f"{error.filename or 'The file'} cannot be read: {error.strerror}.") from None
        if version.state != VersionState.READY:
            raise CommandError(f"Version {version.number} is {version.state}: {version.reason} ({version.code})")
        self.stdout.write(str(version.number))

    def _register(self, options: dict[str, Any]) -> ModelVersion:
        team = Team.objects.filter(name=options["team"]).first()
        if team is None:
            raise CommandError(f"There is no team “{options['team']}”.")
        description = describe(
            {
                "task": options["task"],
                "activation": options["activation"],
                "labels": _text_or_file(options["labels"]),
                "columns": _text_or_file(options["columns"]),
                "thresholds": _text_or_file(options["thresholds"]),
                "preprocessor": _small(options["preprocessor"]) if options["preprocessor"] else None,
                "source_commit": options["commit"],
                "source_run_url": options["run_url"],
                "source_data_sha256": options["data_sha256"],
                "notes": options["notes"],
            }
        )
        upload, description = _opened(options, description)
        try:
            model = RegisteredModel.objects.filter(team=team, name=options["name"]).first()
            if model is None:
                model = register_model(actor=COMMAND, team=team, name=options["name"])
        except DomainError:
            upload.discard()
            raise
        version, _ = upload_version(actor=COMMAND, model=model, upload=upload, description=description, validate=False)
        return validate_now(version)


def _opened(options: dict[str, Any], description: Description) -> tuple[Upload, Description]:
    """The files as drafts; a folder's columns join the description. No draft is left behind by a failure."""
    file: Path = options["file"]
    drafts: list[Draft] = []
    try:
        if file.is_dir():
            opened = open_mlflow_folder(file)
            description = description.with_columns(opened.columns)
            drafts.append(opened.draft)
        else:
            drafts.append(draft_of(file, most=settings.SIGNALBOX_MAX_MODEL_BYTES))
        upload = Upload(drafts[0], file_name=file.name)
        if options["golden"]:
            upload.golden = pack_golden(options["golden"], GOLDEN_BYTES)
            drafts.append(upload.golden)
        if options["reference"]:
            upload.reference = draft_of(options["reference"], most=REFERENCE_BYTES)
            upload.reference_name = options["reference"].name
            drafts.append(upload.reference)
    except BaseException:
        for draft in drafts:
            draft.discard()
        raise
    return upload, description


def _text_or_file(given: str | None) -> str | bytes | None:
    return _small(Path(given)) if given and given.endswith(".json") else given


def _small(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(SMALL_BYTES + 1)
    if len(content) > SMALL_BYTES:
        raise CommandError(f"{path} is too large.")
    return content
