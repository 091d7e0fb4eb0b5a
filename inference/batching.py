"""The executor lane: runs of one model in bounded threads, where calls that wait together share a run.

While runs are under way the next calls gather; a thread that comes free takes what gathered, or is held back for a
moment where `inference.pacing` finds that it pays. `inference.slots` keeps models apart from each other.

A model has one batcher in a process, whichever deployments serve it: a run may hold calls of several, and every call
brings the bounds of its own (`Bounds`).

What a call can rely on, whoever shares its run:

- It is never computed after its deadline, nor once its caller has gone, unless its run had begun.
- A call that the model rejects fails alone. The run is halved until the bad calls are found: of k calls at most 2k - 1
  runs, and every row at most log2(k) + 1 times more. Models that are often rejected share less: with a share q of bad
  calls at most 1/sqrt(q) calls a run, the size that costs least (Dorfman 1943).
- Its outputs are the rows of the run that are its own: views of the run's arrays, copies where these are large.
- A call of more rows than a run may have goes in slices, between which others have their turn, and takes no longer for
  it than a slice's fixed cost. Where runs are not shared (`max_rows` 1) it runs whole.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from math import ceil, sqrt
from weakref import WeakMethod

from inference.errors import InferenceError
from inference.pacing import Arrivals, CostModel, worth_waiting_s
from inference.runs import Answer as Answer
from inference.runs import Arrays as Arrays
from inference.runs import Bounds as Bounds
from inference.runs import Done, Item, Run, compute
from inference.slots import Slots, Turn

# Calls that may wait for one model in one process; the next is refused at once.
MAX_WAITING = 256
# The next is refused too where the work ahead of it would take more than this part of the time that it has: so who is
# taken on is answered in time, and an overload of callers with the usual deadline of 10 s is over 4 s after its end.
MAX_BEHIND = 0.4
# Less than so many seconds of work is no reason: calls of short deadlines leave by themselves.
_LEAST_BEHIND_S = 1.0
# Nobody waits: a large call goes in slices of about this many seconds, so that a newcomer is not long behind it.
_SLICE_S = 0.05
# A call is refused when less than this part of its expected run is left. At most once a second one is tried all the
# same, so that a wrong expectation is put right.
_HOPELESS = 0.5
_TRY_S = 1.0
# The share of calls that the model rejects, over the last five hundred.
_REJECTED_MEMORY = 0.998

DEFAULT_BOUNDS = Bounds()


class Batcher:
    """Runs one model's calls in an executor. Used from one event loop; `deadline` is the loop's clock."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        batched: bool,
        concurrency: int = 1,
        slots: Slots | None = None,
        cost: CostModel | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`batched`: rows of several calls may be put together. `concurrency`: runs of this model at the same time."""
        self._run = run
        self._executor = executor
        self._batched = batched
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self.cost = cost or CostModel()
        self._arrivals = Arrivals()
        self._tenant = (slots or Slots(concurrency)).tenant(_weakly(self._start_runs))
        self._waiting: deque[Item] = deque()
        self._gone = 0
        self._rejected = 0.0
        self._tried = 0.0
        self._held: asyncio.TimerHandle | None = None
        self._held_since: float | None = None
        self._last_end = float("-inf")

    @property
    def waiting(self) -> int:
        """Calls that no run has taken yet and somebody waits for."""
        return len(self._waiting) - self._gone

    async def submit(self, inputs: Arrays, rows: int, deadline: float, bounds: Bounds = DEFAULT_BOUNDS) -> Answer:
        """The model's answer to one call.

        Raises InferenceError: overloaded when too many wait (nothing was computed), deadline_exceeded, also where the
        time left is far too short for the run, or what the model says of these inputs. A cancelled caller is dropped
        if its run has not begun, and disturbs no other.
        """
        if self.waiting >= self._max_waiting:
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        now = loop.time()
        most_s = max(_LEAST_BEHIND_S, MAX_BEHIND * (deadline - now))
        if self.waiting > 1 and (behind_s := self._behind_s(most_s)) > most_s:
            raise InferenceError("overloaded", headers={"Retry-After": str(ceil(behind_s))})
        self._refuse_hopeless(now, deadline, rows)
        item = Item(inputs, rows, self._form(inputs, bounds), loop.create_future(), deadline, bounds, now)
        self._arrivals.add(now, rows)
        self._waiting.append(item)
        expiry = loop.call_at(deadline, self._expire, item)
        try:
            self._start_runs()
            return await item.future
        finally:
            expiry.cancel()
            item.future.cancel()
            self._leave(item)

    def _behind_s(self, most_s: float) -> float:
        """Seconds until all who wait have had a run, of a large call its next slice.

        0 where that is surely below `most_s`, which is cheap to tell.
        """
        if not self._batched:
            alone_s = sum(self.cost.seconds(item.left) for item in self._waiting if item.queued)
            return alone_s / self._concurrency
        most = self._waiting[0].bounds.max_rows
        if self.waiting * self.cost.seconds(most) <= most_s * self._concurrency:
            return 0.0
        rows = sum(min(item.left, most) for item in self._waiting if item.queued)
        shared = self.cost.best_rows(most)
        return rows * self.cost.seconds(shared) / shared / self._concurrency

    def _refuse_hopeless(self, now: float, deadline: float, rows: int) -> None:
        left_s = deadline - now
        if left_s > 0 and left_s >= _HOPELESS * self.cost.seconds(rows):
            return
        if left_s <= 0 or now < self._tried + _TRY_S:
            raise InferenceError("deadline_exceeded")
        self._tried = now

    def _form(self, inputs: Arrays, bounds: Bounds) -> object:
        if not self._batched or bounds.max_rows <= 1:
            return None
        return tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))

    def _expire(self, item: Item) -> None:
        if not item.future.done():
            item.future.set_exception(InferenceError("deadline_exceeded"))
        self._leave(item)

    def _leave(self, item: Item) -> None:
        """Count a call out that is over while it waits; the queue forgets it when it comes to it."""
        if not item.queued:
            return
        item.queued = False
        self._gone += 1
        if not self.waiting:
            self._waiting.clear()
            self._gone = 0
            self._release_hold()
            self._tenant.stop_waiting()

    # -- which calls run, and when

    def _start_runs(self) -> None:
        """Begin as many runs as slots, concurrency and the calls that wait allow."""
        while self.waiting and self._tenant.running < self._concurrency:
            now = asyncio.get_running_loop().time()
            batch, rows = self._candidates(now)
            if not batch:
                return
            hold_s = self._hold_s(now, batch, rows)
            if hold_s > 0:
                self._hold(now, hold_s)
                return
            turn = self._tenant.take(self.cost.seconds(rows))
            if turn is None:
                return
            self._release_hold()
            self._take(batch)
            self._begin(turn, batch, rows)

    def _candidates(self, now: float) -> tuple[list[Item], int]:
        """The calls of the next run and its rows: the oldest and those that may share it. They stay in the queue."""
        batch: list[Item] = []
        rows = most_rows = 0
        most_calls = 1 / sqrt(max(self._rejected, 1e-6))
        least_s = 0.0
        for item in self._waiting:
            if item.future.done():
                continue
            left_s = item.deadline - now
            if not batch:
                batch, rows = [item], self._portion(item)
                most_rows, least_s = self.cost.best_rows(item.bounds.max_rows), left_s
                if item.alone or not self._batched or rows >= most_rows:
                    break
                continue
            if item.alone or item.form != batch[0].form or rows + item.rows > min(most_rows, item.bounds.max_rows):
                continue
            # Who can make its deadline alone must not miss it for the company.
            if self.cost.seconds(rows + item.rows) > min(least_s, left_s):
                continue
            batch.append(item)
            rows += item.rows
            most_rows, least_s = min(most_rows, item.bounds.max_rows), min(least_s, left_s)
            if rows >= most_rows or len(batch) >= most_calls:
                break
        return batch, rows

    def _portion(self, item: Item) -> int:
        """Rows of this call's next run: all, but of a large one a slice, a longer one where nobody else waits."""
        most = item.bounds.max_rows
        if item.form is None or not self._batched:
            return item.left
        if self.waiting <= 1 and self.cost.known:
            most = max(most, int(min(self.cost.rows_within(_SLICE_S), item.left)))
        return min(most, item.left)

    def _hold_s(self, now: float, batch: list[Item], rows: int) -> float:
        """Seconds for which this run is better held back; see `inference.pacing`."""
        full = rows >= self.cost.best_rows(min(item.bounds.max_rows for item in batch))
        if full or batch[0].alone or not self._batched or self.waiting > len(batch):
            return 0.0
        most_s = min(item.bounds.max_wait_s for item in batch)
        if most_s <= 0 or (self._held_since is None and not self._lively(now, most_s, batch)):
            return 0.0
        most_s -= now - (self._held_since if self._held_since is not None else now)
        # Waiting must not cost anybody the deadline: twice the expected run is left for it.
        most_s = min(most_s, min(item.deadline for item in batch) - now - 2 * self.cost.seconds(rows))
        return worth_waiting_s(
            self.cost,
            self._arrivals,
            now,
            rows=rows,
            calls=len(batch),
            threads=self._concurrency,
            another_free=self._tenant.running + 1 < self._concurrency and self._tenant.another_free(),
            most_s=most_s,
        )

    def _lively(self, now: float, most_s: float, batch: list[Item]) -> bool:
        """Whether anything else happens at this model: a run under way or just ended, or another call that waits."""
        return self._tenant.running > 0 or now - self._last_end <= most_s or len(batch) > 1

    def _hold(self, now: float, seconds: float) -> None:
        if self._held is not None:
            self._held.cancel()
        if self._held_since is None:
            self._held_since = now
            self._note_busy(now, 1)
        self._held = asyncio.get_running_loop().call_later(seconds, self._hold_ended)

    def _hold_ended(self) -> None:
        self._held = None
        self._start_runs()

    def _release_hold(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None
        self._held_since = None

    def _note_busy(self, now: float, held: int = 0) -> None:
        self._arrivals.set_busy(now, min(1.0, (self._tenant.running + held) / self._concurrency))

    def _take(self, batch: list[Item]) -> None:
        for item in batch:
            item.queued = False
        self._waiting = deque(item for item in self._waiting if item.queued)
        self._gone = 0

    # -- one run

    def _begin(self, turn: Turn, batch: list[Item], rows: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._note_busy(began)
        for item in batch:
            if item.queue_s < 0:
                item.queue_s = began - item.arrived

        def ended(done: "Future[Done]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(self._ended, turn, batch, rows, began, done)

        self._executor.submit(compute, self._run, batch, rows).add_done_callback(ended)

    def _ended(self, turn: Turn, batch: list[Item], rows: int, began: float, done: "Future[Done]") -> None:
        now = asyncio.get_running_loop().time()
        took = now - began
        # Whatever the runtime raised belongs to these callers alone.
        error = RuntimeError("the executor was shut down") if done.cancelled() else done.exception()
        if error is not None:
            fault = error if isinstance(error, Exception) else RuntimeError(str(error))
            outcome = Done([fault] * len(batch), [])
        else:
            outcome = done.result()
        if len(outcome.costs) == 1 and outcome.costs[0][0] == rows:
            # With the way to the thread and back: a run of its own costs that too.
            self.cost.observe(rows, took)
        self._batched = self._batched and outcome.row_wise
        for item, result in zip(batch, outcome.results, strict=True):
            self._settle(item, result, took, rows)
        self._last_end = now
        turn.end(took, self.cost.seconds(1) if self.waiting else None)
        self._note_busy(now)
        self._start_runs()

    def _settle(self, item: Item, result: Arrays | Exception, took: float, rows: int) -> None:
        """Answer one call of a run that ended; a large one with rows left goes to the end of the queue."""
        rejected = isinstance(result, InferenceError)
        self._rejected = _REJECTED_MEMORY * self._rejected + (1 - _REJECTED_MEMORY) * rejected
        item.compute_s += took
        if item.future.done():
            return
        if isinstance(result, Exception):
            item.future.set_exception(result)
        elif 0 < item.done_rows < item.rows:
            item.queued = True
            self._waiting.append(item)
        else:
            item.future.set_result(Answer(result, item.queue_s, item.compute_s, rows))


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """The method for whom its object owns: without a circle, a model that is let go is gone at once."""
    bound = WeakMethod(method)

    def call() -> None:
        if (alive := bound()) is not None:
            alive()

    return call
