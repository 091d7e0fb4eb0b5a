"""Documents published as the control plane does, by plain SQL; and the front door as its own process."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from inference.contracts import Access, DeploymentRoute, Routes
from inference.snapshot import derive_secret, encode, sign
from tests.inference.server.house import BODY, KEYS, OWNER
from tests.services import clean_environment, free_port, wait_for

SECRET = "a secret of the tests"
# By what the system is, not by what the product makes of it: that is what is tested.
_KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
needs_slices = pytest.mark.skipif(
    sys.platform != "linux" or _KERNEL < (6, 12) or platform.machine() not in ("x86_64", "aarch64"),
    reason="this system knows no slices",
)


@dataclass(frozen=True)
class Publisher:
    """Writes documents into a migrated database."""

    url: str

    def execute(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), arguments)
            return cursor.fetchall() if cursor.description else []

    def access(self, generation: int = 1, keys: Any = KEYS) -> None:
        self._publish("access", "active", Access(generation=generation, keys=tuple(keys)))

    def routes(self, generation: int, *deployments: DeploymentRoute) -> None:
        self._publish("routes", "preparing", Routes(generation=generation, deployments=deployments))

    def _publish(self, kind: str, state: str, document: Access | Routes) -> None:
        body = encode(document)
        self.execute(
            "WITH written AS (INSERT INTO dataplane_document (kind, generation, body, signature, state, created_at) "
            "VALUES (%s, %s, %s, %s, %s, now()) RETURNING kind || ':' || generation AS told) "
            "SELECT pg_notify('signalbox_documents', told) FROM written",
            kind,
            document.generation,
            body.decode(),
            sign(derive_secret(SECRET), body),
            state,
        )

    def state(self, generation: int) -> tuple[str, str]:
        """(state, failure) of a routes generation."""
        [row] = self.execute(
            "SELECT state, failure FROM dataplane_document WHERE kind = 'routes' AND generation = %s", generation
        )
        return str(row[0]), str(row[1])

    def processes(self) -> list[dict[str, Any]]:
        """What the processes report of themselves."""
        rows = self.execute("SELECT to_jsonb(dataplane_process) FROM dataplane_process")
        return [row[0] for row in rows]


@dataclass
class Door:
    """`python -m inference.server` on a free port of this machine."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = OWNER) -> httpx.Client:
        return httpx.Client(
            base_url=self.base_url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60.0
        )

    def children(self) -> list[int]:
        """The serving processes."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def predicts(self, version: str = "1") -> bool:
        """Whether a call is answered by this version now."""
        try:
            with self.client() as client:
                answer = client.post("/v1/models/toy:predict", content=BODY)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and answer.headers["x-model-version"] == version

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                return client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> float:
        """SIGTERM; the seconds until it ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began


@contextmanager
def open_door(
    home: Path, url: str, command: Sequence[str] = (sys.executable, "-m", "inference.server"), **settings: str
) -> Iterator[Door]:
    """A front door that is ready."""
    port = int(settings.get("SIGNALBOX_PORT", free_port()))
    environment = clean_environment(
        SIGNALBOX_HOME=str(home),
        SIGNALBOX_SECRET_KEY=SECRET,
        DATABASE_URL=url,
        **{"SIGNALBOX_WEB_PROCESSES": "1", "SIGNALBOX_PORT": str(port), **settings},
    )
    process = subprocess.Popen(command, env=environment)
    door = Door(process, port)
    try:
        wait_for(lambda: door.is_ready() or process.poll() is not None, 60, "the front door")
        yield door
    finally:
        if process.poll() is None:
            door.stop()


def until(done: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    wait_for(done, within_s, what)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
