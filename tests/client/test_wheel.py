"""The client as it is installed: a wheel built without a network, with all of the package in it and nothing else."""

import subprocess
import sys
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.unit

CLIENT = Path(__file__).resolve().parent.parent.parent / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text("utf-8"))["project"]
INFO = f"signalbox_client-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder), str(CLIENT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


def test_its_name_says_the_version_and_that_it_runs_anywhere(wheel: Path) -> None:
    assert wheel.name == f"signalbox_client-{PROJECT['version']}-py3-none-any.whl"


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    source = CLIENT / "src"
    package = {path for path in (source / "signalbox_client").rglob("*") if path.suffix in (".py", ".typed")}
    with ZipFile(wheel) as files:
        held = {name: files.read(name) for name in files.namelist() if not name.startswith(f"{INFO}/")}
    assert held == {path.relative_to(source).as_posix(): path.read_bytes() for path in package}
    assert "signalbox_client/py.typed" in held


def test_it_describes_itself(wheel: Path) -> None:
    with ZipFile(wheel) as files:
        told = message_from_bytes(files.read(f"{INFO}/METADATA"))
    assert (told["Name"], told["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (told["Requires-Python"], told["License-Expression"]) == (PROJECT["requires-python"], PROJECT["license"])
    assert sorted(told.get_all("Requires-Dist", [])) == sorted(PROJECT["dependencies"])
    assert told.get_payload() == (CLIENT / "README.md").read_text("utf-8")


def test_it_can_be_imported_out_of_the_wheel(wheel: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); import signalbox_client as s; print(s.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel))
