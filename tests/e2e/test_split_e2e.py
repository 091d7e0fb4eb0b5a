"""Splits through the whole product: shares hold, keys stick, no call fails by a change, the log misses no answer."""

import itertools
import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import psycopg
import pytest

from tests.inference.toys import classifier
from tests.services import Product, wait_for

pytestmark = pytest.mark.timeout(400)

KEYS = 2000
BODY = {"instances": [[1.0, 2.0, 3.0]]}
CALLERS = 4
# A fresh salt is drawn each time, so the band is one that chance leaves seven times in a million runs.
DEVIATIONS = 4.5


@pytest.fixture(autouse=True)
def quiet_client(caplog: pytest.LogCaptureFixture) -> None:
    """A line a call would bury what failed."""
    caplog.set_level(logging.WARNING, logger="httpx")


@pytest.fixture(scope="module")
def model(product: Product, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registered model with two versions that are ready."""
    folder = tmp_path_factory.mktemp("models")
    for number, scale in ((1, 1.0), (2, 2.0)):
        file = Path(folder / f"{number}.onnx")
        file.write_bytes(classifier(scale=scale))
        assert product.manage("register_model", "split-e2e", str(file)) == str(number)
    return "split-e2e"


def deployed(product: Product, model: str, name: str, split: str) -> str:
    """Deploys and returns a key that may call and change the deployment."""
    assert product.manage("deploy", name, model, "--split", split).endswith("serving")
    scopes = [part for scope in ("predict", "pin", "deploy", "read") for part in ("--scope", scope)]
    key = product.issue_key(name, *scopes, "--deployment", name)
    with product.http(key) as client:
        wait_for(lambda: predict(client, name).status_code == 200, 20, "the first answer")
    return key


def predict(client: httpx.Client, name: str, sticky: str = "") -> httpx.Response:
    headers = {"X-Sticky-Key": sticky} if sticky else {}
    return client.post(f"/v1/models/{name}:predict", json=BODY, headers=headers)


def versions_by_key(product: Product, key: str, name: str) -> dict[str, str]:
    """Which version answers each of KEYS sticky keys."""

    def ask(numbers: range) -> dict[str, str]:
        answers = {}
        with product.http(key) as client:
            for number in numbers:
                answer = predict(client, name, f"customer-{number}")
                assert answer.status_code == 200, answer.text
                answers[f"customer-{number}"] = answer.headers["X-Model-Version"]
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(ask, [range(start, KEYS, CALLERS) for start in range(CALLERS)]))
    return dict(itertools.chain.from_iterable(answers.items() for answers in found))


def test_sticky_keys_follow_the_split_and_stay(product: Product, model: str) -> None:
    key = deployed(product, model, "split-band", "1=90,2=10")
    first = versions_by_key(product, key, "split-band")
    share = Counter(first.values())
    assert share["1"] + share["2"] == KEYS
    deviation = math.sqrt(KEYS * 0.1 * 0.9)
    assert abs(share["2"] - KEYS * 0.1) <= DEVIATIONS * deviation, share
    assert versions_by_key(product, key, "split-band") == first

    # More for version 2 moves keys to it, and takes none away.
    assert product.manage("deploy", "split-band", model, "--split", "1=70,2=30").endswith("serving")
    wait_for(second_revision(product, key, "split-band"), 5, "the second split on every process")
    second = versions_by_key(product, key, "split-band")
    assert all(second[customer] == "2" for customer, version in first.items() if version == "2")
    deviation = math.sqrt(KEYS * 0.3 * 0.7)
    assert abs(Counter(second.values())["2"] - KEYS * 0.3) <= DEVIATIONS * deviation


def second_revision(product: Product, key: str, name: str) -> Callable[[], bool]:
    def answered() -> bool:
        with product.http(key) as client:
            return {predict(client, name).headers["X-Split-Revision"] for _ in range(8)} == {"2"}

    return answered


class Callers:
    """Clients that call without a pause; each answer is kept as (moment, status, version, prediction id)."""

    def __init__(self, product: Product, key: str, name: str) -> None:
        self.answers: list[tuple[float, int, str, str]] = []
        self.broken = 0
        self._ending = threading.Event()
        self._product, self._key, self._name = product, key, name
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._ending.is_set():
            with self._product.http(self._key) as client:
                try:
                    while not self._ending.is_set():
                        answer = predict(client, self._name)
                        version = answer.headers.get("X-Model-Version", "")
                        prediction = answer.headers.get("X-Prediction-Id", "")
                        self.answers.append((time.monotonic(), answer.status_code, version, prediction))
                except httpx.TransportError:
                    self.broken += 1

    def more(self, count: int) -> None:
        """Waits for so many further answers."""
        wanted = len(self.answers) + count
        wait_for(lambda: len(self.answers) >= wanted, 60, f"{count} more answers")


def test_a_change_of_the_split_serves_within_2_s_and_no_call_fails(product: Product, model: str) -> None:
    key = deployed(product, model, "split-live", "1=100")
    with Callers(product, key, "split-live") as callers, product.http(key) as client:
        callers.more(50)
        asked_at = time.monotonic()
        change = {"shares": {"2": 100}, "expected_revision": 1, "reason": "a better one"}
        answer = client.post("/api/deployments/split-live/splits/?wait=10", json=change)
        told = answer.json()
        assert (answer.status_code, told["state"], told["revision"]) == (201, "active", 2)
        callers.more(50)
        back = client.post("/api/deployments/split-live/rollback/?wait=10", json={"reason": "not better"})
        assert (back.status_code, back.json()["state"]) == (201, "active")
        callers.more(50)
    assert callers.broken == 0
    assert {status for _, status, _, _ in callers.answers} == {200}
    first_new = next(at for at, _, version, _ in callers.answers if version == "2")
    assert first_new - asked_at <= 2.0
    last_old = max(at for at, _, version, _ in callers.answers if version == "1" and at < first_new + 60)
    assert last_old > first_new, "the roll-back served"


def test_every_answer_is_in_the_log_once_also_after_kill_9(product: Product, model: str) -> None:
    key = deployed(product, model, "split-log", "1=50,2=50")
    with psycopg.connect(product.settings["DATABASE_URL"], autocommit=True) as database:
        with Callers(product, key, "split-log") as callers:
            callers.more(100)
            rows = database.execute(
                "SELECT pid FROM dataplane_process WHERE heartbeat_at > now() - interval '3 seconds'"
            ).fetchall()
            os.kill(rows[0][0], signal.SIGKILL)
            killed_at = len(callers.answers)
            callers.more(200)
        ids = {UUID(prediction) for _, status, _, prediction in callers.answers if status == 200}
        assert len(ids) >= killed_at
        assert {status for _, status, _, _ in callers.answers} <= {200, 503}

        def logged() -> list[UUID]:
            return [
                row[0]
                for row in database.execute("SELECT id FROM prediction WHERE id = ANY(%s)", [list(ids)]).fetchall()
            ]

        # The ingester runs at the lowest priority: on a machine that is busy with other tests it may lag for long.
        wait_for(lambda: len(logged()) >= len(ids), 200, "every answer in the log")
        assert Counter(logged()) == Counter(ids)
