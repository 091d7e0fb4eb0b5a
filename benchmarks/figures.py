"""Figures: the machine they are of, medians with their spread, limits, and where they are kept."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime

Spread = dict[str, float]


def spread(values: Sequence[float], digits: int = 3) -> Spread:
    """The median of some rounds, the least and the most; zeros of none."""
    if not values:
        return {"median": 0.0, "low": 0.0, "high": 0.0}
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Ours against the other's, round by round."""
    return spread([one / other for one, other in zip(ours, others, strict=True) if other])


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure has to hold; `measured` is the median where there were rounds."""

    what: str
    measured: float
    bound: float
    # At least the bound; else at most.
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def row(self) -> tuple[str, str, str, str]:
        sign = "≥" if self.at_least else "≤"
        return self.what, f"{self.measured:,.2f}", f"{sign} {self.bound:g}", "yes" if self.holds else "**no**"


def machine() -> dict[str, Any]:
    """What the figures depend on, and what else it did when they were begun."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": platform.system() + " " + platform.release().partition("-")[0],
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def keep(file: Path, name: str, figures: dict[str, Any]) -> None:
    """Puts one measure's figures into the JSON file of all of them."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept[name] = figures
    file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
