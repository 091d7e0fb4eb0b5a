"""The checks of a validation, in the order in which they are done: known before the first of them has ended.

What depends on the file alone is not planned: `zipmap` comes between `graph` and `types` where a tail is cut.
"""

from collections.abc import Container


def plan(*, golden: bool) -> tuple[str, ...]:
    """The checks that a model goes through in the throw-away child; `golden` where golden inputs were given."""
    return (
        *("file", "graph", "types", "load", "meaning", "labels", "columns", "preprocessor"),
        *("golden" if golden else "sample", "outputs", "batching", "latency"),
    )


def unfinished(planned: tuple[str, ...], done: Container[str]) -> tuple[str, ...]:
    """Those that are still to come; the first of them runs."""
    return tuple(name for name in planned if name not in done)
