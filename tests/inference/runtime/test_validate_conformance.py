"""ONNX's own backend tests and zoo models, with the outputs that their makers expect (rtol 1e-3)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from inference.contracts import Activation, Task, ValidationRequest
from inference.runtime.onnx import load_model
from inference.runtime.sandbox import Sandbox
from inference.runtime.validate import PRELOAD, validate_in_sandbox

DATA = Path(__file__).parents[4] / "shared" / "data"
CONFORMANCE = DATA / "conformance"
REFUSED = CONFORMANCE / "onnx_operators" / "known_load_failures.tsv"

pytestmark = [
    pytest.mark.unit,
    pytest.mark.shared,
    pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the shared data folder is absent"),
]


def folders() -> list[Path]:
    return sorted(path.parent for path in CONFORMANCE.glob("onnx_*/*/model.onnx"))


def refused() -> set[str]:
    if not REFUSED.exists():
        return set()
    return {line.split("\t")[0] for line in REFUSED.read_text().splitlines() if line}


SERVED = [folder for folder in folders() if folder.name not in refused()]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(preload=PRELOAD) as sandbox:
        yield sandbox


def tensor(path: Path) -> np.ndarray:
    array: np.ndarray = numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))
    return array


@pytest.mark.parametrize("folder", SERVED, ids=lambda folder: folder.name)
def test_a_model_gives_the_expected_outputs(folder: Path) -> None:
    model = load_model((folder / "model.onnx").read_bytes())
    for data_set in sorted(folder.glob("test_data_set_*")):
        feed = {spec.name: tensor(data_set / f"input_{index}.pb") for index, spec in enumerate(model.signature.inputs)}
        outputs = model.run(feed)
        for index, spec in enumerate(model.signature.outputs):
            expected = tensor(data_set / f"output_{index}.pb")
            np.testing.assert_allclose(outputs[spec.name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("folder", SERVED, ids=lambda folder: folder.name)
def test_a_model_passes_validation_with_its_golden_sets(sandbox: Sandbox, folder: Path) -> None:
    report = validate_in_sandbox(
        sandbox, ValidationRequest(model_path=str(folder / "model.onnx"), golden_path=str(folder))
    )
    assert report.ok, report.reason
    assert report.golden_sets == len(list(folder.glob("test_data_set_*")))


@pytest.mark.parametrize("name", sorted(refused()))
def test_what_the_runtime_cannot_run_is_refused_in_words(sandbox: Sandbox, name: str) -> None:
    folder = CONFORMANCE / "onnx_operators" / name
    report = validate_in_sandbox(sandbox, ValidationRequest(model_path=str(folder / "model.onnx")))
    assert (report.ok, report.code) == (False, "unsupported_operator")
    assert "Could not find an implementation for" in report.reason
    assert "ONNXRuntimeError" not in report.reason


def test_the_zoo_models_are_understood(sandbox: Sandbox) -> None:
    digits = validate_in_sandbox(
        sandbox, ValidationRequest(model_path=str(CONFORMANCE / "onnx_zoo/mnist_8/model.onnx"))
    )
    assert (digits.task, digits.activation) == (Task.IMAGE_CLASSIFICATION, Activation.SOFTMAX)
    larger = validate_in_sandbox(
        sandbox, ValidationRequest(model_path=str(CONFORMANCE / "onnx_zoo/super_resolution_10/model.onnx"))
    )
    assert (larger.ok, larger.task) == (True, Task.TENSOR)


def test_the_chest_model_is_batched_and_still_needs_its_softmax(sandbox: Sandbox) -> None:
    report = validate_in_sandbox(
        sandbox,
        ValidationRequest(model_path=str(DATA / "xray/nih15_model/model.onnx"), labels=tuple("abcdefghijklmno")),
    )
    assert report.ok, report.reason
    assert (report.task, report.activation) == (Task.IMAGE_CLASSIFICATION, Activation.SOFTMAX)
    assert report.signature is not None and report.signature.batched
    assert report.parameters > 1_000_000
