"""Validation in the real sandbox: claims, outcomes, lost workers."""

from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from django.utils import timezone
from kombu.exceptions import OperationalError

from controlplane.accounts.models import Team
from controlplane.audit.models import AuditEvent
from controlplane.catalog.checks import Check, CheckState, checks_of, planned
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.services import (
    add_golden,
    add_reference,
    archive_version,
    sweep_validations,
    validate_now,
    validate_one,
    validation,
)
from controlplane.catalog.storage import path_of
from controlplane.catalog.tasks import validate_version
from controlplane.celery import app
from controlplane.errors import DomainError
from inference.contracts import Activation, ReportCheck, Task, ValidationReport
from inference.runtime import validate
from tests.controlplane.cast import ACTOR
from tests.controlplane.catalog.uploads import draft, new_model, ready, upload
from tests.inference import toys

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("store", "sandbox")]

ENDED = (CheckState.DONE, CheckState.SKIPPED)


@pytest.fixture
def model(team: Team) -> RegisteredModel:
    return new_model(team)


def golden(outputs: list[list[float]]) -> bytes:
    """Golden inputs of `toys.classifier()` with these probabilities."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, features=np.zeros((1, 3), np.float32), probabilities=np.array(outputs, np.float32))
    return buffer.getvalue()


def test_a_good_model_is_ready_with_all_that_was_found(model: RegisteredModel) -> None:
    version = ready(model, labels="ok,fraud", columns="amount,age,hour")
    assert (version.task, version.activation) == ("tabular-classification", "none")
    assert version.latency_ms is not None and version.memory_bytes is not None
    assert version.artifact_id == version.uploaded_artifact_id
    report = version.typed_report
    assert report is not None and report.ok and report.operators == {"MatMul": 1, "Softmax": 1}
    route = version.route()
    assert (route.task, route.activation, route.labels) == (
        Task.TABULAR_CLASSIFICATION,
        Activation.NONE,
        ("ok", "fraud"),
    )
    event = AuditEvent.objects.get(action="version.validate")
    assert (event.actor, event.after) == ("system", {"state": "ready", "code": ""})


def test_a_zipmap_tail_is_cut_and_the_cut_file_is_served(model: RegisteredModel, store: Path) -> None:
    version = ready(model, toys.zipmap_classifier())
    assert version.artifact_id is not None and version.artifact_id != version.uploaded_artifact_id
    session = ort.InferenceSession(path_of(version.artifact_id).read_bytes(), providers=["CPUExecutionProvider"])
    assert all(output.type.startswith("tensor(") for output in session.get_outputs())
    assert version.labels and version.typed_report is not None and version.typed_report.zipmap_cut
    assert list((store / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"labels": "a,b,c"}, "bad_labels"),
        ({"columns": "a,b"}, "bad_columns"),
        ({"thresholds": {"fraud": 0.5}}, "bad_labels"),
        ({"columns": "a,b,c", "reference": b"a,b,c\n1,2,x\n"}, "bad_reference"),
        ({"golden": golden([[0.9, 0.1]])}, "golden_mismatch"),
    ],
)
def test_what_does_not_fit_the_graph_is_rejected(model: RegisteredModel, said: dict[str, object], code: str) -> None:
    version = validate_now(upload(model, **said)[0])  # type: ignore[arg-type]  # of several types
    assert (version.state, version.code) == (VersionState.REJECTED, code)
    assert version.reason and version.report is not None and version.report["ok"] is False
    assert version.artifact_id is None


def test_a_rejected_version_may_be_uploaded_again(model: RegisteredModel) -> None:
    first = validate_now(upload(model, labels="a,b,c")[0])
    again, created = upload(model, labels="a,b,c")
    assert created and (first.number, again.number) == (1, 2)


def test_golden_inputs_that_reproduce_are_counted(model: RegisteredModel) -> None:
    report = ready(model, golden=golden([[0.5, 0.5]])).typed_report
    assert report is not None and report.golden_sets == 1


def test_golden_inputs_may_come_later_and_must_reproduce_at_once(model: RegisteredModel) -> None:
    version = ready(model)
    with pytest.raises(DomainError) as caught:
        add_golden(actor=ACTOR, version=version, draft=draft(golden([[0.9, 0.1]])))
    assert caught.value.code == "golden_mismatch"
    version.refresh_from_db()
    assert version.golden_artifact_id is None and version.state == VersionState.READY
    changed = add_golden(actor=ACTOR, version=version, draft=draft(golden([[0.5, 0.5]])))
    assert changed.golden_artifact_id is not None and changed.state == VersionState.READY
    assert changed.typed_report is not None and changed.typed_report.golden_sets == 1


def test_a_reference_set_may_come_later_and_must_fit_the_signature(model: RegisteredModel) -> None:
    version = ready(model, columns=["a", "b", {"name": "c", "nullable": True}])
    for content, sentence in (
        (b"a,b,c\n1,2,x\n", "not a finite number"),
        (b"a,b\n1,2\n", "Missing columns: c"),
        (b"a,b,c\n1,,3\n", "not nullable"),
    ):
        with pytest.raises(DomainError, match=sentence):
            add_reference(actor=ACTOR, version=version, draft=draft(content), name="r.csv")
    changed = add_reference(actor=ACTOR, version=version, draft=draft(b"a,b,c\n1,2,\n"), name="r.csv")
    assert (
        changed.reference_summary is not None
        and changed.reference_summary["rows"] == 1
        and changed.reference_name == "r.csv"
    )
    assert AuditEvent.objects.filter(action="version.reference").count() == 1


def test_progress_is_written_down_while_the_child_works(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endless loop is ended by its clock: what was seen until then is seen by others, and stays."""
    version, _ = upload(model, toys.endless_loop())
    seen: list[list[Check]] = []
    written = validation._tell

    def tell_and_look(claim: validation._Claim, done: tuple[ReportCheck, ...]) -> None:
        written(claim, done)
        seen.append(checks_of(ModelVersion.objects.get(pk=version.pk)))

    monkeypatch.setattr(validation, "_tell", tell_and_look)
    monkeypatch.setattr(validate, "WALL_S", 2.0)
    assert [check.state for check in checks_of(version)] == [CheckState.PENDING] * len(planned(version))
    assert validate_one(version.pk)
    assert 1 <= len(seen) <= 8
    states = {check.name: check.state for check in seen[0]}
    assert (states["file"], states["sample"], states["latency"]) == ("done", "running", "pending")
    version.refresh_from_db()
    assert (version.state, version.code, version.progress) == (VersionState.REJECTED, "validation_failed", [])
    *done, failed = checks_of(version)
    assert [check.name for check in done] == [check.name for check in seen[-1] if check.state in ENDED]
    assert (failed.name, failed.state, failed.detail) == ("sample", CheckState.FAILED, version.reason)


def test_the_reference_set_is_a_check_of_the_report(model: RegisteredModel) -> None:
    version, _ = upload(model, columns="a,b,c", reference=b"a,b,c\n1,2,3\n")
    assert checks_of(version)[-1] == Check("reference", CheckState.PENDING)
    assert checks_of(validate_now(version))[-1] == Check("reference", CheckState.DONE, "csv, 1 rows")
    refused = validate_now(upload(model, columns="a,b,c", reference=b"a,b,c\n1,2,x\n", labels="x,y")[0])
    assert checks_of(refused)[-1] == Check("reference", CheckState.FAILED, refused.reason)


def test_a_lost_worker_leaves_what_it_had_done_and_another_starts_over(model: RegisteredModel) -> None:
    version, _ = upload(model)
    for _ in range(validation.MOST_ATTEMPTS):
        claim = validation._claim(version.pk)
        assert claim is not None and claim.version.progress == []
        validation._tell(claim, (ReportCheck(name="file", ok=True), ReportCheck(name="graph", ok=True)))
        ModelVersion.objects.filter(pk=version.pk).update(leased_until=timezone.now() - timedelta(seconds=1))
    assert validation.reject_exhausted() == 1
    version.refresh_from_db()
    assert [(check.name, check.state) for check in checks_of(version)] == [
        ("file", "done"),
        ("graph", "done"),
        ("types", "failed"),
    ]


def test_a_late_worker_tells_nothing_of_the_one_after_it(model: RegisteredModel) -> None:
    version, _ = upload(model)
    late = validation._claim(version.pk)
    assert late is not None
    ModelVersion.objects.filter(pk=version.pk).update(leased_until=timezone.now() - timedelta(seconds=1))
    assert validation._claim(version.pk) is not None
    validation._tell(late, (ReportCheck(name="file", ok=True),))
    version.refresh_from_db()
    assert version.progress == []


def test_the_task_of_the_worker_validates_by_id(model: RegisteredModel) -> None:
    version, _ = upload(model)
    validate_version.run(str(version.pk))
    version.refresh_from_db()
    assert version.state == VersionState.READY


def test_a_version_is_claimed_once(model: RegisteredModel) -> None:
    version, _ = upload(model)
    assert validation._claim(version.pk) is not None
    assert not validate_one(version.pk)
    version.refresh_from_db()
    assert (version.state, version.attempts) == (VersionState.VALIDATING, 1)


def test_a_late_worker_cannot_overwrite_the_one_after_it(model: RegisteredModel) -> None:
    version, _ = upload(model)
    late = validation._claim(version.pk)
    assert late is not None
    ModelVersion.objects.filter(pk=version.pk).update(leased_until=timezone.now() - timedelta(seconds=1))
    assert validate_one(version.pk)
    validation._settle(late, ValidationReport(ok=False, code="load_failed", reason="late"), None)
    version.refresh_from_db()
    assert (version.state, version.code) == (VersionState.READY, "")


def test_a_version_archived_meanwhile_stays_archived(model: RegisteredModel) -> None:
    version, _ = upload(model)
    claim = validation._claim(version.pk)
    assert claim is not None
    archive_version(actor=ACTOR, version=version)
    validation._settle(claim, ValidationReport(ok=False, code="load_failed", reason="late"), None)
    version.refresh_from_db()
    assert version.state == VersionState.ARCHIVED


def test_the_sweep_sends_what_was_lost_again_and_gives_up_after_three(
    model: RegisteredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str]] = []
    monkeypatch.setattr(app, "send_task", lambda name, args, queue: sent.append(args))
    version, _ = upload(model)
    assert sweep_validations() == 1
    assert sweep_validations() == 0  # a message is under way
    for _ in range(validation.MOST_ATTEMPTS):
        assert validation._claim(version.pk) is not None
        assert sweep_validations() == 0  # a worker has it
        ModelVersion.objects.filter(pk=version.pk).update(leased_until=timezone.now() - timedelta(seconds=1))
        sweep_validations()
    version.refresh_from_db()
    assert (version.state, version.code) == (VersionState.REJECTED, "validation_failed")
    assert "three times" in version.reason
    assert sent == [[str(version.pk)]] * 3


def test_a_broker_that_is_away_fails_nobody(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(app, "send_task", away)
    version, _ = upload(model)
    validation.dispatch(version.pk)
    version.refresh_from_db()
    assert version.state == VersionState.UPLOADED and version.leased_until is not None


def test_a_sandbox_that_does_not_start_is_tried_again(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("The sandbox's parent process did not start in time.")

    version, _ = upload(model)
    monkeypatch.setattr(validation, "_run", fail)
    assert validate_one(version.pk)
    version.refresh_from_db()
    assert (version.state, version.attempts) == (VersionState.UPLOADED, 1)
    rejected = validate_now(version)
    assert (rejected.state, rejected.attempts) == (VersionState.REJECTED, 3)


def test_a_report_survives_the_database(model: RegisteredModel) -> None:
    version = ready(model)
    version.refresh_from_db()
    assert msgspec.convert(version.report, ValidationReport).signature is not None
