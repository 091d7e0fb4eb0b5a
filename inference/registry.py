"""The models that this process holds: read from the artifact store, checked, loaded, warmed up, measured, let go.

Which of them lie in memory, `inference.residency` decides.
"""

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import NamedTuple

import msgspec
import numpy as np

from inference.batching import Answer, Arrays, Batcher
from inference.contracts import Lane, Routes, VersionRoute
from inference.errors import TABLE, InferenceError
from inference.pacing import CostModel
from inference.residency import NO_LIMIT, Residency, served_versions, shared_versions, size_of
from inference.runs import Share, grouped, parted
from inference.runtime.collector import give_back
from inference.runtime.loading import Runtime
from inference.slots import Slots

_log = logging.getLogger(__name__)

# A call that costs less runs on the event loop. A hop to a thread and back costs 60-120 us of the same core, and a
# run holds up every other caller of the process for its time: a millisecond keeps their p99 within a millisecond.
INLINE_BELOW_S = 0.001
# Rows at which the cost of a further row is measured.
_PROBE_ROWS = 33
# The same of a model that is not cheap, by the time that one row takes: at most half a second is spent on it.
_HEAVY_PROBES = ((0.01, 8), (0.05, 2))
# A run on the loop that takes this many times the bound shows that the measurement does not hold for these inputs.
_DEMOTE_FACTOR = 10
# Threads of heavy runs yield to the event loop: where both want one core the kernel gives a nice-10 thread a ninth of
# a nice-0 thread's share. On cores that the loop leaves free they run as fast as any.
_EXECUTOR_NICE = 10
# More threads than slots are there for runs that stalled and for models that begin beside long runs of others; they
# are started when needed.
_MOST_THREADS = 256
# Calls that pin a version that did not load are told so for a while before it is tried again.
_FAILED_S = 5.0
# How long a version that gets traffic waits for calls that use what has to leave for it.
_ROOM_S = 10.0


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
    # Whether rows of several calls may be put together.
    shares_runs: bool = False
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

    def run_together(self, shares: Sequence[Share]) -> None:
        """Run calls of the inline lane on the calling thread and set their outcomes: as few runs as the bounds allow.

        A run has no more cells than one call may have to be inline. A call that the model rejects fails alone.
        """
        if len(shares) > 1 and self.shares_runs:
            for group in grouped(shares, self.inline_cells):
                self._run_group(group)
        else:
            for share in shares:
                self._run_share(share)

    def _run_group(self, group: Sequence[Share]) -> None:
        if len(group) == 1 or self.suspect:
            for share in group:
                self._run_share(share)
            return
        first = group[0].inputs
        try:
            answer = self.run_inline({name: np.concatenate([s.inputs[name] for s in group]) for name in first})
        except Exception:  # boundary: whose rows were bad is found by asking each, one run more than without company
            parts = None
        else:
            parts = parted(answer.outputs, rows := [share.rows for share in group])
            if parts is not None:
                for share, part in zip(group, parts, strict=True):
                    share.outcome = Answer(part, 0.0, answer.compute_s, sum(rows))
                return
            # The signature promised rows in, rows out.
            self.shares_runs = False
        for share in group:
            self._run_share(share)

    def _run_share(self, share: Share) -> None:
        try:
            share.outcome = self.run_inline(share.inputs)
        except Exception as error:  # boundary: each caller is told of its own
            share.outcome = error

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
        threads: int = 1,
        inline_below_s: float = INLINE_BELOW_S,
        budget_bytes: int = NO_LIMIT,
    ) -> None:
        """`threads`: runs of the executor lane at the same time in this process, each of them on one core.

        `budget_bytes`: what the models of this process may take in all.
        """
        self._store = store
        self._load = load
        self._inline_below_s = inline_below_s
        self.threads = threads
        self._models: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        # Until when (loop's clock) a model that did not load is not tried again for a pin, and why.
        self._failed: dict[str, tuple[float, Failure]] = {}
        self.residency = Residency(budget_bytes)
        # Models loaded so far.
        self.loads = 0
        self._loader = low_priority_pool(1, "load")
        self.executor: Executor = low_priority_pool(_MOST_THREADS, "run")
        self.slots = Slots(self.threads)

    @property
    def loaded(self) -> int:
        """How many models lie in memory."""
        return len(self._models)

    def get(self, sha256: str) -> LoadedModel | None:
        """The model of an artifact, or None while it is not loaded."""
        return self._models.get(sha256)

    def touch(self, sha256: str) -> LoadedModel | None:
        """As `get`, for a call that pins it: of the models at 0 % it is now the last to leave."""
        self.residency.touch(sha256)
        return self._models.get(sha256)

    def has_failed(self, sha256: str) -> bool:
        """Whether the model did not load a moment ago."""
        return sha256 in self._failed and self._failed[sha256][0] > asyncio.get_running_loop().time()

    async def prepare(self, routes: Routes, beside: Routes | None = None) -> dict[str, Failure]:
        """Load what has traffic by these routes and is not held yet; failures by version id, empty when all is held.

        `beside`: routes that are served or prepared meanwhile, whose models with traffic keep their room.
        """
        failures: dict[str, Failure] = {}
        wanted = shared_versions(routes)
        staying = shared_versions(beside) if beside is not None else []
        self.residency.fix({version.artifact_sha256 for version in (*wanted, *staying)})
        room_until = asyncio.get_running_loop().time() + _ROOM_S
        for sha256, version in {version.artifact_sha256: version for version in wanted}.items():
            try:
                await self._ensure(version, room_until=room_until, load_until=None)
            except InferenceError as error:
                failure = Failure(error.code, error.message)
                failures |= {each.id: failure for each in wanted if each.artifact_sha256 == sha256}
        return failures

    @asynccontextmanager
    async def using(self, version: VersionRoute, deadline: float) -> AsyncIterator[LoadedModel]:
        """The model of a version at 0 % for one call, loaded where it is not; it does not leave meanwhile.

        `deadline`: by the loop's clock. Raises InferenceError deadline_exceeded, model_memory, or version_not_ready
        with the reason why it does not load.
        """
        self.residency.begin(version.artifact_sha256)
        try:
            yield await self._on_demand(version, deadline)
        finally:
            self.residency.end(version.artifact_sha256)

    def keep(self, held: Iterable[Routes]) -> None:
        """Let go of models that none of these routes names; calls in flight hold theirs until they end."""
        routes = list(held)
        wanted = {version.artifact_sha256 for each in routes for version in served_versions(each)}
        self.residency.fix({version.artifact_sha256 for each in routes for version in shared_versions(each)})
        for sha256 in self._models.keys() - wanted:
            del self._models[sha256]
            self.residency.forget(sha256)
        for sha256 in self._failed.keys() - wanted:
            del self._failed[sha256]

    def close(self) -> None:
        """End the threads; runs under way are waited for."""
        self._loader.shutdown(cancel_futures=True)
        self.executor.shutdown(cancel_futures=True)

    async def _on_demand(self, version: VersionRoute, deadline: float) -> LoadedModel:
        """Raises as `using`."""
        sha256 = version.artifact_sha256
        try:
            if sha256 not in self._models and self.has_failed(sha256):
                failure = self._failed[sha256][1]
                raise InferenceError(failure.code, failure.reason)
            return await self._ensure(version, room_until=deadline, load_until=deadline)
        except InferenceError as error:
            if error.code == "deadline_exceeded":
                raise
            code, headers = "version_not_ready", {"Retry-After": f"{_FAILED_S:.0f}"}
            if error.code == "model_memory":
                code, headers = error.code, error.headers
            message = f"Version {version.number} of {version.model} does not load: {error.message}"
            raise InferenceError(code, message, headers=headers) from error

    async def _ensure(self, version: VersionRoute, *, room_until: float, load_until: float | None) -> LoadedModel:
        """The model, from memory or loaded; callers at the same time share one load, which outlives them.

        Raises InferenceError: why it does not load, model_memory (also where no room came until `room_until`), or
        deadline_exceeded where it was being loaded at `load_until`.
        """
        sha256 = version.artifact_sha256
        while (held := self._models.get(sha256)) is None:
            task = self._loading.get(sha256) or self._begin_load(version)
            try:
                async with asyncio.timeout_at(room_until if task is None else load_until):
                    if task is not None:
                        return await asyncio.shield(task)
                    await self.residency.changed()
            except TimeoutError:
                if task is None:
                    raise self.residency.refusal(size_of(version)) from None
                message = "The version was still being loaded when the deadline passed."
                raise InferenceError("deadline_exceeded", message) from None
        return held

    def _begin_load(self, version: VersionRoute) -> "asyncio.Task[LoadedModel] | None":
        """The load, after those that have to leave for it left; None while calls use what would have to leave."""
        sha256 = version.artifact_sha256
        leaving = self.residency.admit(sha256, size_of(version))
        if leaving is None:
            return None
        for other in leaving:
            del self._models[other]
        self.residency.begin(sha256)
        task = asyncio.create_task(self._load_one(sha256))
        self._loading[sha256] = task
        task.add_done_callback(partial(self._load_ended, sha256))
        return task

    def _load_ended(self, sha256: str, task: "asyncio.Task[LoadedModel]") -> None:
        """Also where no caller waited for it to the end."""
        del self._loading[sha256]
        self._failed.pop(sha256, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        failure = Failure("load_failed", TABLE["load_failed"].meaning)
        if isinstance(error, InferenceError):
            failure = Failure(error.code, error.message)
        else:
            _log.error("a model did not load", exc_info=error)
        self._failed[sha256] = asyncio.get_running_loop().time() + _FAILED_S, failure

    async def _load_one(self, sha256: str) -> LoadedModel:
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._loader, self._load_and_measure, sha256)
            self._models[sha256] = model
            self.loads += 1
            return model
        finally:
            if sha256 not in self._models:
                self.residency.forget(sha256)
            self.residency.end(sha256)

    def _load_and_measure(self, sha256: str) -> LoadedModel:
        """In the loader's thread: bytes, runtime, warm-up, cost. What was freed for it goes back to the system."""
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
        give_back()
        return LoadedModel(sha256, runtime, batcher, cost_s, inline_cells, shares_runs=batched)


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


def low_priority_pool(threads: int, name: str) -> ThreadPoolExecutor:
    def settle() -> None:
        # On Linux a priority belongs to a thread.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _EXECUTOR_NICE)

    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=settle)
