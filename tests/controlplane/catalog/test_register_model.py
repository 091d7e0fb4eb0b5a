"""`manage.py register_model`: one line on success, a sentence and exit code 1 otherwise."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from controlplane.accounts.models import Team
from controlplane.catalog.models import ModelVersion
from tests.controlplane.catalog.uploads import mlmodel
from tests.inference import toys

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("store", "sandbox")]


@pytest.fixture(autouse=True)
def default_team(db: None) -> Team:
    return Team.objects.create(name="default")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fraud.onnx"
    path.write_bytes(toys.classifier())
    return path


def register(*arguments: object) -> str:
    out = io.StringIO()
    call_command("register_model", *map(str, arguments), stdout=out)
    return out.getvalue()


def test_it_prints_the_number_of_a_ready_version(file: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.csv"
    reference.write_bytes(b"amount,age,hour,target\n1,2,3,0\n")
    assert register("fraud", file, "--labels", "ok,fraud", "--reference", reference) == "1\n"
    version = ModelVersion.objects.get()
    assert [column["name"] for column in version.columns] == ["amount", "age", "hour"]
    assert (version.labels, version.reference_name) == (["ok", "fraud"], "reference.csv")
    assert register("fraud", file, "--labels", "ok,fraud", "--columns", "amount,age,hour") == "1\n"
    assert register("fraud", file, "--task", "tensor") == "2\n"


def test_it_takes_golden_folders_and_label_files(file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", features=np.zeros((1, 3), np.float32), probabilities=[[0.5, 0.5]])
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"id2label": {"0": "ok", "1": "fraud"}}))
    assert register("fraud", file, "--golden", tmp_path / "golden.npz", "--labels", config) == "1\n"


def test_it_imports_an_mlflow_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    (folder / "MLmodel").write_bytes(mlmodel(["a", "b", "c"]))
    (folder / "model.onnx").write_bytes(toys.classifier())
    assert register("fraud", folder) == "1\n"
    assert [column["name"] for column in ModelVersion.objects.get().columns] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--labels", "a,b,c"], "Version 1 is rejected: .*bad_labels"),
        (["--labels", "a,a"], "is there twice"),
        (["--team", "nobody"], "There is no team “nobody”"),
        (["--reference", "/absent.csv"], "cannot be read"),
        (["--golden", "/absent"], "cannot be read|no test_data_set|Golden"),
    ],
)
def test_it_fails_with_a_sentence(file: Path, store: Path, options: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        register("fraud", file, *options)
    drafts = store / "tmp"
    assert not drafts.exists() or list(drafts.iterdir()) == []


def test_a_bad_name_and_a_file_that_is_no_model_are_refused(file: Path, tmp_path: Path, store: Path) -> None:
    with pytest.raises(CommandError, match="1 to 60 characters"):
        register("../x", file)
    page = tmp_path / "page.onnx"
    page.write_bytes(b"<html>")
    with pytest.raises(CommandError, match="a web page"):
        register("fraud", page)
    with pytest.raises(CommandError, match="cannot be read"):
        register("fraud", tmp_path / "absent.onnx")
    assert not [path for path in store.rglob("*") if path.is_file()]
