"""A peer is installed, started and ended without leaving anything; one that cannot be is a reason, not a failure."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.calls import CASES
from benchmarks.models import MODELS
from benchmarks.peers import PEERS, NotRunError, Peer, Start, serving
from benchmarks.subjects import answers
from tests.services import wait_for

# Leaves a child in a session of its own, as some servers do, and answers every POST with 200.
_SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid} {os.environ['MODEL']}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def _peer(*command: str, python: str = sys.executable, pins: tuple[str, ...] = ()) -> Peer:
    def started(start: Start) -> list[str]:
        return [sys.executable, *command]

    return Peer("Peer", "peer", "as the test says", pins, started, {"v1": "/v1"}, python)


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_peer_answers_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with serving(_peer("-c", _SERVER, str(told)), MODELS["net"], tmp_path) as running:
        target = running.target(CASES["net/v1/1"])
        assert target is not None and answers(target)
        assert running.target(CASES["net/v2/1"]) is None, "it takes V1 alone"
        assert running.target(CASES["trees/v1/1"]) is None, "it serves one model"
        server, child, model = told.read_text().split()
        assert model == str(MODELS["net"].file())
        assert _is_there(int(child))
        assert os.sched_getaffinity(int(child)) == {min(os.sched_getaffinity(0))}
    wait_for(lambda: not _is_there(int(server)) and not _is_there(int(child)), 20, "the end of both processes")


def test_a_peer_that_ends_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(NotRunError, match="it ended: RuntimeError: no such model"),
        serving(_peer("-c", "raise RuntimeError('no such model')"), MODELS["net"], tmp_path),
    ):
        pytest.fail("it does not answer")


def test_a_peer_without_its_python_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunError, match="virtual environment could not be made"):
        _peer(python=str(tmp_path / "no-python")).install(tmp_path)


def test_a_package_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    """A path, so that nothing is asked of an index."""
    missing = tmp_path / "missing-1.0-py3-none-any.whl"
    with pytest.raises(NotRunError, match="packages could not be installed"):
        _peer(pins=(str(missing),)).install(tmp_path / "cache")
    assert not (tmp_path / "cache" / "peer" / "installed").exists(), "the next run tries again"


@pytest.mark.unit
def test_every_peer_is_pinned_and_named_once() -> None:
    assert len({peer.folder for peer in PEERS}) == len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert all("==" in pin and "://" not in pin for pin in peer.pins), peer.name
        assert any(pin.startswith("onnxruntime==") for pin in peer.pins), "the product's own runtime"
