"""Children are restarted, logged and ended together; nothing of them stays."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.local.errors import CannotStart
from controlplane.local.home import Home
from controlplane.local.processes import MOST_GROUP_NICENESS, is_alive, marked_with, spawn
from controlplane.local.supervisor import Service, StopRequested, Supervisor
from tests.services import REPOSITORY, wait_for

pytestmark = pytest.mark.unit

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
OPENER = (
    "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
)
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def supervisor(home: Home) -> Iterator[Supervisor]:
    """Signal handlers are the process's own; the test session gets them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with Supervisor(home) as running:
            yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def service(name: str, program: str, tier: int = 0, lasting: bool = True, drain_s: float = 5.0) -> Service:
    return Service(
        name, (sys.executable, "-c", program), tier, environment=dict(os.environ), lasting=lasting, drain_s=drain_s
    )


def log_of(home: Home, name: str) -> str:
    return (home.log / f"{name}.log").read_text()


def said(home: Home, name: str, times: int = 1) -> Callable[[], bool]:
    return lambda: log_of(home, name).count("up\n") >= times


def pid_of(home: Home, name: str) -> int:
    """The one process of this home; the status file tells it."""
    import json

    return int(json.loads(home.status_file.read_text())["processes"][name]["pid"])


def test_a_killed_child_is_back_within_five_seconds(home: Home, supervisor: Supervisor) -> None:
    supervisor.start(service("part", SLEEPER))
    assert supervisor.wait(said(home, "part"), 10)
    first = pid_of(home, "part")
    os.kill(first, signal.SIGKILL)
    began_at = time.monotonic()
    assert supervisor.wait(said(home, "part", 2), 10)
    assert time.monotonic() - began_at < 5
    assert pid_of(home, "part") != first


def test_what_a_killed_child_had_started_is_killed_too(home: Home, supervisor: Supervisor, tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'a').write(f'{{child.pid}}\\n')\nprint('up', flush=True)\ntime.sleep(600)"
    )
    supervisor.start(service("part", program))
    assert supervisor.wait(said(home, "part"), 10)
    grandchild = int((tmp_path / "pid").read_text().split()[0])
    os.kill(pid_of(home, "part"), signal.SIGKILL)
    assert supervisor.wait(lambda: not is_alive(grandchild), 5)


def test_a_child_that_ends_at_once_is_given_up_with_its_last_words(supervisor: Supervisor) -> None:
    supervisor.start(service("part", "print('the lamp is broken')\nraise SystemExit(3)"))
    with pytest.raises(CannotStart, match=r"part does not start \(the lamp is broken\): read .*part\.log"):
        supervisor.wait(lambda: False, 30, patience=2)


def test_restarts_slow_down_but_stay_below_five_seconds(home: Home, supervisor: Supervisor) -> None:
    supervisor.start(service("part", "print('up')"))
    assert not supervisor.wait(said(home, "part", 40), 2)
    assert 2 <= log_of(home, "part").count("up\n") <= 5


def test_a_task_gives_its_exit_status_and_its_whole_output(home: Home, supervisor: Supervisor) -> None:
    program = "for i in range(20000): print(f'line {i}')\nraise SystemExit(7)"
    assert supervisor.run(service("task", program, lasting=False), 30) == 7
    assert log_of(home, "task").splitlines()[-1] == "line 19999"


def test_a_task_that_takes_too_long_is_killed(supervisor: Supervisor) -> None:
    assert supervisor.run(service("task", STUBBORN, lasting=False), 1) == -signal.SIGKILL


def test_the_end_goes_from_the_highest_tier_down_and_kills_who_stays(home: Home, supervisor: Supervisor) -> None:
    ending = "import signal, sys, time\nfrom pathlib import Path\n" + (
        "def end(*_):\n    Path(sys.argv[1]).open('a').write(sys.argv[2] + ' ')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    order = home.root / "order"
    for name, tier in (("store", 0), ("work", 1), ("door", 2)):
        command = (sys.executable, "-c", ending, str(order), name)
        supervisor.start(Service(name, command, tier, environment=dict(os.environ)))
    supervisor.start(service("stubborn", STUBBORN, tier=1, drain_s=0.5))
    names = ("store", "work", "door", "stubborn")
    assert supervisor.wait(lambda: all(said(home, name)() for name in names), 10)
    supervisor.stop()
    assert order.read_text().split() == ["door", "work", "store"]
    assert marked_with(home.root) == set()


def test_a_second_runner_of_one_home_is_refused(home: Home, supervisor: Supervisor) -> None:
    with pytest.raises(CannotStart, match=rf"already runs .*process {os.getpid()}.*another SIGNALBOX_HOME"):
        Supervisor(home).__enter__()


def test_a_signal_ends_the_wait(supervisor: Supervisor) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested):
        supervisor.wait(lambda: False, 5)


def test_what_a_killed_runner_left_is_ended_by_the_next(home: Home) -> None:
    # Ignores its parent's death, as a program that is stuck would.
    left = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, "SIGNALBOX_RUNNER_HOME": str(home.root)},
        stdout=subprocess.PIPE,
    )
    assert left.stdout is not None
    assert left.stdout.readline() == b"up\n"
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1, 17)}
    try:
        with Supervisor(home):
            assert marked_with(home.root) == set()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert left.wait(5) == -signal.SIGKILL
    left.stdout.close()


def test_a_child_gets_its_signal_when_the_runner_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys\nfrom controlplane.local.processes import spawn\n"
        f"child = spawn([sys.executable, '-c', {SLEEPER!r}], environment=dict(os.environ))\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\nimport time; time.sleep(600)"
    )
    runner = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert runner.stdout is not None
    child = int(runner.stdout.readline())
    assert is_alive(child)
    runner.kill()
    runner.wait()
    runner.stdout.close()
    wait_for(lambda: not is_alive(child), 5, "the child's end")


def test_a_log_that_grew_large_is_moved_aside(
    home: Home, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.local.supervisor.LOG_FILE_BYTES", 1000)
    assert supervisor.run(service("task", "for i in range(100): print('x' * 50)", lasting=False), 30) == 0
    assert (home.log / "task.log.1").exists()
    assert (home.log / "task.log").stat().st_size <= 1100


def test_a_line_without_an_end_does_not_grow_in_memory(home: Home, supervisor: Supervisor) -> None:
    assert supervisor.run(service("task", "print('y' * 1_000_000, end='')", lasting=False), 30) == 0
    assert log_of(home, "task").count("y") == 1_000_000


def test_a_spawned_child_leads_its_own_session() -> None:
    child = spawn([sys.executable, "-c", SLEEPER], environment=dict(os.environ))
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert os.getsid(child.pid) == child.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_nice_child_yields_although_it_leads_its_own_session() -> None:
    child = spawn([sys.executable, "-c", SLEEPER], environment=dict(os.environ), niceness=19)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
        group = Path(f"/proc/{child.pid}/autogroup")
        if group.exists():
            assert group.read_text().split()[-1] == str(MOST_GROUP_NICENESS)
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="the kernel does not group tasks by session")
def test_sessions_that_a_nice_part_opens_later_yield_too(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.local.supervisor.EASE_EVERY_S", 0.0)
    supervisor.start(Service("part", (sys.executable, "-c", OPENER), 0, environment=dict(os.environ), niceness=5))
    part = supervisor._children["part"].process
    assert part is not None
    opened = Path(f"/proc/{part.pid}/task/{part.pid}/children")
    assert supervisor.wait(lambda: opened.read_text() != "", 30)
    child = int(opened.read_text())
    try:
        assert supervisor.wait(lambda: Path(f"/proc/{child}/autogroup").read_text().endswith("nice 5\n"), 30)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_program_that_cannot_be_executed_is_told(supervisor: Supervisor) -> None:
    with pytest.raises(CannotStart, match="/nowhere/python cannot be executed"):
        supervisor.start(Service("part", ("/nowhere/python",), 0, environment=dict(os.environ)))
