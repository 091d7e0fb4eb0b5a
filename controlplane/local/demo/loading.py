"""Loads what is missing of the demo: three deployments with two days of history, a doctor's account, some studies."""

import io
import secrets
import tempfile
import time
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import transaction

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
from controlplane.local.demo.studies import read_studies, send_studies
from controlplane.local.home import Home

DOCTOR = "doctor"
XRAYS = "chest-xray"


def ensure_demo() -> list[str]:
    """Loads what is missing; returns a line about each part. Safe to repeat, also after a start that was cut off.

    Raises DomainError where a version is rejected.
    """
    doctor, said = _ensure_doctor(Home(settings.SIGNALBOX_HOME))
    found = {case.name: _deployed(case) for case in cases()}
    # Sent first and read last: in between the workers have had their time.
    sent = send_studies(doctor, found[XRAYS]) if doctor is not None and _serves(found[XRAYS]) else []
    lines = [_ensure_history(case, found[case.name]) for case in cases()]
    if doctor is not None and sent:
        said = f"{said} {len(sent)} studies are sent, {read_studies(doctor, sent)} are read."
    return [*lines, said]


def _deployed(case: Case) -> Deployment:
    return Deployment.objects.filter(name=case.name).first() or deploy_case(case)


def _serves(deployment: Deployment) -> bool:
    return deployment.revisions.filter(state=RevisionState.ACTIVE).exists()


def _ensure_history(case: Case, found: Deployment) -> str:
    if found.demo:
        return f"{case.name} is there already."
    if not _serves(found):
        return f"{case.name} is deployed and waits for a data plane; run load_demo again for its history."
    began_at = time.monotonic()
    written = write_history(case, found, time.time())
    took_s = time.monotonic() - began_at
    return f"{case.name} serves {case.split} with {written:,} past predictions (written in {took_s:.1f} s)."


def deploy_case(case: Case) -> Deployment:
    """Registers a case and deploys it; returns when it serves. Raises DomainError where a version is rejected."""
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


def _ensure_doctor(home: Home) -> tuple[User | None, str]:
    """The account `doctor`, with a generated password that is kept in the home (0600), and a sentence about it.

    None where somebody else's account has the name: the demo leaves it alone.
    """
    found = User.objects.filter(username=DOCTOR).first()
    if found is not None:
        return found if home.doctor_password_file.exists() else None, f"The account {DOCTOR} is there already."
    # Kept before the account exists: a password that nobody knows would lock the doctor out.
    password = secrets.token_urlsafe(12)
    home.write_private(home.doctor_password_file, password + "\n")
    with transaction.atomic():
        doctor = create_user(actor=COMMAND, username=DOCTOR, password=password)
        add_member(actor=COMMAND, team=Team.objects.get(name=DEFAULT_TEAM), user=doctor, role=Role.DOCTOR)
    return doctor, f"The password of the account {DOCTOR} is kept in {home.doctor_password_file}."
