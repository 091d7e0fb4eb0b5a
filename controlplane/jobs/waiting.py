"""Waits for jobs to end without holding a thread or a connection: one query a tick serves everybody who waits."""

import asyncio
import uuid
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from django.db import connection

from controlplane.jobs.models import FINAL, Job

# Grows while nothing happens, so that a long job costs little and a short one is noticed at once.
FIRST_TICK_S = 0.03
LAST_TICK_S = 0.5
LONGEST_WAIT_S = 60.0


class _Waiters:
    """Everybody who waits on one event loop, and the task that looks for them."""

    def __init__(self) -> None:
        self._futures: dict[uuid.UUID, set[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()

    async def wait(self, job_id: uuid.UUID, seconds: float) -> bool:
        future = asyncio.get_running_loop().create_future()
        self._futures.setdefault(job_id, set()).add(future)
        self._fresh.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="job waiters")
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            mine = self._futures.get(job_id, set())
            mine.discard(future)
            if not mine:
                self._futures.pop(job_id, None)
            if not self._futures and self._task is not None:
                self._task.cancel()
        return True

    async def _look(self) -> None:
        tick_s = FIRST_TICK_S
        try:
            while self._futures:
                if self._fresh.is_set():
                    self._fresh.clear()
                    tick_s = FIRST_TICK_S
                for job_id in await _ended(list(self._futures)):
                    for future in self._futures.get(job_id, ()):
                        if not future.done():
                            future.set_result(None)
                    tick_s = FIRST_TICK_S
                await asyncio.sleep(tick_s)
                tick_s = min(LAST_TICK_S, tick_s * 1.3)
        except Exception as error:
            for futures in self._futures.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            raise


_waiters: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiters]" = WeakKeyDictionary()


async def wait_for(job_id: uuid.UUID, seconds: float) -> bool:
    """Whether the job ended (or went) within so many seconds, at most LONGEST_WAIT_S."""
    loop = asyncio.get_running_loop()
    waiters = _waiters.setdefault(loop, _Waiters())
    return await waiters.wait(job_id, min(LONGEST_WAIT_S, max(0.0, seconds)))


@sync_to_async
def _ended(ids: list[uuid.UUID]) -> set[uuid.UUID]:
    """Those that have ended or are gone. One query; its connection goes back to the pool."""
    try:
        found = dict(Job.objects.filter(pk__in=ids).values_list("pk", "status"))
    finally:
        if not connection.in_atomic_block:
            connection.close()
    return {job_id for job_id in ids if found.get(job_id) in (None, *FINAL)}
