"""The jobs' address with a real Celery worker behind it: a real chest model on real radiographs."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.accounts.models import Team
from controlplane.jobs.models import Job
from controlplane.predictions.models import Prediction, Rollup
from tests.controlplane.cast import Caller
from tests.controlplane.deployments.rows import make_deployment, make_model
from tests.controlplane.jobs.conftest import brightness, serve, store_version
from tests.inference.runtime.picture_files import chest, encoded
from tests.services import REPOSITORY, wait_for

DATA = Path(__file__).parents[4] / "shared" / "data" / "xray"
PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_grayscale": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485],
    "image_std": [0.229],
}

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(400)]


@pytest.fixture
def worker(redis_url: str, home: Path, team: Team) -> Iterator[subprocess.Popen[bytes]]:
    """`celery worker` on the test's database, with one child."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "REDIS_URL": redis_url,
        "SIGNALBOX_HOME": str(home),
    }
    command = [sys.executable, "-m", "celery", "-A", "controlplane.celery", "worker", "--queues", "heavy"]
    command += ["--concurrency", "1", "--without-mingle", "--without-gossip", "--without-heartbeat"]
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


def ended(count: int) -> Callable[[], bool]:
    return lambda: Job.objects.exclude(status__in=["queued", "running"]).count() >= count


@pytest.mark.shared
@pytest.mark.parametrize("count", [12, pytest.param(58, marks=pytest.mark.long)])
def test_radiographs_give_the_golden_scores(
    worker: subprocess.Popen[bytes], home: Path, team: Team, as_key: Callable[..., Caller], count: int
) -> None:
    if not DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    with (DATA / "nih15_expected_softmax.csv").open(newline="") as stream:
        known = list(csv.DictReader(stream))
    assert len(known) == 58
    golden = known[:: 58 // count][:count]
    labels = [name for name in golden[0] if name not in ("file", "all_labels", "top1")]
    model = make_model(team, "nih15")
    store_version(
        home,
        model,
        (DATA / "nih15_model" / "model.onnx").read_bytes(),
        task="image-classification",
        activation="softmax",
        labels=labels,
        preprocessor=PREPROCESSOR,
    )
    serve(make_deployment(team, model, "chest"), v1=10_000)
    app = as_key("predict")
    locations = {}

    for row in golden:
        picture = (DATA / "nih" / row["file"]).read_bytes()
        response = app.client.post(
            "/api/deployments/chest/jobs/", picture, content_type="image/png", headers=app.headers
        )
        assert response.status_code == 202, response.content
        locations[row["file"]] = response["Location"]
    wait_for(ended(count), 240, f"{count} jobs")

    worst = 0.0
    for row in golden:
        told: dict[str, Any] = app.get(locations[row["file"]]).json()
        assert told["status"] == "succeeded", told
        worst = max(worst, *(abs(told["result"]["scores"][name] - float(row[name])) for name in labels))
    assert worst <= 0.02
    assert Prediction.objects.count() == count
    assert sum(Rollup.objects.values_list("calls", flat=True)) == count


def test_a_killed_runtime_is_replaced_and_no_job_is_lost(
    worker: subprocess.Popen[bytes], home: Path, team: Team, as_key: Callable[..., Caller]
) -> None:
    import psutil

    from controlplane.jobs.services.claiming import sweep

    model = make_model(team, "brightness")
    fields: dict[str, Any] = {"task": "image-classification", "activation": "softmax", "labels": ["dark", "bright"]}
    preprocessor = {**PREPROCESSOR, "size": {"height": 8, "width": 8}, "do_normalize": False}
    store_version(home, model, brightness(), preprocessor=preprocessor, **fields)
    serve(make_deployment(team, model, "xray"), v1=10_000)
    app = as_key("predict")

    def post() -> str:
        response = app.client.post(
            "/api/deployments/xray/jobs/", encoded(chest()), content_type="image/png", headers=app.headers
        )
        assert response.status_code == 202
        return str(response["Location"])

    first = post()
    wait_for(ended(1), 60, "the first job")
    runtimes = [
        child
        for child in psutil.Process(worker.pid).children(recursive=True)
        if "inference.worker_child" in child.cmdline()
    ]
    assert len(runtimes) == 1
    runtimes[0].kill()
    second = post()

    def answered() -> bool:
        sweep()
        return ended(2)()

    wait_for(answered, 90, "the second job")
    assert [app.get(location).json()["status"] for location in (first, second)] == ["succeeded", "succeeded"]
    assert Prediction.objects.count() == 2
