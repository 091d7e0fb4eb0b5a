"""`python -m benchmarks [MEASURE]`: measures, prints tables, and writes them where told. `bench` is the default."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import charts, load, pacing, pages, peers, processes, studies, throughput
from benchmarks.calls import CASES, MAIN
from benchmarks.figures import Limit, keep, machine, now
from benchmarks.report import rewritten, table


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: how its figures are taken, shown and judged; `rounds` and `seconds` as by default."""

    what: str
    run: Callable[[argparse.Namespace], dict[str, Any]]
    tables: Callable[[dict[str, Any]], Iterable[str]]
    limits: Callable[[dict[str, Any]], list[Limit]]
    rounds: int = 5
    seconds: float = 10.0
    # Options of its own: (name, arguments of add_argument).
    options: tuple[tuple[str, dict[str, Any]], ...] = ()
    quick_s: float = 2.0


_ONLY = ("--only", {"default": "", "help": f"cases that fit this pattern, of {MAIN.name} and the like"})


def _case(name: str) -> tuple[str, dict[str, Any]]:
    return ("--case", {"default": name, "choices": list(CASES), "metavar": "CASE", "help": f"what is called ({name})"})


def _share(share: float) -> tuple[str, dict[str, Any]]:
    return ("--rate-share", {"type": float, "default": share, "help": f"share of the measured peak ({share})"})


MEASURES = {
    "bench": Measure(
        "Signalbox beside bare ASGI, FastAPI and the model in a loop; ingest, freshness, memory",
        throughput.bench,
        throughput.tables,
        lambda figures: throughput.limits("bench", figures),
        seconds=5.0,
        options=(_ONLY,),
    ),
    "peers": Measure(
        "Signalbox beside its peers, each installed and started by this",
        throughput.beside_peers,
        throughput.tables,
        lambda figures: throughput.limits("peers", figures),
        rounds=3,
        seconds=5.0,
        options=(
            _ONLY,
            ("--peers", {"default": "", "help": f"of {','.join(peer.folder for peer in peers.PEERS)} (all)"}),
            ("--cache", {"type": Path, "default": peers.CACHE, "help": f"where they are installed ({peers.CACHE})"}),
        ),
    ),
    "open": Measure(
        "the tail of an open loop at a share of the peak",
        pacing.tail,
        pacing.tail_tables,
        pacing.tail_limits,
        rounds=1,
        seconds=180.0,
        options=(_share(0.7), _case(MAIN.name)),
    ),
    "neighbours": Measure(
        "the p99 of boosted trees beside a heavy model and pages",
        pacing.neighbours,
        pacing.neighbours_tables,
        pacing.neighbours_limits,
        seconds=20.0,
        options=(_share(0.5),),
    ),
    "processes": Measure(
        "processor time a call with two serving processes against one",
        processes.processes,
        processes.tables,
        processes.limits,
        options=(_case(MAIN.name),),
    ),
    "overload": Measure(
        "what is answered, refused and how soon all is normal again at 1, 2 and 10 times the peak",
        pacing.overload,
        pacing.overload_tables,
        pacing.overload_limits,
        rounds=3,
        seconds=20.0,
        options=(_case(pacing.OVERLOAD.name),),
        quick_s=4.0,
    ),
}
# Measures of other things than calls, with options of their own.
_APART = {"pages": pages.main, "studies": studies.main, "page": charts.main}


def markdown(measure: Measure, figures: dict[str, Any]) -> str:
    """The head, the tables and the limits of one run."""
    of = figures["machine"]
    head = (
        f"{figures['at'][:10]}, {of['processor']}, {of['cores']} cores, {of['system']}, Python {of['python']}, ONNX "
        f"Runtime {of['onnxruntime']}, load average {of['load_average'][0]} before; medians (least to most) of "
        f"{figures['rounds']} windows of {figures['window_s']:g} s."
    )
    if figures["quick"]:
        head += " A quick run: it shows that the benchmark works, not how fast anything is."
    parts = [head, *measure.tables(figures)]
    if judged := measure.limits(figures):
        parts.append(table(("limit", "measured", "bound", "holds"), [limit.row for limit in judged]))
    return "\n\n".join(parts) + "\n"


def _parser(name: str) -> argparse.ArgumentParser:
    measure = MEASURES[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=f"{measure.what}. Others: {', '.join([*MEASURES, *_APART])}.",
    )
    parser.add_argument("--rounds", type=int, default=measure.rounds, help=f"windows of each ({measure.rounds})")
    parser.add_argument(
        "--seconds", type=float, default=measure.seconds, help=f"length of a window ({measure.seconds:g})"
    )
    parser.add_argument("--quick", action="store_true", help="short windows: shows that it works, not how fast it is")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE.md", help="put the tables into this page, the figures into PAGE.json"
    )
    for option, arguments in measure.options:
        parser.add_argument(option, **arguments)
    return parser


def main() -> int:
    """Exit status 1 where a limit does not hold, but for quick runs."""
    name, arguments = "bench", sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name in _APART:
        return _APART[name](arguments)
    if name not in MEASURES:
        print(f"There is no measure {name}; there are {', '.join([*MEASURES, *_APART])}.")
        return 2
    asked = _parser(name).parse_args(arguments)
    if not load.is_here():
        print(load.NO_WRK)
        return 0
    # So that what was started is ended, however this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    measure = MEASURES[name]
    if asked.quick:
        asked.rounds, asked.seconds = 1, measure.quick_s
    begun = {"at": now(), "machine": machine(), "quick": asked.quick, "rounds": asked.rounds, "window_s": asked.seconds}
    figures = begun | measure.run(asked)
    text = markdown(measure, figures)
    print(text)
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    if asked.write is not None:
        asked.write.write_text(rewritten(asked.write.read_text(), text, name))
        keep(asked.write.with_suffix(".json"), name, figures)
    return int(not asked.quick and any(not limit.holds for limit in measure.limits(figures)))


if __name__ == "__main__":
    sys.exit(main())
