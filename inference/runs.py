"""One run of a model for one call or several, in a thread: rows put together, outputs cut apart, bad calls found."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from inference.contracts import MAX_BATCH_ROWS, MAX_WAIT_MS
from inference.errors import InferenceError

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]

# Parts of larger arrays are copied, so that one caller's few rows do not keep the run's whole output in memory.
VIEW_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the runs that a call shares: rows at most, and seconds for which it may be held back while it could run."""

    max_rows: int = MAX_BATCH_ROWS
    max_wait_s: float = MAX_WAIT_MS / 1000


class Answer(msgspec.Struct, frozen=True):
    """The outputs of one call, how long it waited and computed, in seconds, and the rows of its (last) run.

    `cached`: it was computed for another call.
    """

    outputs: Arrays
    queue_s: float
    compute_s: float
    run_rows: int = 0
    cached: bool = False


class Share(msgspec.Struct, kw_only=True, eq=False):
    """A call's part in a run on the event loop. `most_rows`: of a run that it shares. `outcome` once it is known."""

    inputs: Arrays
    rows: int
    most_rows: int
    outcome: Answer | Exception | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One call on its way. Touched by the event loop, or by the thread of its run while that goes on."""

    inputs: Arrays
    rows: int
    # What must be equal for two calls to share a run: names, dtypes and all dimensions but the first. None: none may.
    form: object
    future: "asyncio.Future[Answer]"
    deadline: float
    bounds: Bounds
    arrived: float
    queued: bool = True
    # Of a large call that is under way: its outputs so far, how many rows they have, and what was spent on them.
    outputs: Arrays | None = None
    done_rows: int = 0
    compute_s: float = 0.0
    queue_s: float = -1.0

    @property
    def left(self) -> int:
        """Rows that no run has computed."""
        return self.rows - self.done_rows

    @property
    def alone(self) -> bool:
        """Whether its next run is for it alone: it shares with none, or goes in slices."""
        return self.form is None or self.done_rows > 0 or self.rows >= self.bounds.max_rows


@dataclass(slots=True)
class Done:
    """What came of a run: for each call its outputs or what was raised, and (rows, seconds) of what went well.

    `row_wise` False: an output did not have one row for each of the input's, so the model must not be batched again.
    """

    results: list[Arrays | Exception]
    costs: list[tuple[int, float]]
    row_wise: bool = True


def compute(run: Run, batch: Sequence[Item], rows: int) -> Done:
    """One run for all calls, and where that fails halves of it, so that a bad call fails alone.

    `rows`: of the run; fewer than a single call has are a slice of it. Raises what is no InferenceError.
    """
    if len(batch) == 1:
        return _slice(run, batch[0], rows) if rows < batch[0].rows else _alone(run, batch[0])
    merged = {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}
    began = perf_counter()
    try:
        outputs = run(merged)
    except InferenceError:
        return _halved(run, batch)
    took = perf_counter() - began
    parts = parted(outputs, [item.rows for item in batch])
    if parts is None:
        # The signature promised rows in, rows out.
        return Done([_alone(run, item).results[0] for item in batch], [], row_wise=False)
    return Done([*parts], [(rows, took)])


def _halved(run: Run, batch: Sequence[Item]) -> Done:
    middle = len(batch) // 2
    found = Done([], [])
    for half in (batch[:middle], batch[middle:]):
        done = compute(run, half, sum(item.rows for item in half))
        found.results += done.results
        found.costs += done.costs
        found.row_wise = found.row_wise and done.row_wise
    return found


def _alone(run: Run, item: Item) -> Done:
    if item.future.done():
        # Expired or gone while others' runs went before it: nobody reads what would be computed.
        return Done([InferenceError("deadline_exceeded")], [])
    began = perf_counter()
    try:
        outputs = run(item.inputs)
    except InferenceError as error:
        return Done([error], [])
    return Done([outputs], [(item.rows, perf_counter() - began)])


def _slice(run: Run, item: Item, rows: int) -> Done:
    """The next rows of a large call, written to its outputs; the whole call where the model is not row-wise."""
    start, end = item.done_rows, item.done_rows + rows
    began = perf_counter()
    try:
        outputs = run({name: array[start:end] for name, array in item.inputs.items()})
    except InferenceError as error:
        return Done([error], [])
    took = perf_counter() - began
    if item.outputs is None:
        item.outputs = {
            name: np.empty((item.rows, *array.shape[1:]), array.dtype) for name, array in outputs.items() if array.ndim
        }
    for name, array in outputs.items():
        whole = item.outputs.get(name)
        if whole is None or len(array) != rows or whole.shape[1:] != array.shape[1:]:
            item.outputs, item.done_rows = None, item.rows
            return Done(_alone(run, item).results, [], row_wise=False)
        whole[start:end] = array
    item.done_rows = end
    return Done([item.outputs], [(rows, took)])


def parted(outputs: Mapping[str, npt.NDArray[Any]], rows: list[int]) -> list[Arrays] | None:
    """Outputs of a shared run cut into the callers' rows; None where an output has not one row for each input row."""
    total = sum(rows)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):
        return None
    views = sum(array.nbytes for array in outputs.values()) <= VIEW_BYTES
    parts: list[Arrays] = []
    start = 0
    for count in rows:
        part = {name: array[start : start + count] for name, array in outputs.items()}
        parts.append(part if views else {name: array.copy() for name, array in part.items()})
        start += count
    return parts


def grouped(shares: Sequence[Share], most_cells: int) -> list[list[Share]]:
    """Shares that may run together, in order: inputs of one form, at most `most_cells` cells and the rows that each
    of them allows. A share that is too large for company is alone.
    """
    groups: list[list[Share]] = []
    form: object = None
    cells = rows = most_rows = 0
    for share in shares:
        [array, *others] = share.inputs.values()
        size = array.size + sum(other.size for other in others) if others else array.size
        its_form = (array.shape[1:], array.dtype, [(other.shape[1:], other.dtype) for other in others])
        most_rows = min(most_rows, share.most_rows)
        if its_form == form and cells + size <= most_cells and rows + share.rows <= most_rows:
            groups[-1].append(share)
            cells, rows = cells + size, rows + share.rows
        else:
            groups.append([share])
            form, cells, rows, most_rows = its_form, size, share.rows, share.most_rows
    return groups
