"""Digests kept between requests: a closed row of sketches is never updated, so what its id held once it holds."""

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

from inference.runtime.digest import Digest

Columns = Mapping[str, Digest]

# A day of a hundred columns is some 10 MB.
MOST_BYTES = 64 * 1024 * 1024


class Kept:
    """The columns of rows by id, those that were used last, in as many bytes as their packed form has. Thread-safe.

    Who takes columns may not change them.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[int, tuple[uuid.UUID, Columns, int]] = OrderedDict()
        self._lock = Lock()

    def of(self, deployment_id: uuid.UUID) -> dict[int, Columns]:
        """What is kept of a deployment, by row id."""
        with self._lock:
            return {row: columns for row, (owner, columns, _) in self._rows.items() if owner == deployment_id}

    def used(self, rows: Mapping[int, tuple[Columns, int]], deployment_id: uuid.UUID) -> None:
        """Keep these rows' columns as the ones that were used last; with each its size, 0 for one that came from here
        and is not to be kept again, should another thread have pushed it out meanwhile.
        """
        with self._lock:
            for row, (columns, size) in rows.items():
                if row in self._rows:
                    self._rows.move_to_end(row)
                elif 0 < size <= self._most_bytes:
                    self._rows[row] = deployment_id, columns, size
                    self._bytes += size
            while self._bytes > self._most_bytes:
                _, (_, _, size) = self._rows.popitem(last=False)
                self._bytes -= size
