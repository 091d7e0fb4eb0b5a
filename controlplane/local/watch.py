"""Notices that files of the project changed, for `up --reload`."""

from pathlib import Path

WATCHED = ("controlplane", "inference", "templates", "static")
ENDINGS = frozenset({".py", ".html", ".css", ".js", ".txt", ".json"})


class Watch:
    """Compares modification times; a thousand files take a few milliseconds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._look()

    def changed(self) -> set[Path]:
        """Files made, changed or removed since the last call."""
        now = self._look()
        changed = {path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path)}
        self._seen = now
        return changed

    def _look(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for name in WATCHED:
            for path in (self._root / name).rglob("*"):
                if path.suffix in ENDINGS:
                    try:
                        found[path] = path.stat().st_mtime_ns
                    except FileNotFoundError:
                        continue  # an editor replaced it just now
        return found
