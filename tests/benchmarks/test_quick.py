"""Every measure of the running product works from end to end, in its short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import is_here
from tests.services import REPOSITORY, clean_environment

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not is_here(), reason="wrk is not installed"),
]


@pytest.mark.parametrize(
    "command",
    [("bench", "--only", "net/*/1"), ("open",), ("neighbours",), ("processes",), ("overload",)],
    ids=lambda command: command[0],
)
def test_a_quick_run_ends_with_figures_and_tables(command: tuple[str, ...], tmp_path: Path) -> None:
    name = command[0]
    page, out = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text((REPOSITORY / "docs" / "performance.md").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command, "--quick", "--write", str(page), "--out", str(out)],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(out.read_text())
    assert figures["machine"]["cores"] >= 1 and figures["quick"]
    assert json.loads(page.with_suffix(".json").read_text()) == {name: figures}
    assert done.stdout.strip() in page.read_text()
