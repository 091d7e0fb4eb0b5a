"""Sends calls to the demo's deployments, and reports later what really happened to each."""

import json
import random
import signal
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from controlplane.local.demo.traffic import Sender, demo_key, deployed_cases


class Command(BaseCommand):
    help = "Keeps real requests with a known truth coming to the demo's deployments."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seconds", type=float, default=None, help="stop after so long; default: never")
        parser.add_argument("--rate", type=float, default=5.0, help="requests a second, to all of them together")
        parser.add_argument(
            "--drift", action="store_true", help="payments and visits that moved away from training, darker pictures"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        served = deployed_cases()
        if not served:
            raise CommandError("There is no demo here: run load_demo first.")
        host = f"[{settings.SIGNALBOX_HOST}]" if ":" in settings.SIGNALBOX_HOST else settings.SIGNALBOX_HOST
        key = demo_key([case.name for case in served])
        drift = 1.0 if options["drift"] else 0.0
        sender = Sender(f"http://{host}:{settings.SIGNALBOX_PORT}", key, served, drift)
        ends_at = time.monotonic() + options["seconds"] if options["seconds"] is not None else float("inf")
        due = time.monotonic()
        while not self._stopping and time.monotonic() < ends_at:
            sender.send_one()
            sender.report_truth(time.monotonic())
            # Poisson arrivals: the gaps of independent customers.
            due = max(due + random.expovariate(options["rate"]), time.monotonic() - 1)
            time.sleep(max(0.0, min(due, ends_at) - time.monotonic()))
        self.stdout.write(json.dumps({"sent": sender.sent, "failed": sender.failed, "truths": sender.truths}))

    def _stop(self, *_: object) -> None:
        self._stopping = True
