"""Child processes that never outlive their parent, and how to find and stop those of an earlier, killed one."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from controlplane.local.home import Account

_PR_SET_PDEATHSIG = 1
MOST_GROUP_NICENESS = 5
_GROUP_TRIES = 5
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

# Whether the current folder and the environment of other processes can be read (Linux).
KNOWS_FOLDERS = Path("/proc/self/cwd").exists()

# Every child carries its home under this name, so that the next start finds what a killed runner left.
MARK = "SIGNALBOX_RUNNER_HOME"


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    orphan_signal: int = signal.SIGTERM,
    account: Account | None = None,
    niceness: int = 0,
    folder: Path | None = None,
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts `command` as the leader of its own session; the kernel sends it `orphan_signal` when this process dies.

    Call it from the main thread only: the kernel watches the thread that forked. `output` is a file descriptor for
    stdout and stderr (default: a pipe). As `account` where one is given. Raises OSError when it cannot be executed.
    """
    parent = os.getpid()

    def before_exec() -> None:
        # Last, for a change of account clears the request. The parent may have died before it was made.
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
        if niceness:
            os.nice(niceness)

    process = subprocess.Popen(
        list(command),
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        preexec_fn=before_exec,  # safe: the runner has one thread
    )
    if niceness:
        for _ in range(_GROUP_TRIES):
            if _yield_as_group(process.pid, niceness):
                break
            # Who is not root may do this ten times a second.
            time.sleep(0.1)
    return process


def yield_sessions(leader: int, niceness: int, yielded: set[int]) -> None:
    """Lower the sessions that children of a nice process lead, as each of PostgreSQL's backends does.

    `yielded`: of which children that is done; kept here.
    """
    try:
        children = {int(text) for text in Path(f"/proc/{leader}/task/{leader}/children").read_text().split()}
    except OSError:
        return
    yielded &= children
    for child in children - yielded:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(child) == child and _yield_as_group(child, niceness):
                yielded.add(child)


def _yield_as_group(leader: int, niceness: int) -> bool:
    """Lower a session's whole group where the kernel groups tasks by session: niceness counts within a group alone.

    By less than a process: a group at 19 gets one part in seventy of a busy machine, and then lags by minutes. From
    outside, since a child of another account may not. False where it has to be tried again.
    """
    with contextlib.suppress(OSError):
        try:
            Path(f"/proc/{leader}/autogroup").write_text(str(min(niceness, MOST_GROUP_NICENESS)))
        except BlockingIOError:
            return False
    return True


def kill_group(leader: int, number: int = signal.SIGKILL) -> None:
    """Signals what is left of the session that `leader` led; nothing happens where nothing is left."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return not KNOWS_FOLDERS
    return state not in ("Z", "X")


def wait_gone(pids: Iterable[int], within_s: float) -> set[int]:
    """Waits until none of `pids` runs; returns those that still do after `within_s` seconds."""
    left = set(pids)
    end = time.monotonic() + within_s
    while left := {pid for pid in left if is_alive(pid)}:
        if time.monotonic() >= end:
            break
        time.sleep(0.05)
    return left


def stop_stepwise(pids: Iterable[int], steps: Sequence[tuple[int, float]]) -> None:
    """Sends each (signal, seconds to wait) in turn to those of `pids` that still run."""
    left = set(pids)
    for number, within_s in steps:
        for pid in left:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue
        left = wait_gone(left, within_s)
        if not left:
            return


def _matching(test: Callable[[Path], bool]) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and test(entry):
                found.add(int(entry.name))
        except (OSError, ValueError):
            continue  # it ended meanwhile, or belongs to another user
    return {pid for pid in found if is_alive(pid)}


def running_in(folder: Path) -> set[int]:
    """Processes whose current folder is `folder` (PostgreSQL's is its data). Empty where that can't be known."""
    wanted = os.fspath(folder.resolve())
    return _matching(lambda entry: os.fspath((entry / "cwd").readlink()) == wanted)


def marked_with(home: Path) -> set[int]:
    """Processes that a runner of this home started, this process excepted. Empty where that can't be known."""
    wanted = f"{MARK}={home}".encode()
    return _matching(lambda entry: wanted in (entry / "environ").read_bytes().split(b"\0"))
