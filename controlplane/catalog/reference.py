"""Reference sets as the catalog takes them: read in a throw-away child, since anyone may have made them."""

import atexit
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from controlplane.errors import DomainError
from inference.errors import InferenceError
from inference.runtime.reference import PRELOAD, Reference, ReferenceRequest, read_in_sandbox
from inference.runtime.sandbox import Sandbox


def read_reference(
    path: Path,
    *,
    columns: Sequence[str] = (),
    numeric: bool = False,
    nullable: Sequence[str] = (),
    named: Sequence[str] = (),
    texts: bool = False,
) -> Reference:
    """Reads a reference set through: what it holds, and the digests of its columns.

    Raises DomainError `bad_reference` with the line or the name that is wrong. `columns`: the names it must have, where
    they are known. `numeric`: every cell but the target's must be a number, or missing in a column of `nullable`.
    `named`: the names of one tensor's columns. `texts`: every cell is a text. Blocks; raises RuntimeError where the
    sandbox does not start.
    """
    request = ReferenceRequest(tuple(columns), numeric, tuple(nullable), tuple(named), texts)
    try:
        return read_in_sandbox(_sandbox(), path, request)
    except InferenceError as error:
        raise DomainError.from_inference(error) from error


@cache
def _sandbox() -> Sandbox:
    """This process's sandbox for reference sets; it starts its warm parent at the first call."""
    made = Sandbox(preload=PRELOAD)
    atexit.register(made.close)
    return made
