"""The executor lane: runs of one model in bounded threads, where calls that wait together share a run.

While runs are under way the next calls gather; a thread that comes free takes what gathered. So an idle model answers
at once and a busy one in batches, with no waiting time to tune.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import InferenceError

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]

# Rows in one shared run. More rows a run gain little on a CPU and delay the first caller.
MAX_BATCH_ROWS = 64
# Calls that may wait for one model in one process; the next is refused at once.
MAX_WAITING = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one call, and how long it waited and computed, in seconds."""

    outputs: Arrays
    queue_s: float
    compute_s: float


@dataclass(slots=True, eq=False)
class _Item:
    inputs: Arrays
    rows: int
    # What must be equal for two calls to share a run: names, dtypes and all dimensions but the first.
    form: object
    future: "asyncio.Future[Answer]"
    deadline: float
    arrived: float = field(default_factory=perf_counter)


class Batcher:
    """Runs one model's calls in an executor. Used from one event loop; `deadline` is the loop's clock."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        batched: bool,
        concurrency: int = 1,
        max_batch_rows: int = MAX_BATCH_ROWS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`batched`: rows of several calls may be put together. `concurrency`: runs of this model at the same time."""
        self._run = run
        self._executor = executor
        self._batched = batched
        self._concurrency = concurrency
        self._max_batch_rows = max_batch_rows
        self._max_waiting = max_waiting
        self._waiting: deque[_Item] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Calls that no run has taken yet."""
        return len(self._waiting)

    async def submit(self, inputs: Arrays, rows: int, deadline: float) -> Answer:
        """The model's answer to one call.

        Raises InferenceError: overloaded when too many wait (nothing was computed), deadline_exceeded, or what the
        model says of these inputs. A cancelled caller is dropped if its run has not begun, and disturbs no other.
        """
        if len(self._waiting) >= self._max_waiting:
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        item = _Item(inputs, rows, self._form(inputs), loop.create_future(), deadline)
        self._waiting.append(item)
        expiry = loop.call_at(deadline, _expire, item)
        try:
            self._start_runs(loop)
            return await item.future
        finally:
            expiry.cancel()
            item.future.cancel()

    def _form(self, inputs: Arrays) -> object:
        if not self._batched:
            return None
        return tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))

    def _start_runs(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._running < self._concurrency and (batch := self._next_batch(loop.time())):
            self._running += 1
            task = loop.create_task(self._serve(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self, now: float) -> list[_Item]:
        """The oldest waiting call and those that may share its run; calls that nobody waits for any more fall out."""
        batch: list[_Item] = []
        rows = 0
        left: deque[_Item] = deque()
        while self._waiting:
            item = self._waiting.popleft()
            if item.future.done():
                continue
            if item.deadline <= now:
                _expire(item)
                continue
            if batch and (not self._batched or item.form != batch[0].form or rows + item.rows > self._max_batch_rows):
                left.append(item)
                continue
            batch.append(item)
            rows += item.rows
            if not self._batched or rows >= self._max_batch_rows:
                break
        left.extend(self._waiting)
        self._waiting = left
        return batch

    async def _serve(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        began = perf_counter()
        try:
            results = await loop.run_in_executor(self._executor, self._compute, batch)
        except Exception as error:  # boundary: whatever the runtime raised belongs to these callers alone
            results = [error] * len(batch)
        finally:
            self._running -= 1
        took = perf_counter() - began
        for item, result in zip(batch, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, Exception):
                item.future.set_exception(result)
            else:
                item.future.set_result(Answer(result, began - item.arrived, took))
        self._start_runs(loop)

    def _compute(self, batch: list[_Item]) -> list[Arrays | Exception]:
        """In a thread: one run for all, and where that fails one run each, so that a bad call fails alone."""
        if len(batch) == 1:
            return [self._alone(batch[0])]
        merged = {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}
        try:
            parts = _parted(self._run(merged), [item.rows for item in batch])
        except InferenceError:
            parts = None
        else:
            # The signature promised rows in, rows out; a model that breaks it is not batched again.
            self._batched = parts is not None
        return parts or [self._alone(item) for item in batch]

    def _alone(self, item: _Item) -> Arrays | Exception:
        try:
            return self._run(item.inputs)
        except InferenceError as error:
            return error


def _parted(outputs: Mapping[str, npt.NDArray[Any]], rows: list[int]) -> list[Arrays | Exception] | None:
    """Outputs of a shared run cut into the callers' rows; None where an output has not one row for each input row."""
    total = sum(rows)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):
        return None
    parts: list[Arrays | Exception] = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts


def _expire(item: _Item) -> None:
    if not item.future.done():
        item.future.set_exception(InferenceError("deadline_exceeded"))
