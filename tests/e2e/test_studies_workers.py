"""Studies whose worker is away, or dies under them: they are answered in the end, or fail where a doctor sees it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from tests.controlplane.jobs.conftest import brightness
from tests.e2e.clinic import (
    Person,
    deploy_findings,
    identity,
    make_people,
    rows,
    signed_in,
    standing,
    text_of,
)
from tests.e2e.test_bad_pictures import grey
from tests.inference import toys
from tests.inference.runtime.picture_files import encoded
from tests.services import Product, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

NAME, SLOW = "worker-studies", "worker-studies-slow"
# Turns of the loop in the slow model: a second or more on any machine, and not many.
TURNS = 25_000


def slow_model() -> bytes:
    """Logits of a grey 8 x 8 picture as `brightness` gives them, after a loop that takes its time."""
    body = onnx.helper.make_graph(
        [
            toys.node("MatMul", ["before", "turn"], ["after"]),
            toys.node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [
            toys.tensor("step", onnx.TensorProto.INT64, []),
            toys.tensor("go_on", onnx.TensorProto.BOOL, []),
            toys.tensor("before", toys.FLOAT, [64, 64]),
        ],
        [toys.tensor("still", onnx.TensorProto.BOOL, []), toys.tensor("after", toys.FLOAT, [64, 64])],
    )
    weights = np.tile(np.array([[-8 / 64, 8 / 64]], np.float32), (64, 1))
    return toys.saved(
        [
            toys.node("Loop", ["turns", "true", "begin"], ["end"], body=body),
            toys.node("Flatten", ["picture"], ["flat"], axis=1),
            toys.node("MatMul", ["flat", "end"], ["turned"]),
            toys.node("MatMul", ["turned", "weights"], ["sum"]),
            toys.node("Add", ["sum", "offset"], ["logits"]),
        ],
        [toys.tensor("picture", toys.FLOAT, ["n", 1, 8, 8])],
        [toys.tensor("logits", toys.FLOAT, ["n", 2])],
        [
            toys.constant("turns", np.array(TURNS, np.int64)),
            toys.constant("true", np.array(True)),
            toys.constant("begin", np.eye(64, dtype=np.float32)),
            toys.constant("turn", np.eye(64, dtype=np.float32)),
            toys.constant("weights", weights),
            toys.constant("offset", np.array([4.0, -4.0], np.float32)),
        ],
    )


@pytest.fixture(scope="module")
def clinic(product: Product) -> Iterator[Product]:
    """A quick model and a slow one, and a doctor."""
    make_people(product, {"worker-doctor": [("default", "doctor")]})
    deploy_findings(product, NAME, brightness())
    deploy_findings(product, SLOW, slow_model(), lane="job")
    yield product


@pytest.fixture
def doctor(clinic: Product) -> Iterator[Person]:
    with signed_in(clinic, "worker-doctor") as person:
        yield person


@contextlib.contextmanager
def halted(clinic: Product) -> Iterator[None]:
    """The worker and its children stand still, as on a machine that hangs; they go on afterwards."""
    everyone = workers(clinic)
    assert everyone
    for process in everyone:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def test_without_a_worker_the_picture_is_safe_and_is_read_once_one_comes(clinic: Product, doctor: Person) -> None:
    with halted(clinic):
        address = doctor.sent(NAME, "nobody works", encoded(grey(45)))
        wait_for(lambda: "No worker is running" in doctor.page(address), 60, "the page saying so", every_s=0.5)
        page = text_of(doctor.page(address))
        assert "Your pictures are safe" in page
        assert "Whoever runs this installation starts the worker" in page
        live = doctor.client.get(f"{address}state/", headers={"HX-Request": "true"})
        assert "Your pictures are safe" in live.text
    assert "Ready" in standing(doctor.answered(address))
    assert "No worker is running" not in doctor.page(address)


def job_of(clinic: Product, address: str) -> dict[str, Any]:
    (job,) = rows(
        clinic,
        "SELECT j.status, j.attempts FROM jobs_job j JOIN studies_studypicture p ON p.job_id = j.id"
        " WHERE p.study_id = %s",
        identity(address),
    )
    return job


def workers(clinic: Product) -> list[psutil.Process]:
    """The worker's process and all below it; none while it is down."""
    pid = clinic.pid_of("worker")
    try:
        worker = psutil.Process(pid) if pid is not None else None
        return [worker, *worker.children(recursive=True)] if worker is not None else []
    except psutil.NoSuchProcess:
        return []


def runtimes(clinic: Product) -> list[psutil.Process]:
    """The children in which the worker runs models."""
    found = []
    for process in workers(clinic):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "inference.worker_child" in process.cmdline():
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def killed(clinic: Product, address: str, attempt: int) -> bool:
    """Kills whatever runtime works while the study is in this attempt; whether the attempt is over."""
    job = job_of(clinic, address)
    if (job["status"], job["attempts"]) == ("running", attempt):
        kill(runtimes(clinic))
        return False
    return int(job["attempts"]) >= attempt


def test_a_killed_runtime_costs_a_study_one_attempt(clinic: Product, doctor: Person) -> None:
    address = doctor.sent(SLOW, "runtime killed", encoded(grey(46)))
    wait_for(lambda: killed(clinic, address, 1), 120, "the end of the first attempt")
    assert "Ready" in standing(doctor.answered(address, 240))
    assert job_of(clinic, address)["attempts"] >= 2


def test_a_killed_worker_costs_a_study_one_attempt(clinic: Product, doctor: Person) -> None:
    address = doctor.sent(SLOW, "worker killed", encoded(grey(47)))
    wait_for(lambda: job_of(clinic, address)["status"] == "running", 120, "the study at work")
    kill(workers(clinic))
    assert "The model is at work" in doctor.page(address)
    assert "Ready" in standing(doctor.answered(address, 300))
    assert job_of(clinic, address)["attempts"] >= 2


def test_a_study_whose_runtime_dies_each_time_fails_and_says_what_to_do(clinic: Product, doctor: Person) -> None:
    address = doctor.sent(SLOW, "killed each time", encoded(grey(48)))
    for attempt in (1, 2, 3):
        wait_for(lambda attempt=attempt: killed(clinic, address, attempt), 120, f"attempt {attempt}")  # type: ignore[misc]  # mypy infers no lambda with a default
    page = doctor.answered(address)
    assert standing(page) == "No suggestion"
    told = text_of(page)
    assert "Your pictures are safe, and you can read them without the suggestion" in told
    assert "Send it again as a new study" in told
    # It can be read all the same.
    given = doctor.post(f"{address}verdict/", answer="correct", labels="bright", expected_number="0")
    assert given.status_code == 302
    assert standing(doctor.page(address)) == "Read"
