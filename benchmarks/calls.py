"""The calls: how rows of a model are written in each form, and how its answer is read back to compare it.

- `v1`: JSON of rows, as TensorFlow Serving takes it; what most Python servers' own examples take, too.
- `v2`: the Open Inference Protocol's JSON, the values flat.
- `v2-binary`: its binary tensor extension, for what goes in and for what comes out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.models import MODELS, Floats, Model

FORMS = ("v1", "v2", "v2-binary")
BATCHES = (1, 8, 64)
_HEADER_LENGTH = "Inference-Header-Content-Length"
_NUMPY = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True, slots=True)
class Case:
    """What one call holds: rows of a model, in a form."""

    model: Model
    form: str
    rows: int

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.form}/{self.rows}"


CASES = {
    case.name: case
    for case in (
        Case(MODELS[name], form, rows) for name in ("trees", "net", "image") for form in FORMS for rows in BATCHES
    )
}
MAIN = CASES["trees/v1/1"]


@dataclass(frozen=True, slots=True)
class Call:
    """A body and the headers that describe it."""

    body: bytes
    headers: Mapping[str, str]


def call_of(case: Case) -> Call:
    rows = case.model.rows(case.rows)
    if case.form == "v1":
        body = json.dumps({"instances": _plain(rows)}).encode()
        return Call(body, {"Content-Type": "application/json"})
    tensor = {"name": case.model.input, "shape": list(rows.shape), "datatype": "FP32"}
    if case.form == "v2":
        body = json.dumps({"inputs": [tensor | {"data": _plain(rows.ravel())}]}).encode()
        return Call(body, {"Content-Type": "application/json"})
    raw = rows.tobytes()
    parameters = {"parameters": {"binary_data_output": True}}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}], **parameters}).encode()
    return Call(head + raw, {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))})


def _plain(rows: Floats) -> Any:
    """Lists of numbers as short as a caller would write them."""
    return np.round(rows.astype(np.float64), 3).tolist()


def scores_of(case: Case, content: bytes, headers: Mapping[str, str]) -> Floats:
    """The answer's scores [rows, n]. Raises ValueError where it has none."""
    name = case.model.outputs[-1]
    try:
        if case.form == "v1":
            answers = json.loads(content)["predictions"]
            return np.array([one[name] if isinstance(one, dict) else one for one in answers], np.float32)
        length = headers.get(_HEADER_LENGTH) if case.form == "v2-binary" else None
        head = json.loads(content if length is None else content[: int(length)])
        at = len(content) if length is None else int(length)
        for output in head["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size", 0)
            if output["name"] == name:
                raw = np.frombuffer(content[at : at + size], _NUMPY[output["datatype"]]) if size else output["data"]
                return np.array(raw, np.float32).reshape(output["shape"])
            at += size
    except (KeyError, TypeError) as error:
        raise ValueError(f"no scores in {content[:200]!r}: {error}") from error
    raise ValueError(f"no output {name} in {content[:200]!r}")
