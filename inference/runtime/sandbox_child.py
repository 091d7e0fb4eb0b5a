"""What a function in the throw-away child has beside its argument: lines to the waiting caller, and perhaps a file.

Outside a child a line goes nowhere, and there is no file.
"""

import os
from typing import BinaryIO

# Where the parent puts a child's ends of things.
ARGUMENT, OUTPUT, LINES, FILE = 3, 4, 5, 6
# A pipe takes this much at once or not at all (POSIX: PIPE_BUF is 512 at least, Linux has 4096).
LINE_BYTES = 4096

_inside = False


def enter() -> None:
    """Called in the child, once its descriptors are in place."""
    global _inside
    _inside = True


def say(line: bytes) -> None:
    """Tell the caller something now, before the answer. Raises ValueError for what is not one line of 4 kB at most."""
    if b"\n" in line or len(line) >= LINE_BYTES:
        raise ValueError("a line has no newline and less than 4096 bytes")
    if _inside:
        os.write(LINES, line + b"\n")


def given_file() -> BinaryIO:
    """The file that the caller handed in, for reading from its start; the caller of this closes it."""
    if not _inside:
        raise RuntimeError("there is a given file in a sandbox's child only")
    return os.fdopen(FILE, "rb")
