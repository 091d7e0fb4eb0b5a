"""The embedded PostgreSQL: private, recovering, and none of the wheel's own ways."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from controlplane.local import postgres as postgres_module
from controlplane.local.home import Home
from controlplane.local.postgres import POINTER, Postgres, embedded
from controlplane.local.processes import running_in, spawn, stop_stepwise
from controlplane.local.reset import reset
from tests.services import wait_for


@pytest.fixture
def home() -> Iterator[Home]:
    """A home that an unprivileged account can reach (pytest's own folders are closed)."""
    folder = Path(tempfile.mkdtemp(prefix="signalbox-home-"))
    folder.chmod(0o711)
    made = Home(folder / "home")
    made.create()
    yield made
    pointer = made.root / POINTER
    if pointer.exists():
        shutil.rmtree(pointer.read_text().strip(), ignore_errors=True)
    shutil.rmtree(folder)


class Server:
    """Starts and ends the servers of one test."""

    def __init__(self) -> None:
        self.started: list[tuple[Postgres, subprocess.Popen[bytes]]] = []

    def __call__(self, postgres: Postgres) -> subprocess.Popen[bytes]:
        """Prepares and starts it; returns once it takes connections."""
        postgres.prepare()
        with (postgres.home.log / "postgres.log").open("ab") as log:
            process = spawn(
                postgres.command(), environment={"LANG": "C"}, account=postgres.account, output=log.fileno()
            )
        self.started.append((postgres, process))
        wait_for(lambda: postgres.is_ready() or process.poll() is not None, 30, "PostgreSQL")
        assert process.poll() is None, (postgres.home.log / "postgres.log").read_text()
        return process


@pytest.fixture
def start() -> Iterator[Server]:
    server = Server()
    yield server
    for postgres, process in server.started:
        stop_stepwise(running_in(postgres.data), ((signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
        process.wait()


def test_a_cluster_is_made_private_and_keeps_what_is_written(home: Home, start: Server) -> None:
    postgres = embedded(home)
    process = start(postgres)
    url = postgres.ensure_database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        role = connection.execute("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert role.fetchone() == (False, False)
    assert {path.stat().st_mode & 0o777 for path in (postgres.folder, postgres.data, postgres.sockets)} == {0o700}
    assert {file.stat().st_mode & 0o777 for file in home.root.glob("database-password-*")} == {0o600}
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0

    again = embedded(home)
    start(again)
    assert again.ensure_database() == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_connection_without_the_password_is_refused(home: Home, start: Server) -> None:
    postgres = embedded(home, durable=False)
    start(postgres)
    url = postgres.ensure_database()
    wrong = url.replace(postgres.home.password("database-password-signalbox"), "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong).close()


def test_a_killed_server_is_recovered_with_all_that_was_committed(home: Home, start: Server) -> None:
    postgres = embedded(home)
    process = start(postgres)
    with psycopg.connect(postgres.ensure_database(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        process.kill()
        process.wait()
    start(postgres)
    with psycopg.connect(postgres.ensure_database()) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_server_that_still_runs_is_ended_before_the_next(home: Home, start: Server) -> None:
    postgres = embedded(home)
    first = start(postgres)
    postgres.ensure_database()
    start(postgres)
    assert first.wait(5) == 0
    postgres.ensure_database()


def test_a_stale_pid_file_of_a_reused_process_id_does_not_stop_the_start(home: Home, start: Server) -> None:
    postgres = embedded(home, durable=False)
    process = start(postgres)
    kept = (postgres.data / "postmaster.pid").read_text().splitlines()
    process.send_signal(signal.SIGINT)
    process.wait(20)
    # This test's own process id: alive, and no PostgreSQL.
    (postgres.data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *kept[1:]]))
    start(postgres)
    postgres.ensure_database()


def test_half_a_cluster_is_made_anew(home: Home, start: Server) -> None:
    postgres = embedded(home, durable=False)
    postgres.data.mkdir()
    (postgres.data / "base").mkdir()
    start(postgres)
    postgres.ensure_database()


def test_a_deep_home_still_gets_a_socket(home: Home, start: Server) -> None:
    deep = Home(home.root / ("deep" * 30) / "home")
    deep.root.parent.mkdir(mode=0o711)
    deep.create()
    postgres = embedded(deep, durable=False)
    try:
        start(postgres)
        assert len(os.fsencode(postgres.sockets)) <= 100
        psycopg.connect(postgres.ensure_database()).close()
    finally:
        stop_stepwise(running_in(postgres.data), ((signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
        shutil.rmtree(postgres.sockets)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server changes its account")
def test_below_a_closed_folder_roots_cluster_stands_elsewhere_and_is_found_again(home: Home, start: Server) -> None:
    home.root.parent.chmod(0o700)
    postgres = embedded(home, durable=False)
    assert postgres.is_elsewhere
    assert postgres.account is not None
    assert postgres.account.uid != 0
    start(postgres)
    postgres.ensure_database()
    home.root.parent.chmod(0o711)
    assert embedded(home).folder == postgres.folder
    (home.root / "secret-key").touch()
    stop_stepwise(running_in(postgres.data), ((signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
    assert reset(home, confirmed=False) == "Nothing was deleted."
    assert reset(home, confirmed=True) == ""
    assert not postgres.folder.exists()
    assert not home.root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server changes its account")
def test_programs_that_the_account_cannot_reach_are_copied(
    home: Home, start: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "controlplane.local.postgres.reachable", lambda path, account: path != postgres_module.installed() / "bin"
    )
    postgres = embedded(home, durable=False)
    start(postgres)
    psycopg.connect(postgres.ensure_database()).close()
    assert postgres.binaries().is_relative_to(postgres.folder)


@pytest.mark.unit
def test_reset_leaves_a_folder_alone_that_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    assert "left alone" in reset(Home(tmp_path), confirmed=True)
    assert (tmp_path / "thesis.txt").exists()
