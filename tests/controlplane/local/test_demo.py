"""What the demo draws and sends; no product and no database."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from controlplane.catalog.descriptions import describe
from controlplane.local.demo import traffic
from controlplane.local.demo.cases import Case, cases, named
from controlplane.local.demo.traffic import Sender
from examples.card_fraud import generator as payments
from examples.chest_xray import generator as xrays
from examples.recommender import generator as visits
from inference.runtime.pictures import read_any

pytestmark = pytest.mark.unit

CALLS = 300
# Of two samples of CALLS and 4,000 of one distribution the Kolmogorov-Smirnov distance stays below this.
CHANCE = 0.12


@dataclass
class Door:
    """A front door that answers every call with an id, and keeps what it was sent."""

    address: str = ""
    status: int = 200
    calls: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@contextmanager
def opened() -> Iterator[Door]:
    door = Door()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            door.calls.append((self.path, dict(self.headers), body))
            self.send_response(door.status)
            self.send_header("X-Prediction-Id", f"00000000-0000-7000-8000-{len(door.calls):012d}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        door.address = f"http://127.0.0.1:{server.server_port}"
        yield door
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def door() -> Iterator[Door]:
    with opened() as found:
        yield found


def sender(door: Door, *served: Case, drift: float = 0.0) -> Sender:
    made = Sender(door.address, "sb_key", served, drift)
    made._rng = np.random.default_rng(7)
    return made


def columns_of(door: Door) -> dict[str, np.ndarray]:
    """What was sent, by column; of pictures brightness and contrast as the product measures them."""
    instances = [body["instances"][0] for _, _, body in door.calls]
    if "b64" in instances[0]:
        pixels = np.stack([decoded(instance["b64"]) for instance in instances]).astype(float)
        return {"mean": pixels.mean(axis=(1, 2)), "std": pixels.std(axis=(1, 2))}
    return {name: np.array([instance[name] for instance in instances]) for name in instances[0]}


def decoded(text: str) -> np.ndarray:
    from base64 import b64decode

    image, _, warnings = read_any(b64decode(text))
    assert not warnings
    return np.asarray(image)


def baseline(case: Case) -> dict[str, np.ndarray]:
    """The columns as in training."""
    rng = np.random.default_rng(8)
    if case.name == "chest-xray":
        pixels = xrays.pictures(4_000, rng).pixels.astype(float)
        return {"mean": pixels.mean(axis=(1, 2)), "std": pixels.std(axis=(1, 2))}
    drawn = payments.payments(4_000, rng) if case.name == "card-fraud" else visits.visits(4_000, rng)
    names = payments.COLUMNS if case.name == "card-fraud" else visits.COLUMNS
    return dict(zip(names, drawn.features.T, strict=True))


def distances(door: Door, case: Case) -> dict[str, float]:
    expected = baseline(case)
    return {name: float(ks_2samp(expected[name], found).statistic) for name, found in columns_of(door).items()}


SHIFTED = {"card-fraud": payments.SHIFTED, "recommender": visits.SHIFTED, "chest-xray": ("mean",)}


@pytest.mark.parametrize("name", SHIFTED)
def test_drifting_traffic_moves_the_named_columns_and_no_other(door: Door, name: str) -> None:
    client = sender(door, named(name), drift=1.0)
    for _ in range(CALLS):
        client.send_one()
    moved = distances(door, named(name))
    most = sorted(moved, key=lambda column: -moved[column])[: len(SHIFTED[name])]
    assert set(most) == set(SHIFTED[name])
    assert all(moved[column] > 1.5 * CHANCE for column in most)
    assert all(distance < CHANCE for column, distance in moved.items() if column not in most)


@pytest.mark.parametrize("name", SHIFTED)
def test_traffic_without_drift_is_as_in_training(door: Door, name: str) -> None:
    client = sender(door, named(name))
    for _ in range(CALLS):
        client.send_one()
    assert max(distances(door, named(name)).values()) < CHANCE


def test_every_case_gets_its_part_of_the_calls(door: Door) -> None:
    client = sender(door, *cases())
    for _ in range(200):
        client.send_one()
    paths = [path for path, _, _ in door.calls]
    assert {path: paths.count(path) > 0 for path in set(paths)} == {
        f"/v1/models/{case.name}:predict": True for case in cases()
    }
    assert client.sent == 200 and client.failed == 0


def test_pictures_are_sent_as_synthetic(door: Door) -> None:
    sender(door, named("chest-xray")).send_one()
    _, headers, body = door.calls[0]
    assert headers["X-Context"] == "picture=synthetic"
    assert decoded(body["instances"][0]["b64"]).shape == (28, 28)


def test_a_refusal_and_an_outage_are_counted(door: Door) -> None:
    door.status = 503
    client = sender(door, named("card-fraud"))
    client.send_one()
    away = Sender("http://127.0.0.1:9", "sb_key", [named("card-fraud")], 0.0)
    away.send_one()
    assert (client.failed, away.failed) == (1, 1)
    assert not client._waiting and not away._waiting


@pytest.mark.parametrize("name", SHIFTED)
def test_the_truth_is_told_late_and_once(door: Door, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    def give(key: str, labels: Mapping[str, str]) -> int:
        told.append(dict(labels))
        return len(labels)

    monkeypatch.setattr(traffic, "give_truths", give)
    monkeypatch.setattr(traffic, "close_old_connections", lambda: None)
    client = sender(door, named(name))
    for _ in range(40):
        client.send_one()
    began_at = client._reported_at
    client.report_truth(began_at + traffic.FEEDBACK_EVERY_S)
    assert told == []
    client.report_truth(began_at + traffic.TRUTH_AFTER_S + 60)
    client.report_truth(began_at + traffic.TRUTH_AFTER_S + 120)
    assert len(told) == 1 and 0 < client.truths == len(told[0]) < 40
    (said,) = {describe(dict(version)).labels for version in named(name).said}
    assert set(told[0].values()) <= set(said)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_case_describes_its_versions_and_its_calls_alike(case: Case) -> None:
    assert len(case.files) == len(case.said) == 2
    calls = case.draw(5, np.random.default_rng(9), 0.0)
    assert len(calls.tensor) == len(calls.truths) == 5 and calls.tensor.dtype == np.float32
    for said in case.said:
        read = describe(dict(said))
        assert set(calls.truths) <= set(read.labels)
        if read.columns:
            names = [column.name for column in read.columns]
            assert [calls.instance(2)[name] for name in names] == calls.tensor[2].tolist()
