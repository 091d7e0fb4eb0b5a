"""What `bench` measures beside throughput, each a dict of plain numbers with its unit in the names."""

import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.calls import MAIN
from benchmarks.figures import ratios, spread
from benchmarks.load import Load, drive
from benchmarks.report import ratio, table
from benchmarks.subjects import NAME, Running, children_of, descendants_of
from tests.services import wait_for

# Page readers open a deployment's page so often.
PAGE_EVERY_S = 0.5
# About 800 calls a second, well below what one process can do.
PACED_CONNECTIONS, PAUSE_MS = 8, 10
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def ingest(running: Running, *, seconds: float) -> dict[str, Any]:
    """CPU that the ingester and PostgreSQL spend on the rows of one window of full load."""
    ingester = running.product.pid_of("ingest")
    assert ingester is not None
    with running.client() as client:
        running.settle()
        stores = _postgres_pids(running)
        before = running.calls_shown(client)
        cpu, stored = cpu_s(ingester), sum(map(cpu_s, stores))
        began_at = time.monotonic()
        load = drive(running.target(MAIN), connections=32, seconds=seconds)
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
    target = running.target(MAIN)
    with running.client() as client, running.pages() as pages:
        for _ in range(times):
            running.settle(every_s=0.1)
            before = running.calls_shown(client)
            answer = client.post(f"/v1/models/{NAME}:predict", content=target.body)
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
                reader = PageReader(pages, PAGE_EVERY_S) if reads else None
                if reader is not None:
                    reader.start()
                try:
                    load = drive(
                        running.target(MAIN), connections=PACED_CONNECTIONS, seconds=seconds, pause_ms=PAUSE_MS
                    )
                finally:
                    if reader is not None:
                        reader.end()
                        page_ms += reader.took_ms
                (watched if reads else alone).append(load)
    without, with_pages = [load.p99_ms for load in alone], [load.p99_ms for load in watched]
    return {
        "per_s": spread([load.per_s for load in alone]),
        "p99_ms_without": spread(without),
        "p99_ms_with": spread(with_pages),
        "ratio": ratios(with_pages, without),
        "page_ms": spread(page_ms, 1),
    }


class PageReader(threading.Thread):
    """Reads the deployment's page every `every_s` seconds, or as soon as it has it, until it is told to end."""

    def __init__(self, pages: httpx.Client, every_s: float) -> None:
        super().__init__(name="page reader")
        self._pages, self._every_s = pages, every_s
        self._ended = threading.Event()
        self.took_ms: list[float] = []

    def run(self) -> None:
        while not self._ended.is_set():
            began_at = time.monotonic()
            _page(self._pages, "")
            took_s = time.monotonic() - began_at
            self.took_ms.append(took_s * 1000)
            self._ended.wait(max(0.0, self._every_s - took_s))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _page(pages: httpx.Client, tab: str) -> str:
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
    assert running.product.process is not None
    for pid in descendants_of(running.product.process.pid):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("postgres"):
            found.append(pid)
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def tables(figures: dict[str, Any]) -> Iterator[str]:
    """What else `bench` measured, and the memory of every process."""
    ingest, fresh, pages = figures["ingest"], figures["freshness"], figures["pages_meanwhile"]
    with_ms, without_ms = pages["p99_ms_with"]["median"], pages["p99_ms_without"]["median"]
    yield table(
        ("what", "measured"),
        [
            (
                "ingest",
                f"{ingest['rows_per_cpu_s']:,} rows per second of the ingester's CPU ({ingest['us_per_row']} µs a row, "
                f"and {ingest['postgres_us_per_row']} µs in PostgreSQL)",
            ),
            ("prediction to figures (API)", f"{fresh['api_s_median']} s median, {fresh['api_s_most']} s at most"),
            ("prediction to page", f"{fresh['page_s_median']} s median, {fresh['page_s_most']} s at most"),
            (
                "p99 while pages are read",
                f"{with_ms:.2f} ms against {without_ms:.2f} ms without: {ratio(pages['ratio'])} times, at "
                f"{pages['per_s']['median']:,.0f} requests/s (a page takes {pages['page_ms']['median']} ms)",
            ),
        ],
    )
    yield table(
        ("process", "resident", "its share (PSS)"),
        [(one["process"], _mb(one["rss_mb"]), _mb(one["pss_mb"])) for one in figures["memory"]],
    )


def _mb(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MB"
