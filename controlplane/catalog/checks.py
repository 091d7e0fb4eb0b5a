"""How far the validation of a version is: every check, with how it stands now."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from controlplane.catalog.models import ModelVersion, VersionState
from inference.contracts import ReportCheck
from inference.runtime import checks

# Done in the control plane, after those of the throw-away child.
REFERENCE = "reference"
THRESHOLDS = "thresholds"


class CheckState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # it does not apply to this version


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a version's validation. `detail` is what it found."""

    name: str
    state: CheckState
    detail: str = ""


def checks_of(version: ModelVersion) -> list[Check]:
    """The checks of a version in their order: while it is validated the done, the running one and those to come."""
    report = version.typed_report
    if version.state == VersionState.UPLOADED:
        return [Check(name, CheckState.PENDING) for name in planned(version)]
    if version.state != VersionState.VALIDATING:
        return [_ended(check) for check in report.checks] if report is not None else []
    done = progress_of(version)
    left = checks.unfinished(planned(version), {check.name for check in done})
    # Where one has failed nothing more is begun: the report is about to be written.
    running = CheckState.PENDING if any(check.ok is False for check in done) else CheckState.RUNNING
    to_come = [Check(name, CheckState.PENDING if place else running) for place, name in enumerate(left)]
    return [*map(_ended, done), *to_come]


def planned(version: ModelVersion) -> tuple[str, ...]:
    """The names of the checks that a version goes through."""
    in_child = checks.plan(golden=version.golden_artifact_id is not None)
    return (*in_child, REFERENCE) if version.reference_artifact_id else in_child


def progress_of(version: ModelVersion) -> tuple[ReportCheck, ...]:
    """The checks that the running validation, or the one that was lost, has done."""
    return msgspec.convert(version.progress, tuple[ReportCheck, ...])


def interrupted(version: ModelVersion, reason: str) -> tuple[ReportCheck, ...]:
    """The checks of a validation that ended without a report: those that it had done, and the one that ran, failed."""
    done = progress_of(version)
    running = checks.unfinished(planned(version), {check.name for check in done})[:1]
    return (*done, *(ReportCheck(name=name, ok=False, detail=reason) for name in running))


def _ended(check: ReportCheck) -> Check:
    states = {True: CheckState.DONE, False: CheckState.FAILED, None: CheckState.SKIPPED}
    return Check(check.name, states[check.ok], check.detail)
