"""Which models lie in a process's memory: those with traffic for good, the others while there is room.

A model at 0 % comes when a call pins it. When the budget would be exceeded, models at 0 % leave, the one used least
recently first; none leaves while a call uses it, and none that has a share of live or copied traffic. What does not fit
beside those that must stay is refused, with the figures. A call that a former split gave to a model holds that itself
until it ends, in these accounts or not.

Accounts alone: `inference.registry` loads and drops the models.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable

from inference.contracts import DeploymentRoute, Lane, Routes, VersionRoute
from inference.errors import InferenceError

# The file's bytes times this stand for a model that was not measured: its weights, and the kernels' own layout of them.
UNMEASURED_FACTOR = 2
NO_LIMIT = 1 << 62
_MB = 1024 * 1024


class Residency:
    """The accounts of one process; a model is known by its artifact's sha256. Used from the event loop only."""

    def __init__(self, budget_bytes: int = NO_LIMIT) -> None:
        self.budget_bytes = budget_bytes
        # Bytes of what is loaded or being loaded, the least recently used first.
        self._sizes: dict[str, int] = {}
        self._fixed: frozenset[str] = frozenset()
        self._uses: Counter[str] = Counter()
        self._freed = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """Bytes of all models that are loaded or being loaded."""
        return sum(self._sizes.values())

    def fix(self, fixed: Iterable[str]) -> None:
        """Say which models have traffic, and so never leave. One that has it no longer counts as just used."""
        before, self._fixed = self._fixed, frozenset(fixed)
        for sha256 in before - self._fixed:
            self.touch(sha256)
        self._tell()

    def touch(self, sha256: str) -> None:
        """The model is used now; nothing where it is not loaded."""
        size = self._sizes.pop(sha256, None)
        if size is not None:
            self._sizes[sha256] = size

    def begin(self, sha256: str) -> None:
        """A call begins to use the model, or a load to bring it: it stays until the matching `end`."""
        self._uses[sha256] += 1
        self.touch(sha256)

    def end(self, sha256: str) -> None:
        self._uses[sha256] -= 1
        if not self._uses[sha256]:
            del self._uses[sha256]
            self.touch(sha256)
            self._tell()

    def admit(self, sha256: str, size: int) -> list[str] | None:
        """Count a model in, and those out that have to leave for it, which are returned.

        None where calls in progress use what would have to leave: wait for `changed`, and ask again.
        Raises InferenceError model_memory where it does not fit beside the models with traffic.
        """
        if size + self._bytes_of(self._fixed) > self.budget_bytes:
            raise self.refusal(size)
        excess = size + self.held_bytes - self.budget_bytes
        leaving: list[str] = []
        for other, bytes_ in self._sizes.items():
            if excess <= 0:
                break
            if other not in self._fixed and other not in self._uses:
                leaving.append(other)
                excess -= bytes_
        if excess > 0:
            return None
        for other in leaving:
            del self._sizes[other]
        self._sizes[sha256] = size
        return leaving

    def forget(self, sha256: str) -> None:
        """The model was let go, or did not load."""
        self._sizes.pop(sha256, None)
        self._tell()

    async def changed(self) -> None:
        """Wait until there may be room: a call ended, a model went, or traffic moved."""
        await self._freed.wait()

    def refusal(self, size: int) -> InferenceError:
        """The error for a model of `size` bytes that does not fit now, in MiB as people read them."""
        fixed = self._sizes.keys() & self._fixed
        used = self._sizes.keys() & self._uses.keys() - fixed
        held = [_holding(fixed, self._bytes_of(fixed), "with traffic")]
        if used:
            held.append(_holding(used, self._bytes_of(used), "in use"))
        return InferenceError(
            "model_memory",
            f"It needs {_mb(size)} MB of memory. Of the {_mb(self.budget_bytes)} MB for models in each serving process "
            f"{' and '.join(held)}.",
            headers={"Retry-After": "1" if used else "5"},
        )

    def _bytes_of(self, those: Iterable[str]) -> int:
        return sum(self._sizes.get(sha256, 0) for sha256 in those)

    def _tell(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


def size_of(version: VersionRoute) -> int:
    """Bytes that a version's model takes: as measured at validation, and not less than its file.

    The measurement is low where the load found memory that its process had free already.
    """
    if version.memory_bytes is None:
        return version.artifact_bytes * UNMEASURED_FACTOR
    return max(version.memory_bytes, version.artifact_bytes)


def served_versions(routes: Routes) -> list[VersionRoute]:
    """The versions that a data-plane process answers with: all but those of retired and of job-lane deployments."""
    return [version for route in routes.deployments if runs_here(route) for version in route.versions.values()]


def shared_versions(routes: Routes) -> list[VersionRoute]:
    """Those of `served_versions` that have a share of the traffic, live or as copies, and so are always loaded."""
    return [
        version
        for route in routes.deployments
        if runs_here(route)
        for number, version in route.versions.items()
        if any(share.number == number and share.basis_points > 0 for share in (*route.live, *route.shadow))
    ]


def runs_here(route: DeploymentRoute) -> bool:
    """Whether data-plane processes hold a deployment's models."""
    return not route.retired and route.lane is not Lane.JOB


def _holding(those: Iterable[str], size: int, which: str) -> str:
    count = len(list(those))
    return f"{count} model{'s' if count != 1 else ''} {which} hold{'s' if count == 1 else ''} {_mb(size)} MB"


def _mb(size: int) -> str:
    return f"{size / _MB:,.0f}" if size >= 10 * _MB else f"{size / _MB:,.1f}"
