"""The garbage collector of a process that answers calls for as long as it lives."""

import gc

# Objects more than there were that begin a pass over the young, and passes before older ones are due: a call leaves
# hardly any cycles, so a pass finds next to nothing.
_THRESHOLDS = (10_000, 20, 20)


def settle() -> None:
    """Once everything is imported: what is there lives as long as the process and is not walked again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
