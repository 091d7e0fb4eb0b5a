"""The spool: every prediction is one line of an append-only file before its answer leaves; the ingester reads it.

A file belongs to one writer for its life, who holds an exclusive `flock` on it. So a reader that can take the lock
knows that no further byte will come: the writer rotated it away or died. A kill loses nothing that was written (the
page cache is the kernel's); a torn last line belongs to an answer that was never sent.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from inference.contracts import SpoolRecord
from inference.errors import InferenceError
from inference.packing import spelled

SUFFIX = ".spool"
ROTATE_BYTES = 64 * 1024 * 1024
# A reader's step. A line is longer only for a call of many rows; then the step grows until a line is complete.
READ_BYTES = 4 * 1024 * 1024

# What decoding a line raises where it is no record.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(SpoolRecord)


def encoded(record: SpoolRecord) -> bytes:
    """A record as a line, without its end."""
    return _encoder.encode(record)


class SpoolWriter:
    """Appends records to this process's own file, one `write` each. Not for several threads at once."""

    def __init__(self, folder: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        """Makes the folder (0700) where it is missing and opens the first file."""
        self.folder = folder
        self._rotate_bytes = rotate_bytes
        self._buffer = bytearray(4096)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = -1
        self._size = 0
        self.total_bytes = 0
        self._open()

    def append(self, record: SpoolRecord) -> None:
        """Write one record. Raises InferenceError storage_full on a full disk; then nothing was written."""
        buffer = self._buffer
        _encoder.encode_into(record, buffer)
        buffer += b"\n"
        self._write(buffer)

    def append_line(self, line: bytes) -> None:
        """Write a record that is JSON already, without a line's end in it. Raises as `append`."""
        self._write(line + b"\n")

    def append_lines(self, lines: Sequence[bytes]) -> list[Exception | None]:
        """Write such lines in one `write`; what became of each: None, or what kept it from being written."""
        if not lines:
            return []
        try:
            self._write(b"\n".join(lines) + b"\n")
        except Exception as error:  # boundary: each caller is told; where several lines did not fit, some still may
            return [error] if len(lines) == 1 else [self._tried(line) for line in lines]
        return [None] * len(lines)

    def _tried(self, line: bytes) -> Exception | None:
        try:
            self.append_line(line)
        except Exception as error:  # boundary: as in `append_lines`
            return error
        return None

    def _write(self, buffer: bytes | bytearray) -> None:
        if self._fd < 0:
            self._open()
        try:
            written = os.write(self._fd, buffer)
        except OSError as error:
            raise self._refused(error) from error
        if written != len(buffer):
            # A part of a line fitted: take it back, so that the next record starts a line of its own.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise InferenceError("storage_full", headers={"Retry-After": "5"})
        self._size += written
        self.total_bytes += written
        if self._size >= self._rotate_bytes:
            self.rotate()

    def rotate(self) -> None:
        """Leave the present file to the readers; the next record opens a new one."""
        self.close()

    def close(self) -> None:
        """Release the file. What was appended stays for the readers."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        name = f"{time.time_ns():020d}-{os.getpid()}"
        # Locked under a name that no reader looks at: a reader never sees a living file without its lock.
        hidden = self.folder / f".{name}"
        try:
            fd = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            hidden.rename(self.folder / f"{name}{SUFFIX}")
        except OSError as error:
            raise self._refused(error) from error
        self._fd, self._size = fd, 0

    @staticmethod
    def _refused(error: OSError) -> Exception:
        if error.errno in _DISK_IS_FULL:
            return InferenceError("storage_full", headers={"Retry-After": "5"})
        return error


@dataclass(slots=True)
class Chunk:
    """What one read gave: whole lines, and the offset at which the next read starts.

    `finished` says that the writer is gone and all was read, `torn` what it left of a last line: its answer was never
    sent.
    """

    lines: list[bytes] = field(default_factory=list)
    offset: int = 0
    finished: bool = False
    torn: bytes = b""

    @property
    def records(self) -> list[SpoolRecord]:
        """The lines that are records, decoded."""
        found = []
        for line in self.lines:
            with contextlib.suppress(*UNREADABLE):
                record = _decoder.decode(line)
                if record.packed is not None:
                    record = msgspec.structs.replace(record, packed=None, **spelled(record.packed))
                found.append(record)
        return found


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One file of the spool; `name` is stable and sorts by age, so (name, offset) is a reader's bookmark."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def has_writer(self) -> bool:
        """Whether it is still written to."""
        with self.path.open("rb") as file:
            return not _unlocked(file.fileno())

    def read(self, offset: int, *, limit_bytes: int = READ_BYTES) -> Chunk:
        """Whole lines from `offset` on, at least one where a whole one is there. A torn tail is left alone."""
        with self.path.open("rb") as file:
            # Asked before the bytes are read: a writer that dies in between is noticed at the next read.
            dead = _unlocked(file.fileno())
            file.seek(offset)
            block = file.read(limit_bytes)
            while block and b"\n" not in block and (more := file.read(limit_bytes)):
                block += more
            at_end = not file.read(1)
        whole, _, tail = block.rpartition(b"\n")
        chunk = Chunk(offset=offset)
        if len(block) > len(tail):
            chunk.offset = offset + len(whole) + 1
            chunk.lines = whole.split(b"\n")
        chunk.finished = dead and at_end
        if chunk.finished:
            chunk.torn = tail
        return chunk

    def remove(self) -> None:
        """Delete a file that was read to its end; no error where another reader was quicker."""
        self.path.unlink(missing_ok=True)


class SpoolReader:
    """The files of a spool folder, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[SpoolFile]:
        if not self.folder.is_dir():
            return []
        return [SpoolFile(path) for path in sorted(self.folder.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]

    def records(self) -> Iterator[tuple[SpoolFile, SpoolRecord]]:
        """Every whole record that is there now; for checks and tools, the ingester keeps bookmarks instead."""
        for file in self.files():
            offset = 0
            while True:
                chunk = file.read(offset)
                yield from ((file, record) for record in chunk.records)
                if chunk.offset == offset:
                    break
                offset = chunk.offset

    def size_bytes(self) -> int:
        """Bytes in all files, shipped or not."""
        total = 0
        for file in self.files():
            with contextlib.suppress(FileNotFoundError):
                total += file.size_bytes()
        return total


def _unlocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True
