"""How much memory this host has, or the container that it runs in may take."""

import contextlib
import os
from pathlib import Path


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the least that a control group above this process allows (cgroup v2 and v1)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """The limits of this process's own groups and of those around them, as far as they can be seen."""
    limits: list[int] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                folder, file = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                folder, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            own = Path(group.lstrip("/"))
            limits += [limit for each in (own, *own.parents) if (limit := _limit(folder / each / file)) is not None]
    return limits


def _limit(file: Path) -> int | None:
    """None where there is no limit ("max"), or no such group is seen from inside the container."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
