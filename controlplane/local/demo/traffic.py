"""The demo's traffic: real requests to the three deployments, and the truth about each a minute or two later."""

import itertools
import json
import logging
import random
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.queries import find_usable_key
from controlplane.accounts.services import DEFAULT_TEAM
from controlplane.audit.services import COMMAND, Actor
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.local.demo.cases import Case, cases
from controlplane.predictions.feedback import Asker, give_feedback
from controlplane.predictions.truths import parse_id, read_statement
from inference.contracts import Scope

logger = logging.getLogger(__name__)

# The truth of a call is known after a while, here after a minute or two.
TRUTH_AFTER_S = 60.0
FEEDBACK_EVERY_S = 10.0
KEY_LABEL = "demo traffic"


def deployed_cases() -> list[Case]:
    """The cases of the demo that are deployed here."""
    names = set(Deployment.objects.current().filter(name__in=[case.name for case in cases()]).values_list("name"))
    return [case for case in cases() if (case.name,) in names]


def demo_key(names: Sequence[str]) -> str:
    """The demo's own API key for these deployments: kept in the home (0600), issued anew where it no longer does."""
    file = Path(settings.SIGNALBOX_HOME) / "demo-key"
    if file.exists():
        kept = file.read_text().strip()
        key = find_usable_key(kept)
        if key is not None and set(names) <= set(_may_call(key)):
            return kept
    team = Team.objects.get(name=DEFAULT_TEAM)
    deployments = list(Deployment.objects.filter(name__in=names))
    scopes = [Scope.PREDICT.value, Scope.FEEDBACK.value]
    _, plain = issue_key_for(actor=COMMAND, team=team, label=KEY_LABEL, scopes=scopes, deployments=deployments)
    file.touch(mode=0o600)
    file.write_text(plain + "\n")
    return plain


def _may_call(key: ApiKey) -> list[str]:
    return list(Deployment.objects.for_key(key).values_list("name", flat=True))


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

    def __init__(self, base_url: str, key: str, served: Sequence[Case], drift: float) -> None:
        self.sent = self.failed = self.truths = 0
        self._base_url = base_url
        self._key = key
        self._cases = list(served)
        self._weights = [case.weight for case in self._cases]
        self._rng = np.random.default_rng()
        self._drift = drift
        self._waiting: deque[tuple[float, str, str]] = deque()
        self._reported_at = time.monotonic()

    def send_one(self) -> None:
        """One prediction of one of the cases, by their weights; a refusal or an outage is counted, never raised."""
        (case,) = random.choices(self._cases, self._weights)  # noqa: S311
        call = case.draw(1, self._rng, self._drift)
        answer = self._post(case, {"instances": [call.instance(0)]})
        if not answer:
            self.failed += 1
            return
        self.sent += 1
        if self._rng.random() < case.known:
            self._waiting.append((time.monotonic(), answer, call.truths[0]))

    def report_truth(self, now: float) -> None:
        """What really happened, of the calls that are old enough, at most every ten seconds."""
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

    def _post(self, case: Case, body: dict[str, Any]) -> str | None:
        """The prediction's id; None where there is none."""
        path = f"/v1/models/{case.name}:predict"
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        if case.context:
            headers["X-Context"] = ", ".join(f"{name}={value}" for name, value in case.context.items())
        request = urllib.request.Request(  # noqa: S310 - our own front door
            self._base_url + path, json.dumps(body).encode(), headers, method="POST"
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
