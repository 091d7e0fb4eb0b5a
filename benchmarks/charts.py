"""`python -m benchmarks page`: the kept figures as one page of Plotly charts, which needs no network."""

import argparse
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from benchmarks.open_loop import BIN_S

FIGURES, PAGE = Path("docs/performance.json"), Path("docs/build/performance.html")
_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}p{color:#555}"


def page(kept: dict[str, Any]) -> str:
    """One HTML document that holds Plotly itself and every chart that the figures allow."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Signalbox: performance</title>",
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>Signalbox: performance</h1>",
    ]
    for title, of, figure in _charts(kept):
        machine = of["machine"]
        told = f"{of['at'][:10]}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}"
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(told)}</p>")
        figure.update_layout(template="plotly_white", margin={"l": 10, "r": 10, "t": 10, "b": 10})
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=False))
    return "\n".join([*parts, "</body></html>"])


def _charts(kept: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], go.Figure]]:
    for name, beside in (("bench", "bare servers"), ("peers", "its peers")):
        if name in kept:
            of = kept[name]
            yield f"Requests a second at 32 connections, beside {beside}", of, _points(of, 32, "per_s", "requests/s")
            yield f"Median at one connection, beside {beside}", of, _points(of, 1, "p50_ms", "ms")
    if "open" in kept:
        yield "The p99 over time, open loop", kept["open"], _course(kept["open"])
    if "neighbours" in kept:
        yield "p99 of boosted trees beside neighbours", kept["neighbours"], _neighbours(kept["neighbours"])
    if "processes" in kept:
        yield "Processor seconds per 1,000 requests", kept["processes"], _processes(kept["processes"])
    if "overload" in kept:
        yield "Answered and refused under overload", kept["overload"], _overload(kept["overload"])
    if "pages" in kept:
        yield "Server time of pages", kept["pages"], _pages(kept["pages"])


def _points(of: dict[str, Any], connections: int, what: str, unit: str) -> go.Figure:
    """A point a case and subject, with the spread of the rounds; on a logarithmic axis, for peers lie far apart."""
    cases = [one for one in of["cases"] if one["connections"] == connections]
    names = list(dict.fromkeys(name for one in cases for name in one["subjects"]))
    figure = go.Figure()
    for name in names:
        having = [one for one in cases if name in one["subjects"]]
        spreads = [one["subjects"][name][what] for one in having]
        figure.add_scatter(
            name=name,
            x=[one["case"] for one in having],
            y=[one["median"] for one in spreads],
            error_y=_whiskers(spreads),
            mode="markers",
            marker={"size": 10},
        )
    return figure.update_yaxes(type="log", title=unit).update_layout(scattermode="group")


def _whiskers(spreads: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one["high"] - one["median"] for one in spreads],
        "arrayminus": [one["median"] - one["low"] for one in spreads],
    }


def _course(of: dict[str, Any]) -> go.Figure:
    course = of["p99_course_ms"]
    figure = go.Figure(go.Scatter(x=[index * BIN_S for index in range(len(course))], y=course, name="p99"))
    figure.add_hline(y=of["p50_ms"]["median"], line_dash="dot", annotation_text="p50 of it all")
    figure.update_xaxes(title="s")
    figure.update_yaxes(title="ms", rangemode="tozero")
    return figure


def _neighbours(of: dict[str, Any]) -> go.Figure:
    spreads = list(of["p99_ms"].values())
    bars = go.Bar(x=list(of["p99_ms"]), y=[one["median"] for one in spreads], error_y=_whiskers(spreads))
    return go.Figure(bars).update_yaxes(title="ms", rangemode="tozero")


def _processes(of: dict[str, Any]) -> go.Figure:
    spreads = [one["server_cpu_s_per_1000"] for one in of["by_processes"].values()]
    names = [f"{count} serving" for count in of["by_processes"]]
    bars = go.Bar(x=names, y=[one["median"] for one in spreads], error_y=_whiskers(spreads))
    return go.Figure(bars).update_yaxes(title="s", rangemode="tozero")


def _overload(of: dict[str, Any]) -> go.Figure:
    offered = of["offered"]
    figure = go.Figure()
    for what, name in (("offered_per_s", "offered"), ("goodput_per_s", "answered 200")):
        spreads = [one[what] for one in offered.values()]
        y = [one["median"] for one in spreads]
        figure.add_bar(name=name, x=list(offered), y=y, error_y=_whiskers(spreads))
    figure.add_hline(y=of["peak_per_s"]["median"], line_dash="dot", annotation_text="peak")
    return figure.update_yaxes(title="calls/s", rangemode="tozero")


def _pages(of: dict[str, Any]) -> go.Figure:
    ordered = sorted(of["pages"], key=lambda one: float(one["median_ms"]))
    bars = go.Bar(y=[one["page"] for one in ordered], x=[one["median_ms"] for one in ordered], orientation="h")
    return go.Figure(bars).update_xaxes(title="ms").update_layout(height=22 * len(ordered) + 80)


def main(arguments: list[str]) -> int:
    """Writes the page; exit status 1 where there are no figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES, help=f"the JSON file ({FIGURES})")
    parser.add_argument("--out", type=Path, default=PAGE, help=f"the page ({PAGE})")
    asked = parser.parse_args(arguments)
    if not asked.figures.exists():
        print(f"There are no figures in {asked.figures}: python -m benchmarks --write docs/performance.md takes some.")
        return 1
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(page(json.loads(asked.figures.read_text())))
    print(asked.out)
    return 0
