"""The hot path, on one screen: `Predictor.at_once` takes a call on, `Predictor.end_turn` answers those of a turn."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from inference import capture
from inference.batching import MAX_BEHIND, Answer
from inference.contracts import DeploymentRoute, Lane, Source, SpoolRecord
from inference.errors import InferenceError
from inference.limits import Allowance
from inference.packing import Packer
from inference.registry import cells_of
from inference.server.addresses import Address
from inference.server.admission import Admission
from inference.server.aside import LARGE_BYTES, Aside
from inference.server.asking import Ask, Retries
from inference.server.choosing import choose_version, find_deployment, require_rights
from inference.server.held import HeldDeployment, HeldRoutes, HeldVersion, Holder
from inference.server.jobs import JobLane
from inference.server.lateness import LATE_S, waited_s
from inference.server.limits import KeyLimits
from inference.server.metrics import Metrics
from inference.server.pictures import PictureRoom
from inference.server.protocols import Call, Headers
from inference.server.protocols.table import PROTOCOLS
from inference.server.refusals import Refusals
from inference.server.rehearsal import HEADER, SLOW_S, rehearse
from inference.server.replies import (
    ClientGoneError,
    HeaderList,
    Receive,
    Scope,
    Send,
    error_body,
    error_headers,
    read_body,
    refuse_unread,
    reply,
    too_large,
    unless_gone,
)
from inference.server.shadows import Shadows
from inference.server.turn import MOST_GATHERED, Gathered, Reply, Whole, run_turn, write_turn
from inference.spool import SpoolWriter, encoded

_log = logging.getLogger(__name__)

# The rest of a call, to be awaited as an ASGI application.
Rest = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Predictor:
    """Answers prediction calls of this process with what `holder` holds."""

    holder: Holder
    admission: Admission
    limits: KeyLimits
    spool: SpoolWriter
    metrics: Metrics
    refusals: Refusals
    retries: Retries
    shadows: Shadows
    pictures: PictureRoom
    jobs: JobLane
    # Bytes a second.
    min_body_rate: int
    aside: Aside = field(default_factory=Aside)
    packer: Packer = field(default_factory=Packer)
    _turn: list[Gathered] = field(default_factory=list)
    _in_turn: bool = False
    _late: bool = False

    def at_once(self, headers: Headers, address: Address, body: bytes, reply: Reply, fd: int) -> Rest | None:
        """Answer a call that is all here, where the model is quick and so nothing has to be awaited: by `reply`, at the
        latest when this turn of the event loop ends. Of any other call the rest of the work. Nothing is raised.

        `fd`: of the socket that brought it, -1 where it is not to be asked for how long it had it.
        """
        ask = Ask(headers, address)
        if not self._in_turn:
            self._begin_turn(fd)
        if self._late:
            ask.arrived_s_ago(waited_s(fd))
        admitted = False
        try:
            self.admission.enter()
            admitted = True
            routes = self.holder.routes
            deployment = self._begin(ask, routes)
            route = deployment.route
            version = ask.version = choose_version(deployment, address, ask.routing_key)
            self._require_room(route, version, len(body))
            call: Call = PROTOCOLS[address.protocol].decode(body, headers, route, version.route)
            _accept(ask, call, route)
            answer = None if version.cache is None or call.pictures or ask.rehearsal else version.cache.find(call)
            if answer is None and _has_to_wait(ask, version, call, route):
                self.admission.occupy(route.id, route.max_in_flight, len(body))
                ask.occupies, ask.held_bytes = route.id, len(body)
                admitted = False
                return partial(self._rest, ask, routes, call, body)
            self._turn.append(Gathered.of(ask, routes, call, body, reply, answer))
            admitted = False
            if len(self._turn) >= MOST_GATHERED:
                self.end_turn()
        except Exception as error:  # boundary: a fault of ours is one line in the log and a 500 that names it
            reply(*self._refusal(ask, told(ask, error)))
        finally:
            if admitted:
                self.admission.leave()
        return None

    def end_turn(self) -> None:
        """Compute, log and answer what came in this turn of the event loop: a run for each model, one write for all."""
        turn, self._turn = self._turn, []
        run_turn(turn)
        for gathered in turn:
            try:
                answer, record = gathered.answer(), gathered.ask.record()
                gathered.line, gathered.whole = self._finish(
                    gathered.ask, gathered.routes, gathered.call, gathered.body, record, answer
                )
            except Exception as error:  # boundary: as in `at_once`
                gathered.outcome = error
        write_turn(turn, self.spool)
        for gathered in turn:
            self.admission.leave()
            try:
                gathered.reply(*self._whole(gathered))
            except Exception:  # boundary: a fault in one call's end is not to keep the others from theirs
                _log.exception("the end of a call failed: request %s", gathered.ask.request_id)

    def _begin_turn(self, fd: int) -> None:
        """The first call that this turn of the event loop brought. If it came late, the others may have."""
        self._in_turn = True
        self._late = waited_s(fd) > LATE_S
        asyncio.get_running_loop().call_soon(self._turn_is_over)

    def _turn_is_over(self) -> None:
        self._in_turn = False
        self.end_turn()

    def _whole(self, gathered: Gathered) -> Whole:
        """The answer to a call of a turn that is over, which is counted."""
        if isinstance(gathered.outcome, Exception):
            return self._refusal(gathered.ask, told(gathered.ask, gathered.outcome))
        self._served(gathered.ask, gathered.call, gathered.body, gathered.answer())
        return gathered.whole

    def _require_room(self, route: DeploymentRoute, version: HeldVersion, size: int) -> None:
        """Before `size` bytes are decoded. Raises InferenceError body_too_large or overloaded."""
        if size > route.max_body_bytes:
            raise too_large(route.max_body_bytes)
        model = version.model
        if version.cache is None and (model is None or model.lane(route.lane, 1) is not Lane.INLINE):
            self.admission.require_room(route.id, route.max_in_flight)

    def _begin(self, ask: Ask, routes: HeldRoutes) -> HeldDeployment:
        """Authenticate, find the deployment, check rights and limit, read the headers. Raises InferenceError."""
        caller = ask.caller = self.holder.access.find(ask.headers.get(b"authorization"))
        caller.require_valid(ask.at)
        deployment = ask.deployment = find_deployment(routes, caller, ask)
        require_rights(caller, ask)
        ask.allowance = self.limits.take(caller)
        ask.read_headers()
        if ask.waited_s > MAX_BEHIND * (ask.deadline - ask.started):
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        if caller.source is Source.TEST and (outcome := ask.headers.get(HEADER)) is not None:
            rehearse(ask, outcome)
        return deployment

    def _finish(
        self, ask: Ask, routes: HeldRoutes, call: Call, body: bytes, record: SpoolRecord, answer: Answer
    ) -> tuple[bytes, Whole]:
        """(the line for the log, the answer) of a computed call. Raises InferenceError."""
        deployment, version = ask.chosen()
        route = deployment.route
        # Encoded before it is spooled: what cannot be encoded is a refusal, and would else stand twice in the log.
        protocol = PROTOCOLS[ask.address.protocol]
        content_type, extra, content = protocol.encode(call, answer.outputs, route, version.route, ask.id)
        if version.cache is not None and not ask.rehearsal:
            record.cached = answer.cached
            extra = [*extra, version.cache.count(answer)]
        record.routes_generation = routes.generation
        if ask.idempotency_key:
            record.retry_of = self.retries.first_of(ask, route.id, body)
        record.rows = call.rows
        record.queue_ms = answer.queue_s * 1000
        record.compute_ms = answer.compute_s * 1000
        record.total_ms = (monotonic() - ask.started) * 1000
        if not self.packer.pack(record, route, version.route, call.inputs, answer.outputs):
            capture.fill(record, version.route, route.capture, call.inputs, answer.outputs)
        line = encoded(record)
        headers: HeaderList = [
            (b"content-type", content_type),
            (b"x-prediction-id", ask.id.encode()),
            (b"x-model-version", version.number_header),
            (b"x-split-revision", deployment.revision_header),
            (b"x-request-id", ask.request_id.encode()),
            *extra,
        ]
        if ask.client_id:
            headers.append((b"x-client-id", ask.client_id.encode()))
        if ask.allowance is not None:
            headers += ask.allowance.headers
        return line, (200, headers, content)

    def _served(self, ask: Ask, call: Call, body: bytes, answer: Answer) -> None:
        """Count a call that is in the log, and begin its copies."""
        deployment, version = ask.chosen()
        version.calls.add()
        version.rows.add(call.rows)
        version.seconds.observe(monotonic() - ask.started)
        if not answer.cached:
            version.compute_seconds.observe(answer.compute_s)
        if deployment.split.shadow:
            protocol = PROTOCOLS[ask.address.protocol]
            self.shadows.start(ask, deployment, version, ask.routing_key, protocol, call, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, address: Address) -> None:
        """The same for a call whose body is still to come, as an ASGI application."""
        ask = Ask(dict(scope["headers"]), address)
        try:
            self.admission.enter()
        except InferenceError as error:
            await self._refuse(ask, error, receive, send)
            return
        await self._guarded(ask, self._read_and_answer(ask, receive, send), receive, send)

    async def _rest(
        self, ask: Ask, routes: HeldRoutes, call: Call, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        ask.unread = False
        await self._guarded(ask, self._go_on(ask, routes, call, body, receive, send), receive, send)

    async def _guarded(self, ask: Ask, work: Coroutine[Any, Any, None], receive: Receive, send: Send) -> None:
        """Whatever becomes of an admitted call."""
        try:
            try:
                await work
            finally:
                # Before a refusal is sent, which may take a moment where the body is still coming.
                self.admission.leave(ask.occupies, ask.held_bytes)
        except InferenceError as error:
            await self._refuse(ask, error, receive, send)
        except ClientGoneError:
            self._count(ask, "client_gone")
        except Exception:  # boundary: as in `at_once`
            _log.exception("prediction failed: request %s", ask.request_id)
            await self._refuse(ask, InferenceError("internal"), receive, send)

    async def _read_and_answer(self, ask: Ask, receive: Receive, send: Send) -> None:
        routes = self.holder.routes
        deployment = self._begin(ask, routes)
        route = deployment.route
        self.admission.occupy(route.id, route.max_in_flight)
        ask.occupies = route.id
        body = await self._read(ask, route.max_body_bytes, receive)
        ask.unread = False
        version = ask.version = choose_version(deployment, ask.address, ask.routing_key)
        decode = PROTOCOLS[ask.address.protocol].decode
        call: Call
        if len(body) <= LARGE_BYTES:
            call = decode(body, ask.headers, route, version.route)
        else:
            call = await self.aside.run(decode, body, ask.headers, route, version.route)
        _accept(ask, call, route)
        await self._go_on(ask, routes, call, body, receive, send)

    async def _go_on(self, ask: Ask, routes: HeldRoutes, call: Call, body: bytes, receive: Receive, send: Send) -> None:
        """From the decoded call to the end of its answer. Raises InferenceError and ClientGoneError."""
        deployment, version = ask.chosen()
        if ask.rehearsal:
            slow_s = max(0.0, min(SLOW_S, ask.deadline - monotonic()))
            await unless_gone(receive, asyncio.sleep(slow_s))
            # The log keeps the time that the call itself took.
            ask.started += slow_s
        if deployment.route.lane is Lane.JOB:
            protocol = PROTOCOLS[ask.address.protocol]
            await self.jobs.answer(ask, deployment, version, protocol, call, body, receive, send)
            return
        record = ask.record()
        async with version.held(ask.deadline) as held:
            answer = await self._infer(ask, call, deployment, held, record, receive)
        line, whole = self._finish(ask, routes, call, body, record, answer)
        self.spool.append_line(line)
        self._served(ask, call, body, answer)
        await reply(send, *whole)

    async def _read(self, ask: Ask, cap: int, receive: Receive) -> bytes:
        """The body as it arrives, its bytes counted in. Raises as `read_body`."""

        def hold(amount: int) -> None:
            self.admission.hold(ask.occupies, amount)
            ask.held_bytes += amount

        return await read_body(receive, ask.headers, cap, ask.deadline, hold, self.min_body_rate)

    async def _infer(
        self,
        ask: Ask,
        call: Call,
        deployment: HeldDeployment,
        version: HeldVersion,
        record: SpoolRecord,
        receive: Receive,
    ) -> Answer:
        """The outputs for a decoded call. Pictures are decoded into `call.inputs`, their statistics into `record`."""
        model = version.loaded()
        if monotonic() >= ask.deadline:
            raise InferenceError("deadline_exceeded")
        if call.pictures:
            work = self.pictures.decode(call.pictures, version.route, ask.deadline)
            decoded = await unless_gone(receive, work)
            call.inputs = {version.route.signature.inputs[0].name: decoded.tensor}
            record.pictures = decoded.stats
            record.warnings = decoded.warnings
        cache = None if ask.rehearsal else version.cache
        if cache is not None:
            if not call.digest and sum(array.nbytes for array in call.inputs.values()) > LARGE_BYTES:
                call.digest = await self.aside.run(cache.digest, call.inputs)
            if (kept := cache.find(call)) is not None:
                return kept
        lane = record.lane = model.lane(deployment.route.lane, cells_of(call.inputs))
        if lane is Lane.INLINE:
            answer = model.run_inline(call.inputs)
            if cache is not None:
                cache.keep(call, answer)
            return answer
        run = partial(version.run_batched, call.inputs, call.rows, ask.deadline)
        return await unless_gone(receive, run() if cache is None else cache.share(call, ask.deadline, run))

    def _refusal(self, ask: Ask, error: InferenceError) -> Whole:
        """The answer to a refused call, which is counted and logged."""
        self._count(ask, "rehearsed" if ask.rehearsal else error.code)
        if not ask.taken_on:
            self.refusals.note(ask.refusal(error))
        if "RateLimit-Limit" not in error.headers and (left := ask.allowance or self._left(ask)) is not None:
            error.headers = {**error.headers, **left.named}
        return error.status, error_headers(error, ask.request_id), error_body(error, ask.request_id)

    def _left(self, ask: Ask) -> Allowance | None:
        """What is left to the key of a call that was refused before it was counted."""
        try:
            return self.limits.look(ask.caller or self.holder.access.find(ask.headers.get(b"authorization")))
        except InferenceError:
            return None

    async def _refuse(self, ask: Ask, error: InferenceError, receive: Receive, send: Send) -> None:
        whole = self._refusal(ask, error)
        if ask.unread:
            await refuse_unread(receive, send, error, ask.request_id, ask.headers)
        else:
            await reply(send, *whole)

    def _count(self, ask: Ask, code: str) -> None:
        name = ask.deployment.route.name if ask.deployment is not None else ""
        number = ask.version.route.number if ask.version is not None else ""
        self.metrics.counter("signalbox_calls_total", deployment=name, version=number, code=code).add()


def told(ask: Ask, error: Exception) -> InferenceError:
    """What a caller is told of a line that could not be written."""
    if isinstance(error, InferenceError):
        return error
    _log.error("prediction failed: request %s", ask.request_id, exc_info=error)
    return InferenceError("internal")


def _has_to_wait(ask: Ask, version: HeldVersion, call: Call, route: DeploymentRoute) -> bool:
    """Whether anything has to be awaited for a call that no answer is kept for."""
    model = version.model
    return (
        model is None
        or bool(call.pictures or ask.rehearsal)
        or model.lane(route.lane, cells_of(call.inputs)) is not Lane.INLINE
    )


def _accept(ask: Ask, call: Call, route: DeploymentRoute) -> None:
    """What is the same for every protocol's call. Raises batch_too_large."""
    if call.rows > route.max_rows:
        raise InferenceError("batch_too_large", f"The call has {call.rows} rows; at most {route.max_rows} go.")
    ask.set_client_id(call.client_id)
