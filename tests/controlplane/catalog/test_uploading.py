"""Uploading versions: what is kept, what is the same, what is refused, and what is left behind."""

import threading
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import DjangoCaptureOnCommitCallbacks

from controlplane.accounts.models import Team
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import Artifact, ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.services import (
    archive_model,
    archive_version,
    edit_model,
    edit_version,
    in_use_checks,
    register_model,
    sweep_artifacts,
)
from controlplane.catalog.services.sweeping import SETTLED_S
from controlplane.catalog.storage import path_of
from controlplane.errors import DomainError
from tests.controlplane.cast import ACTOR
from tests.controlplane.catalog.uploads import draft, files_below, mlmodel, new_model, upload, zipped
from tests.inference import toys

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("store")]

# Each line stands for ten of the line before: the last one, written out, for ten billion letters.
ALIASES = (
    b"a0: &a0 xxxxxxxxxx\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 10))
    + b"flavors: {onnx: {data: model.onnx}}\nrun_id: *a9\n"
)


@pytest.fixture
def model(team: Team) -> RegisteredModel:
    return new_model(team)


def refused(code: str, model: RegisteredModel, content: bytes, **said: object) -> DomainError:
    with pytest.raises(DomainError) as caught:
        upload(model, content, **said)  # type: ignore[arg-type]  # of several types
    assert caught.value.code == code
    return caught.value


def test_a_version_is_stored_with_what_was_said_of_it(model: RegisteredModel, store: Path) -> None:
    version, created = upload(model, labels=["ok", "fraud"], columns="a,b,c", notes="first")
    assert created and (version.number, version.state) == (1, VersionState.UPLOADED)
    assert path_of(version.uploaded_artifact_id).read_bytes() == toys.classifier()
    assert (version.labels, version.columns[0], version.notes) == (["ok", "fraud"], {"name": "a"}, "first")
    event = AuditEvent.objects.get(action="version.upload")
    assert event.after is not None and event.after["sha256"] == version.uploaded_artifact_id
    assert len(files_below(store)) == 1


def test_the_same_upload_twice_is_one_version(model: RegisteredModel, store: Path) -> None:
    first, _ = upload(model, labels="ok,fraud")
    again, created = upload(model, labels=["ok", "fraud"], notes="other remarks")
    assert (again.pk, created) == (first.pk, False)
    other, created = upload(model, labels=["fraud", "ok"])
    assert (other.number, created) == (2, True)
    assert Artifact.objects.count() == 1 and len(files_below(store)) == 1


def test_a_number_is_one_version_s_for_ever(model: RegisteredModel) -> None:
    third, _ = upload(model, number=3)
    assert third.number == 3
    assert upload(model, number=3) == (third, False)
    refused("conflict", model, toys.linear_regression(), number=3)
    refused("conflict", model, toys.linear_regression(), number=2)
    refused("conflict", model, toys.classifier(), number=4)
    assert upload(model, toys.linear_regression())[0].number == 4


@pytest.mark.django_db(transaction=True)
def test_two_uploads_of_one_number_at_once_are_one_version_and_one_conflict(model: RegisteredModel) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(2)

    def send(content: bytes) -> None:
        together.wait()
        try:
            outcomes.append(f"version {upload(model, content, number=3)[0].number}")
        except DomainError as error:
            outcomes.append(error.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=[toys.classifier(scale=scale)]) for scale in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "version 3"]
    assert ModelVersion.objects.count() == 1


def test_an_archived_version_may_be_uploaded_again_and_gets_a_new_number(model: RegisteredModel) -> None:
    first, _ = upload(model)
    archive_version(actor=ACTOR, version=first)
    again, created = upload(model)
    assert created and again.number == 2


def test_a_refused_upload_leaves_no_row_and_no_file(model: RegisteredModel, store: Path) -> None:
    refused("not_onnx", model, b"<!doctype html>")
    refused("bad_reference", model, toys.classifier(), reference=b"a;b\n1;2\n")
    refused("bad_golden", model, toys.classifier(), golden=b"not a zip")
    assert not ModelVersion.objects.exists() and files_below(store) == []


def test_the_header_of_a_reference_set_names_the_columns(model: RegisteredModel) -> None:
    version, _ = upload(model, reference=b"amount,age,hour,target\n1,2,3,0\n")
    assert [column["name"] for column in version.columns] == ["amount", "age", "hour"]
    assert version.reference_summary == {
        "kind": "csv",
        "names": ["amount", "age", "hour"],
        "rows": 1,
        "has_target": True,
    }


def test_an_mlflow_folder_brings_its_columns(model: RegisteredModel) -> None:
    content = zipped({"m/MLmodel": mlmodel(["a", "b", "c"]), "m/model.onnx": toys.classifier(), "m/conda.yaml": b""})
    version, _ = upload(model, content)
    assert [column["name"] for column in version.columns] == ["a", "b", "c"]
    assert path_of(version.uploaded_artifact_id).read_bytes() == toys.classifier()
    assert "0123456789abcdef" in version.notes


@pytest.mark.parametrize(
    "files",
    [
        {"readme.txt": b"hello"},
        {"MLmodel": mlmodel([], data="../../etc/passwd"), "model.onnx": b""},
        {"MLmodel": mlmodel([], data="absent.onnx")},
        {"MLmodel": b"flavors: {sklearn: {}}"},
        {"MLmodel": b"[" * 200_000},
        {"MLmodel": b"- " * 100_000},
        {"MLmodel": ALIASES},
        {"MLmodel": mlmodel([]), "model.onnx": b"\x80\x04pickle"},
    ],
)
def test_a_zip_that_is_no_mlflow_folder_is_not_onnx(
    model: RegisteredModel, files: dict[str, bytes], store: Path
) -> None:
    refused("not_onnx", model, zipped(files))
    assert files_below(store) == []


def test_a_version_in_use_is_not_archived(model: RegisteredModel) -> None:
    version, _ = upload(model)

    def hold(_: ModelVersion) -> str:
        return "It has 90 % of “checkout”."

    in_use_checks.append(hold)
    try:
        for archive in (
            lambda: archive_version(actor=ACTOR, version=version),
            lambda: archive_model(actor=ACTOR, model=model),
        ):
            with pytest.raises(DomainError, match="90 % of “checkout”") as caught:
                archive()
            assert caught.value.code == "conflict"
    finally:
        in_use_checks.remove(hold)
    version.refresh_from_db()
    model.refresh_from_db()
    assert version.state == VersionState.UPLOADED and model.archived_at is None


def test_an_archived_model_takes_no_version_and_keeps_its_name(model: RegisteredModel, other_team: Team) -> None:
    version, _ = upload(model)
    archive_model(actor=ACTOR, model=model)
    archive_model(actor=ACTOR, model=model)
    version.refresh_from_db()
    assert version.state == VersionState.ARCHIVED
    refused("gone", model, toys.linear_regression())
    with pytest.raises(DomainError, match="unique in the installation"):
        register_model(actor=ACTOR, team=other_team, name="fraud")
    assert AuditEvent.objects.filter(action="model.archive").count() == 1


def test_a_model_s_description_is_edited_and_audited(model: RegisteredModel) -> None:
    assert edit_model(actor=ACTOR, model=model, description="Card fraud").description == "Card fraud"
    edit_model(actor=ACTOR, model=model, description="Card fraud")
    event = AuditEvent.objects.get(action="model.edit")
    assert (event.before, event.after) == ({"description": ""}, {"description": "Card fraud"})


def test_meaning_may_change_until_it_is_frozen_and_remarks_always(model: RegisteredModel) -> None:
    version, _ = upload(model, labels="a,b")
    edited = edit_version(actor=ACTOR, version=version, changes={"labels": ["ok", "fraud"], "notes": "n"})
    assert (edited.labels, edited.notes) == (["ok", "fraud"], "n")
    assert edited.identity != version.identity
    ModelVersion.objects.filter(pk=version.pk).update(state=VersionState.VALIDATING)
    with pytest.raises(DomainError, match="labels is frozen"):
        edit_version(actor=ACTOR, version=version, changes={"labels": ["x", "y"]})
    assert edit_version(actor=ACTOR, version=version, changes={"notes": "later"}).notes == "later"


def test_an_edit_cannot_make_two_versions_the_same(model: RegisteredModel) -> None:
    upload(model, labels="ok,fraud")
    second, _ = upload(model, labels="a,b")
    with pytest.raises(DomainError, match="same file and the same settings"):
        edit_version(actor=ACTOR, version=second, changes={"labels": "ok,fraud"})


def test_a_validation_is_asked_for_after_the_commit(
    model: RegisteredModel,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("controlplane.catalog.services.versions.dispatch", asked.append)
    version, _ = upload(model)
    with django_capture_on_commit_callbacks(execute=True):
        edit_version(actor=ACTOR, version=version, changes={"labels": ["ok", "fraud"]})
        assert asked == []
    assert asked == [version.pk]


def test_only_files_that_no_row_knows_are_swept(model: RegisteredModel, store: Path) -> None:
    version, _ = upload(model)
    orphan = draft(b"orphan").keep()
    later = path_of(orphan.sha256).stat().st_mtime + SETTLED_S
    assert sweep_artifacts(later - 60) == 0
    assert sweep_artifacts(later + 60) == 1
    assert not path_of(orphan.sha256).exists()
    assert path_of(version.uploaded_artifact_id).exists()
