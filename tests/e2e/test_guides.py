"""The guide for app developers is true: its programs run, in their order, against the running product."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.control import control_of
from tests.services import REPOSITORY, Product, wait_for

pytestmark = pytest.mark.timeout(400)

GUIDE = REPOSITORY / "docs" / "guides" / "app-developer.md"
FRAUD = REPOSITORY / "examples" / "card_fraud"
NAME = "card-fraud"
OUTSIDE = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(product: Product) -> Iterator[dict[str, str]]:
    """The demo's deployment, and what the guide's first block leaves: the address and a key."""
    columns = (FRAUD / "reference.csv").read_text().partition("\n")[0].removesuffix(",target")
    with control_of(product) as control:
        if control.client.get(f"/api/deployments/{NAME}/").status_code == 404:
            for number in (1, 2):
                model = (FRAUD / f"card_fraud_v{number}.onnx").read_bytes()
                control.upload(NAME, model, columns=columns, labels="legitimate,fraud")
                version = control.validated(NAME, number)
                assert version["state"] == "ready", version["reason"]
            control.deploy(NAME, shares={"1": 90, "2": 10})
        first = blocks("bash")[0].replace("http://127.0.0.1:8000", product.base_url)
        first = first.replace(".venv/bin/python", sys.executable)
        usual = {**product.environment, **OUTSIDE}
        told = run(["bash", "-euc", f'{first}printf "%s\\n%s" "$SIGNALBOX_URL" "$SIGNALBOX_KEY"'], usual)
        url, key = told.splitlines()[-2:]
        with product.http(key) as client:
            wait_for(lambda: client.get("/v2").status_code != 401, 10, "the key at the front door")
        # The programs get these two and nothing else of the product.
        path = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        path["PYTHONPATH"] = str(REPOSITORY / "client" / "src")
        yield {**path, **OUTSIDE, "SIGNALBOX_URL": url, "SIGNALBOX_KEY": key}


@pytest.mark.parametrize("language", ["bash", "python", "javascript"])
def test_the_programs_run_in_their_order(language: str, environment: dict[str, str], tmp_path: Path) -> None:
    runner = {"bash": "bash", "python": sys.executable, "javascript": "node"}[language]
    for needed in (runner, "curl") if language == "bash" else (runner,):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed: apt-get install {'nodejs' if needed == 'node' else needed}")
    parts = blocks(language)[1:] if language == "bash" else blocks(language)
    program = tmp_path / {"bash": "guide.sh", "python": "guide.py", "javascript": "guide.mjs"}[language]
    program.write_text(("set -euo pipefail\n" if language == "bash" else "") + "\n".join(parts))

    told = run([runner, str(program)], environment)

    assert "label" in told


@pytest.mark.unit
def test_every_block_of_the_guide_is_one_that_runs() -> None:
    every = re.findall(r"^```(\w*)$", GUIDE.read_text(), re.MULTILINE)
    assert set(every[::2]) == {"bash", "python", "javascript"}
    assert set(every[1::2]) == {""}
