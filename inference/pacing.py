"""When a batch is released: what a run costs, when the next call comes, and whether to wait for it.

**What a run costs.** A run of n rows takes about T(n) = b + a·n seconds: b is paid once a run, a once a row. Clipper
(Crankshaw et al., NSDI 2017) and Nexus (Shen et al., SOSP 2019) found this line for the models that they served and
planned their batches by it; here it is fitted while serving (`CostModel`).

**When the next call comes.** Calls come in bursts: those that a run has answered ask again together. So it is the gap
since the last call that tells how near the next one is. `Arrivals` keeps the gaps as a histogram, of which recent ones
weigh most; P(gap <= u + t | gap > u), u seconds after the last call, is read from it without assuming a distribution.

**Whether to wait.** A run could begin now with n rows of c calls. Say that we wait, at most t seconds, for one more
call, which then comes after R. Counted in seconds of latency, summed over calls:

- the c calls lose the time waited, and if the call comes a·r more for its r rows;
- the call that comes gains b: its rows ride along instead of paying for a run of their own after this one. Where
  another thread is free it would have run there at once, and gains nothing;
- the calls behind it gain or lose what this thread saves or idles. A run merged into another saves b, shared by the m
  calls that would have made up that next run: m = max(1, lambda·T(n)), with lambda the calls per second and thread.
  Those behind are L = lambda·T(n) / (1 - rho) calls: the arrivals in the rest of a busy period that begins with work
  T(n), where rho is the share of time the threads are busy (M/G/1; Kleinrock, Queueing Systems I, 1975, 5.8).

With p = P(R <= t), s = 0 where another thread is free and else 1, the gain of waiting at most t is

    G(t) = p·(s·b + L·b/m - c·a·r) - E[min(R, t)]·(c + L)

We wait for the t with the largest G where that is above 0, and ask again at each arrival; else the run begins. This is
one-step look-ahead for a stopping problem. What follows from it:

- an idle model answers at once: without recent calls nothing is known to come, and L = 0;
- a model without fixed cost (b = 0) never waits: sharing a run would save nothing;
- as the load rises L grows, and the rule turns into: wait while a call comes sooner than the compute that it saves;
- calls of a closed loop end up in step, so that their runs are as few and as large as they can be.

Batches beyond that need no waiting: while the threads are busy everything gathers, and a run takes what fits. It takes
no more than pays, though: on a processor the line bends upwards where a run's intermediate results outgrow the cache,
and a small network may compute eight pictures faster one by one. So the cost of a row is also kept by the size of the
run (`CostModel.best_rows`), and calls share runs only up to the size at which rows have proved cheapest.
"""

from math import exp, inf

# Each run weighs this much less than the one after it: the last fifty decide.
_COST_MEMORY = 0.98
# What the measurement at load weighs beside them, in runs. It never fades: it keeps the line's slope known where every
# run has the same size.
_SEED_WEIGHT = 1.0
# A larger run must be cheaper a row by this much, and one run in so many tries another size.
_CHEAPER = 0.97
_TRY_RUNS = 32
_SIZE_MEMORY = 0.9
_LEAST_KEPT = 0.3
# A run is believed up to so many times the usual deviation: a preempted thread is not a slower model.
_BELIEVED = 3.0
_LEAST_DEVIATION = 0.05
_DEVIATION_MEMORY = 0.95

# Gaps are told apart from 20 us to 0.1 s, two steps for each doubling; a longer one ends a burst.
_EDGES_S = tuple(2e-5 * 2 ** (k / 2) for k in range(25))
_GAP_MEMORY = 0.99
# Below so many gaps, weighed by age, nothing is known.
_FEWEST_GAPS = 8.0
# After a pause of this length half of what was known of gaps and rates is forgotten.
_HALF_LIFE_S = 1.0
_RATE_S = 0.5
# A timer of the event loop fires up to a millisecond late: waiting in vain costs at least so much.
_TICK_S = 0.001
# The largest busy share that is believed: beyond it L has no bound.
_BUSIEST = 0.98


class CostModel:
    """Seconds of a run of n rows as b + a·n, fitted to the runs seen, weighted by recency. Seconds and rows throughout.

    Least squares of relative errors with exponential forgetting (recursive least squares, Haykin, Adaptive Filter
    Theory, ch. 9, here in its sums), residuals clipped as by Huber (1964). a and b are never negative.
    """

    __slots__ = ("_deviation", "_runs", "_seed", "_seen", "_sizes", "_sums", "fixed_s", "row_s")

    def __init__(self, *measured: tuple[int, float]) -> None:
        """`measured`: (rows, seconds) at load. One alone is read as a·n: no gain of sharing is assumed unseen."""
        self._sums = [0.0] * 5
        self._deviation = 0.2
        self.fixed_s = 0.0
        self.row_s = 0.0
        self._runs = 0
        # Seconds a row of runs of 1, 2, 3-4, 5-8, 9-16... rows; absent where none was seen.
        self._sizes: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._seed = [(rows, seconds) for rows, seconds in measured if rows > 0 and seconds > 0]
        for rows, seconds in self._seed:
            self._sizes[_size(rows)] = seconds / rows
        if len(self._seed) == 1:
            [(rows, seconds)] = self._seed
            self._seed.append((8 * rows, 8 * seconds))
        if self._seed:
            self._fit()

    @property
    def known(self) -> bool:
        return self.fixed_s > 0 or self.row_s > 0

    def seconds(self, rows: float) -> float:
        """The expected duration of a run; 0.0 while nothing is known."""
        return self.fixed_s + self.row_s * rows

    def rows_within(self, seconds: float) -> float:
        """Rows of the largest run that is expected to end within so long; infinite while nothing is known."""
        if self.row_s > 0:
            return (seconds - self.fixed_s) / self.row_s
        return inf if seconds >= self.fixed_s else 0.0

    def best_rows(self, most: int) -> int:
        """Rows, at most `most`, of the shared runs whose rows are cheapest.

        Of sizes not seen the line is believed; where only one was seen all that is allowed is tried.
        """
        if len(self._sizes) < 2:
            return most
        best, best_s = 0, inf
        for size in range(_size(most) + 1):
            row_s = self._sizes.get(size)
            if row_s is None:
                row_s = self.seconds(1 << size) / (1 << size)
            if row_s < best_s * _CHEAPER:
                best, best_s = size, row_s
        tries, turn = divmod(self._runs, _TRY_RUNS)
        if turn == _TRY_RUNS - 1:
            # The next larger size, and in turn all smaller ones: what they cost may have changed since they were seen.
            best = best + 1 if tries % 2 == 0 or best == 0 else tries // 2 % best
        return min(most, 1 << best)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a run."""
        if rows <= 0 or seconds <= 0:
            return
        expected = self.seconds(rows)
        if expected > 0:
            off = seconds / expected - 1
            most = _BELIEVED * max(self._deviation, _LEAST_DEVIATION)
            self._deviation = _DEVIATION_MEMORY * self._deviation + (1 - _DEVIATION_MEMORY) * min(abs(off), 2 * most)
            self._runs += 1
            seconds = expected * (1 + max(-most, min(most, off))) if most < 1 or off > 0 else seconds
        size, row_s = _size(rows), seconds / rows
        # The longer a size was not seen the less is left of what it cost then.
        keep = max(_SIZE_MEMORY ** (self._runs - self._seen.get(size, 0)), _LEAST_KEPT)
        self._sizes[size] = row_s + keep * (self._sizes.get(size, row_s) - row_s)
        self._seen[size] = self._runs
        weighed = expected or seconds
        for index, value in enumerate(self._sums):
            self._sums[index] = value * _COST_MEMORY
        _add(self._sums, rows, seconds, 1 / (weighed * weighed))
        self._fit()

    def _fit(self) -> None:
        sums = self._sums.copy()
        for rows, seconds in self._seed:
            # Relative to what is expected by now: a measurement that proved far too low must not weigh the more.
            scale = max(seconds, self.seconds(rows))
            _add(sums, rows, seconds, _SEED_WEIGHT / (scale * scale))
        w, n, nn, t, nt = sums
        spread = w * nn - n * n
        slope = (w * nt - n * t) / spread if spread > 1e-12 * w * nn else -1.0
        fixed = (t - slope * n) / w
        if slope < 0:
            # All runs of one size tell no slope, and a falling line is noise: the mean, charged to the rows where
            # they are all that is known.
            slope, fixed = (nt / nn, 0.0) if spread <= 1e-12 * w * nn else (0.0, t / w)
        elif fixed < 0:
            slope, fixed = nt / nn, 0.0
        self.row_s, self.fixed_s = slope, fixed


def _size(rows: int) -> int:
    size: int = (rows - 1).bit_length()
    return size


def _add(sums: list[float], rows: float, seconds: float, weight: float) -> None:
    sums[0] += weight
    sums[1] += weight * rows
    sums[2] += weight * rows * rows
    sums[3] += weight * seconds
    sums[4] += weight * rows * seconds


class Arrivals:
    """How calls of one model come: gaps between them, calls per second, rows per call. Times are of one clock."""

    __slots__ = ("_busy", "_busy_at", "_busy_share", "_gaps", "_last", "_rate", "rows")

    def __init__(self) -> None:
        self._gaps = [0.0] * (len(_EDGES_S) + 1)
        self._last: float | None = None
        self._rate = 0.0
        self.rows = 1.0
        self._busy = 0.0
        self._busy_share = 0.0
        self._busy_at: float | None = None

    def add(self, now: float, rows: int) -> None:
        """A call came."""
        last, self._last = self._last, now
        self.rows += 0.05 * (rows - self.rows)
        if last is None:
            return
        gap = max(now - last, 0.0)
        keep = _GAP_MEMORY * 0.5 ** (gap / _HALF_LIFE_S)
        gaps = self._gaps
        for index, weight in enumerate(gaps):
            gaps[index] = weight * keep
        gaps[_step(gap)] += 1.0
        # The weight of 1/_RATE_S calls per second for each call, decaying: a moving average over _RATE_S.
        self._rate = self._rate * exp(-gap / _RATE_S) + 1 / _RATE_S

    def rate(self, now: float) -> float:
        """Calls per second of late."""
        return 0.0 if self._last is None else self._rate * exp(-max(now - self._last, 0.0) / _RATE_S)

    def set_busy(self, now: float, share: float) -> None:
        """From now on this share (0 to 1) of the model's threads computes, or is held back for a fuller run."""
        self._busy_share = self.busy(now)
        self._busy, self._busy_at = share, now

    def busy(self, now: float) -> float:
        """The share of the threads that was in use of late."""
        if self._busy_at is None:
            return 0.0
        keep = exp(-max(now - self._busy_at, 0.0) / _RATE_S)
        return self._busy_share * keep + self._busy * (1 - keep)

    def ahead(self, now: float) -> list[tuple[float, float]]:
        """(seconds from now, probability) of the next call, in steps; the rest comes later than the last or never.

        A step's whole probability stands at its far end, so what is told is never too soon. Empty where too little is
        known.
        """
        if self._last is None:
            return []
        gaps, waited = self._gaps, max(now - self._last, 0.0)
        if sum(gaps) * 0.5 ** (waited / _HALF_LIFE_S) < _FEWEST_GAPS:
            return []
        first = _step(waited)
        if first >= len(_EDGES_S):
            return []
        low = _EDGES_S[first - 1] if first else 0.0
        here = gaps[first] * (_EDGES_S[first] - waited) / (_EDGES_S[first] - low)
        total = here + sum(gaps[first + 1 :])
        if total <= 0:
            return []
        found = [(_EDGES_S[first] - waited, here / total)]
        found += [(_EDGES_S[k] - waited, gaps[k] / total) for k in range(first + 1, len(_EDGES_S))]
        return found


def _step(gap: float) -> int:
    for index, edge in enumerate(_EDGES_S):
        if gap <= edge:
            return index
    return len(_EDGES_S)


def worth_waiting_s(
    cost: CostModel,
    arrivals: Arrivals,
    now: float,
    *,
    rows: int,
    calls: int,
    threads: int,
    another_free: bool,
    most_s: float,
) -> float:
    """Seconds, at most `most_s`, for which a run of these rows and calls is better held back; 0.0: release it.

    `threads`: runs that this model may have at the same time; `another_free`: one more could begin beside this.
    The rule and where it comes from stand at the head of this file.
    """
    if most_s <= 0 or not cost.fixed_s > 0:
        return 0.0
    rate = arrivals.rate(now) / threads
    took = cost.seconds(rows)
    load = rate * took
    behind = load / (1 - min(arrivals.busy(now), _BUSIEST))
    gain = cost.fixed_s * (behind / max(1.0, load) + (0.0 if another_free else 1.0))
    gain -= calls * cost.row_s * arrivals.rows
    if gain <= 0:
        return 0.0
    waiting = calls + behind
    best, best_s = 0.0, 0.0
    chance = lost = 0.0
    for seconds, probability in arrivals.ahead(now):
        if seconds > most_s:
            break
        chance += probability
        lost += probability * seconds
        value = chance * gain - (lost + (1 - chance) * max(seconds, _TICK_S)) * waiting
        if value > best:
            best, best_s = value, seconds
    return best_s
