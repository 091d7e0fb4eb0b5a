"""Sends card payments to the demo deployment, and reports later what really happened to each."""

import itertools
import json
import logging
import random
import signal
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from controlplane.accounts.models import Team
from controlplane.accounts.queries import find_usable_key
from controlplane.accounts.services import DEFAULT_TEAM
from controlplane.audit.services import COMMAND, Actor
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.local.demo import NAME
from controlplane.predictions.feedback import Asker, give_feedback
from controlplane.predictions.truths import parse_id, read_statement
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


def give_truths(plain: str, labels: Mapping[str, str]) -> int:
    """Feedback by prediction id in the name of the key; returns how many were taken. Raises DatabaseError."""
    key = find_usable_key(plain)
    if key is None:
        logger.warning("truths cannot be given: the demo's key works no more")
        return 0
    actor = Actor(f"key:{key.label}", str(key.pk))
    deployments = {deployment.pk: deployment for deployment in Deployment.objects.for_key(key)}
    now = timezone.now()
    statements = [read_statement({"label": label}, now, parse_id(one)) for one, label in labels.items()]
    given = give_feedback(asker=Asker(actor, deployments, key), statements=statements)
    for refused in (one.error for one in given if one.error is not None):
        logger.warning("a truth was refused: %s", refused.code)
    return sum(one.error is None for one in given)


class Sender:
    """One client of the product: predictions through V1 of the front door, their truth as the API's key would say it.

    The truth goes to the service and not over http: with a public https address a plain call is sent there instead,
    and whether this host reaches that address is not the demo's business.
    """

    def __init__(self, base_url: str, key: str, drift: float) -> None:
        self.sent = self.failed = self.truths = 0
        self._base_url = base_url
        self._key = key
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
        if not answer:
            self.failed += 1
            return
        self.sent += 1
        self._waiting.append((time.monotonic(), answer, generator.LABELS[int(payment.labels[0])]))

    def report_truth(self, now: float) -> None:
        """What really happened to the payments that are old enough, at most every ten seconds."""
        if now - self._reported_at < FEEDBACK_EVERY_S:
            return
        self._reported_at = now
        due = [known for known in itertools.islice(self._waiting, 500) if now - known[0] >= TRUTH_AFTER_S]
        if not due:
            return
        try:
            close_old_connections()
            given = give_truths(self._key, {prediction_id: label for _, prediction_id, label in due})
        except DatabaseError as error:
            logger.warning("truths cannot be given now: %s", type(error).__name__)
            return
        for _ in due:
            self._waiting.popleft()
        self.truths += given

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
