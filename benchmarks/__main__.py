"""`python -m benchmarks`: measures, prints a table, and writes it where told. `... pages` measures the pages alone."""

import argparse
import json
import os
import platform
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks import load, measures, pages, studies, subjects
from benchmarks.report import markdown, processor, rewritten


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; starts what it measures and ends it."""
    rounds, seconds = arguments.rounds, arguments.seconds
    with ExitStack() as stack:
        running = stack.enter_context(subjects.product())
        # Before a flood of predictions: what a quiet installation shows.
        freshness = measures.freshness(running, times=3 if arguments.quick else 10)
        meanwhile = measures.pages_meanwhile(running, rounds=rounds, seconds=seconds)
        ingest = measures.ingest(running, seconds=seconds)
        asgi = stack.enter_context(subjects.bare("asgi", "bare ASGI"))
        fastapi = stack.enter_context(subjects.bare("fastapi", "bare FastAPI"))
        throughput = measures.throughput(running, [asgi, fastapi], rounds=rounds, seconds=seconds)
        memory = measures.memory(running)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "rounds": rounds,
        "window_s": seconds,
        "machine": {
            "processor": processor(),
            "cores": len(load.cores()),
            "load_average": [round(value, 2) for value in os.getloadavg()],
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
        },
        "throughput": throughput,
        "ingest": ingest,
        "freshness": freshness,
        "pages_meanwhile": meanwhile,
        "memory": memory,
    }


def main() -> int:
    if sys.argv[1:2] == ["pages"]:
        return pages.main(sys.argv[2:])
    if sys.argv[1:2] == ["studies"]:
        return studies.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="windows per subject and setting (5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a window (10)")
    parser.add_argument("--quick", action="store_true", help="short windows: shows that it works, not how fast it is")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="put the table into this page")
    arguments = parser.parse_args()
    if not load.is_here():
        print(load.NO_WRK)
        return 0
    # So that what was started is ended, however this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 2.0
    figures = measured(arguments)
    text = markdown(figures)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.write is not None:
        arguments.write.write_text(rewritten(arguments.write.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
