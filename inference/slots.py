"""Which model may begin a run: bulkheads between the models that share a process's threads.

A slot is the right to compute. There are as many as runs are meant to go on at once. The free ones go to the model
that computed least of late (start-time fair queueing, Goyal, Vin and Cheng, 1996, with seconds of compute as the
service), so that a model of 40 ms runs and one of 2 ms runs get equal time, not equal turns.

Runs cannot be interrupted, so fairness alone would let a short run wait for a long one, and a stalled one for ever. Two
more rules keep models apart:

- A model that has no run under way waits for a slot at most as long as its run is expected to take, then begins in a
  thread beyond them and the kernel shares the cores: it takes at most twice its time, and never more than one of them
  (the bound of ski rental, Karlin et al. 1988).
- A run that takes ten times as long as expected, and a second at least, gives its slot back while it goes on. It still
  counts for its own model, whose other calls wait, expire and are refused there.
"""

import asyncio
from collections.abc import Callable

# What a run must exceed to be taken for stalled.
STALLED_TIMES = 10
STALLED_S = 1.0
# A model of which nothing is known yet waits so long for a slot.
_UNKNOWN_S = 0.005


class Slots:
    """The slots of one process. Used from the event loop only."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.used = 0
        self._waiting: list[Tenant] = []
        # Seconds of compute of the tenant that was let in last: who was idle starts from there, without credit.
        self._served = 0.0

    @property
    def free(self) -> int:
        return max(0, self.count - self.used)

    def tenant(self, wake: Callable[[], None]) -> "Tenant":
        """A model's side of the slots; `wake` is called when it is worth asking again after a refusal."""
        return Tenant(self, wake)

    def _admit(self, tenant: "Tenant") -> None:
        self.used += 1
        self._served = max(self._served, tenant.served)

    def _release(self) -> None:
        self.used -= 1
        self._offer()

    def _offer(self) -> None:
        """Ask those that wait, in order of what they were served, until the slots are used or nobody wants one."""
        while self.used < self.count and self._waiting:
            tenant = min(self._waiting, key=lambda each: each.served)
            tenant.stop_waiting()
            tenant.wake()


class Tenant:
    """One model's runs. `running`: runs under way, stalled ones too. `served`: its seconds of compute, see `Slots`."""

    def __init__(self, slots: Slots, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.running = 0
        self.served = 0.0
        self._slots = slots
        self._impatient = False
        self._patience: asyncio.TimerHandle | None = None

    def take(self, expected_s: float) -> "Turn | None":
        """The right to begin a run that takes about so long, or None: then `wake` follows.

        The turn must be ended, whatever becomes of the run.
        """
        slots = self._slots
        if slots.used >= slots.count and not (self._impatient and not self.running):
            self._wait(expected_s)
            return None
        self.stop_waiting()
        if not self.running:
            self.served = max(self.served, slots._served)
        self.running += 1
        slots._admit(self)
        return Turn(self, slots, expected_s)

    def another_free(self) -> bool:
        """Whether a slot would be left if this model took one now."""
        return self._slots.free > 1

    def stop_waiting(self) -> None:
        """No slot is wanted any more."""
        self._impatient = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self in self._slots._waiting:
            self._slots._waiting.remove(self)

    def _wait(self, expected_s: float) -> None:
        if self in self._slots._waiting:
            return
        self._slots._waiting.append(self)
        if not self.running:
            self.served = max(self.served, self._slots._served)
        patience_s = expected_s or _UNKNOWN_S
        self._patience = asyncio.get_running_loop().call_later(patience_s, self._out_of_patience)

    def _out_of_patience(self) -> None:
        self._patience = None
        self._impatient = True
        if not self.running:
            self.wake()


class Turn:
    """A slot in use by one run."""

    __slots__ = ("_slots", "_stall", "_tenant")

    def __init__(self, tenant: Tenant, slots: Slots, expected_s: float) -> None:
        self._tenant = tenant
        self._slots = slots
        stalled_s = max(STALLED_S, STALLED_TIMES * expected_s)
        self._stall: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(stalled_s, self._stalled)

    def end(self, took_s: float, next_s: float | None = None) -> None:
        """The run ended after so long. `next_s`: its model has calls that wait, for a run that takes about so long.

        Then the model stands in line for the slot with the others.
        """
        tenant = self._tenant
        tenant.running -= 1
        tenant.served += took_s
        if next_s is not None:
            tenant._wait(next_s)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
            self._slots._release()
        else:
            self._slots._offer()
        if tenant._impatient and not tenant.running:
            tenant.wake()

    def _stalled(self) -> None:
        self._stall = None
        self._slots._release()
