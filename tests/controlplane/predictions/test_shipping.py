"""The ingester: spool files become the log exactly once, whatever kills it and whatever a file holds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.predictions.models import IngesterStatus, Prediction, Rollup, SpoolBookmark
from controlplane.predictions.shipping import Ingester
from inference.spool import SpoolWriter
from tests.controlplane.predictions.records import refused, served
from tests.services import REPOSITORY


def calls() -> int:
    return sum(Rollup.objects.values_list("calls", flat=True))


def drain(ingester: Ingester) -> None:
    while ingester.do_one():
        pass


@pytest.mark.django_db
def test_a_living_file_is_followed_and_a_finished_one_deleted(
    tmp_path: Path, deployment: Deployment, version: ModelVersion
) -> None:
    writer, ingester = SpoolWriter(tmp_path), Ingester(tmp_path, host="here")
    writer.append(served(deployment, version))
    drain(ingester)
    assert Prediction.objects.count() == 1
    assert len(ingester.reader.files()) == 1

    writer.append(served(deployment, version))
    writer.append(refused(deployment))
    writer.close()
    drain(ingester)
    ingester.report()

    assert (Prediction.objects.count(), calls()) == (2, 3)
    assert ingester.reader.files() == []
    assert not SpoolBookmark.objects.exists()
    status = IngesterStatus.objects.get(host="here")
    assert (status.shipped, status.repeated, status.quarantined, status.lag_s) == (3, 0, 0, 0.0)


@pytest.mark.django_db
def test_hostile_and_torn_lines_are_set_aside_and_counted(
    tmp_path: Path, deployment: Deployment, version: ModelVersion
) -> None:
    writer = SpoolWriter(tmp_path)
    writer.append(served(deployment, version))
    writer.close()
    (file,) = tmp_path.glob("*.spool")
    good = file.read_bytes()
    hostile = [b"{", b"\xff\xfe\0", b"[" * 50_000, b'{"id": 5}', b'{"id":"\\ud800","at":1,"source":"live"}', b"null"]
    stranger = good.strip().replace(b'"rows":1', b"").replace(str(version.pk).encode(), b"x" * 36)
    file.write_bytes(good + b"\n".join([*hostile, stranger]) + b"\n" + good.replace(b"-7", b"-7", 1) + b'{"id": "torn')

    ingester = Ingester(tmp_path, host="here")
    drain(ingester)

    assert (Prediction.objects.count(), calls()) == (1, 1)
    assert ingester.reader.files() == []
    assert IngesterStatus.objects.get().quarantined == len(hostile) + 2
    kept = b"".join(side.read_bytes() for side in (tmp_path / "quarantine").iterdir())
    for line in [*hostile, stranger, b'{"id": "torn']:
        assert line in kept


@pytest.mark.django_db
def test_a_shipment_that_fails_is_repeated_whole(
    tmp_path: Path, deployment: Deployment, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, ingester = SpoolWriter(tmp_path), Ingester(tmp_path)
    for _ in range(10):
        writer.append(served(deployment, version))
    with monkeypatch.context() as patched:
        # The last thing before the commit.
        patched.setattr(ingester, "_count", lambda *_: (_ for _ in ()).throw(RuntimeError("no luck")))
        with pytest.raises(RuntimeError, match="no luck"):
            ingester.do_one()
    assert (Prediction.objects.count(), calls()) == (0, 0)

    drain(ingester)

    assert (Prediction.objects.count(), calls()) == (10, 10)


@pytest.mark.django_db
def test_a_large_file_goes_in_steps(tmp_path: Path, deployment: Deployment, version: ModelVersion) -> None:
    writer = SpoolWriter(tmp_path)
    for _ in range(300):
        writer.append(served(deployment, version))
    ingester = Ingester(tmp_path, step_bytes=16_384, host="here")

    ingester.do_one()
    ingester.report()

    assert 0 < Prediction.objects.count() < 300
    assert IngesterStatus.objects.get().lag_s > 0
    drain(ingester)
    ingester.report()
    assert (Prediction.objects.count(), calls()) == (300, 300)
    assert IngesterStatus.objects.get().lag_s == 0


@pytest.mark.django_db
def test_two_ingesters_share_a_spool(tmp_path: Path, deployment: Deployment, version: ModelVersion) -> None:
    writer = SpoolWriter(tmp_path)
    for _ in range(50):
        writer.append(served(deployment, version))
    first, second = Ingester(tmp_path, step_bytes=4096), Ingester(tmp_path, step_bytes=4096)

    while first.do_one() | second.do_one():
        pass

    assert (Prediction.objects.count(), calls()) == (50, 50)


KILLED = """
import os, signal, sys
from pathlib import Path
import django
django.setup()
from controlplane.predictions import ingest, rollups, shipping
place, folder = sys.argv[1], Path(sys.argv[2])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if place == "after copy":
    rollups.Gatherer.add_rows = die
elif place == "before commit":
    shipping.Ingester._count = die
elif place == "after commit":
    shipping.SpoolFile.remove = die
elif place == "before the bookmark goes":
    remove = shipping.SpoolFile.remove
    shipping.SpoolFile.remove = lambda file: (remove(file), die())
ingester = shipping.Ingester(folder)
while ingester.do_one():
    pass
"""


def anyone() -> tuple[Deployment, ModelVersion]:
    """A deployment and a version that the log can speak of; it keeps no reference to their rows."""
    return Deployment(), ModelVersion(number=1)


@pytest.mark.parametrize("place", ["after copy", "before commit", "after commit", "before the bookmark goes"])
def test_kill_9_at_any_point_loses_and_doubles_nothing(tmp_path: Path, database_url: str, place: str) -> None:
    spool = tmp_path / "spool"
    writer = SpoolWriter(spool)
    for _ in range(200):
        writer.append(served(*anyone()))
    writer.close()
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "SIGNALBOX_HOME": str(tmp_path / "home"),
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    }

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, place, str(spool)], cwd=REPOSITORY, env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    subprocess.run(
        [sys.executable, "manage.py", "ingest", "--once", "--folder", str(spool)],
        cwd=REPOSITORY,
        env=environment,
        check=True,
    )

    with psycopg.connect(database_url) as connection:
        counts = "SELECT (SELECT count(*) FROM prediction), (SELECT sum(calls) FROM prediction_rollup)"
        assert connection.execute(counts).fetchone() == (200, 200)
    assert list(spool.glob("*.spool")) == []


def test_the_command_ships_and_ends_on_sigterm(tmp_path: Path, database_url: str) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    environment = {**os.environ, "DATABASE_URL": database_url, "SIGNALBOX_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "manage.py", "ingest"], cwd=REPOSITORY, env=environment)
    try:
        writer.append(served(*anyone()))
        end = time.monotonic() + 60
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not (shipped := connection.execute("SELECT shipped FROM ingester_status").fetchone()):
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.1)
        assert shipped == (1,)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
