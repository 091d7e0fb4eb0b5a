"""Ships spool files to the log: each step is one transaction that writes records, rollups and how far it read."""

import logging
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from controlplane.predictions.ingest import Landed, record_lines
from controlplane.predictions.models import IngesterStatus, SpoolBookmark
from inference.spool import SpoolFile, SpoolReader

logger = logging.getLogger(__name__)

# About two thousand records of 30 features; a transaction of a tenth of a second.
STEP_BYTES = 4 * 1024 * 1024
QUARANTINE = "quarantine"
STALE_BOOKMARK_DAYS = 7


class Ingester:
    """Reads the spool of one folder. Several may run, also on the same folder: a file is shipped by one at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        step_bytes: int = STEP_BYTES,
        host: str = "",
        clock: Callable[[], datetime] = timezone.now,
    ) -> None:
        self.reader = SpoolReader(folder)
        self.quarantine = folder / QUARANTINE
        self.host = host or socket.gethostname()
        self._step_bytes = step_bytes
        self._clock = clock
        self._oldest_unshipped_at: float | None = None
        # Up to where files that are still written to were shipped: the database is not asked while nothing is new.
        self._shipped_to: dict[str, int] = {}
        # Whether the last steps were full, so that the next ones may be at once.
        self.has_more = False

    def do_one(self) -> bool:
        """Ships one step of every file that has something new; True where anything was read or a file was finished."""
        worked = self.has_more = False
        files = self.reader.files()
        self._shipped_to = {file.name: end for file in files if (end := self._shipped_to.get(file.name)) is not None}
        for file in files:
            try:
                if not (file.has_writer() and self._shipped_to.get(file.name) == file.size_bytes()):
                    worked |= self._ship(file)
            except FileNotFoundError:
                continue  # another ingester was quicker
        return worked

    def _ship(self, file: SpoolFile) -> bool:
        landed = Landed()
        with transaction.atomic():
            offset = self._bookmark(file)
            if offset is None:
                return False
            chunk = file.read(offset, limit_bytes=self._step_bytes)
            end = chunk.offset + len(chunk.torn)
            self.has_more |= end - offset > self._step_bytes // 2
            if end > offset:
                landed = record_lines(chunk.lines, self._clock())
                unreadable = [*landed.bad, chunk.torn] if chunk.torn else landed.bad
                if unreadable:
                    self._set_aside(file, offset, unreadable)
                SpoolBookmark.objects.filter(name=file.name).update(offset=end, updated_at=self._clock())
                self._count(landed, len(unreadable))
        if chunk.lines:
            self._oldest_unshipped_at = None if end >= file.size_bytes() else landed.last_at
        self._shipped_to[file.name] = end
        if chunk.finished:
            file.remove()
            SpoolBookmark.objects.filter(name=file.name).delete()
        return end > offset or chunk.finished

    def _bookmark(self, file: SpoolFile) -> int | None:
        """The offset to read from, locked until the transaction ends; None where another ingester holds it."""
        with connection.cursor() as cursor:
            cursor.execute(
                'INSERT INTO spool_bookmark (name, "offset", updated_at) VALUES (%s, 0, %s) ON CONFLICT DO NOTHING',
                [file.name, self._clock()],
            )
        bookmark = SpoolBookmark.objects.select_for_update(skip_locked=True).filter(name=file.name).first()
        # Removed between listing and now: its bookmark went first or goes now, and there is nothing to read.
        if bookmark is None or not file.path.exists():
            SpoolBookmark.objects.filter(name=file.name, offset=0).delete()
            return None
        return bookmark.offset

    def _set_aside(self, file: SpoolFile, offset: int, unreadable: list[bytes]) -> None:
        """Writes lines that could not be shipped to a side file, named by their place: a repeated step rewrites it."""
        self.quarantine.mkdir(mode=0o700, exist_ok=True)
        target = self.quarantine / f"{file.name}-{offset}.lines"
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(b"\n".join(unreadable) + b"\n")
        logger.warning("set aside %s lines of %s that cannot be read: %s", len(unreadable), file.name, target.name)

    def _count(self, landed: Landed, lost: int) -> None:
        self._ensure_status()
        IngesterStatus.objects.filter(host=self.host).update(
            shipped=F("shipped") + len(landed.inserted) + landed.refused,
            repeated=F("repeated") + landed.repeated,
            quarantined=F("quarantined") + lost,
        )

    def _ensure_status(self) -> None:
        if not getattr(self, "_has_status", False):
            IngesterStatus.objects.get_or_create(
                host=self.host, defaults={"seen_at": self._clock(), "lag_s": 0.0, "spool_bytes": 0}
            )
            self._has_status = True

    def report(self, failure: str = "") -> None:
        """Writes how far behind the log is. One UPDATE."""
        self._ensure_status()
        now = self._clock()
        behind = max(0.0, now.timestamp() - self._oldest_unshipped_at) if self._oldest_unshipped_at else 0.0
        IngesterStatus.objects.filter(host=self.host).update(
            seen_at=now, lag_s=behind, spool_bytes=self.reader.size_bytes(), failure=failure[:500]
        )


def forget_old_bookmarks() -> int:
    """Periodic: deletes bookmarks of files that are long gone."""
    until = timezone.now() - timedelta(days=STALE_BOOKMARK_DAYS)
    return SpoolBookmark.objects.filter(updated_at__lt=until).delete()[0]
