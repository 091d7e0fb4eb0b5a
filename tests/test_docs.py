"""The documentation says what the code does."""

from pathlib import Path

import pytest

from scripts import errors_page

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent


def test_the_errors_page_is_made_from_the_table() -> None:
    assert errors_page.PAGE.read_text() == errors_page.page(), "run python scripts/errors_page.py"


def test_the_lock_names_no_index_and_hashes_everything() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "--index" not in lock and "--find-links" not in lock
    entries = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert all(line.endswith("\\") for line in entries), "every entry goes on with its hashes"
    assert len(entries) > 50
