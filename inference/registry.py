"""The models that this process holds: read from the artifact store, checked, loaded, warmed up, measured, let go."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import NamedTuple

import msgspec

from inference.batching import Answer, Arrays, Batcher
from inference.contracts import DeploymentRoute, Lane, Routes, VersionRoute
from inference.errors import InferenceError
from inference.pacing import CostModel
from inference.runtime.loading import Runtime
from inference.slots import Slots

# A call that costs less runs on the event loop. A hop to a thread and back costs 60-120 us of the same core, and a
# run holds up every other caller of the process for its time: a millisecond keeps their p99 within a millisecond.
INLINE_BELOW_S = 0.001
# Rows at which the cost of a further row is measured.
_PROBE_ROWS = 33
# The same of a model that is not cheap, by the time that one row takes: at most half a second is spent on it.
_HEAVY_PROBES = ((0.01, 8), (0.05, 2))
# A run on the loop that takes this many times the bound shows that the measurement does not hold for these inputs.
_DEMOTE_FACTOR = 10
# Threads of heavy runs yield to the event loop: the kernel gives a nice-5 thread a third of a nice-0 thread's share.
_EXECUTOR_NICE = 5
# More threads than slots are there for runs that stalled and for models that begin beside long runs of others; they
# are started when needed.
_MOST_THREADS = 256


class Failure(msgspec.Struct, frozen=True):
    """Why a version could not be loaded: a code of the error table and a sentence."""

    code: str
    reason: str


class ArtifactStore:
    """Model files by their sha256 under `folder/<first 2 hex>/<sha256>`, written once by the control plane."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """The file's bytes, which hash to `sha256`: these very bytes are to be handed to the runtime.

        Raises InferenceError load_failed where the file is absent or is not what it was.
        """
        try:
            data = self.path(sha256).read_bytes()
        except OSError as error:
            raise InferenceError("load_failed", "The model's file cannot be read from the artifact store.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InferenceError("load_failed", "The model's file in the artifact store is not the one registered.")
        return data


@dataclass(slots=True)
class LoadedModel:
    """A model ready to answer. `inline_cells`: calls with at most so many input cells are cheap enough for the loop."""

    sha256: str
    runtime: Runtime
    batcher: Batcher
    cost_s: float
    inline_cells: int
    suspect: bool = False

    def lane(self, wanted: Lane, cells: int) -> Lane:
        """Where a call of `cells` input cells runs: as wanted, and by measurement for `auto`."""
        if wanted is Lane.AUTO:
            return Lane.INLINE if cells <= self.inline_cells else Lane.EXECUTOR
        return wanted

    def run_inline(self, inputs: Arrays) -> Answer:
        """Run on the calling thread. A model that proves slow on real inputs is not run on the loop again."""
        if self.suspect:
            return self._run_suspect(inputs)
        began = perf_counter()
        outputs = self.runtime.run(inputs)
        took = perf_counter() - began
        # By the wall clock another process's work looks like the model's: the next run is timed by this thread's CPU.
        self.suspect = took > INLINE_BELOW_S * _DEMOTE_FACTOR
        return Answer(outputs, 0.0, took)

    def _run_suspect(self, inputs: Arrays) -> Answer:
        began, cpu_began = perf_counter(), thread_time()
        outputs = self.runtime.run(inputs)
        self.suspect = False
        if thread_time() - cpu_began > INLINE_BELOW_S * _DEMOTE_FACTOR:
            self.inline_cells = min(self.inline_cells, cells_of(inputs) - 1)
        return Answer(outputs, 0.0, perf_counter() - began)


def cells_of(inputs: Arrays) -> int:
    """Numbers in all tensors of a call."""
    cells = 0
    for array in inputs.values():
        cells += array.size
    return cells


class Registry:
    """Loaded models by artifact. Loading happens in a thread of its own; everything else on the event loop."""

    def __init__(
        self,
        store: ArtifactStore,
        load: Callable[[bytes], Runtime],
        *,
        threads: int | None = None,
        inline_below_s: float = INLINE_BELOW_S,
    ) -> None:
        """`threads`: runs of the executor lane at the same time in this process (default: cores, at most 4)."""
        self._store = store
        self._load = load
        self._inline_below_s = inline_below_s
        self.threads = threads or min(len(os.sched_getaffinity(0)), 4)
        self._models: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._loader = low_priority_pool(1, "load")
        self.executor: Executor = low_priority_pool(_MOST_THREADS, "run")
        self.slots = Slots(self.threads)

    def get(self, sha256: str) -> LoadedModel | None:
        """The model of an artifact, or None while it is not loaded."""
        return self._models.get(sha256)

    async def prepare(self, routes: Routes) -> dict[str, Failure]:
        """Load what these routes need and is not held yet; failures by version id, empty when all is held."""
        failures: dict[str, Failure] = {}
        wanted = {version.artifact_sha256: version for version in served_versions(routes)}
        for sha256, version in wanted.items():
            try:
                await self._ensure(sha256)
            except InferenceError as error:
                failures[version.id] = Failure(error.code, error.message)
        return failures

    def keep(self, held: Iterable[Routes]) -> None:
        """Let go of models that none of these routes needs; calls in flight hold theirs until they end."""
        wanted = {version.artifact_sha256 for routes in held for version in served_versions(routes)}
        for sha256 in self._models.keys() - wanted:
            del self._models[sha256]

    def close(self) -> None:
        """End the threads; runs under way are waited for."""
        self._loader.shutdown(cancel_futures=True)
        self.executor.shutdown(cancel_futures=True)

    async def _ensure(self, sha256: str) -> LoadedModel:
        if (held := self._models.get(sha256)) is not None:
            return held
        task = self._loading.get(sha256)
        if task is None:
            task = asyncio.create_task(self._load_one(sha256))
            self._loading[sha256] = task
            task.add_done_callback(lambda _: self._loading.pop(sha256, None))
        return await asyncio.shield(task)

    async def _load_one(self, sha256: str) -> LoadedModel:
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._loader, self._load_and_measure, sha256)
        self._models[sha256] = model
        return model

    def _load_and_measure(self, sha256: str) -> LoadedModel:
        """In the loader's thread: bytes, runtime, warm-up, cost."""
        runtime = self._load(self._store.read(sha256))
        batched = runtime.signature.batched
        cost_s, inline_cells, points = measured(runtime, self._inline_below_s)
        batcher = Batcher(
            runtime.run,
            self.executor,
            batched=batched,
            concurrency=self.threads,
            slots=self.slots,
            cost=CostModel(*points),
        )
        return LoadedModel(sha256, runtime, batcher, cost_s, inline_cells)


class Measured(NamedTuple):
    """Seconds of a one-row run, how many input cells a call may have to stay inline, and all (rows, seconds) seen."""

    cost_s: float
    inline_cells: int
    points: tuple[tuple[int, float], ...] = ()


def measured(runtime: Runtime, bound_s: float) -> Measured:
    """What runs cost; calls of at most `inline_cells` input cells stay below `bound_s`.

    The measurement is the warm-up too. A model that refuses made-up inputs (an index out of its range) is not cheap
    by proof, so its calls run in the executor. Without a batch dimension larger inputs cannot be made up: the size
    that was measured is the bound.
    """
    try:
        cost_s = runtime.measure(1)
        cells = cells_of(runtime.sample_inputs(1))
        one = (1, cost_s)
        if not runtime.signature.batched:
            return Measured(cost_s, 0 if cost_s >= bound_s else cells, (one,))
        if cost_s >= bound_s or cells == 0:
            rows = next((rows for most_s, rows in _HEAVY_PROBES if cost_s <= most_s), 0)
            return Measured(cost_s, 0, (one, (rows, runtime.measure(rows))) if rows else (one,))
        many_s = runtime.measure(_PROBE_ROWS)
    except InferenceError:
        return Measured(0.0, 0)
    row_s = max((many_s - cost_s) / (_PROBE_ROWS - 1), 1e-9)
    return Measured(cost_s, int(cells * (1 + (bound_s - cost_s) / row_s)), (one, (_PROBE_ROWS, many_s)))


def served_versions(routes: Routes) -> list[VersionRoute]:
    """The versions that a data-plane process must hold: all but those of retired and of job-lane deployments."""
    return [version for deployment in routes.deployments if _runs_here(deployment) for version in _versions(deployment)]


def _runs_here(deployment: DeploymentRoute) -> bool:
    return not deployment.retired and deployment.lane is not Lane.JOB


def _versions(deployment: DeploymentRoute) -> Iterable[VersionRoute]:
    return deployment.versions.values()


def low_priority_pool(threads: int, name: str) -> ThreadPoolExecutor:
    def settle() -> None:
        # On Linux a priority belongs to a thread.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _EXECUTOR_NICE)

    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=settle)
