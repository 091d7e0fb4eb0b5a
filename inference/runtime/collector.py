"""The memory of a process that answers calls for as long as it lives."""

import ctypes
import gc

# Objects more than there were that begin a pass over the young, and passes before older ones are due: a call leaves
# hardly any cycles, so a pass finds next to nothing.
_THRESHOLDS = (10_000, 20, 20)
_libc = ctypes.CDLL(None)


def settle() -> None:
    """Once everything is imported: what is there lives as long as the process and is not walked again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def give_back() -> None:
    """Return freed memory to the system. Called from another thread than the event loop's: it may take milliseconds.

    Once a large block was freed, glibc keeps such blocks for itself: of models that come and go most would stay.
    Nothing happens with a C library that has no `malloc_trim`.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
