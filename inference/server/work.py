"""How busy a process is, by the processor time that the kernel has counted for it."""

import time


class Work:
    """Made and asked on the thread of the event loop. `threads`: how many runs the process makes at the same time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._at, self._loop, self._all = time.monotonic(), time.thread_time(), time.process_time()

    def share(self) -> float:
        """Of the time since it was asked last: the part, 0 to 1, that the loop computed, or the other threads if more.

        Where other processes hold the cores it stays low, and one process more would compute nothing more.
        """
        at, loop, all_ = time.monotonic(), time.thread_time(), time.process_time()
        took, by_loop, by_all = at - self._at, loop - self._loop, all_ - self._all
        self._at, self._loop, self._all = at, loop, all_
        return min(1.0, max(by_loop, (by_all - by_loop) / self._threads) / took)
