"""docs/extend.md is true: what it shows is entered where it says, and works."""

import random
import re
import runpy
import sys
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from controlplane.accounts.models import Role, Team
from controlplane.monitoring import drift_tests
from controlplane.predictions.ingest import record_predictions
from inference.runtime import loading
from inference.server.protocols import table
from tests.controlplane.cast import new_user, person
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import served
from tests.inference import toys
from tests.inference.server.house import CALLER, deployment, linear, open_house, version

PAGE = Path(__file__).parent.parent / "docs" / "extend.md"


def block(kind: str, path: str) -> str:
    """The page's code that is a `file`, or a `line` of one."""
    (found,) = re.findall(
        rf"^```python {kind}={re.escape(path)}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(found)


def shown(source: str, folder: Path, **names: Any) -> dict[str, Any]:
    """What the names of a piece of code are once it has run with these `names`."""
    file = folder / "shown.py"
    file.write_text(source)
    return runpy.run_path(str(file), init_globals=names)


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModuleType]:
    """The page's file of this path, as the module that it would be."""
    path = str(request.param)
    name = path.removesuffix(".py").replace("/", ".")
    file = tmp_path / Path(path).name
    file.write_text(block("file", path))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[name]


@pytest.mark.django_db
def test_a_drift_test_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = "controlplane/monitoring/drift_tests.py"
    source = f"{block('file', path)}\nentered = ({block('line', path)})\n"
    tests = (*drift_tests.TESTS, *shown(source, tmp_path, **vars(drift_tests))["entered"])
    known = drift_tests.TESTS
    for where in [found for found in list(sys.modules.values()) if getattr(found, "TESTS", None) is known]:
        monkeypatch.setattr(where, "TESTS", tests)
    team = Team.objects.create(name="cards")
    model = make_model(team)
    versioned, deployed = make_version(model), make_deployment(team, model)
    generator, present = random.Random(3), time.time()
    for at, mean in ((present - 5400, 10.0), (present - 60, 14.0)):
        rows = [{"amount": [generator.gauss(mean, 1)], "age": [generator.gauss(40, 9)]} for _ in range(300)]
        record_predictions([served(deployed, versioned, at=at, features=row) for row in rows])

    caller = person(new_user("colleague", team, Role.VIEWER))
    told = caller.get(f"/api/deployments/{deployed.name}/drift/", since="1h").json()

    amount, age = told["features"]
    assert (amount["name"], age["name"], age["drifting"]) == ("amount", "age", False)
    assert "hellinger" in amount["by"]
    assert "hellinger" not in age["by"]


@pytest.mark.unit
@pytest.mark.parametrize("module", ["inference/runtime/reference_evaluator.py"], indirect=True)
async def test_a_runtime_is_a_file_and_a_line(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = f"entered = [{block('line', 'inference/runtime/loading.py')}]\n"
    entered = shown(source, tmp_path, reference_evaluator=module)["entered"]
    monkeypatch.setattr(loading, "LOADERS", [*entered, *loading.LOADERS])
    asking = onnx.load_from_string(toys.linear_regression())
    asking.metadata_props.add(key="runtime", value="reference")
    usual, other = version(tmp_path, 1, toys.linear_regression()), version(tmp_path, 2, asking.SerializeToString())
    async with open_house(tmp_path) as house:
        failures = await house.hold(deployment(usual, other, live={1: 9_999, 2: 1}))
        assert failures == {}
        loaded = [house.app.registry.get(each.artifact_sha256) for each in (usual, other)]
        assert [type(each.runtime).__name__ for each in loaded if each] == ["OnnxModel", "ReferenceModel"]
        first = await house.post("/v1/models/toy/versions/1:predict")
        second = await house.post("/v1/models/toy/versions/2:predict")
    assert (first.status_code, second.status_code) == (200, 200), second.text
    assert first.json()["predictions"][0] == pytest.approx(second.json()["predictions"][0])


@pytest.mark.unit
@pytest.mark.parametrize("module", ["inference/server/protocols/lines.py"], indirect=True)
async def test_a_protocol_is_a_file_and_a_line(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = f"entered = {{{block('line', 'inference/server/protocols/table.py')}}}\n"
    for name, spoken in shown(source, tmp_path, lines=module)["entered"].items():
        monkeypatch.setitem(table.PROTOCOLS, name, spoken)
    async with open_house(tmp_path) as house:
        await house.hold(deployment(linear(tmp_path)))
        answer = await house.post("/lines/toy", b'{"a": 1, "b": 2, "c": 3}\n\n{"a": 0, "b": 0, "c": 0}\n')
        usual = (await house.post()).json()["predictions"]
        pinned = await house.post("/lines/toy/versions/1", b"[1, 2, 3]")
        refused = [
            (await house.post("/lines/toy", content)).json()["code"] for content in (b"[1, 2\n3]", b'{"a": 1}', b"")
        ]
        statuses = [
            (await house.post("/lines/toy/versions/1", b"[1, 2, 3]", key=CALLER)).status_code,
            (await house.post("/lines/toy", b"[1, 2, 3]", key="")).status_code,
            (await house.post("/lines/nothing", b"[1, 2, 3]")).status_code,
            (await house.post("/lines", b"[1, 2, 3]")).status_code,
            (await house.get("/lines/toy")).status_code,
        ]
        assert [record.status for record in house.served()] == [200] * 3
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    first, second = answer.text.splitlines()
    assert (f"[{first},{second}]", pinned.text) == (f"[{usual[0]},[0.5]]".replace(" ", ""), first + "\n")
    assert refused == ["bad_json", "unknown_feature", "wrong_shape"]
    assert statuses == [403, 401, 404, 404, 405]


@pytest.mark.unit
def test_the_contract_of_the_page_is_the_example_of_the_tests() -> None:
    """Its files and lines are all of those above."""
    blocks = re.findall(r"^```python (\w+)=(\S+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(blocks) == sorted(
        (kind, path)
        for file, line in (
            ("controlplane/monitoring/drift_tests.py", "controlplane/monitoring/drift_tests.py"),
            ("inference/runtime/reference_evaluator.py", "inference/runtime/loading.py"),
            ("inference/server/protocols/lines.py", "inference/server/protocols/table.py"),
        )
        for kind, path in (("file", file), ("line", line))
    )
