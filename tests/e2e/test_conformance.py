"""The model zoo's and the operators' own cases through the whole product: uploaded, deployed, called by clients."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from tests.e2e.control import Control, control_of
from tests.services import Product

CONFORMANCE = Path(__file__).parents[3] / "shared" / "data" / "conformance"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the data folder beside the checkout is absent"),
]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """A folder of the ONNX project: a model with inputs and the outputs that they give."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name.lower().replace("_", "-")

    @property
    def model(self) -> bytes:
        return (self.folder / "model.onnx").read_bytes()

    def sets(self) -> list[tuple[Arrays, Arrays]]:
        """(inputs, outputs) by name, for each data set."""
        graph = onnx.load_from_string(self.model).graph
        constants = {constant.name for constant in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constants]
        outputs = [value.name for value in graph.output]
        folders = sorted(self.folder.glob("test_data_set_*"))
        return [(_read(folder, "input", inputs), _read(folder, "output", outputs)) for folder in folders]


def _read(folder: Path, side: str, names: list[str]) -> Arrays:
    arrays = {}
    for index, name in enumerate(names):
        content = (folder / f"{side}_{index}.pb").read_bytes()
        arrays[name] = numpy_helper.to_array(onnx.TensorProto.FromString(content))
    return arrays


def _cases(folder: str) -> list[Case]:
    return [Case(path.parent) for path in sorted(CONFORMANCE.glob(f"{folder}/*/model.onnx"))]


def _known_failures() -> dict[str, str]:
    listed = CONFORMANCE / "onnx_operators" / "known_load_failures.tsv"
    if not listed.is_file():
        return {}
    with listed.open(newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file, delimiter="\t")}


FAILURES = _known_failures()
ZOO = _cases("onnx_zoo")
OPERATORS = [case for case in _cases("onnx_operators") if case.folder.name not in FAILURES]
REJECTED = [case for case in _cases("onnx_operators") if case.folder.name in FAILURES]
SERVED = [*ZOO, *OPERATORS]


def _some(cases: list[Case]) -> list[Any]:
    """Every fourth case; the others are for `make prove`."""
    return [case if index % 4 == 0 else pytest.param(case, marks=pytest.mark.long) for index, case in enumerate(cases)]


every_case = pytest.mark.parametrize("case", [*ZOO, *_some(OPERATORS)], ids=lambda case: case.name)


@pytest.fixture(scope="module")
def control(product: Product, request: pytest.FixtureRequest) -> Iterator[Control]:
    """With the models of this run's cases uploaded, and those that can be served deployed; all are on their way before
    one is awaited."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params["case"].name for item in here if "case" in item.callspec.params}
    served = [case for case in SERVED if case.name in asked]
    with control_of(product) as control:
        for case in [*served, *(case for case in REJECTED if case.name in asked)]:
            control.upload(case.name, case.model)
        for case in served:
            version = control.validated(case.name)
            assert version["state"] == "ready", (case.name, version["reason"])
        control.deploy(*(case.name for case in served))
        yield control


def _assert_equal(case: Case, got: Arrays, wanted: Arrays) -> None:
    assert got.keys() == wanted.keys()
    # Sums of thousands of products differ in their last digits by the order in which a processor adds them up.
    absolute = 1e-3 if case in ZOO else 1e-5
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-3, atol=absolute)


@every_case
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_tritonclient_gets_the_expected_outputs(case: Case, binary: bool, product: Product, control: Control) -> None:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import np_to_triton_dtype

    client = InferenceServerClient(f"127.0.0.1:{product.port}", network_timeout=60.0)
    headers = {"Authorization": f"Bearer {control.key}"}
    try:
        for given, wanted in case.sets():
            inputs = []
            for name, array in given.items():
                tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
                tensor.set_data_from_numpy(array, binary_data=binary)
                inputs.append(tensor)
            outputs = [InferRequestedOutput(name, binary_data=binary) for name in wanted]
            result = client.infer(case.name, inputs, outputs=outputs, headers=headers)
            assert result.get_response()["model_version"] == "1"
            _assert_equal(case, {name: result.as_numpy(name) for name in wanted}, wanted)
    finally:
        client.close()


@every_case
def test_a_tensorflow_serving_call_gets_the_expected_outputs(case: Case, control: Control) -> None:
    address = f"/v1/models/{case.name}:predict"
    for given, wanted in case.sets():
        # As TensorFlow Serving's own examples send it, without a Content-Type of JSON.
        columns = {name: array.tolist() for name, array in given.items()}
        inputs = next(iter(columns.values())) if len(columns) == 1 else columns
        answer = control.client.post(address, json={"inputs": inputs}, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 200, answer.text
        named = answer.json()["outputs"]
        got = named if len(wanted) > 1 else {next(iter(wanted)): named}
        _assert_equal(case, _as_arrays(got, wanted), wanted)


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_a_tensorflow_serving_call_by_rows_gets_the_expected_outputs(case: Case, control: Control) -> None:
    for given, wanted in case.sets():
        (rows,), (expected,) = given.values(), wanted.values()
        body = {"signature_name": "serving_default", "instances": rows.tolist()}
        answer = control.client.post(f"/v1/models/{case.name}:predict", json=body)
        assert answer.status_code == 200, answer.text
        got = np.array(answer.json()["predictions"], expected.dtype)
        _assert_equal(case, {"": got}, {"": expected})


def _as_arrays(values: dict[str, Any], like: Arrays) -> Arrays:
    return {name: np.array(values[name], array.dtype) for name, array in like.items()}


@pytest.mark.parametrize("case", _some(REJECTED), ids=lambda case: case.name)
def test_what_the_runtime_cannot_load_is_rejected_in_words(case: Case, control: Control) -> None:
    version = control.validated(case.name)
    assert version["state"] == "rejected"
    assert version["code"] in ("unsupported_opset", "unsupported_operator", "load_failed")
    operator = FAILURES[case.folder.name].partition("implementation for ")[2].partition("(")[0]
    assert operator in version["reason"]
    for leaked in ("ONNXRuntimeError", "/", "Traceback", "::"):
        assert leaked not in version["reason"]
    made = control.client.post("/api/deployments/", json={"name": case.name, "model": case.name})
    assert made.status_code in (201, 409)
    split = control.client.post(f"/api/deployments/{case.name}/splits/", json={"shares": {"1": 100}})
    assert (split.status_code, split.json()["code"]) == (422, "unknown_version")
