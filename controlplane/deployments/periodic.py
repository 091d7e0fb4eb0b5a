"""What the scheduler runs: each room registers its functions in its AppConfig.ready; this room knows none of them."""

from collections.abc import Callable
from dataclasses import dataclass

_registered: "dict[str, Periodic]" = {}


@dataclass(frozen=True, slots=True)
class Periodic:
    """A function that runs each `every_s` seconds. It must be idempotent, and quick: the functions share one thread."""

    name: str
    every_s: float
    function: Callable[[], object]


def register(name: str, every_s: float, function: Callable[[], object]) -> None:
    """Adds a function to the scheduler's list; a second registration under the same name replaces the first."""
    if every_s <= 0:
        raise ValueError(f"{name}: an interval is more than 0 s")
    _registered[name] = Periodic(name, every_s, function)


def registered() -> tuple[Periodic, ...]:
    """All registered functions, in the order of registration."""
    return tuple(_registered.values())
