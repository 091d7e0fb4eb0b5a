"""The one way to the throw-away children in which pictures that strangers sent are read."""

import atexit
import os
import threading

from inference.errors import InferenceError
from inference.runtime.sandbox import Limits, Sandbox, SandboxKilled

# The outer bounds; inference.runtime.budget ends a hostile file after two seconds of work. The clock is far more
# generous, since a busy machine is no crime.
_CPU_S = 25.0
_WALL_S = 60.0
_MEMORY_BYTES = 2 * 1024**3
CHILDREN = max(2, os.cpu_count() or 1)

_sandbox = Sandbox(preload=("inference.runtime.deidentify", "inference.runtime.viewing"))
_slots = threading.BoundedSemaphore(CHILDREN)
# A child forked while a thread held a slot would wait for it for ever.
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_slots", threading.BoundedSemaphore(CHILDREN)))
atexit.register(_sandbox.close)


def call_child(function: str, argument: bytes, *, pictures: int = 1) -> bytes:
    """Run `function` of `inference.runtime` on `argument` in a child that reads that many pictures; returns its answer.

    Blocks, thread-safe; no more children than the machine has cores run at once. Raises InferenceError as the function
    does, and SandboxKilled.
    """
    limits = Limits(
        memory_bytes=_MEMORY_BYTES,
        cpu_s=_CPU_S * pictures,
        wall_s=_WALL_S * pictures,
        file_bytes=1024**2,
    )
    with _slots:
        return _sandbox.call(function, argument, limits).output


def close_children() -> None:
    """End the warm parent; the next call starts another."""
    _sandbox.close()


def killed_error(killed: SandboxKilled, *, dicom: bool) -> InferenceError:
    """What the sender is told about a picture whose child was ended."""
    if killed.reason == "memory":
        return InferenceError("too_many_pixels", "The picture needs more memory than one picture may take.")
    code = "unsupported_object" if dicom else "corrupt_image"
    if killed.reason == "timeout":
        return InferenceError(code, "The picture could not be read in the time that one picture may take.")
    return InferenceError(code, "The picture made its decoder crash.")
