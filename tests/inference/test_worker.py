"""Runtime hosts: batches, failures that stay with their item, children that die and come back."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from inference.contracts import Activation, Task, VersionRoute
from inference.runtime import picture_child
from inference.runtime.onnx import load_model
from inference.worker import RuntimeHost, WorkItem, WorkResult, cuda_devices
from tests.inference import toys
from tests.inference.runtime.picture_files import GREY_8, chest, encoded

SHARED = Path(__file__).parents[3] / "shared" / "data" / "xray"


class Stored:
    """A model's file, and a version that names it."""

    def __init__(self, folder: Path, data: bytes, **fields: Any) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.path = folder / digest
        self.path.write_bytes(data)
        given: dict[str, Any] = {
            "id": "v1",
            "model": "toy",
            "number": 1,
            "artifact_sha256": digest,
            "artifact_bytes": len(data),
            "signature": load_model(data).signature,
            "task": Task.TENSOR,
        }
        self.version = VersionRoute(**(given | fields))

    def run(self, host: RuntimeHost, *items: WorkItem, **options: Any) -> list[WorkResult]:
        return host.predict(self.version, str(self.path), items, **options)


@pytest.fixture(scope="module")
def host() -> Iterator[RuntimeHost]:
    with RuntimeHost("cpu", threads=1) as made:
        yield made
    picture_child.close_children()


@pytest.fixture
def linear(tmp_path: Path) -> Stored:
    return Stored(tmp_path, toys.linear_regression())


@pytest.fixture
def pictures(tmp_path: Path) -> Stored:
    return Stored(
        tmp_path,
        toys.picture_classifier(),
        task=Task.IMAGE_CLASSIFICATION,
        activation=Activation.SOFTMAX,
        labels=("clear", "nodule", "mass"),
        preprocessor=GREY_8,
    )


def row(*values: float) -> WorkItem:
    return WorkItem(inputs={"x": np.array([values], np.float32)})


def codes(results: list[WorkResult]) -> list[str]:
    return ["" if result.error is None else result.error.code for result in results]


def wait_until_gone(pid: int) -> None:
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_batch_gives_what_each_item_gives_alone(host: RuntimeHost, linear: Stored) -> None:
    rows = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    together = linear.run(host, *(row(*values) for values in rows))
    for values, result in zip(rows, together, strict=True):
        assert result.outputs is not None
        np.testing.assert_allclose(result.outputs["y"][0], values @ toys.SLOPES + toys.INTERCEPT, rtol=1e-5)
    assert {result.device for result in together} == {"cpu"}
    assert all(result.compute_ms > 0 and result.queue_ms >= 0 for result in together)


def test_items_of_several_rows_get_their_rows_back(host: RuntimeHost, linear: Stored) -> None:
    counts = [1, 5, 70, 2]
    items = [WorkItem(inputs={"x": np.full((count, 3), index, np.float32)}) for index, count in enumerate(counts)]
    results = linear.run(host, *items)
    shapes = [result.outputs["y"].shape for result in results if result.outputs is not None]
    assert shapes == [(count, 1) for count in counts]
    assert results[3].outputs is not None
    assert results[3].outputs["y"].tolist() == [[6.5], [6.5]]


def test_a_bad_item_fails_alone(host: RuntimeHost, linear: Stored) -> None:
    wide = WorkItem(inputs={"x": np.ones((1, 4), np.float32)})
    misnamed = WorkItem(inputs={"z": np.ones((1, 3), np.float32)})
    results = linear.run(host, row(1, 2, 3), wide, row(4, 5, 6), misnamed)
    assert codes(results) == ["", "model_rejected_input", "", "model_rejected_input"]
    assert results[2].outputs is not None


def test_a_row_that_breaks_the_shared_run_breaks_no_other(host: RuntimeHost, tmp_path: Path) -> None:
    lookup = Stored(tmp_path, toys.lookup())
    name = lookup.version.signature.inputs[0].name
    shape = [1 if size < 0 else size for size in lookup.version.signature.inputs[0].shape]
    items = [WorkItem(inputs={name: np.full(shape, value, np.int64)}) for value in (0, 10**6, 1)]
    assert codes(lookup.run(host, *items)) == ["", "model_rejected_input", ""]


@pytest.mark.parametrize("toy", ["half_precision", "text", "several", "dynamic"])
def test_tensors_of_every_kind_cross_the_wire(host: RuntimeHost, tmp_path: Path, toy: str) -> None:
    data = getattr(toys, toy)()
    stored = Stored(tmp_path, data)
    inputs = load_model(data).sample_inputs(2)
    wanted = load_model(data).run(inputs)
    (result,) = stored.run(host, WorkItem(inputs=inputs))
    assert result.outputs is not None
    for name, array in wanted.items():
        assert result.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(result.outputs[name], array)


def test_pictures_become_labelled_scores(host: RuntimeHost, pictures: Stored) -> None:
    sent = encoded(chest())
    results = pictures.run(host, WorkItem(pictures=[sent]), WorkItem(pictures=[sent, encoded(255 - chest())]))
    assert codes(results) == ["", ""]
    (answer,) = results[0].labelled
    assert set(answer["scores"]) == {"clear", "nodule", "mass"}
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert answer["label"] == max(answer["scores"], key=lambda label: answer["scores"][label])
    assert len(results[1].labelled) == 2
    assert results[1].labelled[0]["scores"] == pytest.approx(answer["scores"])
    assert results[0].stats[0]["sha256"] == hashlib.sha256(sent).hexdigest()
    assert [bool(warned) for warned in results[1].warnings] == [False, True]


def test_a_hostile_picture_fails_its_item_alone(host: RuntimeHost, pictures: Stored) -> None:
    good = WorkItem(pictures=[encoded(chest())])
    results = pictures.run(host, good, WorkItem(pictures=[b"MZ"]), WorkItem(pictures=[good.pictures[0], b""]), good)
    assert codes(results) == ["", "not_an_image", "not_an_image", ""]


def test_a_version_without_a_preprocessor_refuses_pictures_and_takes_tensors(
    host: RuntimeHost, pictures: Stored
) -> None:
    pictures.version = msgspec.structs.replace(pictures.version, preprocessor=None)
    name = pictures.version.signature.inputs[0].name
    tensor = WorkItem(inputs={name: np.zeros((1, 1, 8, 8), np.float32)})
    assert codes(pictures.run(host, WorkItem(pictures=[encoded(chest())]), tensor)) == ["bad_preprocessor", ""]


def test_a_file_with_another_hash_is_not_loaded(host: RuntimeHost, tmp_path: Path) -> None:
    stored = Stored(tmp_path, toys.classifier(scale=7.0))
    stored.path.write_bytes(toys.classifier(scale=8.0))
    assert codes(stored.run(host, row(1, 2, 3))) == ["load_failed"]


def test_a_missing_file_can_be_retried(host: RuntimeHost, tmp_path: Path) -> None:
    stored = Stored(tmp_path, toys.classifier(scale=9.0))
    stored.path.unlink()
    (result,) = stored.run(host, row(1, 2, 3))
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == ("version_not_ready", True)
    assert str(stored.path) not in result.error.message


def test_a_model_that_was_loaded_needs_its_file_no_more(host: RuntimeHost, linear: Stored) -> None:
    linear.run(host, row(1, 2, 3))
    linear.path.unlink()
    assert codes(linear.run(host, row(1, 2, 3))) == [""]


def test_the_least_recently_used_model_leaves_first(tmp_path: Path) -> None:
    first, second = Stored(tmp_path, toys.linear_regression()), Stored(tmp_path, toys.classifier())
    room = first.path.stat().st_size + second.path.stat().st_size - 1
    with RuntimeHost("cpu", threads=1, model_bytes=room) as host:
        name = second.version.signature.inputs[0].name
        first.run(host, row(1, 2, 3))
        second.run(host, WorkItem(inputs={name: np.ones((1, 3), np.float32)}))
        first.path.unlink()
        assert codes(first.run(host, row(1, 2, 3))) == ["version_not_ready"]


def test_a_child_that_is_killed_while_idle_is_replaced(host: RuntimeHost, linear: Stored) -> None:
    linear.run(host, row(1, 2, 3))
    before = host.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before)], timeout=10)
    assert codes(linear.run(host, row(1, 2, 3))) == [""]
    assert host.pid not in (None, before)


def test_a_child_that_dies_in_a_run_costs_its_batch_and_nothing_else(tmp_path: Path, linear: Stored) -> None:
    endless = Stored(tmp_path, toys.endless_loop())
    inputs = load_model(toys.endless_loop()).sample_inputs(1)
    with RuntimeHost("cpu", threads=1) as host:
        linear.run(host, row(1, 2, 3))
        victim = host.pid
        assert victim is not None

        def kill_when_busy() -> None:
            process = psutil.Process(victim)
            before = process.cpu_times().user
            while process.cpu_times().user < before + 0.2:
                time.sleep(0.02)
            process.kill()

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        results = endless.run(host, *[WorkItem(inputs=inputs)] * 3)
        killer.join(30)
        assert codes(results) == ["worker_lost"] * 3
        assert all(result.error is not None and result.error.retryable for result in results)
        assert codes(linear.run(host, row(1, 2, 3))) == [""]


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path, linear: Stored) -> None:
    endless = Stored(tmp_path, toys.endless_loop())
    inputs = load_model(toys.endless_loop()).sample_inputs(1)
    with RuntimeHost("cpu", threads=1) as host:
        linear.run(host, row(1, 2, 3))
        victim = host.pid
        assert codes(endless.run(host, WorkItem(inputs=inputs), timeout_s=0.5)) == ["worker_lost"]
        assert victim is not None
        wait_until_gone(victim)
        assert codes(linear.run(host, row(1, 2, 3))) == [""]


def test_batches_of_several_threads_take_turns(host: RuntimeHost, linear: Stored) -> None:
    sums: list[float] = []

    def work(value: float) -> None:
        for result in linear.run(host, row(value, 0, 0), row(value, 0, 0)):
            assert result.outputs is not None
            sums.append(float(result.outputs["y"][0, 0]))

    threads = [threading.Thread(target=work, args=(float(index),)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(sums) == sorted([index + 0.5 for index in range(6)] * 2)


def test_the_child_ends_when_its_host_closes(linear: Stored) -> None:
    host = RuntimeHost("cpu", threads=1)
    linear.run(host, row(1, 2, 3))
    child = host.pid
    host.close()
    assert child is not None
    wait_until_gone(child)
    assert host.pid is None


SCRIPT = """
import sys, threading
from pathlib import Path
import msgspec, numpy as np
from inference.contracts import VersionRoute
from inference.worker import RuntimeHost, WorkItem
version = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=VersionRoute)
host = RuntimeHost("cpu", threads=1)
item = WorkItem(inputs={"x": np.ones((1, 3), np.float32)})
assert host.predict(version, sys.argv[2], [item])[0].error is None
print(host.pid, flush=True)
threading.Event().wait()
"""


def test_the_child_ends_when_its_host_is_killed(tmp_path: Path, linear: Stored) -> None:
    described = tmp_path / "version.json"
    described.write_bytes(msgspec.json.encode(linear.version))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(described), str(linear.path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        wait_until_gone(child)


def test_a_daemonic_child_of_a_prefork_pool_may_hold_a_host(linear: Stored) -> None:
    """Celery's prefork children are daemonic: multiprocessing refuses them children of their own."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_run_in_daemon, args=(sender, msgspec.json.encode(linear.version), str(linear.path)), daemon=True
    )
    process.start()
    sender.close()
    assert receiver.poll(60)
    assert receiver.recv() == ["", 2.5]
    process.join(30)
    receiver.close()


def _run_in_daemon(sender: Any, described: bytes, path: str) -> None:
    version = msgspec.json.decode(described, type=VersionRoute)
    with RuntimeHost("cpu", threads=1) as host:
        (result,) = host.predict(version, path, [row(1, 1, 1)])
    assert result.outputs is not None
    sender.send([*codes([result]), float(result.outputs["y"][0, 0])])
    sender.close()


def test_no_secret_of_the_host_reaches_the_child(monkeypatch: pytest.MonkeyPatch, linear: Stored) -> None:
    monkeypatch.setenv("SIGNALBOX_SECRET_KEY", "hush")
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    with RuntimeHost("cpu", threads=1) as host:
        linear.run(host, row(1, 2, 3))
        environment = psutil.Process(host.pid).environ()
    assert not {"SIGNALBOX_SECRET_KEY", "DATABASE_URL"} & set(environment)


def test_onnx_runtime_reports_to_nobody() -> None:
    """The wheel of 1.31 writes a device id below the home and sends events unless this is set before its import."""
    asked = "import inference.runtime.onnx, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "1"


def test_the_device_is_the_first_gpu_or_the_cpu() -> None:
    assert RuntimeHost().device == ("cuda:0" if cuda_devices() else "cpu")


@pytest.mark.shared
def test_the_real_chest_model_gives_its_golden_scores_for_all_58_radiographs(host: RuntimeHost, tmp_path: Path) -> None:
    """The pipeline that its makers state; the scores came from ONNX Runtime on another processor."""
    if not (SHARED / "nih15_model" / "model.onnx").is_file():
        pytest.skip("the shared data is not there")
    with (SHARED / "nih15_expected_softmax.csv").open() as file:
        expected = list(csv.DictReader(file))
    labels = tuple(expected[0])[3:]
    stored = Stored(
        tmp_path,
        (SHARED / "nih15_model" / "model.onnx").read_bytes(),
        task=Task.IMAGE_CLASSIFICATION,
        activation=Activation.SOFTMAX,
        labels=labels,
        preprocessor={
            "do_grayscale": True,
            "size": {"height": 224, "width": 224},
            "resample": 2,
            "rescale_factor": 1 / 255,
            "image_mean": [0.485],
            "image_std": [0.229],
        },
    )
    items = [WorkItem(pictures=[(SHARED / "nih" / line["file"]).read_bytes()]) for line in expected]
    results = stored.run(host, *items)
    assert len(results) == 58
    assert codes(results) == [""] * 58
    for line, result in zip(expected, results, strict=True):
        (answer,) = result.labelled
        assert answer["label"] == line["top1"], line["file"]
        for label in labels:
            assert answer["scores"][label] == pytest.approx(float(line[label]), abs=0.02), line["file"]
        assert result.warnings == [[]], line["file"]
