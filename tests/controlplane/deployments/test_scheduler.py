"""The scheduler: what is due runs, a failure ends nothing, one process works and the other waits."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from django.conf import settings

from controlplane.deployments import periodic
from controlplane.deployments.periodic import Periodic
from controlplane.deployments.publishing import LOCK_SPACE
from controlplane.deployments.scheduler import LOCK, OneOfUs, Scheduler
from tests.services import REPOSITORY, clean_environment, wait_for


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.django_db
def test_functions_run_when_they_are_due() -> None:
    clock, ran = FakeClock(), []
    scheduler = Scheduler(
        [Periodic("slow", 10, lambda: ran.append("slow")), Periodic("quick", 1, lambda: ran.append("quick"))], clock
    )

    def run_due() -> list[str]:
        ran.clear()
        while scheduler.do_one():
            pass
        return sorted(ran)

    assert run_due() == ["quick", "slow"]
    assert scheduler.pause_s() == 1
    clock.now = 0.9
    assert run_due() == []
    clock.now = 5.5
    # Once, not five times: what was missed is not made up for.
    assert run_due() == ["quick"]
    clock.now = 10
    assert run_due() == ["quick", "slow"]


@pytest.mark.django_db
def test_a_failing_function_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    clock, ran = FakeClock(), []

    def fail() -> None:
        raise ValueError("no good")

    scheduler = Scheduler([Periodic("bad", 1, fail), Periodic("good", 1, lambda: ran.append(1))], clock)
    with caplog.at_level(logging.ERROR):
        for moment in (0.0, 1.0, 2.0):
            clock.now = moment
            while scheduler.do_one():
                pass
    assert len(ran) == 3
    assert caplog.text.count("periodic function bad failed") == 3
    assert "no good" in caplog.text


@pytest.mark.unit
def test_registering_twice_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_registered", {})
    periodic.register("a", 1, lambda: 1)
    periodic.register("a", 2, lambda: 2)
    assert [(found.name, found.every_s) for found in periodic.registered()] == [("a", 2)]
    with pytest.raises(ValueError, match="more than 0"):
        periodic.register("b", 0, lambda: None)


def test_this_room_registers_what_keeps_splits_settled() -> None:
    assert {"settle", "reconcile", "validations"} <= {found.name for found in periodic.registered()}


def test_one_holds_the_lock_until_its_session_ends(own_database: str) -> None:
    one, two = OneOfUs(), OneOfUs()
    try:
        assert one.held()
        assert one.held()
        assert not two.held()
        with psycopg.connect(own_database, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND classid = %s AND objid = %s",
                [LOCK_SPACE, LOCK],
            )
        # It finds out at its next look, gives up, and the other takes over.
        assert not one.held()
        assert two.held()
        assert not one.held()
    finally:
        one.release()
        two.release()


def test_the_command_is_nice_does_its_work_and_ends_on_sigterm(own_database: str, tmp_path: Path) -> None:
    environment = clean_environment(
        DATABASE_URL=own_database,
        REDIS_URL="redis+socket:///nonexistent/redis.sock",
        SIGNALBOX_HOME=str(tmp_path),
        SIGNALBOX_SECRET_KEY=settings.SECRET_KEY,
        SIGNALBOX_MASTER_KEY="m" * 40,
    )
    with (tmp_path / "scheduler.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "scheduler"], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
        )
    try:
        with psycopg.connect(own_database, autocommit=True) as look:

            def published() -> bool:
                row = look.execute("SELECT count(DISTINCT kind) FROM dataplane_document").fetchone()
                assert process.poll() is None, (tmp_path / "scheduler.log").read_text()
                return row == (2,)

            wait_for(published, 60, "the first documents")
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "scheduler.log").read_text()
