"""How busy a process is, by what the kernel has counted for it."""

import threading
import time
from pathlib import Path


class Work:
    """Made and asked on the thread of the event loop. `threads`: how many runs the process makes at the same time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Nanoseconds on a core, nanoseconds in the queue for one, turns (Linux, Documentation/scheduler/sched-stats).
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._at, self._loop, self._others = time.monotonic(), self._loop_s(), self._others_s()

    def share(self) -> float:
        """Of the time since it was asked last the part, 0 to 1, in which the loop had something to do.

        That it waits for a core counts: on a machine that others use too, a loop that never sleeps is at its end with
        half a core. Where the threads of the models computed for a larger part of what they could, that.
        """
        at, loop, others = time.monotonic(), self._loop_s(), self._others_s()
        took, by_loop, by_others = at - self._at, loop - self._loop, others - self._others
        self._at, self._loop, self._others = at, loop, others
        return min(1.0, max(by_loop, by_others / self._threads) / took)

    def _loop_s(self) -> float:
        """Seconds for which this thread ran, or would have; on a kernel that does not tell, for which it ran."""
        try:
            ran, waited, _ = self._schedstat.read_text().split()
        except (OSError, ValueError):
            return time.thread_time()
        return (int(ran) + int(waited)) / 1e9

    @staticmethod
    def _others_s() -> float:
        return time.process_time() - time.thread_time()
