"""Finds the one front-end file that comes out of a package without Django app: Plotly's."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage


def _plotly_folder() -> Path:
    # Found without importing plotly, which takes half a second.
    spec = importlib.util.find_spec("plotly")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "package_data"


class PackageFilesFinder(BaseFinder):
    """Serves `vendor/plotly.min.js` as /static/vendor/plotly.min.js."""

    PREFIX = "vendor/"
    FILES = ("plotly.min.js",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.storage = FileSystemStorage(location=_plotly_folder())
        self.storage.prefix = self.PREFIX.rstrip("/")  # type: ignore[attr-defined]  # collectstatic reads it
        super().__init__(*args, **kwargs)

    def check(self, **kwargs: Any) -> list[Any]:
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        name = path.removeprefix(self.PREFIX)
        found = self.storage.path(name) if path.startswith(self.PREFIX) and name in self.FILES else None
        if find_all:
            return [found] if found else []
        return found

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, FileSystemStorage]]:
        for name in self.FILES:
            yield name, self.storage
