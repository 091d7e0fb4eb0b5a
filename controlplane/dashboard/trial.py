"""Calls the front door as an app would: what the try-it page does."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from controlplane.deployments.services.trial import ARRIVES_WITHIN_S, TrialKey

ANSWER_WITHIN_S = 30.0
# Straight to the front door: a proxy of the host's environment would see the key and what was asked.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Answer:
    """The front door's answer: status 0 where it could not be reached. `document`: its JSON or None."""

    status: int
    headers: dict[str, str]
    document: Any
    took_ms: float

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def version(self) -> int | None:
        number = self.headers.get("x-model-version", "")
        return int(number) if number.isdigit() else None

    @property
    def prediction_id(self) -> str:
        return self.headers.get("x-prediction-id", "")

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")


def base_url() -> str:
    """Where the front door listens, as this process reaches it."""
    host = settings.SIGNALBOX_HOST
    loopback = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    return f"http://{f'[{loopback}]' if ':' in loopback else loopback}:{settings.SIGNALBOX_PORT}"


def public_url() -> str:
    """The address that apps use, for the examples."""
    return settings.SIGNALBOX_PUBLIC_URL or base_url()


def call(path: str, key: TrialKey, body: bytes, content_type: str) -> Answer:
    """POSTs to the front door and waits for the answer; an outage is an Answer too, never an exception.

    A fresh key that the front door does not know yet is waited for; any other refusal is the answer.
    """
    gives_up_at = time.monotonic() + (ARRIVES_WITHIN_S if key.is_fresh else 0.0)
    while True:
        answer = _call_once(path, key.token, body, content_type)
        if answer.status != 401 or time.monotonic() >= gives_up_at:
            return answer
        time.sleep(0.2)


def _call_once(path: str, key: str, body: bytes, content_type: str) -> Answer:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
    request = urllib.request.Request(base_url() + path, body, headers, method="POST")  # noqa: S310 - our front door
    started = time.monotonic()
    try:
        with _OPENER.open(request, timeout=ANSWER_WITHIN_S) as response:
            status, received, raw = response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        status, received, raw = error.code, dict(error.headers), error.read()
    except OSError:
        unreachable = {"error": "The front door does not answer at this address.", "code": "upstream_unavailable"}
        return Answer(0, {}, unreachable, (time.monotonic() - started) * 1000)
    took_ms = (time.monotonic() - started) * 1000
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    return Answer(status, {name.lower(): value for name, value in received.items()}, document, took_ms)
