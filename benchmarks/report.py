"""Tables in Markdown, and the page that keeps them."""

from collections.abc import Iterable, Sequence

from benchmarks.figures import Spread

END = "<!-- end of measured -->"


def begin(name: str) -> str:
    """Where a measure's figures begin on the page that keeps them."""
    return f"<!-- measured: python -m benchmarks {name} --write docs/performance.md -->"


def rewritten(page: str, text: str, name: str) -> str:
    """`page` with `text` between the line `begin(name)` and the next END. Raises ValueError where they are missing."""
    before, found, rest = page.partition(begin(name))
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"The page has no place for the figures: it needs the lines {begin(name)} and {END}")
    return f"{before}{begin(name)}\n\n{text.strip()}\n\n{END}{after}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def per_second(of: Spread) -> str:
    return _spread(of, "{:,.0f}")


def milliseconds(of: Spread) -> str:
    return _spread(of, "{:,.3f}" if of["high"] < 1 else "{:,.2f}", " ms")


def ratio(of: Spread) -> str:
    return _spread(of, "{:,.2f}")


def _spread(of: Spread, form: str, unit: str = "") -> str:
    """`median unit (least to most)`; the median alone where there is no spread."""
    middle = form.format(of["median"]) + unit
    if of["low"] == of["high"]:
        return middle
    return f"{middle} ({form.format(of['low'])} to {form.format(of['high'])})"
