"""Waits until the installation answers as a whole; the runner starts it once the parts run.

`python -m controlplane.local.probe http://HOST:PORT SECONDS` ends with 0 when the front door is ready, a page came
through Django, and a Celery worker answered a ping; else with 1 and a sentence on what did not.
"""

import http.client
import os
import socket
import sys
import time
from urllib.parse import urlsplit

from celery import Celery
from kombu.exceptions import OperationalError


def status_of(address: str, path: str, timeout_s: float = 5.0) -> int:
    """The HTTP status of a GET, 0 where nothing answered."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def front_door_is_ready(address: str) -> bool:
    return status_of(address, "/v2/health/ready") == 200


def page_answers(address: str) -> bool:
    """Also a redirect is an answer of Django: with a public https address it sends plain calls there."""
    return 200 <= status_of(address, "/accounts/login/", timeout_s=20.0) < 400


def pages_listen(upstream: str) -> bool:
    """Whether Django's processes take connections on their socket; asked first, for the front door logs a refusal."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(upstream)
    except OSError:
        return False
    return True


def worker_answers(broker: Celery, timeout_s: float = 1.0) -> bool:
    try:
        return bool(broker.control.ping(timeout=timeout_s, limit=1))
    except (OperationalError, OSError):
        return False


def first_silent(address: str, upstream: str, broker: Celery) -> str:
    """The first part that does not answer, "" when all do."""
    if not front_door_is_ready(address):
        return "the front door is not ready"
    if not pages_listen(upstream) or not page_answers(address):
        return "no page comes through Django"
    if not worker_answers(broker):
        return "no Celery worker answers"
    return ""


def main() -> int:
    address, within_s = sys.argv[1], float(sys.argv[2])
    end = time.monotonic() + within_s
    with Celery("probe", broker=os.environ["REDIS_URL"], set_as_current=False) as broker:
        while silent := first_silent(address, os.environ["SIGNALBOX_UPSTREAM"], broker):
            if time.monotonic() > end:
                sys.stdout.write(f"{silent} after {within_s:.0f} s\n")
                return 1
            time.sleep(0.25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
