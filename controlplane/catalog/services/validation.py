"""Validates versions in the sandbox: claim by lease, run, write down what was found, once.

`uploaded -> validating -> ready | rejected`. The row is the truth: a lost message is found by the sweep, a lost worker
by its lease, and after three attempts a version is rejected in sight of its owner.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import msgspec
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone
from kombu.exceptions import OperationalError

from controlplane.audit.services import SYSTEM, record_change
from controlplane.catalog.checks import REFERENCE, THRESHOLDS, interrupted
from controlplane.catalog.models import Artifact, ModelVersion, ReferenceDigests, VersionState
from controlplane.catalog.reference import read_reference
from controlplane.catalog.services.sweeping import hold_store
from controlplane.catalog.storage import StoredFile, draft_of, drafts_folder, path_of
from controlplane.celery import app
from controlplane.errors import DomainError
from inference.contracts import (
    Activation,
    Datatype,
    ReportCheck,
    Signature,
    Task,
    ValidationReport,
    ValidationRequest,
)
from inference.runtime.reference import Reference

if TYPE_CHECKING:
    from inference.runtime.sandbox import Sandbox

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
# The sandbox ends a child after 30 s; what is left is for reading files and for a slow machine.
LEASE_S = 120
# A message is given this long to reach a worker before the sweep sends another.
MESSAGE_S = 20
POLL_S = 0.05


def dispatch(version_id: uuid.UUID) -> None:
    """Asks a worker to validate a version. With the broker away nothing is lost: the sweep asks again."""
    ModelVersion.objects.filter(pk=version_id, state=VersionState.UPLOADED).update(
        leased_until=timezone.now() + timedelta(seconds=MESSAGE_S)
    )
    if not settings.REDIS_URL:
        return
    try:
        app.send_task("catalog.validate_version", args=[str(version_id)], queue="validation")
    except OperationalError as error:
        logger.warning("validation not dispatched, the sweep will: version %s, %s", version_id, type(error).__name__)


def validate_one(version_id: uuid.UUID) -> bool:
    """Validates a version if nobody else does; False where there was nothing to claim. Seconds of work, in a child."""
    claimed = _claim(version_id)
    if claimed is None:
        return False
    with _rewritten_file() as rewritten:
        try:
            report = _also_checked(claimed, _run(claimed, rewritten_path=rewritten, on_checks=partial(_tell, claimed)))
        except (RuntimeError, OSError):
            # The sandbox itself failed, which says nothing of the model: the sweep tries again.
            logger.exception("validation could not run: version %s", version_id)
            _release(claimed)
            return True
        _settle(claimed, report, rewritten)
    return True


def validate_now(version: ModelVersion, *, within_s: float = 180.0) -> ModelVersion:
    """Validates a version here, or waits for the worker that does; returns it as it then is.

    Raises TimeoutError where neither ended in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        if not validate_one(version.pk):
            reject_exhausted()
        current = ModelVersion.objects.select_related("model", "artifact").get(pk=version.pk)
        if current.state not in (VersionState.UPLOADED, VersionState.VALIDATING):
            return current
        if time.monotonic() > deadline:
            raise TimeoutError(f"{current} is still {current.state}")
        time.sleep(POLL_S)


def sweep_validations() -> int:
    """Finds lost messages and lost workers and has the work done again; returns how many. Call it every few seconds."""
    reject_exhausted()
    now = timezone.now()
    lost = ModelVersion.objects.filter(
        Q(state=VersionState.UPLOADED) & (Q(leased_until=None) | Q(leased_until__lt=now))
        | Q(state=VersionState.VALIDATING, leased_until__lt=now)
    )
    version_ids = list(lost.order_by("created_at").values_list("pk", flat=True)[:100])
    for version_id in version_ids:
        dispatch(version_id)
    return len(version_ids)


def reject_exhausted() -> int:
    """Rejects versions whose validation was lost three times; returns how many."""
    exhausted = ModelVersion.objects.filter(
        Q(leased_until=None) | Q(leased_until__lt=timezone.now()),
        state__in=[VersionState.UPLOADED, VersionState.VALIDATING],
        attempts__gte=MOST_ATTEMPTS,
    ).select_related("model")
    reason = "Validation was started three times and never ended."
    for version in exhausted:
        report = ValidationReport(
            ok=False, code="validation_failed", reason=reason, checks=interrupted(version, reason)
        )
        _settle(_Claim(version, version.attempts), report, None)
    return len(exhausted)


def check_reference(version: ModelVersion, path: Path) -> Reference:
    """Reads a reference set through against what is known of the version. Raises DomainError `bad_reference`."""
    named = columns = [column["name"] for column in version.columns]
    nullable = [column["name"] for column in version.columns if column.get("nullable")]
    signature = msgspec.convert(version.signature, Signature) if version.signature else None
    if not columns and signature is not None and len(signature.inputs) > 1:
        columns = [tensor.name for tensor in signature.inputs]
    numeric = signature is not None and all(tensor.datatype != Datatype.BYTES for tensor in signature.inputs)
    texts = signature is not None and all(tensor.datatype == Datatype.BYTES for tensor in signature.inputs)
    reference = read_reference(path, columns=columns, numeric=numeric, nullable=nullable, named=named, texts=texts)
    summary = reference.summary
    pictures = bool(version.task) and Task(version.task).takes_pictures
    if pictures != (summary.kind == "pictures") and signature is not None and summary.kind != "npz":
        wanted = "a zip of pictures" if pictures else "CSV, Parquet or NPZ"
        raise DomainError("bad_reference", f"The task {version.task} needs {wanted} as its reference set.")
    return reference


def keep_digests(version: ModelVersion, reference: Reference) -> None:
    """Stores what drift compares the version's traffic with. One query."""
    ReferenceDigests.objects.update_or_create(version=version, defaults={"packed": reference.digests})


def try_golden(version: ModelVersion, golden: Path) -> ValidationReport:
    """Runs a ready version on golden inputs in the sandbox. Raises DomainError with the report's code."""
    report = _run(_Claim(version, version.attempts), golden=golden)
    if not report.ok:
        raise DomainError(report.code, report.reason)
    return report


@dataclass(frozen=True, slots=True)
class _Claim:
    """A version in this process's hands: `attempt` is the fence that a later claim would move."""

    version: ModelVersion
    attempt: int


def _claim(version_id: uuid.UUID) -> _Claim | None:
    now = timezone.now()
    claimable = ModelVersion.objects.filter(
        Q(state=VersionState.UPLOADED) | Q(state=VersionState.VALIDATING, leased_until__lt=now),
        pk=version_id,
        attempts__lt=MOST_ATTEMPTS,
    )
    leased_until = now + timedelta(seconds=LEASE_S)
    claimed = claimable.update(
        state=VersionState.VALIDATING, attempts=F("attempts") + 1, leased_until=leased_until, progress=[]
    )
    if claimed != 1:
        return None
    version = ModelVersion.objects.select_related("model").get(pk=version_id)
    return _Claim(version, version.attempts)


def _release(claim: _Claim) -> None:
    _held(claim).update(state=VersionState.UPLOADED, leased_until=None)


def _tell(claim: _Claim, done: tuple[ReportCheck, ...]) -> None:
    """Writes down how far validation is. One that cannot be written is no reason to stop: the next has it all."""
    try:
        _held(claim).update(progress=msgspec.to_builtins(done))
    except DatabaseError:
        logger.warning("progress of a validation not written: version %s", claim.version.pk, exc_info=True)


def _held(claim: _Claim) -> QuerySet[ModelVersion]:
    return ModelVersion.objects.filter(
        pk=claim.version.pk,
        attempts=claim.attempt,
        state__in=[VersionState.UPLOADED, VersionState.VALIDATING],
    )


@cache
def _sandbox() -> "Sandbox":
    """This process's sandbox; it starts its warm parent at the first call. Loads ONNX, which web pages do without."""
    from inference.runtime.sandbox import Sandbox
    from inference.runtime.validate import PRELOAD

    return Sandbox(preload=PRELOAD)


def _run(
    claim: _Claim,
    *,
    golden: Path | None = None,
    rewritten_path: Path | None = None,
    on_checks: Callable[[tuple[ReportCheck, ...]], None] | None = None,
) -> ValidationReport:
    from inference.runtime.validate import validate_in_sandbox

    version = claim.version
    if golden is None and version.golden_artifact_id:
        golden = path_of(version.golden_artifact_id)
    request = ValidationRequest(
        model_path=str(path_of(version.uploaded_artifact_id)),
        task=Task(version.task) if version.task else None,
        activation=Activation(version.activation) if version.activation else None,
        labels=tuple(version.labels),
        columns=tuple(column["name"] for column in version.columns),
        preprocessor=version.preprocessor,
        golden_path=str(golden) if golden is not None else None,
        rewritten_path=str(rewritten_path) if rewritten_path is not None else None,
    )
    return validate_in_sandbox(_sandbox(), request, on_checks=on_checks)


@contextmanager
def _rewritten_file() -> Iterator[Path]:
    """A path among the drafts where validation may put the model without its ZipMap tail."""
    path = drafts_folder() / f"rewritten-{token_hex(16)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _settle(claim: _Claim, report: ValidationReport, rewritten: Path | None) -> None:
    """Writes what validation found, unless the version went on without it (archived, or claimed by another)."""
    served: StoredFile | None = None
    if report.ok and rewritten is not None and rewritten.exists():
        served = draft_of(rewritten, most=settings.SIGNALBOX_MAX_MODEL_BYTES).keep()
    with transaction.atomic():
        version = _held(claim).select_for_update(of=("self",)).select_related("model").first()
        if version is None:
            logger.info("validation result dropped, the version went on without it: %s", claim.version.pk)
            return
        fields = _ready(version, report, served) if report.ok else _rejected(version, report)
        version.report = msgspec.to_builtins(report)
        version.progress = []
        version.leased_until = None
        version.validated_at = timezone.now()
        version.save(update_fields=[*fields, "report", "progress", "leased_until", "validated_at"])
        record_change(
            actor=SYSTEM,
            action="version.validate",
            of=version,
            after={"state": version.state, "code": version.code},
        )
    logger.info("validation ended: version %s is %s %s", version.pk, version.state, version.code)


def _also_checked(claim: _Claim, report: ValidationReport) -> ValidationReport:
    """The report, rejected where what was uploaded beside the model does not fit the signature that was found."""
    if not report.ok:
        return report
    version = claim.version
    labels = version.labels or report.labels
    for label in version.thresholds:
        if label not in labels:
            reason = f"The threshold's label “{label}” is not one of the model's labels."
            return _refused(report, THRESHOLDS, "bad_labels", reason)
    if version.reference_artifact_id:
        known = ModelVersion(
            task=report.task or version.task,
            columns=version.columns,
            signature=msgspec.to_builtins(report.signature) if report.signature else None,
        )
        try:
            reference = check_reference(known, path_of(version.reference_artifact_id))
        except DomainError as error:
            return _refused(report, REFERENCE, error.code, error.message)
        # Read again with what is known now: names of columns, and what is a text.
        keep_digests(version, reference)
        summary = reference.summary
        passed = ReportCheck(name=REFERENCE, ok=True, detail=f"{summary.kind}, {summary.rows:,} rows")
        return msgspec.structs.replace(report, checks=(*report.checks, passed))
    return report


def _refused(report: ValidationReport, check: str, code: str, reason: str) -> ValidationReport:
    failed = ReportCheck(name=check, ok=False, detail=reason)
    return msgspec.structs.replace(report, ok=False, code=code, reason=reason, checks=(*report.checks, failed))


def _ready(version: ModelVersion, report: ValidationReport, served: StoredFile | None) -> list[str]:
    assert report.signature is not None and report.task is not None
    if served is not None:
        hold_store()
        version.artifact, _ = Artifact.objects.get_or_create(
            sha256=served.sha256, defaults={"size_bytes": served.size_bytes}
        )
    else:
        version.artifact_id = version.uploaded_artifact_id
    version.state = VersionState.READY
    version.code = version.reason = ""
    version.signature = msgspec.to_builtins(report.signature)
    version.task = report.task.value
    version.activation = (report.activation or Activation.NONE).value
    version.labels = list(version.labels or report.labels)
    version.latency_ms = report.latency_ms
    version.memory_bytes = report.memory_bytes
    return [
        *("artifact", "state", "code", "reason", "signature", "task", "activation", "labels"),
        *("latency_ms", "memory_bytes"),
    ]


def _rejected(version: ModelVersion, report: ValidationReport) -> list[str]:
    version.state = VersionState.REJECTED
    version.code, version.reason = report.code, report.reason
    return ["state", "code", "reason"]
