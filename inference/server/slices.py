"""The event loop gets the processor as soon as it has work, though what runs there has time left.

A thread that asks Linux (6.12 and later) for short slices is let in where one with longer ones runs; it gets no more
time in all. Without it the loop of a busy machine waits up to a timer tick (4 ms) behind the ingester or PostgreSQL.
Source: sched_setattr(2); "earliest eligible virtual deadline first", Stoica and Abdel-Wahab, 1995.
"""

import ctypes
import os
import platform
import struct

SLICE_S = 0.0002
# struct sched_attr of linux/sched/types.h in its first size: size, policy, flags, nice, priority, runtime (of a thread
# without a real-time policy its slice), deadline and period, in nanoseconds.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
# sched_setattr and sched_getattr have no wrapper in every C library.
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
# Threads and processes that it starts are as all others.
_RESET_ON_FORK = 1


def shorten() -> bool:
    """Ask for the calling thread; False where the system knows nothing of it, and nothing is changed."""
    numbers = _CALLS.get(platform.machine())
    if numbers is None or not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    asked = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, int(SLICE_S * 1e9), 0, 0)
    return bool(ctypes.CDLL(None).syscall(numbers[0], 0, asked, 0) == 0) and slice_s() == SLICE_S


def slice_s(thread: int = 0) -> float:
    """The slice of a thread of that id (0: the calling one) in seconds; 0 where the system does not tell."""
    numbers = _CALLS.get(platform.machine())
    told = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if numbers is None or ctypes.CDLL(None).syscall(numbers[1], thread, told, _ATTRIBUTES.size, 0):
        return 0.0
    runtime: int = _ATTRIBUTES.unpack(told.raw)[5]
    return runtime / 1e9
