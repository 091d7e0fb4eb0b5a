"""A real Celery worker: the suggestion, then the heat map, each by its own message."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.accounts.models import User
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment
from controlplane.studies import explaining
from controlplane.studies.models import Study, StudyPicture
from controlplane.studies.services.drafts import add_picture, open_draft
from controlplane.studies.services.sending import send_study
from tests.inference.runtime.picture_files import chest, dicom, encoded
from tests.services import REPOSITORY, wait_for

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


@pytest.fixture
def broker(redis_url: str) -> str:
    """The real one, in place of this folder's record of messages."""
    return redis_url


@pytest.fixture
def worker(broker: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`celery worker` on the test's database, with one child and the queues that the product gives it."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "REDIS_URL": broker,
        "SIGNALBOX_HOME": str(home),
    }
    command = [sys.executable, "-m", "celery", "-A", "controlplane.celery", "worker"]
    command += ["--queues", "celery,heavy,validation", "--concurrency", "1"]
    command += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    yield process
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sent(doctor: User, deployment: Deployment, contents: list[bytes]) -> Study:
    actor = Actor(f"user:{doctor.username}", str(doctor.pk), doctor.pk)
    study = open_draft(actor=actor, user=doctor, deployment=deployment, reference="Case 1")
    for content in contents:
        add_picture(actor=actor, study=study, content=content)
    return send_study(actor=actor, study=study)


def test_maps_follow_the_suggestions_of_every_picture(
    worker: subprocess.Popen[bytes], doctor: User, xray: Deployment
) -> None:
    studies = [sent(doctor, xray, [encoded(chest()), dicom(255 - chest())]) for _ in range(2)]
    pictures = StudyPicture.objects.filter(study__in=studies)

    wait_for(lambda: not pictures.exclude(job__status="succeeded").exists(), 120, "four suggestions")
    wait_for(lambda: not pictures.filter(heat_map="").exists(), 120, "four heat maps")

    for picture in pictures.select_related("study"):
        assert explaining.heat_map_png(picture, "bright").startswith(b"\x89PNG")
