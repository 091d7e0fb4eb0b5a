"""Bodies that take long to read: in threads beside the event loop, so that no other call waits for them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inference.registry import low_priority_pool

# A few milliseconds of reading at the usual pace.
LARGE_BYTES = 256 * 1024
_THREADS = 2

Result = TypeVar("Result")


class Aside:
    """Threads of lower priority. What waits for them is bounded by the bytes that admission lets in."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """What `work(*arguments)` returns or raises."""
        if self._pool is None:
            self._pool = low_priority_pool(_THREADS, "bodies")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
