"""What is measured: the running product, with key, split and spool, and the bare servers beside it."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.load import Target, pin_server
from benchmarks.model import COLUMNS, model_file, row
from tests.services import REPOSITORY, Product, free_port, wait_for

NAME = "bench"
BODY = json.dumps({"instances": [row()]}).encode()


@dataclass(frozen=True, slots=True)
class Running:
    """The product under measurement; `key` may call the deployment and read its figures."""

    product: Product
    key: str
    target: Target

    def client(self) -> httpx.Client:
        return self.product.http(self.key)

    @contextmanager
    def pages(self) -> Iterator[httpx.Client]:
        """A client that is signed in as the site admin."""
        with self.product.http() as client:
            form = client.get("/accounts/login/").text
            token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
            assert token is not None
            fields = {"login": "admin", "password": self.product.admin_password, "csrfmiddlewaretoken": token.group(1)}
            answer = client.post("/accounts/login/", data=fields, headers={"Referer": self.product.base_url})
            assert answer.status_code == 302, answer.text[:500]
            yield client

    def calls_shown(self, client: httpx.Client) -> int:
        """How many calls the figures of the last hour count."""
        answer = client.get(f"/api/deployments/{NAME}/metrics/", params={"since": "1h"})
        answer.raise_for_status()
        return int(answer.json()["calls"])


@contextmanager
def product() -> Iterator[Running]:
    """The product as `make run` starts it: own PostgreSQL (durable) and Redis, one serving process, a 90/10 split."""
    folder = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # As root the embedded PostgreSQL runs as another account, which has to walk through.
    folder.chmod(0o711)
    settings = {"SIGNALBOX_POSTGRES_FSYNC": "1", "SIGNALBOX_WEB_PROCESSES": "1"}
    running = Product(folder / "home", settings=settings)
    try:
        running.start()
        for number in (1, 2):
            file = str(model_file(number))
            assert running.manage("register_model", NAME, file, "--columns", ",".join(COLUMNS)) == str(number)
        assert running.manage("deploy", NAME, NAME, "--split", "1=90,2=10").endswith("serving")
        key = running.issue_key(NAME, "--scope", "predict", "--scope", "read", "--deployment", NAME)
        address = f"{running.base_url}/v1/models/{NAME}:predict"
        headers = {"Authorization": f"Bearer {key}"}
        wait_for(lambda: _answers(address, headers), 30, "the product's first answer")
        pid = serving_pid(running)
        pin_server(pid)
        yield Running(running, key, Target("Signalbox", address, headers, pid))
    finally:
        running.remove()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bare(kind: str, name: str) -> Iterator[Target]:
    """A bare server in one process."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare", kind, str(model_file(1)), str(port)]
    server = subprocess.Popen(command, cwd=REPOSITORY)
    address = f"http://127.0.0.1:{port}/predict"
    try:
        wait_for(lambda: server.poll() is not None or _answers(address, {}), 60, f"{name}'s first answer")
        pin_server(server.pid)
        yield Target(name, address, {}, server.pid)
    finally:
        server.terminate()
        server.wait(20)


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def serving_pid(running: Product) -> int:
    """The one process that answers predictions: the front door's child."""
    parent = running.pid_of("server")
    assert parent is not None
    (child,) = children_of(parent)
    return child


def _answers(address: str, headers: dict[str, str]) -> bool:
    try:
        answer = httpx.post(
            address, content=BODY, headers={"Content-Type": "application/json", **headers}, trust_env=False
        )
    except httpx.TransportError:
        return False
    return answer.status_code == 200
