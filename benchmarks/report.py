"""The figures as Markdown, and the page that keeps them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Where a run's figures begin on the page that keeps them.
LOAD = "<!-- measured: python -m benchmarks --write docs/performance.md -->"
PAGES = "<!-- measured: python -m benchmarks pages --write docs/performance.md -->"
END = "<!-- end of measured -->"


def rewritten(page: str, text: str, begin: str = LOAD) -> str:
    """`page` with `text` between the line `begin` and the next END. Raises ValueError where they are missing."""
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"The page has no place for the figures: it needs the lines {begin} and {END}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{END}{after}"


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def markdown(figures: dict[str, Any]) -> str:
    """The tables of one run."""
    return "\n\n".join(_parts(figures)) + "\n"


def _parts(figures: dict[str, Any]) -> Iterable[str]:
    machine = figures["machine"]
    yield (
        f"{figures['at'][:10]}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"ONNX Runtime {machine['onnxruntime']}; medians of windows of {figures['window_s']:g} s "
        f"(rounds: {figures['rounds']})."
        + (" A quick run: it shows that the benchmark works, not how fast anything is." if figures["quick"] else "")
    )
    subjects, ratios = figures["throughput"]["subjects"], figures["throughput"]["ratios"]
    yield table(
        ("front end", "requests/s at c=32", "p99 at c=32", "median at c=1", "p99 at c=1", "Signalbox against it"),
        [
            (
                name,
                f"{of['per_s_c32']:,.0f}",
                f"{of['p99_ms_c32']:.2f} ms",
                f"{of['p50_ms_c1']:.3f} ms",
                f"{of['p99_ms_c1']:.3f} ms",
                f"{ratios[name]:.2f}" if name in ratios else "",
            )
            for name, of in subjects.items()
        ],
    )
    ingest, fresh, pages = figures["ingest"], figures["freshness"], figures["pages_meanwhile"]
    yield table(
        ("what", "measured"),
        [
            (
                "ingest",
                f"{ingest['rows_per_cpu_s']:,} rows per second of the ingester's CPU ({ingest['us_per_row']} µs a row, "
                f"and {ingest['postgres_us_per_row']} µs in PostgreSQL)",
            ),
            (
                "prediction to figures (API)",
                f"{fresh['api_s_median']} s median, {fresh['api_s_most']} s at most",
            ),
            (
                "prediction to page",
                f"{fresh['page_s_median']} s median, {fresh['page_s_most']} s at most",
            ),
            (
                "p99 while pages are read",
                f"{pages['p99_ms_with']:.2f} ms against {pages['p99_ms_without']:.2f} ms without: "
                f"{pages['ratio']:.2f} times, at {pages['per_s']:,.0f} requests/s (a page takes "
                f"{pages['page_ms_median']} ms)",
            ),
        ],
    )
    yield table(
        ("process", "resident", "its share (PSS)"),
        [(one["process"], _mb(one["rss_mb"]), _mb(one["pss_mb"])) for one in figures["memory"]],
    )


def _mb(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
