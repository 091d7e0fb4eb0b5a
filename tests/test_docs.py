"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from scripts import errors_page

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
OPERATE = ROOT / "docs" / "operate.md"


def test_the_errors_page_is_made_from_the_table() -> None:
    assert errors_page.PAGE.read_text() == errors_page.page(), "run python scripts/errors_page.py"


def test_the_lock_names_no_index_and_hashes_everything() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "--index" not in lock and "--find-links" not in lock
    entries = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert all(line.endswith("\\") for line in entries), "every entry goes on with its hashes"
    assert len(entries) > 50


def test_every_setting_is_documented() -> None:
    """Each variable that the code reads stands in docs/operate.md, and nothing else does."""
    reads = re.compile(
        r"""(?:text|flag|integer|generated_secret|_value|_number)\(\s*(?:environ,\s*)?["']"""
        r"""(SIGNALBOX_[A-Z_]+|DATABASE_URL|REDIS_URL)["']"""
    )
    sources = [path for top in ("controlplane", "inference") for path in (ROOT / top).rglob("*.py")]
    read = {name for path in sources for name in reads.findall(path.read_text())}
    documented = set(re.findall(r"^\| `((?:SIGNALBOX_|DATABASE|REDIS)[A-Z_]+)`", OPERATE.read_text(), re.MULTILINE))
    assert read - documented == set(), "add these to docs/operate.md"
    assert documented - read - {"SIGNALBOX_ADMIN_PASSWORD", "SIGNALBOX_POSTGRES_FSYNC"} == set()


def test_documents_link_to_files_that_exist() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
