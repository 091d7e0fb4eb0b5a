"""What is measured: the running product, with key, split and spool, and the bare servers beside it."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import numpy as np
import onnxruntime

from benchmarks.calls import MAIN, Case, call_of, scores_of
from benchmarks.load import Target, on_first_core, pin_to_first, pin_to_last
from benchmarks.models import MODELS, Model
from tests.services import REPOSITORY, Product, free_port, wait_for

NAME = MAIN.model.name
OURS = "Signalbox"


class Server(Protocol):
    """Something that answers calls."""

    @property
    def name(self) -> str: ...

    def target(self, case: Case) -> Target | None:
        """The case's call as this server takes it; None where it does not take its form."""


@dataclass(frozen=True, slots=True)
class Running:
    """The product under measurement; `key` may call every deployment and read its figures."""

    product: Product
    key: str
    models: tuple[str, ...]
    name: str = OURS

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def target(self, case: Case) -> Target:
        call = call_of(case)
        ending = f"/v1/models/{case.model.name}:predict" if case.form == "v1" else f"/v2/models/{case.model.name}/infer"
        return Target(self.name, self.product.base_url + ending, {**call.headers, **self.headers}, call.body)

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

    def calls_shown(self, client: httpx.Client, name: str = NAME) -> int:
        """How many calls the figures of the last hour count."""
        answer = client.get(f"/api/deployments/{name}/metrics/", params={"since": "1h"})
        answer.raise_for_status()
        return int(answer.json()["calls"])

    @property
    def is_quiet(self) -> bool:
        """Whether the ingester has shipped all that was spooled."""
        with self.client() as client:
            answer = client.get(f"/api/deployments/{self.models[0]}/metrics/", params={"since": "1h"})
        answer.raise_for_status()
        ingesters = answer.json()["data"]["ingesters"]
        return bool(ingesters) and all(one["lag_s"] == 0 for one in ingesters)

    def settle(self, every_s: float = 0.5) -> None:
        """Waits until it has nothing left to do of what went before, which would weigh on what is timed next."""
        wait_for(lambda: self.is_quiet, 900, "an idle ingester", every_s=every_s)

    @property
    def serving(self) -> list[int]:
        """The processes that answer predictions: the front door's children."""
        parent = self.product.pid_of("server")
        assert parent is not None
        return children_of(parent)


@contextmanager
def product(models: Sequence[str] = (NAME,), *, processes: int = 1, pinned: bool = True) -> Iterator[Running]:
    """The product as `make run` starts it: own PostgreSQL (durable) and Redis, each model split 90/10 in two versions.

    `pinned`: its serving processes are kept on the first processor, as every peer is, all others of it on the last,
    with the load: that they are there to log is for them to pay, not for the server to wait behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # As root the embedded PostgreSQL runs as another account, which has to walk through.
    folder.chmod(0o711)
    settings = {"SIGNALBOX_POSTGRES_FSYNC": "1", "SIGNALBOX_WEB_PROCESSES": str(processes)}
    started = Product(folder / "home", settings=settings)
    try:
        started.start()
        for name in models:
            _deploy(started, MODELS[name])
        running = Running(started, started.issue_key("bench", "--scope", "predict", "--scope", "read"), tuple(models))
        for name in models:
            target = running.target(Case(MODELS[name], "v2-binary", 1))
            wait_for(lambda to=target: answers(to), 60, f"the first answer of {name}")  # type: ignore[misc]
        if pinned:
            assert started.process is not None
            for pid in descendants_of(started.process.pid):
                pin_to_last(pid)
            for pid in running.serving:
                pin_to_first(pid)
        yield running
    finally:
        started.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _deploy(started: Product, model: Model) -> None:
    """Tabular models as such; the pictures as tensors, as the peers take them, for reading a PNG is another matter."""
    columns = ",".join(f"f{index:02d}" for index in range(model.shape[0]))
    extra = ["--columns", columns] if len(model.shape) == 1 else ["--task", "tensor"]
    for number in (1, 2):
        assert started.manage("register_model", model.name, str(model.file(number)), *extra) == str(number)
    assert started.manage("deploy", model.name, model.name, "--split", "1=90,2=10").endswith("serving")


@dataclass(frozen=True, slots=True)
class Bare:
    """A server of one model in one process, without anything around it."""

    name: str
    kind: str
    model: Model
    base_url: str

    def target(self, case: Case) -> Target | None:
        if case.model.name != self.model.name or (self.kind == "fastapi" and case.form != "v1"):
            return None
        call = call_of(case)
        return Target(self.name, f"{self.base_url}/{case.form}", call.headers, call.body)


BARE = {"bare ASGI": "asgi", "FastAPI": "fastapi"}


@contextmanager
def bare(name: str, model: Model) -> Iterator[Bare]:
    """A bare server of version 1, started and ended here."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare", BARE[name], str(model.file()), str(port)]
    server = subprocess.Popen(on_first_core(command), cwd=REPOSITORY)
    started = Bare(name, BARE[name], model, f"http://127.0.0.1:{port}")
    try:
        target = started.target(Case(model, "v1", 1))
        assert target is not None
        wait_for(lambda: server.poll() is not None or answers(target), 60, f"{name}'s first answer")
        yield started
    finally:
        server.terminate()
        server.wait(20)


def model_alone(model: Model, rows: int, seconds: float) -> dict[str, float]:
    """What ONNX Runtime does in a loop without HTTP, on the first processor: calls a second, median of a call."""
    command = [sys.executable, "-m", "benchmarks.bare", "loop", model.name, str(rows), str(seconds)]
    done = subprocess.run(on_first_core(command), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants_of(pid: int) -> list[int]:
    children = children_of(pid)
    return [*children, *(one for child in children for one in descendants_of(child))]


def answers(target: Target) -> bool:
    try:
        return _asked(target).status_code == 200
    except httpx.TransportError:
        return False


def _asked(target: Target) -> httpx.Response:
    return httpx.post(target.url, content=target.body, headers=dict(target.headers), trust_env=False, timeout=60)


def check(target: Target, case: Case, versions: Sequence[int] = (1,)) -> None:
    """Raises ValueError where the answer is not what one of the model's versions says of the call's rows."""
    answer = _asked(target)
    if answer.status_code != 200:
        raise ValueError(f"{target.name} answers {case.name} with {answer.status_code}: {answer.text[:500]}")
    scores = scores_of(case, answer.content, answer.headers)
    for number in versions:
        session = onnxruntime.InferenceSession(str(case.model.file(number)), providers=["CPUExecutionProvider"])
        wanted = session.run([case.model.outputs[-1]], {case.model.input: case.model.rows(case.rows)})[0]
        if scores.shape == wanted.shape and np.allclose(scores, wanted, atol=1e-4):
            return
    raise ValueError(f"{target.name} answers {case.name} with other scores than the model's")
