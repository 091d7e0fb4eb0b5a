"""The sandbox: what a call gives back, what ends it, and what the child cannot reach."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import inference
from inference.errors import InferenceError
from inference.runtime import isolation
from inference.runtime.sandbox import Limits, Sandbox, SandboxKilled
from inference.runtime.sandbox_child import given_file, say

pytestmark = pytest.mark.unit

PROBES = "tests.inference.runtime.sandbox_probes"
LIMITS = Limits(memory_bytes=256 * 1024**2, cpu_s=10, wall_s=20, file_bytes=1024**2)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(preload=(PROBES,), package="tests.inference.runtime") as sandbox:
        yield sandbox


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} still lives"
    finally:
        os.close(descriptor)


def test_it_returns_what_the_function_returns(sandbox: Sandbox) -> None:
    assert sandbox.call(f"{PROBES}:echo", b"hello", LIMITS).output == b"hello"


def test_it_carries_an_empty_argument_and_64_megabytes(sandbox: Sandbox) -> None:
    assert sandbox.call(f"{PROBES}:echo", b"", LIMITS).output == b""
    large = os.urandom(1024) * 65536
    assert sandbox.call(f"{PROBES}:echo", large, LIMITS).output == large


def test_each_call_has_a_child_of_its_own(sandbox: Sandbox) -> None:
    first, second = (json.loads(sandbox.call(f"{PROBES}:pid", b"", LIMITS).output) for _ in range(2))
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] != os.getpid()


def test_calls_run_beside_each_other(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        arguments = [bytes([n]) * 1000 for n in range(12)]
        results = list(pool.map(lambda argument: sandbox.call(f"{PROBES}:echo", argument, LIMITS).output, arguments))
    assert results == arguments


def test_an_inference_error_arrives_whole(sandbox: Sandbox) -> None:
    with pytest.raises(InferenceError) as caught:
        sandbox.call(f"{PROBES}:refuse", b"", LIMITS)
    assert caught.value.code == "invalid_input"
    assert caught.value.message == "Column amount is missing."
    assert caught.value.errors == [{"loc": ["amount", 3], "msg": "is missing"}]


def test_lines_arrive_while_the_child_still_works(sandbox: Sandbox, tmp_path: Path) -> None:
    signal_file = tmp_path / "file"
    signal_file.touch()
    heard: list[list[bytes]] = []

    def hear(lines: list[bytes]) -> None:
        heard.append(lines)
        signal_file.write_bytes(b"go on")

    result = sandbox.call(f"{PROBES}:tell_and_wait", b"", LIMITS, file=signal_file, on_lines=hear)
    assert result.output == b"told"
    assert [line for lines in heard for line in lines] == [b"one", b"two", b"three"]
    assert heard[-1] == [b"three"]


def test_the_lines_of_a_child_that_died_are_heard(sandbox: Sandbox) -> None:
    heard: list[bytes] = []
    with pytest.raises(SandboxKilled):
        sandbox.call(f"{PROBES}:tell_and_die", b"", LIMITS, on_lines=heard.extend)
    assert heard == [b"one"]


def test_a_child_is_heard_to_a_bound_only(sandbox: Sandbox) -> None:
    heard: list[bytes] = []
    assert sandbox.call(f"{PROBES}:tell_without_end", b"", LIMITS, on_lines=heard.extend).output == b"told"
    assert 0 < len(heard) < 20
    assert sandbox.call(f"{PROBES}:tell_without_end", b"", LIMITS).output == b"told"


def test_a_file_is_handed_in_for_reading(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert sandbox.call(f"{PROBES}:read_file", b"", LIMITS, file=path).output == b"content"
    assert path.read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        sandbox.call(f"{PROBES}:read_file", b"", LIMITS, file=tmp_path / "none")


def test_outside_a_child_a_line_goes_nowhere_and_there_is_no_file() -> None:
    say(b"hello")
    with pytest.raises(ValueError, match="newline"):
        say(b"two\nlines")
    with pytest.raises(RuntimeError, match="child only"):
        given_file()


@pytest.mark.parametrize(
    ("function", "limits", "reason"),
    [
        ("hoard", LIMITS, "memory"),
        ("hoard_natively", LIMITS, "memory"),
        ("sleep", Limits(memory_bytes=256 * 1024**2, cpu_s=10, wall_s=0.3), "timeout"),
        ("spin", Limits(memory_bytes=256 * 1024**2, cpu_s=1, wall_s=20), "timeout"),
        ("segfault", LIMITS, "crash"),
        ("raise_unexpectedly", LIMITS, "crash"),
    ],
)
def test_a_child_that_misbehaves_is_ended_for_a_reason(
    sandbox: Sandbox, function: str, limits: Limits, reason: str
) -> None:
    with pytest.raises(SandboxKilled) as caught:
        sandbox.call(f"{PROBES}:{function}", b"", limits)
    assert caught.value.reason == reason
    assert sandbox.call(f"{PROBES}:echo", b"after", LIMITS).output == b"after"


def test_a_child_cannot_write_past_its_file_limit(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRWXU | stat.S_IRWXO)
    with pytest.raises(SandboxKilled):
        sandbox.call(f"{PROBES}:fill_disk", str(tmp_path / "fat").encode(), LIMITS)
    assert not (tmp_path / "fat").exists() or (tmp_path / "fat").stat().st_size <= LIMITS.file_bytes


def test_an_isolated_child_reaches_no_network_socket_file_or_process(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        argument = json.dumps([tcp.getsockname(), str(tmp_path / "s"), str(secret)]).encode()
        result = sandbox.call(f"{PROBES}:reach_out", argument, LIMITS)
    if not result.isolated:
        pytest.skip("this host allows neither network namespaces nor seccomp")
    opened = json.loads(result.output)
    assert not {"tcp", "unix", "fork", "exec", "kill", "write"} & set(opened)


def test_of_the_project_a_child_reads_the_package_alone(sandbox: Sandbox) -> None:
    """The default home, with its secrets, is a folder of the project."""
    if isolation._landlock_rules([]) is None:
        pytest.skip("this host has no Landlock")
    package = Path(inference.__file__).resolve().parent
    files = [str(package / "errors.py"), str(package.parent / "pyproject.toml")]
    assert json.loads(sandbox.call(f"{PROBES}:readable", json.dumps(files).encode(), LIMITS).output) == files[:1]


def test_a_child_sees_no_secret_of_the_environment_and_no_descriptor_of_others(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALBOX_SECRET_KEY", "hush")
    with Sandbox(preload=(PROBES,), package="tests.inference.runtime") as other:
        seen = json.loads(other.call(f"{PROBES}:environment", b"", LIMITS).output)
    assert not [name for name in seen["environ"] if name.startswith("SIGNALBOX")]
    # Standard streams, the output, the lines, and the descriptor that lists the folder.
    assert len(seen["descriptors"]) <= 6


def test_only_functions_of_the_package_may_be_named() -> None:
    with Sandbox() as closed:
        for function in (
            "os:system",
            "inference.errors:InferenceError",
            "inference.runtime.x",
            "inference.runtimes.a:b",
        ):
            with pytest.raises(ValueError, match="is not a function of"):
                closed.call(function, b"", LIMITS)


def test_a_lost_parent_is_replaced(sandbox: Sandbox) -> None:
    parent = json.loads(sandbox.call(f"{PROBES}:pid", b"", LIMITS).output)["parent"]
    os.kill(parent, signal.SIGKILL)
    assert json.loads(sandbox.call(f"{PROBES}:pid", b"", LIMITS).output)["parent"] != parent


def test_closing_ends_the_parent_and_its_running_children() -> None:
    sandbox = Sandbox(preload=(PROBES,), package="tests.inference.runtime")
    parent = json.loads(sandbox.call(f"{PROBES}:pid", b"", LIMITS).output)["parent"]
    failures: list[BaseException] = []

    def call() -> None:
        try:
            sandbox.call(f"{PROBES}:sleep", b"", LIMITS)
        except (SandboxKilled, RuntimeError) as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    children = Path(f"/proc/{parent}/task/{parent}/children")
    until = time.monotonic() + 20
    while not (running := children.read_text().split()):
        assert time.monotonic() < until
    os.kill(int(running[0]), signal.SIGKILL)
    thread.join(20)
    sandbox.close()
    assert [str(failure) for failure in failures] == ["memory"]
    _wait_until_gone(parent)


def test_the_parent_ends_when_its_owner_is_killed() -> None:
    """The owner is a fork of this process that starts a sandbox of its own, tells its parent's pid, and dies."""
    read, write = os.pipe()
    script = (
        "import json, os, sys\n"
        "from inference.runtime.sandbox import Limits, Sandbox\n"
        f"sandbox = Sandbox(preload=('{PROBES}',), package='tests.inference.runtime')\n"
        f"answer = sandbox.call('{PROBES}:pid', b'', Limits())\n"
        f"os.write({write}, answer.output)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], pass_fds=(write,), cwd=root, check=False)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        parent = json.loads(told.read())["parent"]
    _wait_until_gone(parent)
    assert not _alive(parent)
