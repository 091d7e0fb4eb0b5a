"""Measures under an open loop: the tail at a share of the peak, neighbours that take the processor, overload."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from benchmarks.calls import CASES, MAIN, Case
from benchmarks.figures import Limit, ratios, spread
from benchmarks.load import Closed, Target, drive
from benchmarks.measures import PageReader
from benchmarks.models import MODELS
from benchmarks.open_loop import BIN_S, Part, Result, Stage, run
from benchmarks.report import milliseconds, per_second, ratio, table
from benchmarks.subjects import OURS, Running, bare, check, model_alone, product
from tests.e2e.control import control_of

_WARM_S = 2.0
_FLOOR = "bare ASGI"
HEAVY = Case(MODELS["heavy"], "v2-binary", 1)
_HEAVY_CLIENTS = 16
# How much longer the neighbour goes on than what is timed beside it, on both ends.
_MARGIN_S = 3.0
OVERLOAD = CASES["image/v2-binary/1"]
_TIMES = (1, 2, 10)
# So many callers at once that most of what is there is waiting.
_CONNECTIONS = 2_000
# How long a caller waits for one of them to be free.
_PATIENCE_S = 1.0
# Watched for so long at least whether all is as before.
_RECOVERS_S = 10.0
# What a call has where it says nothing else.
_DEADLINE_MS = 10_000
_LIMITED_PER_MINUTE = 60
_LIMITED_PER_S = 200.0
# A call that finds all connections busy where only their number is to bound the load.
_BRIEFLY_S = 0.05
_PERCENTILES = ("p50_ms", "p99_ms", "p999_ms", "most_ms")
_GENERATOR = ("own_us_per_call", "own_share")


def peak(target: Target, seconds: float) -> float:
    """Calls a second that 32 connections get of a server, kept busy by the generator of the open loop.

    By the same program as the load that follows: on processors that the load shares with the server, what it costs
    weighs on both alike.
    """
    offered = 2 * drive(target, connections=32, seconds=1).per_s
    return run(target, [Stage(offered, seconds)], connections=32, patience_s=_BRIEFLY_S).parts[0].answered_per_s


def _peak_of_three(running: Running, target: Target, asked: argparse.Namespace) -> float:
    found = []
    for _ in range(3):
        running.settle()
        found.append(peak(target, min(5.0, asked.seconds)))
    return spread(found)["median"]


def _generator(results: Sequence[Result]) -> dict[str, Any]:
    """What the generator itself cost, and how late it sent, so that a reader can tell its share of the figures."""
    parts = [result.parts[-1] for result in results]
    told: dict[str, Any] = {name: spread([getattr(result, name) for result in results]) for name in _GENERATOR}
    return told | {name: spread([getattr(part, name) for part in parts]) for name in ("late_p50_ms", "late_p99_ms")}


def _generator_line(told: dict[str, Any]) -> tuple[str, str]:
    return (
        "the generator itself",
        f"{told['own_us_per_call']['median']:.0f} µs of processor time a call, {told['own_share']['median']:.0%} of a "
        f"core; it wrote a call {told['late_p50_ms']['median']:.3f} ms after it was due (p99 "
        f"{told['late_p99_ms']['median']:.2f} ms)",
    )


# open: the tail


def tail(asked: argparse.Namespace) -> dict[str, Any]:
    """Calls at a share of the peak that was measured just before: percentiles from when each was due, and errors.

    In turns with a bare server at the same share of its own peak, which tells what the machine allows.
    """
    case = CASES[asked.case]
    results: dict[str, list[Result]] = {OURS: [], _FLOOR: []}
    most: dict[str, list[float]] = {OURS: [], _FLOOR: []}
    by_wrk: dict[str, list[float]] = {OURS: [], _FLOOR: []}
    with product([case.model.name]) as running, bare(_FLOOR, case.model) as floor:
        beside = floor.target(case)
        assert beside is not None
        targets = {OURS: running.target(case), _FLOOR: beside}
        check(targets[OURS], case, (1, 2))
        check(beside, case)
        seconds = min(5.0, asked.seconds)
        for _ in range(asked.rounds):
            for name, target in targets.items():
                running.settle()
                by_wrk[name].append(drive(target, connections=32, seconds=seconds).per_s)
                running.settle()
                most[name].append(peak(target, seconds))
                running.settle()
                rate = most[name][-1] * asked.rate_share
                results[name].append(run(target, [Stage(rate, _WARM_S), Stage(rate, asked.seconds)]))
    of = {name: _tail_of(most[name], by_wrk[name], results[name]) for name in targets}
    return {"case": case.name, "rate_share": asked.rate_share, **of[OURS], "floor": of[_FLOOR]}


def _tail_of(most: Sequence[float], by_wrk: Sequence[float], results: Sequence[Result]) -> dict[str, Any]:
    parts = [result.parts[-1] for result in results]
    return {
        "peak_per_s": spread(most),
        "wrk_per_s": spread(by_wrk),
        "rate_per_s": spread([part.rate for part in parts]),
        "calls": sum(part.sent for part in parts),
        "errors": sum(part.errors for part in parts),
        **{name: spread([getattr(part, name) for part in parts]) for name in _PERCENTILES},
        "p99_of_p50": ratios([part.p99_ms for part in parts], [part.p50_ms for part in parts]),
        "p99_course_ms": [one[1] for one in parts[0].bins],
        "generator": _generator(results),
    }


def tail_limits(figures: dict[str, Any]) -> list[Limit]:
    return [
        Limit("p99 against p50 in the open loop", figures["p99_of_p50"]["median"], 5),
        Limit("errors in the open loop", figures["errors"], 0),
    ]


def tail_tables(figures: dict[str, Any]) -> Iterator[str]:
    both, share = (figures, figures["floor"]), f"{figures['rate_share']:.0%}"

    def row(what: str, told: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return what, *map(told, both)

    yield table(
        ("open loop", f"{figures['case']}, Signalbox", _FLOOR),
        [
            row("calls/s of 32 connections by wrk", lambda of: per_second(of["wrk_per_s"])),
            row("by this generator: the peak", lambda of: per_second(of["peak_per_s"])),
            row(f"rate: {share} of it", lambda of: per_second(of["rate_per_s"])),
            row("calls, errors", lambda of: f"{of['calls']:,}, {of['errors']:,}"),
            row("p50", lambda of: milliseconds(of["p50_ms"])),
            row("p99", lambda of: milliseconds(of["p99_ms"])),
            row("p99.9", lambda of: milliseconds(of["p999_ms"])),
            row("longest", lambda of: milliseconds(of["most_ms"])),
            row("p99 against p50", lambda of: ratio(of["p99_of_p50"])),
            row("the generator itself", lambda of: _generator_line(of["generator"])[1]),
        ],
    )


# neighbours


def neighbours(asked: argparse.Namespace) -> dict[str, Any]:
    """Boosted trees at half of their peak: alone, beside a heavy model under 16 clients, while pages are rendered.

    The heavy model's threads have the one processor that the serving process has, and pages the one of the load.
    """
    results: dict[str, list[Result]] = {"alone": [], "heavy": [], "pages": []}
    heavy_per_s: list[float] = []
    page_ms: list[float] = []
    alone = model_alone(HEAVY.model, 1, min(3.0, asked.seconds))
    with product([MAIN.model.name, HEAVY.model.name]) as running, running.pages() as client:
        target, heavy = running.target(MAIN), running.target(HEAVY)
        check(target, MAIN, (1, 2))
        check(heavy, HEAVY, (1, 2))
        most = _peak_of_three(running, target, asked)
        stages = [Stage(most * asked.rate_share, _WARM_S), Stage(most * asked.rate_share, asked.seconds)]
        order = list(results)
        for number in range(asked.rounds):
            for kind in [*order[number % 3 :], *order[: number % 3]]:
                running.settle()
                with ExitStack() as stack:
                    if kind == "heavy":
                        stack.enter_context(_beside(heavy, _WARM_S + asked.seconds + 2 * _MARGIN_S, heavy_per_s))
                    elif kind == "pages":
                        reader = PageReader(client, 0.0)
                        reader.start()
                        stack.callback(page_ms.extend, reader.took_ms)
                        stack.callback(reader.end)
                    results[kind].append(run(target, stages))
    p99s = {kind: [result.parts[-1].p99_ms for result in of] for kind, of in results.items()}
    return {
        "case": MAIN.name,
        "heavy_model_ms": round(alone["p50_ms"], 1),
        "heavy_per_s": spread(heavy_per_s),
        "page_ms": spread(page_ms, 1),
        "rate_per_s": round(stages[-1].rate, 1),
        "peak_per_s": most,
        "errors": {kind: sum(result.parts[-1].errors for result in of) for kind, of in results.items()},
        "p50_ms": {kind: spread([result.parts[-1].p50_ms for result in of]) for kind, of in results.items()},
        "p99_ms": {kind: spread(of) for kind, of in p99s.items()},
        "ratios": {kind: ratios(p99s[kind], p99s["alone"]) for kind in ("heavy", "pages")},
        "generator": _generator(results["alone"]),
    }


@contextmanager
def _beside(target: Target, seconds: float, per_s: list[float]) -> Iterator[None]:
    """The heavy model's clients, from before until after what is timed."""
    closed = Closed(target, connections=_HEAVY_CLIENTS, seconds=seconds)
    try:
        yield
    except BaseException:
        closed.cancel()
        raise
    per_s.append(closed.result().per_s)


def neighbours_limits(figures: dict[str, Any]) -> list[Limit]:
    return [
        Limit("p99 beside a heavy model against alone", figures["ratios"]["heavy"]["median"], 2.0),
        Limit("p99 while pages are rendered against alone", figures["ratios"]["pages"]["median"], 1.5),
        Limit("errors beside neighbours", sum(figures["errors"].values()), 0),
    ]


def neighbours_tables(figures: dict[str, Any]) -> Iterator[str]:
    heavy = f"a model of {figures['heavy_model_ms']:.0f} ms, {_HEAVY_CLIENTS} clients"
    names = {"alone": "nothing", "heavy": heavy, "pages": "pages rendered without a pause"}
    yield table(
        (
            f"{figures['case']} at {figures['rate_per_s']:,.0f} calls/s beside",
            "p50",
            "p99",
            "p99 against alone",
            "errors",
        ),
        [
            (
                name,
                milliseconds(figures["p50_ms"][kind]),
                milliseconds(figures["p99_ms"][kind]),
                ratio(figures["ratios"][kind]) if kind in figures["ratios"] else "",
                str(figures["errors"][kind]),
            )
            for kind, name in names.items()
        ],
    )
    yield table(
        ("what", "measured"),
        [
            ("answers of the heavy model a second", per_second(figures["heavy_per_s"])),
            ("a page", milliseconds(figures["page_ms"])),
            _generator_line(figures["generator"]),
        ],
    )


# overload


def overload(asked: argparse.Namespace) -> dict[str, Any]:
    """Answers 200 a second where more is offered than can be served; refusals; how soon all is as before.

    A stage of half the peak tells what is normal, another one after the overload when it is so again.
    """
    case = CASES[asked.case]
    found: dict[str, list[dict[str, Any]]] = {f"{times}x": [] for times in _TIMES}
    peaks: list[float] = []
    results = []
    with product([case.model.name]) as running:
        target = running.target(case)
        check(target, case, (1, 2))
        for _ in range(asked.rounds):
            for times in _TIMES:
                running.settle()
                peaks.append(most := peak(target, min(5.0, asked.seconds)))
                running.settle()
                before = Stage(most / 2, asked.seconds / 2)
                after = Stage(most / 2, max(_RECOVERS_S, asked.seconds / 2))
                stages = [before, Stage(most * times, asked.seconds), after]
                result = run(target, stages, connections=_CONNECTIONS, patience_s=_PATIENCE_S)
                results.append(result)
                found[f"{times}x"].append(_weathered(result.parts, most))
        limited = _rate_limited(running, case, min(10.0, asked.seconds))
    return {
        "case": case.name,
        "peak_per_s": spread(peaks),
        "offered": {times: _each(rounds) for times, rounds in found.items()},
        "rate_limited": limited,
        "generator": _generator(results),
    }


def _weathered(parts: Sequence[Part], most: float) -> dict[str, Any]:
    before, during, after = parts
    return {
        "offered_per_s": during.sent / during.seconds,
        "goodput_per_s": during.answered_per_s,
        "share_of_peak": during.answered_per_s / most,
        "p99_ms": during.served_p99_ms,
        "given_up": during.given_up,
        "refused": (refused := sum(during.statuses.get(status, 0) for status in ("429", "503"))),
        "other": during.errors - during.given_up - refused,
        "refused_p50_ms": during.refused_p50_ms,
        "refused_p99_ms": during.refused_p99_ms,
        "normal_p99_ms": before.p99_ms,
        "recovered_after_s": recovered_after_s(after.bins, before.p99_ms),
    }


def recovered_after_s(bins: Sequence[Sequence[float]], normal_p99_ms: float) -> float:
    """When the first of two half seconds in a row began whose calls were all answered, with a p99 of at most twice the
    normal one; the whole time where there was none.
    """
    fine = [ok == calls and p99_ms <= 2 * normal_p99_ms for ok, p99_ms, calls in bins]
    for index in range(len(fine) - 1):
        if fine[index] and fine[index + 1]:
            return index * BIN_S
    return len(fine) * BIN_S


def _each(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: spread([one[name] for one in rounds]) for name in rounds[0]}


def _rate_limited(running: Running, case: Case, seconds: float) -> dict[str, Any]:
    """Calls with a key that may make one a second, many more than that offered."""
    with control_of(running.product) as control:
        key = control.issued(scopes=["predict"], rate_per_minute=_LIMITED_PER_MINUTE)
    target = running.target(case)
    limited = Target(target.name, target.url, {**target.headers, "Authorization": f"Bearer {key}"}, target.body)
    part = run(limited, [Stage(_LIMITED_PER_S, seconds)]).parts[0]
    return {name: value for name, value in asdict(part).items() if name != "bins"}


def overload_limits(figures: dict[str, Any]) -> list[Limit]:
    found = []
    for times, of in figures["offered"].items():
        if times != "1x":
            found += [
                Limit(f"share of the peak at {times}", of["share_of_peak"]["median"], 0.90, True),
                Limit(f"seconds until normal after {times}", of["recovered_after_s"]["median"], 5),
                Limit(f"neither answered nor refused at {times}", of["other"]["median"], 0),
                Limit(f"p99 of answers at {times}, ms", of["p99_ms"]["median"], _DEADLINE_MS),
            ]
            if of["refused"]["median"]:
                found.append(Limit(f"p99 of refusals at {times}, ms", of["refused_p99_ms"]["median"], 50))
    return [*found, Limit("p99 of answers 429 to a limited key, ms", figures["rate_limited"]["refused_p99_ms"], 50)]


def overload_tables(figures: dict[str, Any]) -> Iterator[str]:
    yield table(
        (
            f"{figures['case']}, peak {per_second(figures['peak_per_s'])}/s",
            "offered/s",
            "answered 200/s",
            "share of the peak",
            "p99 of these, from sending",
            "never sent",
            "refused",
            "p99 of refusals",
            "neither",
            "normal after",
        ),
        [
            (
                times,
                per_second(of["offered_per_s"]),
                per_second(of["goodput_per_s"]),
                ratio(of["share_of_peak"]),
                milliseconds(of["p99_ms"]),
                per_second(of["given_up"]),
                per_second(of["refused"]),
                milliseconds(of["refused_p99_ms"]),
                per_second(of["other"]),
                f"{of['recovered_after_s']['median']:.1f} s",
            )
            for times, of in figures["offered"].items()
        ],
    )
    limited = figures["rate_limited"]
    statuses = json.dumps(limited["statuses"])
    yield table(
        ("what", "measured"),
        [
            (
                f"a key limited to {_LIMITED_PER_MINUTE} calls a minute, {_LIMITED_PER_S:.0f}/s offered",
                f"answers by status {statuses}; 429: p50 {limited['refused_p50_ms']:.2f} ms, "
                f"p99 {limited['refused_p99_ms']:.2f} ms",
            ),
            _generator_line(figures["generator"]),
        ],
    )
