"""The routes document as the hot path wants it: looked up by name, models bound, header bytes and cells ready."""

from collections.abc import AsyncIterator, Collection, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace

from inference.batching import Answer, Arrays, Bounds
from inference.contracts import Access, DeploymentRoute, Lane, Routes, VersionRoute
from inference.errors import InferenceError
from inference.registry import LoadedModel, Registry
from inference.residency import runs_here, shared_versions
from inference.routing import Split
from inference.server.auth import AccessTable
from inference.server.cache import Caches, VersionCache
from inference.server.metrics import Counter, Histogram, Metrics


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version of a deployment; `model` is None while it is not loaded here, and for job lanes.

    `registry`: set for a version without any share, whose model `HeldDeployment.pinned` and `held` bind for one call.
    `cache`: None where the deployment keeps no answers.
    """

    route: VersionRoute
    model: LoadedModel | None
    number_header: bytes
    calls: Counter
    rows: Counter
    seconds: Histogram
    compute_seconds: Histogram
    wait_seconds: Histogram
    run_rows: Histogram
    bounds: Bounds
    cache: VersionCache | None
    registry: Registry | None

    def held(self, deadline: float) -> "AbstractAsyncContextManager[HeldVersion]":
        """For one call until `deadline` (loop's clock): this version with its model, which stays meanwhile.

        Without a share it is loaded where it is not. Raises InferenceError as `Registry.using`.
        """
        return nullcontext(self) if self.registry is None else self._on_demand(self.registry, deadline)

    @asynccontextmanager
    async def _on_demand(self, registry: Registry, deadline: float) -> "AsyncIterator[HeldVersion]":
        async with registry.using(self.route, deadline) as model:
            yield replace(self, model=model)

    def loaded(self) -> LoadedModel:
        """The model. Raises InferenceError version_not_ready."""
        if self.model is None:
            raise InferenceError("version_not_ready", headers={"Retry-After": "1"})
        return self.model

    @property
    def answers(self) -> bool:
        """Whether the model is loaded, or would be when asked."""
        if self.registry is not None:
            return not self.registry.has_failed(self.route.artifact_sha256)
        return self.model is not None

    async def run_batched(self, inputs: Arrays, rows: int, deadline: float) -> Answer:
        """The model's answer in the executor lane, within the deployment's bounds. Raises as `Batcher.submit`."""
        answer = await self.loaded().batcher.submit(inputs, rows, deadline, self.bounds)
        self.wait_seconds.observe(answer.queue_s)
        self.run_rows.observe(answer.run_rows)
        return answer


@dataclass(frozen=True, slots=True)
class HeldDeployment:
    """One deployment at one split revision."""

    route: DeploymentRoute
    split: Split
    versions: dict[int, HeldVersion]
    revision_header: bytes

    def version(self, number: int) -> HeldVersion:
        """A version by its number. Raises InferenceError not_found."""
        version = self.versions.get(number)
        if version is None:
            raise InferenceError("not_found", f"{self.route.name} has no version {number}.")
        return version

    def pinned(self, number: int) -> HeldVersion:
        """As `version`, for a call that names it: without a share it comes with its model where that is in memory."""
        version = self.version(number)
        if version.registry is None:
            return version
        return replace(version, model=version.registry.touch(version.route.artifact_sha256))

    def labelled(self, label: str) -> int:
        """The number that a label stands for. Raises InferenceError not_found."""
        number = self.route.labels.get(label)
        if number is None:
            raise InferenceError("not_found", f"{self.route.name} has no version with this label.")
        return number

    def ready_numbers(self) -> Collection[int]:
        """Versions that would answer now.

        Of a job lane all, as the workers load them when asked; so are those without a share, unless they just failed.
        """
        if self.route.lane is Lane.JOB:
            return set(self.versions)
        return {number for number, version in self.versions.items() if version.answers}


@dataclass(frozen=True, slots=True)
class HeldRoutes:
    """The routes of one generation. Immutable: a change is another object, calls in flight keep theirs."""

    generation: int
    deployments: dict[str, HeldDeployment] = field(default_factory=dict)

    @classmethod
    def of(cls, routes: Routes, registry: Registry, metrics: Metrics, caches: Caches) -> "HeldRoutes":
        """Of routes that are to be served from now on: `caches` forgets what is not among them."""
        caches.hold(routes.deployments)
        shared = {version.artifact_sha256 for version in shared_versions(routes)}
        held = {route.name: _deployment(route, shared, registry, metrics, caches) for route in routes.deployments}
        return cls(routes.generation, held)


def _deployment(
    route: DeploymentRoute, shared: Set[str], registry: Registry, metrics: Metrics, caches: Caches
) -> HeldDeployment:
    """`shared`: artifacts of versions that have a share, in whichever deployment."""
    versions = {
        number: _version(route, each, each.artifact_sha256 in shared, registry, metrics, caches)
        for number, each in route.versions.items()
    }
    return HeldDeployment(route, Split.of(route), versions, b"%d" % route.revision)


def _version(
    route: DeploymentRoute, version: VersionRoute, shared: bool, registry: Registry, metrics: Metrics, caches: Caches
) -> HeldVersion:
    name, number, here = route.name, version.number, runs_here(route)
    return HeldVersion(
        route=version,
        model=registry.get(version.artifact_sha256) if shared and here else None,
        number_header=b"%d" % number,
        calls=metrics.counter("signalbox_calls_total", deployment=name, version=number, code="ok"),
        rows=metrics.counter("signalbox_rows_total", deployment=name, version=number),
        seconds=metrics.histogram("signalbox_predict_seconds", deployment=name, version=number),
        compute_seconds=metrics.histogram("signalbox_predict_compute_seconds", deployment=name, version=number),
        wait_seconds=metrics.histogram("signalbox_batch_wait_seconds", deployment=name, version=number),
        run_rows=metrics.histogram("signalbox_batch_rows", deployment=name, version=number),
        bounds=Bounds(route.max_batch_rows, route.max_wait_ms / 1000),
        cache=caches.of(route, version) if here else None,
        registry=None if shared or not here else registry,
    )


class Holder:
    """What this process holds now: two references, each swapped whole. `ready` once the latest routes are held."""

    def __init__(self) -> None:
        self.access = AccessTable(Access(generation=0))
        self.routes = HeldRoutes(0)
        self.ready = False

    @property
    def is_empty(self) -> bool:
        """Whether no routes were held since the start, neither from the database nor from disk."""
        return not self.ready and self.routes.generation == 0
