"""The measurements, each a dict of plain numbers with its unit in the names."""

import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Target, drive
from benchmarks.subjects import BODY, NAME, Running, children_of
from controlplane.local.processes import marked_with
from tests.services import wait_for

# Page readers open a deployment's page so often.
PAGE_EVERY_S = 0.5
# About 800 calls a second, well below what one process can do.
PACED_CONNECTIONS, PAUSE_MS = 8, 10
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def throughput(running: Running, others: Sequence[Target], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Closed loops at 32 connections and at one, the subjects in turn; medians over the rounds."""
    targets = [running.target, *others]
    windows: dict[int, dict[str, list[Load]]] = {}
    for connections in (32, 1):
        per_target = windows[connections] = {target.name: [] for target in targets}
        for target in targets:
            # Not counted: lanes are chosen, buffers grow.
            drive(target, BODY, connections=connections, seconds=1)
        for number in range(rounds):
            # Each round begins with another subject, so that none always follows the same one.
            shift = number % len(targets)
            for target in [*targets[shift:], *targets[:shift]]:
                # What one window left to ship would take its share of the next one's processor.
                wait_for(lambda: _is_quiet(running), 600, "an idle ingester", every_s=0.5)
                per_target[target.name].append(drive(target, BODY, connections=connections, seconds=seconds))
    subjects = {
        target.name: {
            "per_s_c32": _median(windows[32][target.name], "per_s"),
            "p99_ms_c32": _median(windows[32][target.name], "p99_ms"),
            "p50_ms_c1": _median(windows[1][target.name], "p50_ms"),
            "p99_ms_c1": _median(windows[1][target.name], "p99_ms"),
        }
        for target in targets
    }
    ours = subjects[targets[0].name]["per_s_c32"]
    return {
        "subjects": subjects,
        "ratios": {target.name: round(ours / subjects[target.name]["per_s_c32"], 3) for target in targets[1:]},
    }


def _median(loads: Sequence[Load], name: str) -> float:
    values: list[float] = [getattr(load, name) for load in loads]
    return round(statistics.median(values), 3)


def ingest(running: Running, *, seconds: float) -> dict[str, Any]:
    """CPU that the ingester and PostgreSQL spend on the rows of one window of full load."""
    ingester = running.product.pid_of("ingest")
    assert ingester is not None
    with running.client() as client:
        wait_for(lambda: _is_quiet(running), 600, "an idle ingester", every_s=0.5)
        stores = _postgres_pids(running)
        before = running.calls_shown(client)
        cpu, stored = cpu_s(ingester), sum(map(cpu_s, stores))
        began_at = time.monotonic()
        load = drive(running.target, BODY, connections=32, seconds=seconds)
        wait_for(lambda: running.calls_shown(client) >= before + load.requests, 600, "every row shipped", every_s=0.25)
        rows = running.calls_shown(client) - before
        took_s = time.monotonic() - began_at
        spent, in_store = cpu_s(ingester) - cpu, sum(map(cpu_s, stores)) - stored
    return {
        "rows": rows,
        "rows_per_cpu_s": round(rows / max(spent, _TICK_S)),
        "us_per_row": round(spent / rows * 1e6, 1),
        "postgres_us_per_row": round(in_store / rows * 1e6, 1),
        "visible_after_s": round(took_s, 2),
    }


def freshness(running: Running, *, times: int) -> dict[str, Any]:
    """Seconds from a prediction's answer until the figures count it, and until the page of predictions lists it."""
    in_api: list[float] = []
    on_page: list[float] = []
    with running.client() as client, running.pages() as pages:
        for _ in range(times):
            wait_for(lambda: _is_quiet(running), 600, "an idle ingester", every_s=0.1)
            before = running.calls_shown(client)
            answer = client.post(f"/v1/models/{NAME}:predict", content=BODY)
            answer.raise_for_status()
            answered_at = time.monotonic()
            identity = answer.headers["X-Prediction-Id"]
            wait_for(lambda count=before: running.calls_shown(client) > count, 60, "the figures")  # type: ignore[misc]
            in_api.append(time.monotonic() - answered_at)
            wait_for(lambda seek=identity: seek in _page(pages, "predictions/"), 60, "the page")  # type: ignore[misc]
            on_page.append(time.monotonic() - answered_at)
    return {
        "api_s_median": round(statistics.median(in_api), 2),
        "api_s_most": round(max(in_api), 2),
        "page_s_median": round(statistics.median(on_page), 2),
        "page_s_most": round(max(on_page), 2),
    }


def pages_meanwhile(running: Running, *, rounds: int, seconds: float) -> dict[str, Any]:
    """The p99 of a paced load, alone and while somebody reads a page every half second; medians over the rounds."""
    alone: list[Load] = []
    watched: list[Load] = []
    page_ms: list[float] = []
    with running.pages() as pages:
        _page(pages, "")
        for number in range(rounds):
            for reads in (number % 2 == 0, number % 2 == 1):
                reader = _Reader(pages) if reads else None
                if reader is not None:
                    reader.start()
                try:
                    load = drive(
                        running.target, BODY, connections=PACED_CONNECTIONS, seconds=seconds, pause_ms=PAUSE_MS
                    )
                finally:
                    if reader is not None:
                        reader.end()
                        page_ms += reader.took_ms
                (watched if reads else alone).append(load)
    without, with_pages = _median(alone, "p99_ms"), _median(watched, "p99_ms")
    return {
        "per_s": _median(alone, "per_s"),
        "p99_ms_without": without,
        "p99_ms_with": with_pages,
        "ratio": round(with_pages / without, 2),
        "page_ms_median": round(statistics.median(page_ms), 1) if page_ms else None,
    }


class _Reader(threading.Thread):
    """Reads the deployment's page every PAGE_EVERY_S until it is told to end."""

    def __init__(self, pages: Any) -> None:
        super().__init__(name="page reader")
        self._pages = pages
        self._ended = threading.Event()
        self.took_ms: list[float] = []

    def run(self) -> None:
        while not self._ended.is_set():
            began_at = time.monotonic()
            _page(self._pages, "")
            took_s = time.monotonic() - began_at
            self.took_ms.append(took_s * 1000)
            self._ended.wait(max(0.0, PAGE_EVERY_S - took_s))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _page(pages: Any, tab: str) -> str:
    answer = pages.get(f"/deployments/{NAME}/{tab}")
    answer.raise_for_status()
    return str(answer.text)


def memory(running: Running) -> list[dict[str, Any]]:
    """Every process of the product: resident megabytes, and its share of what is shared (PSS)."""
    names: dict[int, str] = {}
    processes = running.product.status.get("processes", {})
    assert isinstance(processes, dict)
    for part in processes:
        pid = running.product.pid_of(part)
        if pid is not None:
            names[pid] = part
    for pid, part in list(names.items()):
        for index, child in enumerate(children_of(pid), 1):
            names.setdefault(child, f"{part}, child {index}")
    assert running.product.process is not None
    names[running.product.process.pid] = "up (supervisor)"
    # PostgreSQL's own children are many and share nearly everything: one line.
    told = [{"process": name, **_megabytes(pid)} for pid, name in names.items() if not name.startswith("postgres")]
    store = [_megabytes(pid) for pid in _postgres_pids(running)]
    if store:
        told.append({"process": f"postgres ({len(store)} processes)", "rss_mb": None, "pss_mb": _total(store)})
    return sorted(told, key=lambda one: -(one["pss_mb"] or 0))


def _total(parts: Sequence[dict[str, Any]]) -> float:
    return round(sum(part["pss_mb"] or 0 for part in parts), 1)


def _megabytes(pid: int) -> dict[str, Any]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {"rss_mb": None, "pss_mb": None}
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return {"rss_mb": round(sizes["Rss"] / 1024, 1), "pss_mb": round(sizes["Pss"] / 1024, 1)}


def _postgres_pids(running: Running) -> list[int]:
    found = []
    for pid in marked_with(running.product.home) | set(_descendants(running.product.pid_of("postgres"))):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("postgres"):
            found.append(pid)
    return found


def _descendants(pid: int | None) -> list[int]:
    if pid is None:
        return []
    return [pid, *(grandchild for child in children_of(pid) for grandchild in _descendants(child))]


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _is_quiet(running: Running) -> bool:
    """Whether the ingester has shipped all that was spooled."""
    with running.client() as client:
        told = client.get(f"/api/deployments/{NAME}/metrics/", params={"since": "1h"}).json()["data"]
    ingesters = told["ingesters"]
    return bool(ingesters) and all(one["lag_s"] == 0 for one in ingesters)
