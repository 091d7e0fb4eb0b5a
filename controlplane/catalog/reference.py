"""Reference sets as the catalog takes them: read in a throw-away child, since anyone may have made them."""

import atexit
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from controlplane.errors import DomainError
from inference.errors import InferenceError
from inference.runtime.reference import PRELOAD, ReferenceRequest, ReferenceSummary, summarise_in_sandbox
from inference.runtime.sandbox import Sandbox


def summarise(
    path: Path, *, columns: Sequence[str] = (), numeric: bool = False, nullable: Sequence[str] = ()
) -> ReferenceSummary:
    """Reads a reference set through. Raises DomainError `bad_reference` with the line or the name that is wrong.

    `columns`: the names it must have, where they are known. `numeric`: every cell but the target's must be a number,
    or missing in a column of `nullable`. Blocks; raises RuntimeError where the sandbox does not start.
    """
    try:
        return summarise_in_sandbox(_sandbox(), path, ReferenceRequest(tuple(columns), numeric, tuple(nullable)))
    except InferenceError as error:
        raise DomainError.from_inference(error) from error


@cache
def _sandbox() -> Sandbox:
    """This process's sandbox for reference sets; it starts its warm parent at the first call."""
    made = Sandbox(preload=PRELOAD)
    atexit.register(made.close)
    return made
