"""The closed loops of every case: Signalbox and those beside it by turns; what `bench` and `peers` are made of."""

import argparse
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks import measures, peers
from benchmarks.calls import CASES, Case
from benchmarks.figures import Limit, ratios, spread
from benchmarks.load import Load, drive
from benchmarks.models import Model
from benchmarks.report import milliseconds, per_second, ratio, table
from benchmarks.subjects import BARE, OURS, Running, Server, bare, check, model_alone, product

MANY, ONE = 32, 1
_QUICK = {"bench": "trees/*", "peers": "trees/v[12]/*1"}
# (case, connections, beside whom, what of it, bound, whether at least)
_LIMITS = {
    "bench": (
        ("trees/v1/1", MANY, "bare ASGI", "per_s", 0.80, True),
        ("trees/v1/1", MANY, "FastAPI", "per_s", 2.5, True),
        ("trees/v1/1", ONE, "bare ASGI", "p50_ms", 1.4, False),
        ("trees/v2-binary/64", MANY, "bare ASGI", "per_s", 0.85, True),
    ),
    "peers": (
        ("trees/v1/1", MANY, "FastAPI", "per_s", 2.5, True),
        ("trees/v2/1", MANY, "MLServer", "per_s", 8, True),
        ("trees/v2/64", MANY, "MLServer", "per_s", 3, True),
        ("trees/v1/1", MANY, "LitServe", "per_s", 15, True),
        ("trees/v1/1", MANY, "BentoML", "per_s", 25, True),
    ),
}
_TOLD = {"per_s": "requests/s", "p50_ms": "median"}


@dataclass(slots=True)
class Windows:
    """What each subject did of each case at so many connections, window by window; and why one did not."""

    loads: dict[tuple[str, int], dict[str, list[Load]]] = field(default_factory=dict)
    not_run: dict[tuple[str, str], str] = field(default_factory=dict)

    def figures(self) -> list[dict[str, Any]]:
        return [
            {
                "case": case,
                "connections": connections,
                "subjects": {name: _summary(loads) for name, loads in by_name.items()},
                "ratios": {
                    name: {what: _against(by_name[OURS], loads, what) for what in _TOLD}
                    for name, loads in by_name.items()
                    if name != OURS
                },
                "not_run": {name: why for (of, name), why in self.not_run.items() if of == case},
            }
            for (case, connections), by_name in self.loads.items()
        ]

    def take(self, running: Running, server: Server, case: Case, seconds: float) -> None:
        """One window at each number of connections, or a reason why there is none: then what it had is dropped."""
        target = server.target(case)
        if target is None or (case.name, server.name) in self.not_run:
            return
        try:
            # Signalbox's second version has a tenth of the calls.
            check(target, case, (1, 2) if server.name == OURS else (1,))
            # Not counted: lanes are chosen, buffers grow.
            drive(target, connections=MANY, seconds=1)
            for connections in (MANY, ONE) if case.rows == 1 else (MANY,):
                # What one window left to ship would take its share of the next one's processor.
                running.settle()
                load = drive(target, connections=connections, seconds=seconds)
                self.loads.setdefault((case.name, connections), {}).setdefault(server.name, []).append(load)
        except (RuntimeError, ValueError) as error:
            if server.name == OURS:
                raise
            self.drop(server.name, [case], str(error))

    def drop(self, name: str, cases: Iterable[Case], why: str) -> None:
        for case in cases:
            self.not_run[case.name, name] = why
            for connections in (MANY, ONE):
                self.loads.get((case.name, connections), {}).pop(name, None)


def _summary(loads: Sequence[Load]) -> dict[str, Any]:
    return {what: spread([getattr(load, what) for load in loads]) for what in ("per_s", "p50_ms", "p99_ms")}


def _against(ours: Sequence[Load], others: Sequence[Load], what: str) -> dict[str, float]:
    return ratios([getattr(load, what) for load in ours], [getattr(load, what) for load in others])


def chosen(measure: str, asked: argparse.Namespace) -> list[Case]:
    """The cases that the command names, all of them by default."""
    pattern = asked.only or (_QUICK[measure] if asked.quick else "*")
    return [case for name, case in CASES.items() if fnmatch.fnmatch(name, pattern)]


def by_model(cases: Iterable[Case]) -> Iterator[tuple[Model, list[Case]]]:
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.model.name, []).append(case)
    for of_model in found.values():
        yield of_model[0].model, of_model


def by_turns(windows: Windows, running: Running, servers: Sequence[Server], cases: Sequence[Case], asked: Any) -> None:
    """Servers that all run at once; each round begins with another one, so that none always follows the same."""
    for case in cases:
        for number in range(asked.rounds):
            shift = number % len(servers)
            for server in [*servers[shift:], *servers[:shift]]:
                windows.take(running, server, case, asked.seconds)


def bench(asked: argparse.Namespace) -> dict[str, Any]:
    """Signalbox beside a bare ASGI application and FastAPI's, the model in a loop, and what all of it costs."""
    cases = chosen("bench", asked)
    names = list(dict.fromkeys(["trees", *(case.model.name for case in cases)]))
    windows, alone = Windows(), {}
    with product(names) as running:
        # Before a flood of predictions: what a quiet installation shows.
        figures = {
            "freshness": measures.freshness(running, times=3 if asked.quick else 10),
            "pages_meanwhile": measures.pages_meanwhile(running, rounds=asked.rounds, seconds=asked.seconds),
            "ingest": measures.ingest(running, seconds=asked.seconds),
        }
        for model, of_model in by_model(cases):
            with ExitStack() as stack:
                beside = [stack.enter_context(bare(name, model)) for name in BARE]
                by_turns(windows, running, [running, *beside], of_model, asked)
            for rows in sorted({case.rows for case in of_model}):
                runs = [model_alone(model, rows, min(3.0, asked.seconds)) for _ in range(asked.rounds)]
                alone[f"{model.name}/{rows}"] = {what: spread([run[what] for run in runs], 4) for what in runs[0]}
        memory = measures.memory(running)
    return {"cases": windows.figures(), "model_alone": alone, **figures, "memory": memory}


def beside_peers(asked: argparse.Namespace) -> dict[str, Any]:
    """Signalbox beside every peer, which is started anew for each of its turns: an idle one takes nothing then."""
    cases = chosen("peers", asked)
    wanted = [peer for peer in peers.PEERS if not asked.peers or peer.folder in asked.peers.split(",")]
    windows, told = Windows(), {}
    able: list[peers.Peer] = []
    for peer in wanted:
        told[peer.name] = {"how": peer.how, "python": peer.python, "versions": {}, "not_run": ""}
        try:
            told[peer.name]["versions"] = peer.install(asked.cache)
            able.append(peer)
        except peers.NotRunError as error:
            told[peer.name]["not_run"] = str(error)
        told[peer.name]["python"] = "the distribution's" if peer.python.startswith("/usr/bin/") else "the product's"
    with product([model.name for model, _ in by_model(cases)]) as running:
        for model, of_model in by_model(cases):
            starts: dict[str, Callable[[], AbstractContextManager[Server]]] = {OURS: lambda: nullcontext(running)}
            for peer in able:
                starts[peer.name] = _starting(peer, model, asked)
            for number in range(asked.rounds):
                order = list(starts)
                for name in [*order[number % len(order) :], *order[: number % len(order)]]:
                    try:
                        with starts[name]() as server:
                            for case in of_model:
                                windows.take(running, server, case, asked.seconds)
                    except peers.NotRunError as error:
                        told[name]["not_run"] = f"{model.name}: {error}"
                        windows.drop(name, of_model, str(error))
                        del starts[name]
    return {"cases": windows.figures(), "peers": told}


def _starting(peer: peers.Peer, model: Model, asked: Any) -> Callable[[], AbstractContextManager[Server]]:
    return lambda: peers.serving(peer, model, asked.cache)


def limits(measure: str, figures: dict[str, Any]) -> list[Limit]:
    """The bounds whose two sides were measured."""
    by_key = {(one["case"], one["connections"]): one["ratios"] for one in figures["cases"]}
    found = []
    for case, connections, name, what, bound, at_least in _LIMITS[measure]:
        measured = by_key.get((case, connections), {}).get(name)
        if measured:
            sentence = f"{_TOLD[what]} of {case} at c={connections} against {name}"
            found.append(Limit(sentence, measured[what]["median"], bound, at_least))
    return found


def tables(figures: dict[str, Any]) -> Iterator[str]:
    """A table of every case and subject; then of the model alone, of the peers, and of what else `bench` measures."""
    rows = []
    for one in figures["cases"]:
        for name, of in one["subjects"].items():
            against = one["ratios"].get(name)
            rows.append(
                (
                    one["case"],
                    str(one["connections"]),
                    name,
                    per_second(of["per_s"]),
                    milliseconds(of["p50_ms"]),
                    milliseconds(of["p99_ms"]),
                    ratio(against["per_s"]) if against else "",
                )
            )
        rows += [
            (one["case"], str(one["connections"]), name, f"not run: {why}", "", "", "")
            for name, why in one["not_run"].items()
        ]
    yield table(("case", "c", "subject", "requests/s", "median", "p99", "Signalbox against it"), rows)
    if "model_alone" in figures:
        lines = [
            (name, per_second(of["per_s"]), milliseconds(of["p50_ms"])) for name, of in figures["model_alone"].items()
        ]
        yield table(("the model in a loop, without HTTP (rows)", "calls/s", "median"), lines)
    if "peers" in figures:
        hows = [
            (
                name,
                of["how"],
                ", ".join(f"{package} {version}" for package, version in of["versions"].items()),
                f"not run: {of['not_run']}" if of["not_run"] else "run",
            )
            for name, of in figures["peers"].items()
        ]
        yield table(("peer", "how", "versions", ""), hows)
    if "ingest" in figures:
        yield from measures.tables(figures)
