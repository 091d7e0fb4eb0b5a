"""Files by their sha256, written once, never under a name that a user chose.

The store is `settings.SIGNALBOX_ARTIFACTS`: `<first two hex>/<sha256>`, and `tmp/` for what is still being written.
Both lie on one volume, so that a finished file appears at once and whole.
"""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from django.conf import settings

from controlplane.errors import DomainError

logger = logging.getLogger(__name__)

# Left free on the volume, so that a full store never stops the database or the spool beside it.
HEADROOM_BYTES = 128 * 1024 * 1024
# A draft that nobody has written to for this long belongs to a process that died.
ABANDONED_S = 6 * 3600
FILE_MODE = 0o640
FOLDER_MODE = 0o750
COPY_BYTES = 1 << 20
DRAFTS = "tmp"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store."""

    sha256: str
    size_bytes: int


def root() -> Path:
    """The store's folder."""
    return Path(settings.SIGNALBOX_ARTIFACTS)


def drafts_folder() -> Path:
    """Where files are written before they have a hash; on the store's volume, made where it is missing."""
    return _made(root() / DRAFTS)


def path_of(sha256: str) -> Path:
    """Where the file with this hash lies, or would lie."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is not a sha256")
    return root() / sha256[:2] / sha256


def require_space(size_bytes: int) -> None:
    """Raises DomainError `storage_full` where the volume has no room for so many bytes and the headroom."""
    folder = _made(root())
    if shutil.disk_usage(folder).free < size_bytes + HEADROOM_BYTES:
        raise DomainError("storage_full")


class Draft:
    """A file on its way into the store: write to it, then `keep` or `discard` it. Hashes while it writes.

    `size_bytes` counts what was written; more than `most` bytes raise DomainError `too_large`, a full volume
    `storage_full`. Either way the draft is discarded.
    """

    def __init__(self, *, most: int, expected: int | None = None) -> None:
        require_space(min(expected or 0, most))
        self.most = most
        self.size_bytes = 0
        self.head = b""
        self.path = drafts_folder() / f"draft-{secrets.token_hex(16)}"
        self._hash = hashlib.sha256()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        self._file: IO[bytes] | None = os.fdopen(descriptor, "wb", buffering=COPY_BYTES)

    @property
    def sha256(self) -> str:
        """The hash of what was written so far."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        if self._file is None:
            raise ValueError("the draft is closed")
        self.size_bytes += len(chunk)
        if self.size_bytes > self.most:
            self.discard()
            raise DomainError("too_large", f"The file is larger than the cap of {in_words(self.most)}.")
        if len(self.head) < 64:
            self.head += chunk[: 64 - len(self.head)]
        self._hash.update(chunk)
        with self._full_volume():
            self._file.write(chunk)

    def finish(self) -> None:
        """Everything is written: flush it to the disk. Does nothing the second time."""
        if self._file is None:
            return
        with self._full_volume():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None

    def keep(self) -> StoredFile:
        """Put the file into the store under its hash; a file that is there already stays. Returns its name and size."""
        self.finish()
        final = path_of(self.sha256)
        with self._full_volume():
            folder = _made(final.parent)
            try:
                os.link(self.path, final)
                final.chmod(FILE_MODE)  # the umask may have taken the group's right to read
                _sync_folder(folder)
            except FileExistsError:
                os.utime(final)  # tells the sweep that it is wanted again
        self.path.unlink(missing_ok=True)
        return StoredFile(self.sha256, self.size_bytes)

    def discard(self) -> None:
        """Forget what was written. Does nothing to a file that is in the store already."""
        if self._file is not None:
            # Closing flushes, and a full volume may refuse even that; the file goes either way.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _full_volume(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DomainError("storage_full") from None
            raise


def draft_of(source: Path, *, most: int) -> Draft:
    """A finished draft with the content of a file. Raises as `Draft` does, and OSError where it cannot be read."""
    with source.open("rb") as stream:
        return draft_from(stream, most=most, expected=source.stat().st_size)


def draft_from(stream: IO[bytes], *, most: int, expected: int | None = None) -> Draft:
    """A finished draft with what a stream has left."""
    draft = Draft(most=most, expected=expected)
    try:
        while chunk := stream.read(COPY_BYTES):
            draft.write(chunk)
        draft.finish()
    except BaseException:
        draft.discard()
        raise
    return draft


def sweep_drafts(now: float | None = None) -> int:
    """Removes drafts that a process left behind when it died; returns how many."""
    folder = root() / DRAFTS
    limit = (time.time() if now is None else now) - ABANDONED_S
    removed = 0
    for path in folder.iterdir() if folder.exists() else ():
        try:
            if path.stat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # its process finished it in between
    if removed:
        logger.info("abandoned drafts removed: %d", removed)
    return removed


def stored_before(limit: float) -> Iterator[Path]:
    """Files of the store that were last wanted before a Unix time."""
    if not root().exists():
        return
    for folder in sorted(root().iterdir()):
        if len(folder.name) == 2 and folder.is_dir():
            for path in folder.iterdir():
                if path.stat().st_mtime < limit:
                    yield path


def in_words(size_bytes: int) -> str:
    """`64 MB`, `2.5 GB`: binary multiples, as file managers count."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GB"


def _made(folder: Path) -> Path:
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return folder


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
