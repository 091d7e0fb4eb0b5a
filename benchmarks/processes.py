"""What a call costs in processor time with two serving processes against one, and the ingester beside them."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.calls import CASES
from benchmarks.figures import Limit, ratios, spread
from benchmarks.load import drive
from benchmarks.measures import cpu_s
from benchmarks.report import per_second, ratio, table
from benchmarks.subjects import Running, check, product

_COUNTS = (1, 2)


def processes(asked: argparse.Namespace) -> dict[str, Any]:
    """Two installations by turns, with one and with two serving processes, none of them kept on a processor.

    Processor seconds of the server count its parent too; the ingester's run until it has shipped the window's rows.
    """
    case = CASES[asked.case]
    found: dict[int, list[dict[str, float]]] = {count: [] for count in _COUNTS}
    with ExitStack() as stack:
        installed = {
            count: stack.enter_context(product([case.model.name], processes=count, pinned=False)) for count in _COUNTS
        }
        for running in installed.values():
            check(running.target(case), case, (1, 2))
            drive(running.target(case), connections=32, seconds=1)
        for number in range(asked.rounds):
            for count in _COUNTS if number % 2 == 0 else reversed(_COUNTS):
                for running in installed.values():
                    running.settle()
                found[count].append(_window(installed[count], case, asked.seconds))
    cost = {count: [one["server_cpu_s_per_1000"] for one in rounds] for count, rounds in found.items()}
    return {
        "case": case.name,
        "by_processes": {
            str(count): {name: spread([one[name] for one in rounds]) for name in rounds[0]}
            for count, rounds in found.items()
        },
        "ratio": ratios(cost[2], cost[1]),
    }


def _window(running: Running, case: Any, seconds: float) -> dict[str, float]:
    parent, ingester = running.product.pid_of("server"), running.product.pid_of("ingest")
    assert parent is not None and ingester is not None
    serving = running.serving
    with running.client() as client:
        shown = running.calls_shown(client, case.model.name)
        before = [cpu_s(pid) for pid in (parent, ingester, *serving)]
        load = drive(running.target(case), connections=32, seconds=seconds)
        # Taken at once: what follows is the ingester's alone.
        served = [cpu_s(pid) for pid in (parent, *serving)]
        running.settle()
        shipped_s = cpu_s(ingester) - before[1]
        rows = running.calls_shown(client, case.model.name) - shown
    spent = [after - begun for after, begun in zip(served, [before[0], *before[2:]], strict=True)]
    return {
        "per_s": load.per_s,
        "server_cpu_s_per_1000": sum(spent) / load.requests * 1000,
        # How evenly the calls are spread: the busiest process's share.
        "busiest_share": max(spent[1:]) / max(sum(spent[1:]), 0.01),
        "ingester_us_per_row": shipped_s / max(rows, 1) * 1e6,
    }


def limits(figures: dict[str, Any]) -> list[Limit]:
    return [Limit("processor time a call, two processes against one", figures["ratio"]["median"], 1.1)]


def tables(figures: dict[str, Any]) -> Iterator[str]:
    yield table(
        (
            f"serving processes, {figures['case']}",
            "requests/s at c=32",
            "server's CPU s per 1,000",
            "share of the busiest",
            "ingester's µs a row",
        ),
        [
            (
                count,
                per_second(of["per_s"]),
                ratio(of["server_cpu_s_per_1000"]),
                ratio(of["busiest_share"]),
                per_second(of["ingester_us_per_row"]),
            )
            for count, of in figures["by_processes"].items()
        ],
    )
    yield f"Two processes cost {ratio(figures['ratio'])} times what one does."
