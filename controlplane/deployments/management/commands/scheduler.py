"""`manage.py scheduler`: keeps splits settled, lost work found, partitions made. A second one waits in reserve."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.deployments import periodic
from controlplane.deployments.scheduler import OneOfUs, Scheduler

NICENESS = 19
CHECK_LOCK_S = 5.0
LONGEST_PAUSE_S = 1.0


class Command(BaseCommand):
    help = "Runs the periodic functions of all rooms; one process of the installation at a time, the others wait."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        stopping = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            stopping.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        os.nice(NICENESS)
        one = OneOfUs()
        try:
            while not stopping.is_set():
                if one.held():
                    self._run(stopping, one)
                else:
                    stopping.wait(CHECK_LOCK_S)
        finally:
            one.release()

    def _run(self, stopping: threading.Event, one: OneOfUs) -> None:
        """Until it is told to stop, or is the one no more."""
        scheduler = Scheduler(periodic.registered())
        checked_at = time.monotonic()
        while not stopping.is_set():
            if time.monotonic() - checked_at > CHECK_LOCK_S:
                if not one.held():
                    return
                checked_at = time.monotonic()
            if not scheduler.do_one():
                stopping.wait(min(scheduler.pause_s(), LONGEST_PAUSE_S))
