"""What is let in: bounds on calls and bytes in progress in this process, and fair shares of them."""

from dataclasses import dataclass

from inference.errors import InferenceError

MAX_CALLS = 512
# Bodies being read or computed on. One body of the default cap of 64 MB always fits.
MAX_BYTES = 512 * 1024 * 1024


@dataclass(slots=True)
class _Usage:
    calls: int = 0
    bytes: int = 0


class Shares:
    """Places that owners share: each has at most as many as are still free, see `Admission`."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._taken: dict[str, int] = {}

    def take(self, owner: str) -> bool:
        """Whether there was a place for the owner; one that was taken has to be given back."""
        taken = self._taken.get(owner, 0)
        if taken >= self._free:
            return False
        self._taken[owner] = taken + 1
        self._free -= 1
        return True

    def give_back(self, owner: str) -> None:
        self._free += 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]


class Admission:
    """Calls in progress. Full means a quick refusal with Retry-After, so that nobody waits in silence.

    A deployment has at most as many calls, and bytes of bodies, in progress as are still free for all. So one that
    holds on to whatever it gets (a stalled model, slow bodies) leaves room for others: of N such deployments each has
    one part in N + 1, and one part stays free (dynamic thresholds; Choudhury and Hahne 1998). The only call of a
    deployment may bring as many bytes as there are.
    """

    def __init__(self, *, max_calls: int = MAX_CALLS, max_bytes: int = MAX_BYTES) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._usage: dict[str, _Usage] = {}
        self.calls = 0
        self.bytes = 0
        self.stopping = False

    def enter(self) -> None:
        """Count a call in. Raises overloaded or shutting_down; every `enter` that returned needs one `leave`."""
        if self.stopping:
            raise InferenceError("shutting_down", headers={"Retry-After": "1"})
        if self.calls >= self._max_calls:
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        self.calls += 1

    def occupy(self, deployment: str, most: int, amount: int = 0) -> None:
        """Count a call that entered, and `amount` bytes, to a deployment whose calls in progress are at most `most`.

        For calls that have to wait for anything. Raises overloaded, and then nothing was counted; else `leave` needs
        the deployment.
        """
        usage = self._usage.get(deployment)
        taken = usage.calls if usage is not None else 0
        self._require_room(taken, most)
        if usage is None:
            usage = _Usage()
        self._hold(usage, amount, taken == 0)
        usage.calls += 1
        self._usage[deployment] = usage

    def require_room(self, deployment: str, most: int) -> None:
        """Raises overloaded where `occupy` would now; cheaper than to find out with a decoded call."""
        usage = self._usage.get(deployment)
        if usage is not None:
            self._require_room(usage.calls, most)

    def _require_room(self, taken: int, most: int) -> None:
        if taken >= most or taken > self._max_calls - self.calls:
            raise InferenceError(
                "overloaded",
                "Too many calls of this deployment are in progress; nothing was computed.",
                headers={"Retry-After": "1"},
            )

    def hold(self, deployment: str, amount: int) -> None:
        """Count body bytes of a deployment's call in, to be given back to `leave`. Raises overloaded."""
        usage = self._usage[deployment]
        self._hold(usage, amount, usage.calls == 1)

    def leave(self, deployment: str = "", held_bytes: int = 0) -> None:
        self.calls -= 1
        if not deployment:
            return
        self.bytes -= held_bytes
        usage = self._usage[deployment]
        usage.calls -= 1
        usage.bytes -= held_bytes
        if not usage.calls:
            del self._usage[deployment]

    def _hold(self, usage: _Usage, amount: int, alone: bool) -> None:
        free = self._max_bytes - self.bytes
        if amount > free or (not alone and usage.bytes + amount > free):
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        usage.bytes += amount
        self.bytes += amount
