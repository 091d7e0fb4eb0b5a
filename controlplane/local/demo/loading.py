"""Loads what is missing of the demo: three deployments with two days of history, and a doctor's account."""

import io
import secrets
import tempfile
import time
from pathlib import Path

from django.conf import settings
from django.core.management import call_command

from controlplane.accounts.models import Role, Team, User
from controlplane.accounts.services import DEFAULT_TEAM, add_member, create_user
from controlplane.audit.services import COMMAND
from controlplane.catalog.descriptions import describe
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.services import Upload, register_model, upload_version, validate_now
from controlplane.catalog.storage import draft_of
from controlplane.catalog.uploads import REFERENCE_BYTES
from controlplane.deployments.models import Deployment, RevisionState
from controlplane.deployments.services.deployments import edit_deployment
from controlplane.errors import DomainError
from controlplane.local.demo.cases import Case, cases
from controlplane.local.demo.history import write_history
from controlplane.local.home import Home

DOCTOR = "doctor"


def ensure_demo() -> list[str]:
    """Loads what is missing; returns a line about each part. Safe to repeat, also after a start that was cut off.

    Raises DomainError where a version is rejected.
    """
    lines = [_ensure_case(case) for case in cases()]
    return [*lines, _ensure_doctor(Home(settings.SIGNALBOX_HOME))]


def _ensure_case(case: Case) -> str:
    found = Deployment.objects.filter(name=case.name).first()
    if found is None:
        found = _deploy(case)
    if found.demo:
        return f"{case.name} is there already."
    if not found.revisions.filter(state=RevisionState.ACTIVE).exists():
        return f"{case.name} is deployed and waits for a data plane; run load_demo again for its history."
    began_at = time.monotonic()
    written = write_history(case, found, time.time())
    took_s = time.monotonic() - began_at
    return f"{case.name} serves {case.split} with {written:,} past predictions (written in {took_s:.1f} s)."


def _deploy(case: Case) -> Deployment:
    team = Team.objects.get(name=DEFAULT_TEAM)
    model = RegisteredModel.objects.filter(team=team, name=case.name).first()
    if model is None:
        model = register_model(actor=COMMAND, team=team, name=case.name, description=case.description)
    with tempfile.TemporaryDirectory() as folder:
        reference = case.reference(Path(folder))
        for number in range(len(case.files)):
            _upload(case, number, model, reference)
    call_command("deploy", case.name, case.name, split=case.split, stdout=io.StringIO())
    deployment = Deployment.objects.get(name=case.name)
    return edit_deployment(actor=COMMAND, deployment=deployment, description=case.description)


def _upload(case: Case, index: int, model: RegisteredModel, reference: Path) -> ModelVersion:
    upload = Upload(
        draft_of(case.files[index], most=settings.SIGNALBOX_MAX_MODEL_BYTES),
        file_name=case.files[index].name,
        reference=draft_of(reference, most=REFERENCE_BYTES),
        reference_name=reference.name,
    )
    version, _ = upload_version(
        actor=COMMAND, model=model, upload=upload, description=describe(case.said[index]), validate=False
    )
    version = validate_now(version)
    if version.state != VersionState.READY:
        raise DomainError(version.code or "validation_failed", f"{version} is {version.state}: {version.reason}")
    return version


def _ensure_doctor(home: Home) -> str:
    """The account `doctor`, with a generated password that is kept in the home (0600)."""
    if User.objects.filter(username=DOCTOR).exists():
        return f"The account {DOCTOR} is there already."
    # Kept before the account exists: a password that nobody knows would lock the doctor out.
    password = secrets.token_urlsafe(12)
    home.write_private(home.doctor_password_file, password + "\n")
    doctor = create_user(actor=COMMAND, username=DOCTOR, password=password)
    add_member(actor=COMMAND, team=Team.objects.get(name=DEFAULT_TEAM), user=doctor, role=Role.DOCTOR)
    return f"The account {DOCTOR} has the password in {home.doctor_password_file}."
