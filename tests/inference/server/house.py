"""A data-plane process's application in memory, with a small team of keys, and documents that a test writes itself."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import msgspec
import uvicorn

from inference.contracts import (
    Access,
    AccessKey,
    CapturePolicy,
    Column,
    DeploymentRoute,
    Routes,
    Scope,
    Share,
    SpoolRecord,
    Task,
    VersionRoute,
)
from inference.runtime.onnx import load_model
from inference.server.app import App
from inference.server.auth import AccessTable
from inference.server.cache import Caches, Clock
from inference.server.connection import BoundedHttpProtocol
from inference.server.held import HeldRoutes
from inference.server.settings import Processes, Settings
from inference.spool import SpoolReader
from tests.inference import toys

OWNER, OUTSIDER, GUEST, READER, CALLER, TESTER = (
    "sb_owner",
    "sb_outsider",
    "sb_guest",
    "sb_reader",
    "sb_caller",
    "sb_test_t",
)
REVOKED, EXPIRED, LIMITED, ADMIN = "sb_revoked", "sb_expired", "sb_limited", "sb_admin"
ROW = [1.0, 2.0, 3.0]
BODY = b'{"instances": [[1.0, 2.0, 3.0]]}'


def key(name: str, **fields: Any) -> AccessKey:
    fields = {"team_id": "team", "scopes": (Scope.PREDICT, Scope.PIN, Scope.READ), **fields}
    return AccessKey(id=f"id-{name}", digest=hashlib.sha256(name.encode()).hexdigest(), **fields)


KEYS = (
    key(OWNER),
    key(OUTSIDER, team_id="another team"),
    key(GUEST, deployments=("d-another",)),
    key(READER, scopes=(Scope.READ,)),
    key(CALLER, scopes=(Scope.PREDICT,)),
    key(TESTER, test=True),
    key(ADMIN, scopes=(Scope.READ, Scope.UPLOAD, Scope.DEPLOY, Scope.ADMIN)),
    key(REVOKED, revoked=True),
    key(EXPIRED, expires_at=1.0),
    key(LIMITED, rate_per_minute=3),
)


def store(home: Path, data: bytes) -> str:
    """Put a model file where the control plane would; returns its sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = home / "artifacts" / sha256[:2] / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return sha256


def version(home: Path, number: int, data: bytes, **fields: Any) -> VersionRoute:
    """A version of a model file, its signature read from the file."""
    fields = {"task": Task.TENSOR, **fields}
    return VersionRoute(
        id=f"v{number}",
        model="toy",
        number=number,
        artifact_sha256=store(home, data),
        artifact_bytes=len(data),
        signature=load_model(data).signature,
        **fields,
    )


def linear(home: Path, number: int = 1) -> VersionRoute:
    """1 a + 2 b - 1 c + 0.5, with named columns."""
    columns = tuple(Column(name=name) for name in "abc")
    return version(home, number, toys.linear_regression(), task=Task.TABULAR_REGRESSION, columns=columns)


def deployment(*versions: VersionRoute, live: Mapping[int, int] | None = None, **fields: Any) -> DeploymentRoute:
    """The deployment `toy`; without `live` the first version has all traffic."""
    live = {versions[0].number: 10_000} if live is None else live
    shadow = fields.pop("shadow", {})
    fields = {"id": "d-toy", "name": "toy", "task": versions[0].task if versions else Task.TENSOR, **fields}
    return DeploymentRoute(
        team_id="team",
        model="toy",
        revision=7,
        salt="pepper",
        live=tuple(Share(number=n, basis_points=points) for n, points in live.items()),
        shadow=tuple(Share(number=n, basis_points=points) for n, points in shadow.items()),
        versions={version.number: version for version in versions},
        capture=CapturePolicy(hash_salt="ab" * 8),
        **fields,
    )


@dataclass
class House:
    """One application, and a client that speaks to it without sockets."""

    home: Path
    app: App
    client: httpx.AsyncClient
    caches: Caches
    access: Access = field(default_factory=lambda: Access(generation=1, keys=KEYS))

    async def hold(self, *deployments: DeploymentRoute, generation: int = 1) -> dict[str, Any]:
        """Load and hold these routes at once; returns what failed to load."""
        routes = Routes(generation=generation, deployments=deployments)
        failures = await self.app.registry.prepare(routes)
        self.app.holder.access = AccessTable(self.access)
        self.app.holder.routes = HeldRoutes.of(routes, self.app.registry, self.app.metrics, self.caches)
        self.app.registry.keep([routes])
        self.app.holder.ready = True
        return dict(failures)

    async def post(
        self, path: str = "/v1/models/toy:predict", content: Any = BODY, key: str = OWNER, **headers: str
    ) -> httpx.Response:
        """A POST by a key ("" for none); header names are given with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            given.setdefault("Authorization", f"Bearer {key}")
        return await self.client.post(path, content=content, headers=given)

    async def get(self, path: str, key: str = OWNER) -> httpx.Response:
        return await self.client.get(path, headers={"Authorization": f"Bearer {key}"} if key else {})

    def records(self) -> list[SpoolRecord]:
        """All that is in the log by now."""
        return [record for _, record in SpoolReader(self.home / "spool").records()]

    def served(self) -> list[SpoolRecord]:
        return [record for record in self.records() if record.status == 200]


def settings_of(home: Path, **fields: Any) -> Settings:
    base = Settings(
        home=home,
        host="127.0.0.1",
        port=0,
        web_processes=Processes(1, 1),
        secret_key="a secret of the tests",
        threads=2,
    )
    return replace(base, **fields)


@asynccontextmanager
async def open_house(home: Path, clock: Clock = monotonic, **settings: Any) -> AsyncIterator[House]:
    """A house with nothing deployed yet."""
    app = App(settings_of(home, **settings))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)  # type: ignore[arg-type]  # httpx's type of an app is narrower
    async with httpx.AsyncClient(transport=transport, base_url="http://signalbox") as client:
        try:
            yield House(home, app, client, Caches(app.metrics, clock))
        finally:
            await app.stop()


@asynccontextmanager
async def listening(house: House, **options: Any) -> AsyncIterator[int]:
    """The house behind a real socket, with the protocol of the front door; its port."""
    config = uvicorn.Config(
        house.app,
        http=BoundedHttpProtocol,
        port=0,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        **options,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # uvicorn offers no other way
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn tells it by nothing else
        await asyncio.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await task


async def call_asgi(app: Any, path: str, messages: list[dict[str, Any]], **scope: Any) -> list[dict[str, Any]]:
    """Call an application with these messages and then a hang-up; returns what it sent."""
    waiting = [*messages, {"type": "http.disconnect"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    base = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {OWNER}".encode())],
        "client": ("127.0.0.1", 5),
        "scheme": "http",
    }
    await app({**base, **scope}, receive, send)
    return sent


def with_fields(route: Any, **fields: Any) -> Any:
    """A copy of a published shape with other values."""
    return msgspec.structs.replace(route, **fields)
