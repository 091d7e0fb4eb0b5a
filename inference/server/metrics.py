"""Counts and latencies, right with several processes and after one died, at the price of an addition in memory.

Each process owns one mapped file of fixed series: a name, labels, and an array of float64. The hot path adds to a cell
it was given beforehand. A scrape reads every file. The file of a dead process (its lock is free) is added to
`folded.json` once: the names of what was folded are written in the same atomic rename as the sums.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

# Upper bounds of latency buckets in seconds: 100 us to 74 s, two for each doubling.
BOUNDS_S = tuple(round(1e-4 * 2 ** (k / 2), 7) for k in range(40))
# Upper bounds of buckets that count rows.
BOUNDS_ROWS = tuple(float(2**k) for k in range(17))
_VALUES = len(BOUNDS_S) + 2  # buckets, the bucket past the last bound, and the sum
_SUM = _VALUES - 1
_TEXT_BYTES = 256
_SERIES_BYTES = _TEXT_BYTES + 8 * _VALUES
# 600 kB a process; series past these share the last one, named signalbox_series_dropped.
_MAX_SERIES = 1024
_ROW = struct.Struct(f"={_VALUES}d")
_DROPPED = "signalbox_series_dropped"

HISTOGRAMS = {
    "signalbox_predict_seconds": "Seconds from a call's arrival to its answer.",
    "signalbox_predict_compute_seconds": "Seconds that the model computed for a call.",
    "signalbox_batch_wait_seconds": "Seconds that a call of the executor lane waited for its run.",
    "signalbox_batch_rows": "Rows of the run that answered a call of the executor lane.",
}
COUNTERS = {
    "signalbox_calls_total": "Prediction calls by outcome code.",
    "signalbox_rows_total": "Rows predicted.",
    "signalbox_shadows_dropped_total": "Shadow copies that were not run because the process was busy.",
    "signalbox_cache_hits_total": "Calls answered with what was computed for an earlier one.",
    "signalbox_cache_misses_total": "Calls computed although their deployment keeps answers.",
    "signalbox_model_loads_total": "Models loaded, those that came again too.",
    "signalbox_spool_bytes_total": "Bytes appended to the spool.",
    _DROPPED: "Updates of series that did not fit the process's table.",
}
# What the process does as a whole: the first rows of its file, where its parent reads them.
_OWN = {
    "signalbox_serving": "1 while the process takes connections.",
    "signalbox_in_flight": "Calls in progress that wait for anything; calls of the inline lane do not.",
    "signalbox_busy": "Share of the last second, 0 to 1, in which the loop had work, or the model threads if more.",
}
GAUGES = _OWN | {
    "signalbox_waiting": "Calls that wait for a run of the executor lane.",
    "signalbox_cache_bytes": "Bytes of answers that are kept.",
    "signalbox_models": "Models in memory, per process.",
    "signalbox_model_bytes": "Bytes that the models in memory take as measured at validation, per process.",
    "signalbox_model_budget_bytes": "Bytes that models may take, per process.",
    "signalbox_access_generation": "Generation of the access document in force, per process.",
    "signalbox_routes_generation": "Generation of the routes document in force, per process.",
}

Series = tuple[str, str]


@dataclass(slots=True)
class Counter:
    """One cell of this process's file."""

    _cells: "memoryview[float]"
    _at: int

    def add(self, amount: float = 1.0) -> None:
        self._cells[self._at] += amount

    def set(self, value: float) -> None:
        """For gauges: the value now."""
        self._cells[self._at] = value


@dataclass(slots=True)
class Histogram:
    """One row of cells of this process's file."""

    _cells: "memoryview[float]"
    _at: int
    _bounds: tuple[float, ...]

    def observe(self, value: float) -> None:
        self._cells[self._at + bisect_left(self._bounds, value)] += 1.0
        self._cells[self._at + _SUM] += value


class Metrics:
    """This process's series. Used from the event loop only."""

    def __init__(self, folder: Path) -> None:
        """Makes `folder` (0700) and this process's file in it, locked for as long as the process lives."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        hidden = folder / f".{name}"
        self._fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, _MAX_SERIES * _SERIES_BYTES)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._map = mmap.mmap(self._fd, _MAX_SERIES * _SERIES_BYTES)
        self._cells = memoryview(self._map).cast("d")
        self._rows: dict[Series, int] = {}
        for own in _OWN:
            self.counter(own)
        # Visible to scrapes only once it is locked: a file without its lock belongs to a dead process.
        hidden.rename(folder / f"{name}.series")

    def counter(self, name: str, **labels: str | int) -> Counter:
        """The cell of a counter or gauge; ask once and keep it."""
        return Counter(self._cells, self._row(name, labels))

    def histogram(self, name: str, **labels: str | int) -> Histogram:
        return Histogram(self._cells, self._row(name, labels), _bounds_of(name))

    def close(self) -> None:
        """Free the lock: the next scrape folds this process's counts."""
        if self._fd >= 0:
            # The map holds a duplicate of the descriptor, so closing alone would not free the lock.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    def _row(self, name: str, labels: dict[str, str | int]) -> int:
        text = ",".join(f'{key}="{_escaped(str(value))}"' for key, value in labels.items())
        series = (name, text)
        row = self._rows.get(series)
        if row is None:
            encoded = f"{name}\n{text}".encode()
            row = len(self._rows)
            if row >= _MAX_SERIES - 1 or len(encoded) > _TEXT_BYTES:
                series, row, encoded = (_DROPPED, ""), _MAX_SERIES - 1, f"{_DROPPED}\n".encode()
            self._rows[series] = row
            start = row * _SERIES_BYTES
            self._map[start : start + len(encoded)] = encoded
        return (row * _SERIES_BYTES + _TEXT_BYTES) // 8


def told_by(folder: Path, pid: int) -> dict[str, float]:
    """What a living process told of itself last, by name; empty where it has told nothing yet."""
    for path in folder.glob(f"{pid}-*.series"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if not _is_dead(file):
                own = _series(file.read(len(_OWN) * _SERIES_BYTES))
                return {name: values[0] for (name, _), values in own.items()}
    return {}


def _is_dead(file: BinaryIO) -> bool:
    """Whether the process whose series these are let go of them; then nobody else takes them for alive any more."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bounds_of(name: str) -> tuple[float, ...]:
    return BOUNDS_S if name.endswith("_seconds") else BOUNDS_ROWS


class _Folded(msgspec.Struct):
    """The counts of dead processes. `files`: names that are in the sums and may still lie in the folder."""

    files: list[str] = []
    sums: list[tuple[str, str, list[float]]] = []


def render(folder: Path) -> bytes:
    """All processes' series as Prometheus text; folds the files of dead processes first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        totals, living = _fold(folder)
    lines: list[str] = []
    for name, meaning in (COUNTERS | GAUGES).items():
        kind = "counter" if name in COUNTERS else "gauge"
        lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
        lines += (f"{name}{_braced(labels)} {values[0]:.15g}" for labels, values in _of(name, totals, living))
    for name, meaning in HISTOGRAMS.items():
        lines += (f"# HELP {name} {meaning}", f"# TYPE {name} histogram")
        for labels, values in _of(name, totals, living):
            lines += _histogram_lines(name, labels, values)
    return ("\n".join(lines) + "\n").encode()


def _of(
    name: str, totals: dict[Series, list[float]], living: dict[str, dict[Series, list[float]]]
) -> Iterator[tuple[str, list[float]]]:
    """Labels and values of one metric. Gauges are told per living process, the rest summed over all that ever were."""
    if name in GAUGES:
        for file, series in sorted(living.items()):
            pid = f'pid="{file.partition("-")[0]}"'
            yield from ((f"{pid},{labels}".rstrip(","), values) for (n, labels), values in series.items() if n == name)
        return
    merged = {key: values for key, values in totals.items() if key[0] == name}
    for series in living.values():
        for key, values in series.items():
            if key[0] == name:
                merged[key] = _added(merged.get(key), values)
    yield from ((labels, values) for (_, labels), values in sorted(merged.items()))


def _histogram_lines(name: str, labels: str, values: list[float]) -> Iterator[str]:
    count = 0.0
    comma = "," if labels else ""
    bounds = _bounds_of(name)
    for bound, amount in zip(bounds, values, strict=False):
        count += amount
        yield f'{name}_bucket{{{labels}{comma}le="{bound:g}"}} {count:.15g}'
    count += values[len(bounds)]
    yield f'{name}_bucket{{{labels}{comma}le="+Inf"}} {count:.15g}'
    yield f"{name}_sum{_braced(labels)} {values[_SUM]:.15g}"
    yield f"{name}_count{_braced(labels)} {count:.15g}"


def _fold(folder: Path) -> tuple[dict[Series, list[float]], dict[str, dict[Series, list[float]]]]:
    """(sums of the dead, series of the living by file). The folder's lock is held by the caller."""
    store = folder / "folded.json"
    folded = msgspec.json.decode(store.read_bytes(), type=_Folded) if store.exists() else _Folded()
    totals: dict[Series, list[float]] = {(name, labels): values for name, labels, values in folded.sums}
    living: dict[str, dict[Series, list[float]]] = {}
    dead: list[Path] = []
    for path in folder.glob("*.series"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if not _is_dead(file):
                living[path.name] = _series(file.read())
                continue
            dead.append(path)
            if path.name in folded.files:
                continue
            for series, values in _series(file.read()).items():
                if series[0] not in GAUGES:
                    totals[series] = _added(totals.get(series), values)
    if dead:
        sums = [(name, labels, values) for (name, labels), values in totals.items()]
        draft = folder / "folded.draft"
        draft.write_bytes(msgspec.json.encode(_Folded([path.name for path in dead], sums)))
        draft.rename(store)
        for path in dead:
            path.unlink(missing_ok=True)
    return totals, living


def _series(block: bytes) -> dict[Series, list[float]]:
    found: dict[Series, list[float]] = {}
    for start in range(0, len(block), _SERIES_BYTES):
        text = block[start : start + _TEXT_BYTES].rstrip(b"\0")
        if b"\n" not in text:
            continue
        name, _, labels = text.decode("utf-8", "replace").partition("\n")
        found[name, labels] = list(_ROW.unpack_from(block, start + _TEXT_BYTES))
    return found


def _added(left: list[float] | None, right: list[float]) -> list[float]:
    return right if left is None else [a + b for a, b in zip(left, right, strict=True)]


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
