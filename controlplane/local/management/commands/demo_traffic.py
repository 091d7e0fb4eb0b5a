"""Sends card payments to the demo deployment, and reports later what really happened to each."""

import json
import logging
import random
import signal
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from controlplane.accounts.models import Team
from controlplane.accounts.queries import find_usable_key
from controlplane.accounts.services import DEFAULT_TEAM
from controlplane.audit.services import COMMAND
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.local.demo import NAME
from examples.card_fraud import generator
from inference.contracts import Scope

logger = logging.getLogger(__name__)

# The truth of a payment is known after a while, here after a minute or two.
TRUTH_AFTER_S = 60.0
FEEDBACK_EVERY_S = 10.0
KEY_LABEL = "demo traffic"


class Command(BaseCommand):
    help = "Keeps real requests with a known truth coming to the demo deployment."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seconds", type=float, default=None, help="stop after so long; default: never")
        parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
        parser.add_argument("--drift", action="store_true", help="payments that moved away from the training data")

    def handle(self, *args: Any, **options: Any) -> None:
        self._stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        host = f"[{settings.SIGNALBOX_HOST}]" if ":" in settings.SIGNALBOX_HOST else settings.SIGNALBOX_HOST
        sender = Sender(f"http://{host}:{settings.SIGNALBOX_PORT}", demo_key(), 1.0 if options["drift"] else 0.0)
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


def demo_key() -> str:
    """The demo's own API key: kept in the home (0600), issued anew where it is missing or no longer works."""
    file = Path(settings.SIGNALBOX_HOME) / "demo-key"
    if file.exists():
        kept = file.read_text().strip()
        if find_usable_key(kept) is not None:
            return kept
    team = Team.objects.get(name=DEFAULT_TEAM)
    deployment = Deployment.objects.get(name=NAME)
    scopes = [Scope.PREDICT.value, Scope.FEEDBACK.value]
    _, plain = issue_key_for(actor=COMMAND, team=team, label=KEY_LABEL, scopes=scopes, deployments=[deployment])
    file.touch(mode=0o600)
    file.write_text(plain + "\n")
    return plain


class Sender:
    """One client of the product: predictions through V1, their truth through the bulk feedback endpoint."""

    def __init__(self, base_url: str, key: str, drift: float) -> None:
        self.sent = self.failed = self.truths = 0
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._rng = np.random.default_rng()
        self._drift = drift
        self._waiting: deque[tuple[float, str, str]] = deque()
        self._reported_at = time.monotonic()

    def send_one(self) -> None:
        """One prediction; a refusal or an outage is counted, never raised."""
        payment = generator.payments(1, self._rng, self._drift)
        body = {"instances": [dict(zip(generator.COLUMNS, payment.features[0].tolist(), strict=True))]}
        answer = self._post(f"/v1/models/{NAME}:predict", body)
        if answer is None:
            self.failed += 1
            return
        self.sent += 1
        self._waiting.append((time.monotonic(), answer, generator.LABELS[int(payment.labels[0])]))

    def report_truth(self, now: float) -> None:
        """What really happened to the payments that are old enough, at most every ten seconds."""
        if now - self._reported_at < FEEDBACK_EVERY_S:
            return
        self._reported_at = now
        rows: list[dict[str, str]] = []
        while self._waiting and now - self._waiting[0][0] >= TRUTH_AFTER_S and len(rows) < 500:
            _, prediction_id, label = self._waiting.popleft()
            rows.append({"prediction_id": prediction_id, "label": label})
        if rows and self._post("/api/feedback/", {"feedback": rows}) is not None:
            self.truths += len(rows)

    def _post(self, path: str, body: dict[str, Any]) -> str | None:
        request = urllib.request.Request(  # noqa: S310 - our own front door
            self._base_url + path, json.dumps(body).encode(), self._headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                response.read()
                return str(response.headers.get("X-Prediction-Id", ""))
        except urllib.error.HTTPError as error:
            logger.warning("%s answered %s", path, error.code)
        except OSError as error:
            logger.warning("%s cannot be reached: %s", path, error)
        return None
