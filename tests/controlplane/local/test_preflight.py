"""What stops a start, and the sentence that says what to type."""

import socket
from pathlib import Path

import pytest

from controlplane.local import preflight, redis
from controlplane.local.errors import CannotStart

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_the_pythons_that_it_was_tested_with_are_accepted(version: tuple[int, int]) -> None:
    preflight.check_python(version)


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 13), (4, 0)])
def test_another_python_is_refused_with_what_to_type(version: tuple[int, int]) -> None:
    with pytest.raises(CannotStart, match=rf"this is {version[0]}\.{version[1]}: install python3\.12.*make run"):
        preflight.check_python(version)


def test_a_full_disk_is_told_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"Only 12 MB are free .* 500 are needed.*SIGNALBOX_HOME="):
        preflight.check_disk(tmp_path, free_bytes=12 * 2**20)


def test_a_disk_with_room_is_accepted(tmp_path: Path) -> None:
    preflight.check_disk(tmp_path, free_bytes=preflight.NEEDED_BYTES)


def test_a_port_in_use_is_told_with_another_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"Port {port} of 127\.0\.0\.1 is in use.*SIGNALBOX_PORT=\d+ make run"):
            preflight.free_port("127.0.0.1", port)


def test_port_nought_becomes_a_free_port() -> None:
    assert preflight.free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize("host", ["192.0.2.1", "not a host"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(CannotStart, match=r"use SIGNALBOX_HOST=127\.0\.0\.1"):
        preflight.free_port(host, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_plain_http_is_fine_on_this_machine(host: str) -> None:
    preflight.check_exposure(host, served_over_tls=False, insecure_http=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "signalbox.example.org"])  # noqa: S104 - no server here
def test_plain_http_to_the_network_has_to_be_asked_for(host: str) -> None:
    with pytest.raises(CannotStart, match="SIGNALBOX_INSECURE_HTTP=1"):
        preflight.check_exposure(host, served_over_tls=False, insecure_http=False)
    preflight.check_exposure(host, served_over_tls=True, insecure_http=False)
    preflight.check_exposure(host, served_over_tls=False, insecure_http=True)


def test_a_database_that_does_not_answer_is_told() -> None:
    with pytest.raises(CannotStart, match=r"PostgreSQL cannot be used .*DATABASE_URL"):
        preflight.check_database("postgresql://nobody:secret@127.0.0.1:1/none")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nowhere/redis.sock?virtual_host=0", "x://y"])
def test_a_redis_that_does_not_answer_is_told(url: str) -> None:
    with pytest.raises(CannotStart, match=r"Redis cannot be used .*REDIS_URL"):
        preflight.check_redis(url)


def test_without_a_redis_binary_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotStart, match="apt-get install redis-server"):
        redis.binary()


def test_a_redis_on_the_path_does_where_the_wheel_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(redis, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis.binary() == program


@pytest.mark.parametrize("value", ["1", "256", "1-4", "2-2"])
def test_processes_are_a_number_or_a_range(value: str) -> None:
    preflight.check_processes(value)


@pytest.mark.parametrize("value", ["0", "", "-", "4-1", "1-257", "1-2-3", "two", "1-", "0-3"])
def test_other_processes_are_refused_with_a_sentence(value: str) -> None:
    with pytest.raises(CannotStart, match="is not a whole number"):
        preflight.check_processes(value)
