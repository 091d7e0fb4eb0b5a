"""Plotly figures as plain JSON, one shared template. Colours are token names ("--v1") that the page's script looks up.

Built as dictionaries: importing plotly costs half a second and 60 MB in each web process; the figure is JSON anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """A thin vertical line: something changed then. `words` are shown on hover."""

    at: datetime
    words: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What the charts of one page share: the stretch of time, and the changes within it."""

    since: datetime
    until: datetime
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One series: None leaves a gap. `colour` is a token, `dash` one of Plotly's."""

    name: str
    values: Sequence[float | None]
    colour: str
    dash: str = "solid"


@dataclass(frozen=True, slots=True)
class Band:
    """A series with the interval of each value; `notes` are shown on hover beside it."""

    name: str
    values: Sequence[float | None]
    lows: Sequence[float | None]
    highs: Sequence[float | None]
    colour: str
    notes: Sequence[str]


def version_colour(number: int) -> str:
    """The token of a version's colour: the same on every chart, bar, chip and table."""
    return f"--v{(number - 1) % 8 + 1}"


def layout(unit: str, frame: Frame) -> dict[str, Any]:
    """The shared template: hairline grid, unified hover, the frame's time axis, marks of changes."""
    axis = {
        "gridcolor": "--line",
        "linecolor": "--line",
        "zeroline": False,
        "tickfont": {"size": 11},
        "fixedrange": False,
    }
    return {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "Inter, ui-sans-serif, system-ui, sans-serif", "size": 12, "color": "--ink-2"},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "--surface", "bordercolor": "--line-strong", "font": {"color": "--ink"}},
        "showlegend": False,
        "dragmode": "zoom",
        "xaxis": {
            **axis,
            "type": "date",
            "range": [frame.since.isoformat(), frame.until.isoformat()],
            "showgrid": False,
        },
        "yaxis": {**axis, "rangemode": "tozero", "ticksuffix": f" {unit}" if unit else "", "fixedrange": True},
        "shapes": [
            {
                "type": "line",
                "x0": mark.at.isoformat(),
                "x1": mark.at.isoformat(),
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "--ink-3", "width": 1, "dash": "dot"},
            }
            for mark in frame.marks
        ],
    }


def lines(times: Sequence[str], series: Sequence[Line], *, unit: str, frame: Frame) -> Figure:
    """One line per series over `times` (ISO); None leaves a gap, never a line through it."""
    suffix = f" {unit}" if unit else ""
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": line.name,
            "x": list(times),
            "y": list(line.values),
            "connectgaps": False,
            "line": {"color": line.colour, "width": 1.6, "dash": line.dash},
            "hovertemplate": f"%{{y:.4~g}}{suffix}",
        }
        for line in series
    ]
    if frame.marks:
        top = max((value for line in series for value in line.values if value is not None), default=1.0)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "change",
                "x": [mark.at.isoformat() for mark in frame.marks],
                "y": [top] * len(frame.marks),
                "text": [mark.words for mark in frame.marks],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": "--ink-3", "size": 7, "symbol": "triangle-down"},
            }
        )
    return {"data": traces, "layout": layout(unit, frame)}


def stacked(times: Sequence[str], series: Sequence[Line], *, unit: str, frame: Frame) -> Figure:
    """Bars on top of one another, one colour per series; None leaves a gap."""
    figure = lines(times, series, unit=unit, frame=frame)
    for trace, line in zip(figure["data"], series, strict=False):
        del trace["mode"], trace["line"], trace["connectgaps"]
        trace |= {"type": "bar", "marker": {"color": line.colour}}
    figure["layout"] |= {"barmode": "stack", "bargap": 0.15}
    return figure


def bands(times: Sequence[str], series: Sequence[Band], *, unit: str, frame: Frame) -> Figure:
    """One line with points per series and their intervals as whiskers; None leaves a gap."""
    figure = lines(times, [Line(band.name, band.values, band.colour) for band in series], unit=unit, frame=frame)
    for trace, band in zip(figure["data"], series, strict=False):
        trace["mode"] = "lines+markers"
        trace["marker"] = {"size": 5}
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _above(band.highs, band.values),
            "arrayminus": _above(band.values, band.lows),
            "color": band.colour,
            "thickness": 1,
            "width": 2,
        }
        trace["text"] = list(band.notes)
        trace["hovertemplate"] = "%{y:.4~g}" + (f" {unit}" if unit else "") + " · %{text}"
    return figure


def _above(upper: Sequence[float | None], lower: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(upper, lower, strict=True)]


def sparkline(values: Sequence[float | None], width: int = 120, height: int = 28) -> tuple[str, str]:
    """Two SVG path strings (line, area under it) of a small chart without axes; gaps break the line."""
    known = [value for value in values if value is not None]
    if len(values) < 2 or not known:
        return "", ""
    top = max(known) or 1.0
    step = width / (len(values) - 1)
    line, area = "", ""
    run: list[tuple[float, float]] = []

    def close(points: list[tuple[float, float]]) -> str:
        if len(points) < 2:
            return ""
        return (
            f"M{points[0][0]:.1f},{height}"
            + "".join(f"L{x:.1f},{y:.1f}" for x, y in points)
            + (f"L{points[-1][0]:.1f},{height}Z")
        )

    for index, value in enumerate(values):
        if value is None:
            # A stroke as short as a dot shows a value that stands alone.
            line += "h1" if len(run) == 1 else ""
            area += close(run)
            run = []
            continue
        x, y = index * step, height - 2 - (height - 4) * value / top
        line += f"{'L' if run else 'M'}{x:.1f},{y:.1f}"
        run.append((x, y))
    return line + ("h-1" if len(run) == 1 else ""), area + close(run)


def small_histograms(
    then: Sequence[float], now: Sequence[float], width: int = 120, height: int = 28
) -> tuple[str, str]:
    """Two SVG path strings over the same bins: the area of then, and the outline of now, as steps. "" for nothing."""
    top = max([*then, *now], default=0.0)
    if top <= 0:
        return "", ""
    step = width / max(1, len(then))
    # There are hundreds of these on a page, so their places are written once for both sides.
    places = [f"{index * step:.1f}" for index in range(max(len(then), len(now)) + 1)]

    def steps(shares: Sequence[float]) -> str:
        if not any(shares):
            return ""
        heights = [f"{height - (height - 2) * share / top:.1f}" for share in shares]
        path = "".join(f"L{left},{y}L{right},{y}" for left, y, right in zip(places, heights, places[1:], strict=False))
        return f"M0,{height}{path}L{width},{height}"

    area = steps(then)
    return area + "Z" if area else "", steps(now)


def histograms(places: Sequence[float] | Sequence[str], then: Sequence[float], now: Sequence[float]) -> Figure:
    """Shares of then and of now over the same bins: numbers' middles, or categories."""
    texts = any(isinstance(place, str) for place in places)
    since = datetime.min
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(places),
            "y": [share * 100 for share in shares],
            "marker": {"color": colour, "opacity": opacity},
            "hovertemplate": "%{y:.2f} %",
        }
        for name, shares, colour, opacity in (("baseline", then, "--ink-3", 0.45), ("now", now, "--accent", 0.6))
    ]
    drawn = layout("%", Frame(since, since))
    drawn["barmode"] = "group" if texts else "overlay"
    drawn["bargap"] = 0.25 if texts else 0
    drawn["showlegend"] = True
    drawn["legend"] = {"orientation": "h", "y": 1.12}
    drawn["margin"] = {"l": 56, "r": 12, "t": 28, "b": 40}
    drawn["xaxis"] = {
        "type": "category" if texts else "linear",
        "gridcolor": "--line",
        "linecolor": "--line",
        "showgrid": False,
        "zeroline": False,
        "tickfont": {"size": 11},
        "fixedrange": texts,
    }
    return {"data": traces, "layout": drawn}
