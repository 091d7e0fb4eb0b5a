"""The directions in which this house is built. A failure prints the rule that was broken."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
# From the roof down: a room imports rooms below it only. dashboard and api stand side by side.
STOREYS: tuple[tuple[str, ...], ...] = (
    ("urls", "asgi"),
    ("dashboard", "api"),
    ("rollouts",),
    ("monitoring", "studies"),
    ("jobs",),
    ("predictions",),
    ("deployments",),
    ("catalog",),
    ("accounts",),
    ("audit",),
)
LEVEL = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}
# Used by every room; they import no room.
FOUNDATIONS = {"settings", "environment", "errors", "celery"}
FROM_INFERENCE = {
    "contracts",
    "errors",
    "limits",
    "routing",
    "snapshot",
    "spool",
    "capture",
    "packing",
    "worker",
    "runtime",
}
LAWLESS_ON_TOP = {"local"}


def _sources(top: str) -> list[Path]:
    return sorted(path for path in (ROOT / top).rglob("*.py") if "migrations" not in path.parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "controlplane").parts[0].removesuffix(".py")


def test_the_data_plane_knows_nothing_of_django_or_the_control_plane() -> None:
    rule = "inference/ never imports Django or controlplane: it must start, and be understood, without them"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _sources("inference")
        for line, name in _imports(path)
        if name.split(".")[0] in ("django", "controlplane", "rest_framework", "celery")
    ]
    assert not wrong, f"{rule}\n" + "\n".join(wrong)


def test_the_shared_shapes_need_the_standard_library_and_msgspec_alone() -> None:
    rule = "inference/contracts.py and errors.py import the standard library and msgspec only"
    allowed = {"msgspec", "enum", "typing", "dataclasses"}
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in ("contracts.py", "errors.py")
        for line, imported in _imports(ROOT / "inference" / name)
        if imported.split(".")[0] not in allowed
    ]
    assert not wrong, f"{rule}\n" + "\n".join(wrong)


def test_the_client_is_installed_without_the_house() -> None:
    rule = "client/ imports the standard library, httpx and numpy only"
    allowed = {"signalbox_client", "httpx", "numpy", "typing_extensions", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _sources("client")
        for line, name in _imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, f"{rule}\n" + "\n".join(wrong)


def test_rooms_of_the_control_plane_import_downwards_only() -> None:
    rule = " -> ".join("/".join(rooms) for rooms in STOREYS) + ": a room imports rooms to its right only"
    wrong = []
    for path in _sources("controlplane"):
        room = _room(path)
        if room in LAWLESS_ON_TOP or room in ("__init__",):
            continue
        for line, name in _imports(path):
            parts = name.split(".")
            if parts[0] != "controlplane" or len(parts) < 2 or parts[1] == room:
                continue
            target = parts[1]
            if target in FOUNDATIONS and room != target:
                continue
            if target in LAWLESS_ON_TOP:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: only settings and commands may")
            elif room in FOUNDATIONS or LEVEL[target] <= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, f"{rule}\n" + "\n".join(wrong)


def test_the_control_plane_takes_only_the_agreed_parts_of_the_data_plane() -> None:
    rule = f"the control plane imports of inference only {', '.join(sorted(FROM_INFERENCE))}"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _sources("controlplane")
        for line, name in _imports(path)
        if name.startswith("inference.") and name.split(".")[1] not in FROM_INFERENCE
    ]
    assert not wrong, f"{rule}\n" + "\n".join(wrong)


def test_files_fit_in_the_head() -> None:
    rule = "a source file has at most 450 lines; split it by use-case before"
    wrong = [
        f"{path.relative_to(ROOT)} has {lines}"
        for top in ("inference", "controlplane", "client", "tests", "examples", "benchmarks")
        for path in _sources(top)
        if (lines := len(path.read_text().splitlines())) > 450
    ]
    assert not wrong, f"{rule}\n" + "\n".join(wrong)
