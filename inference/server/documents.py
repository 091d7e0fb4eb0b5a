"""Follows the published documents in PostgreSQL: access at once, routes in two phases. See docs/architecture.md.

When PostgreSQL is away the process goes on with what it holds; what it held last also lies in the home folder, signed,
so that a process that starts meanwhile serves too.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psycopg

from inference.contracts import Access, Routes
from inference.registry import Failure, Registry
from inference.residency import served_versions
from inference.server.auth import AccessTable
from inference.server.cache import Caches
from inference.server.held import HeldRoutes, Holder
from inference.server.limits import Quotas
from inference.server.metrics import Metrics
from inference.server.usage import Usage
from inference.snapshot import SnapshotRejectedError, open_access, open_routes

_log = logging.getLogger(__name__)

CHANNEL = "signalbox_documents"
POLL_S = 1.0
_RECONNECT_S = 1.0
_CONNECT_S = 5
_SILENT_S = 3
# A load that failed may have met an artifact store that was away: it is tried again, for the active routes alone.
_RETRY_LOAD_S = 5.0

_REPORT = """
INSERT INTO dataplane_process (id, host, pid, started_at, heartbeat_at, access_generation, prepared_generation,
                               active_generation, failed_generation, failures, loaded)
VALUES (%(id)s, %(host)s, %(pid)s, now(), now(), %(access)s, %(prepared)s, %(active)s, %(failed)s,
        %(failures)s::jsonb, %(loaded)s::jsonb)
ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(), access_generation = EXCLUDED.access_generation,
    prepared_generation = EXCLUDED.prepared_generation, active_generation = EXCLUDED.active_generation,
    failed_generation = EXCLUDED.failed_generation, failures = EXCLUDED.failures, loaded = EXCLUDED.loaded
"""
_LATEST_ACCESS = """
SELECT generation, body, signature FROM dataplane_document
WHERE kind = 'access' AND generation <> %s
  AND generation = (SELECT max(generation) FROM dataplane_document WHERE kind = 'access')
"""
_ACTIVE_ROUTES = """
SELECT generation, body, signature FROM dataplane_document
WHERE kind = 'routes' AND state = 'active' ORDER BY generation DESC LIMIT 1
"""
_PREPARING_ROUTES = """
SELECT generation, body, signature FROM dataplane_document
WHERE kind = 'routes' AND state = 'preparing' AND generation > %s ORDER BY generation DESC LIMIT 1
"""
# The lock makes one process the one that activates; the others find the row changed.
_MAY_ACTIVATE = """
SELECT 1 FROM dataplane_document
WHERE kind = 'routes' AND generation = %(generation)s AND state = 'preparing'
  AND NOT EXISTS (SELECT 1 FROM dataplane_process
                  WHERE heartbeat_at > now() - interval '5 seconds'
                    AND (prepared_generation < %(generation)s OR failed_generation = %(generation)s))
FOR UPDATE
"""
_SUPERSEDE = """
UPDATE dataplane_document SET state = 'superseded'
WHERE kind = 'routes' AND state IN ('active', 'preparing') AND generation < %(generation)s
"""
_ACTIVATE = """
UPDATE dataplane_document SET state = 'active', activated_at = now()
WHERE kind = 'routes' AND generation = %(generation)s
"""
_FAIL = """
UPDATE dataplane_document SET state = 'failed', failure = %(failure)s
WHERE kind = 'routes' AND generation = %(generation)s AND state = 'preparing'
"""

Document = TypeVar("Document")
Connection = psycopg.AsyncConnection[tuple[object, ...]]


class Follower:
    """Keeps `holder` at what is published. One per process; `run` until cancelled, then `leave`."""

    def __init__(
        self,
        *,
        database_url: str,
        secret: bytes,
        home: Path,
        holder: Holder,
        registry: Registry,
        metrics: Metrics,
        caches: Caches,
        quotas: Quotas,
    ) -> None:
        """`home`: the folder in which the last documents are kept (home/run/documents)."""
        # Process
        self._id = str(uuid.uuid4())
        self._url = database_url
        self._secret = secret
        self._kept = KeptDocuments(home / "run" / "documents", secret)
        self._holder = holder
        self._registry = registry
        self._metrics = metrics
        self._usage = Usage(quotas)
        self._caches = caches
        # What is held and reported
        self._active = Routes(generation=0)
        self._prepared: Routes | None = None
        self._failed_generation: int | None = None
        self._failures: dict[str, Failure] = {}
        self._retry_at = float("inf")
        # Whether activations wait for this process.
        self._is_listed = False
        # Connection
        self._access_woken = asyncio.Event()
        self._routes_woken = asyncio.Event()
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Serve what was held last, then follow the database, for ever; a lost connection is made again."""
        kept = await self._take_kept()
        while True:
            try:
                async with (
                    await self._connect() as connection,
                    await self._connect() as ear,
                    asyncio.TaskGroup() as tasks,
                ):
                    tasks.create_task(self._listen(ear))
                    tasks.create_task(self._beat(connection))
                    # Apart, so that a revocation never waits for a model to load.
                    tasks.create_task(self._follow(connection, self._access_woken, self._look_at_access))
                    tasks.create_task(self._follow(connection, self._routes_woken, self._look_at_routes))
            except* (psycopg.Error, OSError) as group:
                _log.warning("PostgreSQL is away, serving what is held: %s", type(group.exceptions[0]).__name__)
                self._holder.ready = self._holder.ready or kept
            await asyncio.sleep(_RECONNECT_S)

    async def leave(self) -> None:
        """Take this process off the list, so that no activation waits for it. No error where PostgreSQL is away."""
        try:
            async with await self._connect() as connection:
                await connection.execute("DELETE FROM dataplane_process WHERE id = %s", (self._id,))
        except (psycopg.Error, OSError):
            _log.warning("PostgreSQL is away at the end; the heartbeat runs out by itself")

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=_CONNECT_S,
            application_name="signalbox-inference",
            # A host that vanished without a word is noticed in seconds, so that no revocation waits behind it.
            keepalives_idle=_SILENT_S,
            keepalives_interval=1,
            keepalives_count=2,
            tcp_user_timeout=_SILENT_S * 1000,
        )

    async def _take_kept(self) -> bool:
        """Whether there were documents on disk to serve from."""
        access, routes = self._kept.read()
        if access is not None:
            self._holder.access = AccessTable(access)
        if routes is not None:
            await self._take_active(routes)
        return access is not None and routes is not None

    # Tasks while connected

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {CHANNEL}".encode())
        async for _ in connection.notifies():
            self._access_woken.set()
            self._routes_woken.set()

    async def _beat(self, connection: Connection) -> None:
        while True:
            await self._report(connection)
            async with self._lock:
                await self._usage.exchange(connection, self._holder.access.with_quota)
            await asyncio.sleep(POLL_S)

    async def _follow(
        self, connection: Connection, woken: asyncio.Event, look: Callable[[Connection], Awaitable[None]]
    ) -> None:
        while True:
            woken.clear()
            await look(connection)
            try:
                async with asyncio.timeout(POLL_S):
                    await woken.wait()
            except TimeoutError:
                continue

    async def _look_at_routes(self, connection: Connection) -> None:
        """One look at the routes documents, and all that follows from it."""
        await self._look_at_active(connection)
        if not self._is_listed:
            # Not before: an activation would wait for all that a new process loads. What was activated meanwhile is
            # read again, and nothing is activated without this process from here on.
            self._is_listed = True
            await self._report(connection)
            await self._look_at_active(connection)
        self._holder.ready = True
        await self._look_at_preparing(connection)

    async def _look_at_access(self, connection: Connection) -> None:
        row = await self._fetch(connection, _LATEST_ACCESS, (self._holder.access.generation,))
        if row is None:
            return
        _, body, signature = row
        try:
            access = open_access(self._secret, str(body).encode(), str(signature))
        except SnapshotRejectedError as error:
            _log.error("the access document was refused: %s", error)
            return
        self._holder.access = AccessTable(access)
        self._kept.write("access", str(body).encode(), str(signature))
        await self._report(connection)

    async def _look_at_active(self, connection: Connection) -> None:
        row = await self._fetch(connection, _ACTIVE_ROUTES, ())
        if row is None:
            return
        generation, body, signature = row
        if generation == self._active.generation and asyncio.get_running_loop().time() < self._retry_at:
            return
        prepared = self._prepared
        if prepared is not None and prepared.generation == generation:
            routes: Routes | None = prepared
        else:
            routes = self._opened(str(body).encode(), str(signature))
        if routes is not None:
            await self._take_active(routes)
            self._kept.write("routes", str(body).encode(), str(signature))
            await self._report(connection)

    async def _look_at_preparing(self, connection: Connection) -> None:
        row = await self._fetch(connection, _PREPARING_ROUTES, (self._active.generation,))
        if row is None:
            return
        generation, body, signature = row
        if generation == self._failed_generation:
            # Reported before, but the row was not reached: the connection was lost in between.
            await self._give_up(connection, int(str(generation)), self._failures)
            return
        if self._prepared is None or self._prepared.generation != generation:
            routes = self._opened(str(body).encode(), str(signature))
            failures = (
                {"": Failure("load_failed", "The document's signature is wrong.")}
                if routes is None
                else await self._registry.prepare(routes, self._active)
            )
            if failures or routes is None:
                await self._give_up(connection, int(str(generation)), failures)
                return
            self._prepared = routes
            self._failed_generation, self._failures = None, {}
            await self._report(connection)
        if await self._activate(connection, int(str(generation))):
            await self._look_at_active(connection)

    # Steps

    def _opened(self, body: bytes, signature: str) -> Routes | None:
        try:
            return open_routes(self._secret, body, signature)
        except SnapshotRejectedError as error:
            _log.error("the routes document was refused: %s", error)
            return None

    async def _take_active(self, routes: Routes) -> None:
        """Load what is not held yet (nothing, after both phases), swap, let go of what nobody needs."""
        coming = self._prepared if self._prepared and self._prepared.generation > routes.generation else None
        failures = await self._registry.prepare(routes, coming)
        for version, failure in failures.items():
            _log.error("version %s does not load: %s", version, failure.reason)
        self._retry_at = asyncio.get_running_loop().time() + _RETRY_LOAD_S if failures else float("inf")
        self._holder.routes = HeldRoutes.of(routes, self._registry, self._metrics, self._caches)
        self._active = routes
        if self._prepared is not None and self._prepared.generation <= routes.generation:
            self._prepared = None
        self._registry.keep(held for held in (self._active, self._prepared) if held is not None)
        self._metrics.counter("signalbox_routes_generation").set(routes.generation)

    async def _activate(self, connection: Connection, generation: int) -> bool:
        """Activate if every live process is prepared; whether this process did it."""
        argument = {"generation": generation}
        async with self._lock, connection.transaction():
            if await (await connection.execute(_MAY_ACTIVATE, argument)).fetchone() is None:
                return False
            await connection.execute(_SUPERSEDE, argument)
            await connection.execute(_ACTIVATE, argument)
            await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"activated:{generation}"))
        _log.info("routes generation %s is active", generation)
        return True

    async def _give_up(self, connection: Connection, generation: int, failures: dict[str, Failure]) -> None:
        """A version did not load: the generation fails, the active one goes on serving."""
        self._failed_generation, self._failures = generation, failures
        await self._report(connection)
        failure = " ".join(sorted({each.reason for each in failures.values()}))
        argument = {"generation": generation, "failure": failure}
        async with self._lock, connection.transaction():
            await connection.execute(_FAIL, argument)
            await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"failed:{generation}"))
        self._registry.keep(held for held in (self._active, self._prepared) if held is not None)
        _log.error("routes generation %s does not load: %s", generation, failure)

    async def _report(self, connection: Connection) -> None:
        if not self._is_listed:
            return
        loaded = {
            version.id: {
                "lane": "inline" if model.inline_cells else "executor",
                "cost_us": round(model.cost_s * 1e6, 1),
            }
            for version in served_versions(self._active)
            if (model := self._registry.get(version.artifact_sha256)) is not None
        }
        prepared = self._prepared.generation if self._prepared is not None else self._active.generation
        report = {
            "id": self._id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "access": self._holder.access.generation,
            "prepared": prepared,
            "active": self._active.generation,
            "failed": self._failed_generation,
            "failures": msgspec.json.encode(self._failures).decode(),
            "loaded": msgspec.json.encode(loaded).decode(),
        }
        async with self._lock:
            await connection.execute(_REPORT, report)

    async def _fetch(
        self, connection: Connection, query: str, arguments: tuple[object, ...]
    ) -> tuple[object, ...] | None:
        async with self._lock:
            return await (await connection.execute(query.encode(), arguments)).fetchone()


class KeptDocuments:
    """The documents that were held last, signed, in a folder of the home: what a process starts with."""

    def __init__(self, folder: Path, secret: bytes) -> None:
        self._folder = folder
        self._secret = secret

    def write(self, kind: str, body: bytes, signature: str) -> None:
        """Keep a document; a full disk is logged, serving goes on."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._folder / f".{kind}-{os.getpid()}"
            draft.touch(mode=0o600)
            draft.write_bytes(signature.encode() + b"\n" + body)
            draft.rename(self._folder / kind)
        except OSError as error:
            _log.warning("the %s document was not kept on disk: %s", kind, error.strerror)

    def read(self) -> tuple[Access | None, Routes | None]:
        """What is kept; None for what is absent or not signed with this installation's secret."""
        return self._opened("access", open_access), self._opened("routes", open_routes)

    def _opened(self, kind: str, open_document: Callable[[bytes, bytes, str], Document]) -> Document | None:
        try:
            signature, _, body = (self._folder / kind).read_bytes().partition(b"\n")
            return open_document(self._secret, body, signature.decode("ascii", "replace"))
        except FileNotFoundError:
            return None
        except (OSError, SnapshotRejectedError) as error:
            _log.warning("the %s document kept on disk is not used: %s", kind, error)
            return None
