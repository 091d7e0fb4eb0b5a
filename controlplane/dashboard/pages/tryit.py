"""What the try-it page shows: cells from the signature, the same call as programs, and how an answer reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.catalog.samples import sample_row
from controlplane.dashboard.trial import Answer, public_url
from inference.contracts import Datatype, DeploymentRoute, TensorSpec, VersionRoute
from inference.runtime.openapi import KEY_PLACEHOLDER, examples
from inference.runtime.plans import plan_of
from inference.runtime.sample_calls import v1_body

# A vector of more cells is easier typed as JSON.
MOST_CELLS = 64
WHOLE = {d for d in Datatype if d.startswith(("INT", "UINT"))}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number or text of the form."""

    name: str
    label: str
    datatype: Datatype
    value: str

    @property
    def text(self) -> bool:
        return self.datatype in (Datatype.BYTES, Datatype.BOOL)


@dataclass(frozen=True, slots=True)
class TryPage:
    route: DeploymentRoute
    version: VersionRoute
    pinned: int | None
    cells: list[Cell]
    by_name: bool
    sample: str
    programs: dict[str, str]

    @property
    def numbers(self) -> list[int]:
        return sorted(self.route.versions)


@dataclass(frozen=True, slots=True)
class Score:
    label: str
    score: float

    @property
    def width(self) -> str:
        return f"{max(0.0, min(1.0, self.score)) * 100:.1f}%"


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer reads: a sentence, and scores where there are labels."""

    sentence: str
    scores: list[Score]


def try_page(route: DeploymentRoute, pinned: int | None) -> TryPage | None:
    """The page for a pinned version, else for the one with most traffic; None where nothing serves yet."""
    number = pinned if pinned in route.versions else None
    if number is None and route.live:
        number = max(route.live, key=lambda share: share.basis_points).number
    if number is None or number not in route.versions:
        return None
    version = route.versions[number]
    row = sample_row(version)
    programs = examples(route, version, public_url(), KEY_PLACEHOLDER, row)
    body = None if version.task.takes_pictures else v1_body(version, row)
    cells = _cells(version, body["instances"][0]) if body is not None else []
    sample = json.dumps(body, indent=2) if body is not None else ""
    return TryPage(route, version, pinned, cells, bool(plan_of(version).columns), sample, programs)


def _cells(version: VersionRoute, row: Any) -> list[Cell]:
    """The cells of one row, filled with the example's; none where a form cannot hold the row."""
    inputs = version.signature.inputs
    if names := plan_of(version).columns:
        return [_cell(name, name, inputs[0], row[name]) for name in names] if len(names) <= MOST_CELLS else []
    cells: list[Cell] = []
    for spec in inputs:
        width = _width(spec)
        if width is None or len(cells) + width > MOST_CELLS:
            return []
        found = row if len(inputs) == 1 else row[spec.name]
        values = found if isinstance(found, list) else [found]
        cells += [
            _cell(f"{spec.name}[{i}]", spec.name if width == 1 else f"{spec.name} {i}", spec, values[i])
            for i in range(width)
        ]
    return cells


def _width(spec: TensorSpec) -> int | None:
    """Cells of one row of an input that is a plain vector; None for anything a form cannot hold."""
    if len(spec.shape) == 1:
        return 1
    return spec.shape[1] if len(spec.shape) == 2 and spec.shape[1] > 0 else None


def _cell(name: str, label: str, spec: TensorSpec, value: Any) -> Cell:
    shown = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return Cell(f"cell_{name}", label, spec.datatype, shown)


def body_from_cells(page: TryPage, typed: Mapping[str, str]) -> dict[str, Any]:
    """The V1 body of one row from the form's cells. What is no number is sent as typed: the API says what is wrong.

    Without cells (a model of pictures, and no picture chosen) it is a body without rows, which the API refuses.
    """
    if not page.cells:
        return {"instances": []}
    values = {cell.name.removeprefix("cell_"): _value(typed.get(cell.name, ""), cell) for cell in page.cells}
    if page.by_name:
        return {"instances": [values]}
    row: dict[str, Any] = {}
    for spec in page.version.signature.inputs:
        width = _width(spec) or 0
        cells = [values[f"{spec.name}[{i}]"] for i in range(width)]
        row[spec.name] = cells if len(spec.shape) == 2 else cells[0]
    return {"instances": [row if len(row) > 1 else next(iter(row.values()))]}


def _value(text: str, cell: Cell) -> Any:
    if cell.datatype is Datatype.BYTES:
        return text
    if cell.datatype is Datatype.BOOL:
        return {"true": True, "false": False}.get(text.strip().lower(), text or None)
    try:
        return int(text) if cell.datatype in WHOLE else float(text)
    except ValueError:
        return text or None


def read_answer(answer: Answer) -> Reading:
    """A sentence about the answer, and its scores where it has labelled ones."""
    if not answer.ok or not isinstance(answer.document, dict):
        said = answer.document.get("error") if isinstance(answer.document, dict) else None
        return Reading(str(said or f"The answer has status {answer.status} and no sentence."), [])
    rows = answer.document.get("predictions")
    first = rows[0] if isinstance(rows, list) and rows else None
    if isinstance(first, dict) and isinstance(first.get("scores"), dict):
        # A score that is NaN arrives as null.
        numbers = {str(k): float(v) for k, v in first["scores"].items() if v is not None}
        scores = sorted((Score(k, v) for k, v in numbers.items()), key=lambda s: -s.score)
        return Reading(f"Highest score: {first.get('label') or 'nothing above threshold'}", scores)
    return Reading("Answered.", [])
