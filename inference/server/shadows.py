"""Shadow copies: a version is asked too, after the answer has left, and only logged."""

import asyncio
import logging
from functools import partial
from time import perf_counter
from types import ModuleType

from inference import capture
from inference.contracts import Lane, Outcome, Role, Source, SpoolRecord
from inference.errors import InferenceError
from inference.routing import uuid7
from inference.server.admission import Shares
from inference.server.asking import Ask
from inference.server.held import HeldDeployment, HeldVersion
from inference.server.metrics import Metrics
from inference.server.pictures import PictureRoom
from inference.server.protocols import Call
from inference.spool import SpoolWriter

_log = logging.getLogger(__name__)

MAX_RUNNING = 32
DEADLINE_S = 10.0


class Shadows:
    """Runs copies in the executor lane, which yields to live calls; when too many run, of all or of one
    deployment, further ones are dropped.
    """

    def __init__(
        self, spool: SpoolWriter, metrics: Metrics, pictures: PictureRoom, *, max_running: int = MAX_RUNNING
    ) -> None:
        self._spool = spool
        self._metrics = metrics
        self._pictures = pictures
        self._places = Shares(max_running)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        ask: Ask,
        deployment: HeldDeployment,
        live: HeldVersion,
        key: str,
        protocol: ModuleType,
        call: Call,
        body: bytes,
    ) -> None:
        """Begin the copies that the split wants of this call; returns at once."""
        for number in deployment.split.shadows_for(key):
            version = deployment.versions.get(number)
            if version is None or version.model is None or not self._places.take(deployment.route.id):
                name = deployment.route.name
                self._metrics.counter("signalbox_shadows_dropped_total", deployment=name, version=number).add()
                continue
            work = self._copy(ask, deployment, live, version, protocol, call, body)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, deployment.route.id))

    def _ended(self, deployment: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.give_back(deployment)

    async def drain(self) -> None:
        """Wait for the copies under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _copy(
        self,
        ask: Ask,
        deployment: HeldDeployment,
        live: HeldVersion,
        version: HeldVersion,
        protocol: ModuleType,
        call: Call,
        body: bytes,
    ) -> None:
        started = perf_counter()
        record = self._record(ask, version)
        try:
            await self._run(record, ask, deployment, live, version, protocol, call, body)
        except InferenceError as error:
            record.status, record.code = error.status, error.code
            record.outcome = Outcome.SERVER_ERROR if error.status >= 500 else Outcome.CLIENT_ERROR
        except Exception:  # boundary: a shadow never disturbs anything, but its fault is seen
            _log.exception("shadow copy failed: version %s", version.route.id)
            record.status, record.code, record.outcome = 500, "internal", Outcome.SERVER_ERROR
        record.total_ms = (perf_counter() - started) * 1000
        try:
            self._spool.append(record)
        except InferenceError:
            _log.error("a shadow copy was not logged: the spool's disk is full")

    @staticmethod
    def _record(ask: Ask, version: HeldVersion) -> SpoolRecord:
        """Without the caller's ids: feedback by client id and retries by key speak of the live answer."""
        record = ask.record(role=Role.SHADOW, record_id=uuid7())
        record.shadow_of = ask.id
        record.client_id = record.idempotency_key = ""
        record.pinned = False
        record.lane = Lane.EXECUTOR
        record.version_id, record.version = version.route.id, version.route.number
        if record.source is Source.LIVE:
            record.source = Source.SHADOW
        return record

    async def _run(
        self,
        record: SpoolRecord,
        ask: Ask,
        deployment: HeldDeployment,
        live: HeldVersion,
        version: HeldVersion,
        protocol: ModuleType,
        call: Call,
        body: bytes,
    ) -> None:
        route, deadline = version.route, asyncio.get_running_loop().time() + DEADLINE_S
        same = live.route
        if (route.signature.inputs, route.columns, route.preprocessor) != (
            same.signature.inputs,
            same.columns,
            same.preprocessor,
        ):
            call = protocol.decode(body, ask.headers, deployment.route, route)
            if call.pictures:
                decoded = await self._pictures.decode(call.pictures, route, deadline)
                call.inputs = {route.signature.inputs[0].name: decoded.tensor}
                record.pictures, record.warnings = decoded.stats, decoded.warnings
        record.rows = call.rows
        answer = await version.run_batched(call.inputs, call.rows, deadline)
        record.queue_ms, record.compute_ms = answer.queue_s * 1000, answer.compute_s * 1000
        capture.fill(record, route, deployment.route.capture, call.inputs, answer.outputs)
