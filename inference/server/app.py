"""The ASGI application of a data-plane process: what answers which path, and what lives as long as the process."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from time import time
from typing import TYPE_CHECKING

from inference.errors import InferenceError
from inference.limits import Allowance
from inference.registry import ArtifactStore, Registry
from inference.routing import uuid7
from inference.runtime.loading import load
from inference.server.addresses import Address, Addresses, Kind, is_ours
from inference.server.admission import Admission
from inference.server.asking import Ask, Retries
from inference.server.cache import Caches
from inference.server.choosing import find_deployment
from inference.server.documents import Follower
from inference.server.heads import Heads
from inference.server.held import Holder
from inference.server.jobs import JobLane
from inference.server.limits import KeyLimits
from inference.server.metrics import Metrics, render
from inference.server.pace import Pace
from inference.server.pictures import PictureRoom
from inference.server.predict import Predictor, Rest
from inference.server.protocols import Headers, v1, v2
from inference.server.refusals import Refusals
from inference.server.replies import JSON, Receive, Scope, Send, refuse_unread, reply, reply_error
from inference.server.settings import Settings
from inference.server.shadows import Shadows
from inference.server.turn import Reply
from inference.server.upstream import Upstream
from inference.server.work import Work
from inference.snapshot import derive_secret
from inference.spool import SpoolWriter

if TYPE_CHECKING:
    from inference.server.shared_cache import SharedCache

_log = logging.getLogger(__name__)

_DRAIN_S = 10.0
_TICK_S = 1.0
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_FORWARDING = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class App:
    """One process's parts, made inside its event loop; `running` is their life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.heads = Heads()
        self.pace = Pace()
        self._addresses = Addresses()
        self._says_ready = True
        self.holder = Holder()
        self.metrics = Metrics(settings.metrics)
        self.spool = SpoolWriter(settings.spool)
        self._shared_cache = _shared_cache(settings)
        self._caches = Caches(self.metrics, shared=self._shared_cache)
        self.registry = Registry(
            ArtifactStore(settings.artifacts), load, threads=settings.threads, budget_bytes=settings.model_memory_bytes
        )
        self.admission = Admission()
        self.refusals = Refusals(self.spool)
        self._limits = KeyLimits(settings.run)
        self._pictures = PictureRoom()
        self._shadows = Shadows(self.spool, self.metrics, self._pictures)
        self._upstream = Upstream(settings.upstream, settings) if settings.upstream is not None else None
        self._predict = Predictor(
            holder=self.holder,
            admission=self.admission,
            limits=self._limits,
            spool=self.spool,
            metrics=self.metrics,
            refusals=self.refusals,
            retries=Retries(),
            shadows=self._shadows,
            pictures=self._pictures,
            jobs=JobLane(self._upstream),
            min_body_rate=settings.min_body_rate,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the documents until the end; then let copies finish, and leave files that others can read."""
        follower = Follower(
            database_url=self._settings.database_url,
            secret=derive_secret(self._settings.secret_key),
            home=self._settings.home,
            holder=self.holder,
            registry=self.registry,
            metrics=self.metrics,
            caches=self._caches,
            quotas=self._limits.quotas,
        )
        tasks = [asyncio.create_task(follower.run()), asyncio.create_task(self._tick())]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            self.holder.ready = False
            self.admission.stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await follower.leave()
            await self.stop()

    def say_unready(self) -> None:
        """From now on a proxy is told to send its calls elsewhere; those that come are answered all the same."""
        self._says_ready = False

    async def stop(self) -> None:
        """Let shadow copies finish, for a while, and release files, threads and connections."""
        self.admission.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._shadows.drain()
        self._predict.end_turn()
        self.refusals.flush()
        self.spool.close()
        self.metrics.close()
        self._limits.close()
        self._pictures.close()
        self._predict.aside.close()
        self.registry.close()
        if self._upstream is not None:
            await self._upstream.close()
        if self._shared_cache is not None:
            await self._shared_cache.close()

    def call_address(self, target: bytes) -> Address | None:
        """The address of a prediction call that was answered here before, while this process holds anything."""
        address = self._addresses.known(target)
        return address if address is not None and address.predicts and not self.holder.is_empty else None

    def at_once(self, headers: Headers, address: Address, body: bytes, reply: Reply, fd: int) -> Rest | None:
        """See `Predictor.at_once`."""
        return self._predict.at_once(headers, address, body, reply, fd)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw_path: bytes = scope["raw_path"]
        if is_ours(raw_path):
            await self._answer(scope, receive, send, self._addresses.find(raw_path))
        elif self._upstream is not None:
            await self._upstream(scope, receive, send)
        else:
            await self._refuse(scope, receive, send, InferenceError("not_found"))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, address: Address | None) -> None:
        """Whatever is ours: predictions at addresses not seen before, what is asked with GET, and the refusals."""
        if address is None:
            await self._refuse(scope, receive, send, InferenceError("not_found", "There is no such address."))
        elif scope["method"] not in address.methods:
            allow = {"Allow": ", ".join(address.methods)}
            await self._refuse(scope, receive, send, InferenceError("method_not_allowed", headers=allow))
        elif address.predicts and self.holder.is_empty:
            # Nothing was read yet: what is unknown now may be known in a moment.
            error = InferenceError("version_not_ready", "This process is still starting.", headers={"Retry-After": "1"})
            await self._refuse(scope, receive, send, error)
        elif address.predicts:
            await self._predict(scope, receive, send, address)
        else:
            try:
                await self._describe(scope, send, address)
            except InferenceError as error:
                await self._refuse(scope, receive, send, error)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send, error: InferenceError) -> None:
        await refuse_unread(receive, send, error, uuid7(), dict(scope["headers"]))

    async def _describe(self, scope: Scope, send: Send, address: Address) -> None:
        """Everything that is asked with GET. Raises InferenceError."""
        match address.kind:
            case Kind.LIVE:
                await reply(send, 200, [(b"content-type", JSON)], b'{"live":true}')
            case Kind.READY | Kind.PING:
                ready = self._says_ready and self.holder.ready and not self.admission.stopping
                body = b'{"ready":true}' if ready else b'{"ready":false}'
                await reply(send, 200 if ready else 503, [(b"content-type", JSON)], body)
            case Kind.METRICS:
                self._allow_metrics(scope)
                await reply(send, 200, [(b"content-type", _TEXT)], render(self.metrics.folder))
            case _:
                ask = Ask(dict(scope["headers"]), address)
                try:
                    body = self._document(ask)
                except InferenceError as error:
                    if (left := self._left(ask)) is not None:
                        error.headers = {**error.headers, **left.named}
                    await reply_error(send, error, ask.request_id)
                    return
                headers = [(b"content-type", JSON), (b"x-request-id", ask.request_id.encode())]
                if (left := self._left(ask)) is not None:
                    headers += left.headers
                await reply(send, 200, headers, body)

    def _left(self, ask: Ask) -> Allowance | None:
        """What a description tells of the key's limits, of which it uses nothing; None where no key is known."""
        return self._limits.look(ask.caller) if ask.caller is not None else None

    def _document(self, ask: Ask) -> bytes:
        """What is told of the server, a deployment or a version."""
        caller = ask.caller = self.holder.access.find(ask.headers.get(b"authorization"))
        caller.require_valid(ask.at)
        if not caller.may_read:
            raise InferenceError("forbidden", "The key has neither the scope predict nor read.")
        address = ask.address
        if address.kind is Kind.V2_SERVER:
            return v2.server_metadata()
        deployment = find_deployment(self.holder.routes, caller, ask)
        number = address.number
        if address.label is not None:
            number = deployment.labelled(address.label)
        ready = deployment.ready_numbers()
        if address.kind is Kind.V1_STATUS:
            return v1.status(deployment.route, ready, number)
        if number is None:
            # Of an unnamed version the one with most of the traffic speaks for the deployment.
            live = max(deployment.route.live, key=lambda share: share.basis_points, default=None)
            if live is None:
                raise InferenceError("no_active_version", headers={"Retry-After": "1"})
            number = live.number
        version = deployment.version(number)
        if address.kind is Kind.V2_MODEL_READY:
            if number not in ready:
                raise InferenceError("version_not_ready", headers={"Retry-After": "1"})
            return b'{"ready":true}'
        protocol = v1 if address.kind is Kind.V1_METADATA else v2
        document: bytes = protocol.metadata(deployment.route, version.route)
        return document

    def _allow_metrics(self, scope: Scope) -> None:
        """A key with `read`, or a caller on this very machine where nothing stands in front. Raises InferenceError."""
        headers = dict(scope["headers"])
        peer = scope["client"][0] if scope.get("client") else ""
        if (
            b"authorization" not in headers
            and not self._settings.public_url
            and not any(name in headers for name in _FORWARDING)
            and _is_loopback(peer)
        ):
            return
        caller = self.holder.access.find(headers.get(b"authorization"))
        caller.require_valid(time())
        if not self.holder.access.may_read_metrics(caller):
            raise InferenceError("forbidden", "Metrics need a key with the scope read.")

    async def _tick(self) -> None:
        """Once a second: the refusals of the second, answers kept for long enough, the figures that are not events."""
        in_flight, busy = (self.metrics.counter(f"signalbox_{name}") for name in ("in_flight", "busy"))
        work = Work(self.registry.threads)
        spooled = self.metrics.counter("signalbox_spool_bytes_total")
        access = self.metrics.counter("signalbox_access_generation")
        models = self.metrics.counter("signalbox_models")
        model_bytes = self.metrics.counter("signalbox_model_bytes")
        loads = self.metrics.counter("signalbox_model_loads_total")
        self.metrics.counter("signalbox_model_budget_bytes").set(self.registry.residency.budget_bytes)
        while True:
            await asyncio.sleep(_TICK_S)
            self.refusals.flush()
            self._caches.drop_expired()
            in_flight.set(self.admission.calls)
            busy.set(work.share())
            spooled.set(self.spool.total_bytes)
            access.set(self.holder.access.generation)
            models.set(self.registry.loaded)
            model_bytes.set(self.registry.residency.held_bytes)
            loads.set(self.registry.loads)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A task of the process's life that ends by itself is a fault: it is told, and the process no longer ready."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.holder.ready = False
            self.admission.stopping = True
            _log.critical("a background task ended", exc_info=error)


def _shared_cache(settings: Settings) -> "SharedCache | None":
    """The client of Redis is imported where it is wanted: it takes some megabytes."""
    if not settings.cache_redis_url:
        return None
    from inference.server.shared_cache import SharedCache

    return SharedCache(settings.cache_redis_url, settings.secret_key)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
