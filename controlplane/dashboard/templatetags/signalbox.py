"""How pages write numbers, times and icons. Templates format with these; they compute nothing."""

import json
from datetime import datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

ICONS: dict[str, tuple[int, str]] = {
    "brand": (20, '<path d="M3 17V8l7-5 7 5v9"/><path d="M7 17v-7M10 17v-4M13 17v-7" stroke="var(--accent)"/>'),
    "overview": (16, '<path d="M2 4h12M2 8h12M2 12h7"/>'),
    "deployments": (16, '<path d="M3 13V3M3 8h5l5-4M8 8l5 4"/>'),
    "models": (16, '<path d="M8 2l6 3v6l-6 3-6-3V5z"/>'),
    "studies": (16, '<rect x="2.5" y="2.5" width="11" height="11" rx="1"/><path d="M8 5v6M5.5 6.5h5M5.5 9h5"/>'),
    "jobs": (16, '<path d="M3 4h10M3 8h6M3 12h8"/>'),
    "audit": (16, '<path d="M4 2h8v12H4zM6 5h4M6 8h4"/>'),
    "keys": (16, '<circle cx="5.5" cy="10.5" r="2.5"/><path d="M7.5 8.5L13 3M11 5l2 2"/>'),
    "system": (16, '<rect x="2.5" y="3" width="11" height="7" rx="1"/><path d="M6 13h4"/>'),
    "more": (16, '<path d="M3 8h.01M8 8h.01M13 8h.01" stroke-width="2.4" stroke-linecap="round"/>'),
    # By catalog.checks.CheckState
    "done": (16, '<path d="M3 8.5l3.5 3.5L13 4.5"/>'),
    "failed": (16, '<path d="M4 4l8 8M12 4l-8 8"/>'),
    "skipped": (16, '<path d="M3 8h10"/>'),
    "running": (16, '<path d="M8 2.5a5.5 5.5 0 1 1-5.5 5.5"/>'),
    "pending": (16, '<circle cx="8" cy="8" r="5.5" stroke-dasharray="1 3"/>'),
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """An icon of the house set, hidden from screen readers (a word always stands beside it)."""
    size, paths = ICONS[name]
    # Every part is a constant of this module.
    return mark_safe(  # noqa: S308
        f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" fill="none" stroke="currentColor" '
        f'stroke-width="{2 if size == 20 else 1.6}" aria-hidden="true">{paths}</svg>'
    )


@register.filter
def version_class(number: int) -> str:
    """The colour class of a version: the same on every chart, bar, chip and table."""
    return f"v{(int(number) - 1) % 8 + 1}"


@register.filter
def percent(share: float | None, digits: int = 2) -> str:
    """A share of one as per cent: 0.1 -> `10.00 %`; None -> an en dash."""
    return "–" if share is None else f"{share * 100:,.{digits}f} %"


@register.filter
def points(basis_points: int) -> str:
    """Basis points as per cent without needless noughts: 9000 -> `90 %`, 1250 -> `12.5 %`."""
    return f"{basis_points / 100:.2f}".rstrip("0").rstrip(".") + " %"


@register.filter
def milliseconds(value: float | None) -> str:
    """A duration in ms with as many digits as matter: `0.42 ms`, `3.1 ms`, `412 ms`, `2.4 s`."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


@register.filter
def long_duration(ms: float | None) -> str:
    """A time that people wait, from ms: `412 ms`, `8.1 s`, `14 min`, `5 h`, `3 d`."""
    if ms is None:
        return "–"
    for limit, unit, word in ((60_000, 1000, "s"), (5_400_000, 60_000, "min"), (172_800_000, 3_600_000, "h")):
        if ms < limit:
            return milliseconds(ms) if unit == 1000 else f"{ms / unit:.0f} {word}"
    return f"{ms / 86_400_000:.0f} d"


@register.filter
def rate(value: float | None) -> str:
    """Requests a second: `1,284/s`, `4.1/s`, `0.03/s`."""
    if value is None:
        return "–"
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.1f}/s" if value >= 1 or value == 0 else f"{value:.2f}/s"


@register.filter
def figure(value: float | None) -> str:
    """A number of any size with three digits that matter: `0.0412`, `12.3`, `41,200`; None -> an en dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@register.filter
def filesize(value: int | None) -> str:
    """Bytes in decimal units: `1.5 MB`."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """A relative time, with the absolute one on hover."""
    if moment is None:
        return "–"
    seconds = (timezone.now() - moment).total_seconds()
    ahead, size = seconds < 0, abs(seconds)
    for limit, unit, word in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (86400 * 60, 86400, "d")):
        if size < limit:
            words = f"{int(size // unit)} {word}"
            break
    else:
        words = f"{int(size // (86400 * 30))} months"
    phrase = f"in {words}" if ahead else f"{words} ago"
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>', moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S}", phrase
    )


@register.filter
def short(identifier: Any) -> SafeString:
    """A short id that copies the whole one on click."""
    whole = str(identifier)
    return format_html(
        '<button type="button" class="copy" data-copy="{}" title="Copy {}">{}</button>', whole, whole, whole[:8]
    )


@register.filter
def pretty_json(value: Any) -> str:
    """JSON for people, two spaces, escaped by the template like any text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


@register.filter
def dimensions(shape: list[int]) -> str:
    """A tensor's shape as people write it: [-1, 30] -> `n × 30`; a scalar -> `scalar`."""
    return " × ".join("n" if size < 0 else str(size) for size in shape) or "scalar"


@register.filter
def as_json(value: Any) -> SafeString:
    """JSON that may stand inside a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, separators=(",", ":"), default=str)
    return mark_safe(  # noqa: S308 - the three characters that could end the element are escaped
        text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    )


@register.filter
def tail(identifier: Any) -> str:
    """The last characters of an id: a UUIDv7 begins with its time, so its end tells two apart."""
    return str(identifier)[-12:]


@register.filter
def brief_scores(scores: dict[str, list[Any]] | None) -> str:
    """The highest score of a one-row prediction, `fraud 0.03`; of several rows their number."""
    if not scores:
        return "–"
    first = {name: values[0] for name, values in scores.items() if isinstance(values, list) and values}
    known = {name: value for name, value in first.items() if isinstance(value, int | float)}
    if not known:
        return "–"
    best = max(known, key=lambda name: known[name])
    rows = max(len(values) for values in scores.values())
    return f"{best} {known[best]:.3f}" + (f" and {rows - 1} more rows" if rows > 1 else "")
