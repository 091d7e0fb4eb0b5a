"""Uploads, edits and archives model versions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import Actor, record_change
from controlplane.catalog.descriptions import Description, describe, read_text
from controlplane.catalog.models import Artifact, ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.packages import check_golden, is_zip, open_mlflow_zip, refuse_what_is_no_model
from controlplane.catalog.reference import read_reference
from controlplane.catalog.services.registration import refuse_where_archived
from controlplane.catalog.services.sweeping import hold_store
from controlplane.catalog.services.usage import refuse_where_intended_use_is_needed, refuse_where_used
from controlplane.catalog.services.validation import check_reference, dispatch, keep_digests, try_golden
from controlplane.catalog.storage import Draft, StoredFile, path_of
from controlplane.errors import DomainError, field_error
from inference.runtime.reference import Reference

# Part of the identity: frozen when the version is ready.
MEANING = ("task", "activation", "labels", "thresholds", "columns", "preprocessor", "accepts_non_finite")
# Free to change at any time.
REMARKS = ("source_commit", "source_run_url", "source_data_sha256", "intended_use", "performance", "notes")
EDITABLE_STATES = (VersionState.UPLOADED, VersionState.REJECTED)


@dataclass(slots=True)
class Upload:
    """The files of one version. `upload_version` keeps or discards every draft."""

    model: Draft
    file_name: str = ""
    golden: Draft | None = None
    reference: Draft | None = None
    reference_name: str = ""

    def discard(self) -> None:
        for draft in (self.model, self.golden, self.reference):
            if draft is not None:
                draft.discard()


def upload_version(
    *,
    actor: Actor,
    model: RegisteredModel,
    upload: Upload,
    description: Description,
    number: int | None = None,
    validate: bool = True,
) -> tuple[ModelVersion, bool]:
    """Stores a version and asks for its validation; returns it, and whether it is new.

    The same bytes with the same description are the same version. `number` asks for that very number. `validate`
    False leaves the validation to the caller. Raises DomainError: `not_onnx`, `bad_reference`, `bad_columns`,
    `too_large`, `storage_full`, `gone`, or `conflict` where the number is another version's.
    """
    try:
        upload, description = _unpacked(upload, description)
        reference = _reference(upload, description)
        if reference is not None and reference.summary.kind in ("csv", "parquet"):
            description = description.with_columns(reference.summary.names)
        if upload.golden is not None:
            upload.golden.finish()
            check_golden(upload.golden.path)
        # Rows only inside the transaction; a file whose transaction fails is swept later.
        kept = _Kept(
            upload.model.keep(),
            upload.golden.keep() if upload.golden else None,
            upload.reference.keep() if upload.reference else None,
        )
    finally:
        upload.discard()
    with transaction.atomic():
        # The model's row is the lock: of two uploads at once one sees the other's version.
        locked = RegisteredModel.objects.select_for_update().get(pk=model.pk)
        refuse_where_archived(locked)
        existing = _same_or_conflicting(locked, description.identity(kept.model.sha256), number)
        if existing is not None:
            return existing, False
        version = _create(actor, locked, number or locked.next_number, upload, description, kept, reference)
        if validate:
            transaction.on_commit(lambda: dispatch(version.pk))
    return version, True


def edit_version(*, actor: Actor, version: ModelVersion, changes: Mapping[str, Any]) -> ModelVersion:
    """Changes what is said of a version. Remarks may change at any time, its meaning only before it is ready.

    A change of meaning has the version validated again. Raises DomainError `conflict` where the meaning is frozen,
    or what `describe` raises.
    """
    given = {name: changes[name] for name in (*MEANING, *REMARKS) if name in changes}
    with transaction.atomic():
        locked = _locked(version)
        labels = given.get("labels", locked.labels)
        read = describe({**given, "labels": labels} if {"thresholds", "performance"} & given.keys() else given)
        values = {name: _stored(read, name) for name in given}
        before = {name: getattr(locked, name) for name in given}
        changed = [name for name in given if before[name] != values[name]]
        meaning = [name for name in changed if name in MEANING]
        if meaning and locked.state not in EDITABLE_STATES:
            raise field_error("conflict", meaning[0], f"{meaning[0]} is frozen: the version is {locked.state}.")
        if "intended_use" in changed and not values["intended_use"]:
            refuse_where_intended_use_is_needed(locked)
        for name in changed:
            setattr(locked, name, values[name])
        fields = list(changed)
        if meaning:
            identity = description_of(locked).identity(locked.uploaded_artifact_id)
            if _current(locked.model).filter(identity=identity).exclude(pk=locked.pk).exists():
                raise DomainError("conflict", "Another version of the model has the same file and the same settings.")
            locked.identity = identity
            fields += ["identity", *_reset(locked)]
            transaction.on_commit(lambda: dispatch(locked.pk))
        if fields:
            locked.save(update_fields=fields)
            after = {name: values[name] for name in changed}
            record_change(
                actor=actor, action="version.edit", of=locked, before={n: before[n] for n in changed}, after=after
            )
    return locked


def add_reference(*, actor: Actor, version: ModelVersion, draft: Draft, name: str) -> ModelVersion:
    """Gives a version its reference set, or another one, at any time before it is archived.

    Raises DomainError `bad_reference`, `conflict`, `too_large` or `storage_full`.
    """
    try:
        draft.finish()
        reference = check_reference(version, draft.path)
        stored = draft.keep()
    finally:
        draft.discard()
    with transaction.atomic():
        hold_store()
        locked = _locked(version)
        _refuse_archived(locked)
        before = locked.reference_summary
        locked.reference_artifact = _artifact(stored)
        locked.reference_name = _shown_name(name)
        locked.reference_summary = reference.summary.as_json()
        locked.save(update_fields=["reference_artifact", "reference_name", "reference_summary"])
        keep_digests(locked, reference)
        record_change(actor=actor, action="version.reference", of=locked, before=before, after=locked.reference_summary)
    return locked


def add_golden(*, actor: Actor, version: ModelVersion, draft: Draft) -> ModelVersion:
    """Gives a version golden inputs. A ready version must reproduce them at once; another is validated with them.

    Raises DomainError `golden_mismatch`, `sample_failed`, `bad_golden` or `conflict`; then nothing changed.
    """
    try:
        draft.finish()
        check_golden(draft.path)
        report = try_golden(version, draft.path) if version.state == VersionState.READY else None
        stored = draft.keep()
    finally:
        draft.discard()
    with transaction.atomic():
        hold_store()
        locked = _locked(version)
        _refuse_archived(locked)
        if locked.state == VersionState.VALIDATING:
            raise DomainError("conflict", "The version is being validated; try again in a moment.")
        locked.golden_artifact = _artifact(stored)
        fields = ["golden_artifact"]
        if report is not None:
            locked.report = msgspec.to_builtins(report)
            fields.append("report")
        else:
            fields += _reset(locked)
            transaction.on_commit(lambda: dispatch(locked.pk))
        locked.save(update_fields=fields)
        record_change(actor=actor, action="version.golden", of=locked, after={"golden": stored.sha256})
    return locked


def archive_version(*, actor: Actor, version: ModelVersion, reason: str = "") -> ModelVersion:
    """Takes a version out of use for good; archiving twice changes nothing. Raises `conflict` where it is in use."""
    with transaction.atomic():
        locked = _locked(version)
        if locked.state == VersionState.ARCHIVED:
            return locked
        refuse_where_used(locked)
        before, locked.state, locked.archived_at = locked.state, VersionState.ARCHIVED, timezone.now()
        locked.save(update_fields=["state", "archived_at"])
        record_change(
            actor=actor,
            action="version.archive",
            of=locked,
            before={"state": before},
            after={"state": locked.state},
            reason=reason,
        )
    return locked


def description_of(version: ModelVersion) -> Description:
    """The description that a version's row holds."""
    return describe({name: getattr(version, name) for name in (*MEANING, *REMARKS)})


@dataclass(frozen=True, slots=True)
class _Kept:
    """An upload's files, in the store."""

    model: StoredFile
    golden: StoredFile | None
    reference: StoredFile | None


def _unpacked(upload: Upload, description: Description) -> tuple[Upload, Description]:
    """The upload with the ONNX file of an MLflow folder taken out, and its signature's columns."""
    upload.model.finish()
    if not is_zip(upload.model.head):
        refuse_what_is_no_model(upload.model.head)
        return upload, description
    opened = open_mlflow_zip(upload.model.path)
    upload.model.discard()
    upload.model = opened.draft
    refuse_what_is_no_model(opened.draft.head)
    if opened.run_id and not description.notes:
        description = replace(description, notes=read_text(f"MLflow run {opened.run_id}", "notes", 4000))
    return upload, description.with_columns(opened.columns)


def _reference(upload: Upload, description: Description) -> Reference | None:
    if upload.reference is None:
        return None
    upload.reference.finish()
    columns = [column.name for column in description.columns]
    return read_reference(upload.reference.path, columns=columns, named=columns)


def _current(model: RegisteredModel) -> Any:
    """Versions whose identity is taken: what was rejected or archived may be uploaded again."""
    return model.versions.exclude(state__in=[VersionState.REJECTED, VersionState.ARCHIVED])


def _same_or_conflicting(model: RegisteredModel, identity: str, number: int | None) -> ModelVersion | None:
    """The version that this upload is already, or None. Raises `conflict` where the number says otherwise."""
    same: ModelVersion | None = _current(model).filter(identity=identity).select_related("model").first()
    if number is None or (same is not None and same.number == number):
        return same
    if same is not None:
        raise field_error("conflict", "number", f"This file with these settings is version {same.number} already.")
    if model.versions.filter(number=number).exists():
        raise field_error(
            "conflict", "number", f"Version {number} exists already, with another file or other settings."
        )
    if number < model.next_number:
        raise field_error("conflict", "number", f"Version numbers only grow; the next one is {model.next_number}.")
    return None


def _create(
    actor: Actor,
    model: RegisteredModel,
    number: int,
    upload: Upload,
    description: Description,
    kept: _Kept,
    reference: Reference | None,
) -> ModelVersion:
    hold_store()
    version = ModelVersion(
        model=model,
        number=number,
        file_name=_shown_name(upload.file_name),
        uploaded_artifact=_artifact(kept.model),
        golden_artifact=_artifact(kept.golden) if kept.golden else None,
        reference_artifact=_artifact(kept.reference) if kept.reference else None,
        reference_name=_shown_name(upload.reference_name) if kept.reference else "",
        reference_summary=reference.summary.as_json() if reference else None,
        identity=description.identity(kept.model.sha256),
        created_by_id=actor.user_id,
        **{name: _stored(description, name) for name in (*MEANING, *REMARKS)},
    )
    version.save(force_insert=True)
    if reference is not None:
        keep_digests(version, reference)
    model.next_number = number + 1
    model.save(update_fields=["next_number"])
    record_change(
        actor=actor,
        action="version.upload",
        of=version,
        after={"number": number, "sha256": kept.model.sha256, "size_bytes": kept.model.size_bytes},
    )
    return version


def _artifact(stored: StoredFile) -> Artifact:
    """The row of a file in the store. The caller holds the store, so the file cannot go while its row is written."""
    if not path_of(stored.sha256).exists():
        raise DomainError("conflict", "The file was swept while it was registered; upload it again.")
    artifact, _ = Artifact.objects.get_or_create(sha256=stored.sha256, defaults={"size_bytes": stored.size_bytes})
    return artifact


def _stored(description: Description, name: str) -> Any:
    """A description's value as its row holds it."""
    value = getattr(description, name)
    if value is None:
        return None if name == "preprocessor" else ""
    if name == "columns":
        return [msgspec.to_builtins(column) for column in value]
    return list(value) if isinstance(value, tuple) else value if not isinstance(value, str) else str(value)


def _reset(version: ModelVersion) -> list[str]:
    """Sends a version back to the start of validation; returns the fields to save."""
    version.state = VersionState.UPLOADED
    version.code = version.reason = ""
    version.report = version.leased_until = None
    version.attempts = 0
    return ["state", "code", "reason", "report", "leased_until", "attempts"]


def _locked(version: ModelVersion) -> ModelVersion:
    return ModelVersion.objects.select_for_update(of=("self",)).select_related("model").get(pk=version.pk)


def _refuse_archived(version: ModelVersion) -> None:
    if version.state == VersionState.ARCHIVED:
        raise DomainError("gone", f"{version} was archived.")


def _shown_name(name: str) -> str:
    """A file's name as people see it; it is never used as a path."""
    return "".join(character for character in name if character.isprintable())[:255]
