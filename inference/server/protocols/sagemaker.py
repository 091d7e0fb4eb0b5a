"""SageMaker's `POST /invocations`: CSV without a header line, the V1 document, a bare list of rows, or a picture.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import orjson

from inference.contracts import DeploymentRoute, VersionRoute
from inference.errors import InferenceError, Located
from inference.runtime.plans import Array, TensorPlan, VersionPlan, plan_of
from inference.runtime.scores import labelled
from inference.runtime.tensors import dumps, from_flat, to_json
from inference.server.protocols import PICTURE_TYPES, Call, Headers, Reply, content_type, refuse_media_type, v1
from inference.server.protocols.body import parse
from inference.server.protocols.features import cap_rows, check_rows, refuse

_CSV = b"text/csv"
_JSON = b"application/json"
# Every digit can be read in one way only: else a long cell that ends badly would hold the event loop for minutes.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_WORDS: dict[str, float] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "+inf": float("inf"),
    "-inf": float("-inf"),
    "infinity": float("inf"),
    "-infinity": float("-inf"),
}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(slots=True)
class Style:
    """`csv`: the answer is CSV; else it is V1's answer in the style that V1 noted."""

    csv: bool
    document: v1.Style


def decode(body: bytes, headers: Headers, deployment: DeploymentRoute, version: VersionRoute) -> Call:
    """The call in an invocation; the Content-Type says which form it has, JSON where it says nothing."""
    kind = content_type(headers)
    plan = plan_of(version)
    if kind == _CSV:
        call = _decode_csv(body, deployment, plan)
    elif kind in PICTURE_TYPES:
        call = v1.picture_call(body, kind, version)
    else:
        refuse_media_type(kind, forms=True)
        document = parse(body, lenient=plan.lenient)
        if type(document) is list:
            call = v1.decode_rows(document, 0, body, deployment, plan)
        else:
            call = v1.decode_document(document, body, deployment, plan)
    call.style = Style(_wants_csv(headers.get(b"accept", b""), kind == _CSV), call.style)
    return call


def _wants_csv(accept: bytes, sent_csv: bool) -> bool:
    """The first of CSV and JSON that `Accept` names; the form of the request where it names neither."""
    for choice in accept.lower().split(b","):
        kind = choice.partition(b";")[0].strip()
        if kind in (_CSV, _JSON):
            return kind == _CSV
    return sent_csv


def _decode_csv(body: bytes, deployment: DeploymentRoute, plan: VersionPlan) -> Call:
    rows = _read_rows(body, deployment)
    widths = _widths(rows, plan)
    total = sum(widths)
    for index, row in enumerate(rows):
        if len(row) != total:
            names = f" ({', '.join(plan.columns)})" if plan.columns else ""
            hint = "; values are separated by commas" if len(row) == 1 and re.search(r"[;\t]", row[0]) else ""
            refuse("wrong_shape", f"has {len(row)} values, expected {total}{names[:400]}{hint}", "rows", index)
    inputs: dict[str, Array] = {}
    start = 0
    try:
        for tensor, width in zip(plan.inputs, widths, strict=True):
            inputs[tensor.name] = _tensor(rows, start, width, tensor)
            start += width
    except InferenceError as error:
        _hint_at_header(error, rows, plan)
    count = len(rows)
    return Call(inputs, check_rows(inputs, plan), style=v1.Style(by_row=True, count=count))


def _read_rows(body: bytes, deployment: DeploymentRoute) -> list[list[str]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: the byte at offset {error.start} is wrong."
        raise InferenceError("bad_encoding", message) from error
    if "\0" in text:
        raise InferenceError("bad_text", "The CSV contains U+0000; is it UTF-16?")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise InferenceError("invalid_input", f"The CSV cannot be read at line {reader.line_num}: {error}.") from error
    if not rows:
        raise InferenceError("empty_body")
    cap_rows(len(rows), deployment)
    return rows


def _widths(rows: list[list[str]], plan: VersionPlan) -> list[int]:
    """How many cells of a row each input takes; a single input with free dimensions takes them all."""
    widths = []
    for tensor in plan.inputs:
        sizes = tensor.shape[1:]
        if -1 not in sizes:
            widths.append(prod(sizes))
        elif len(plan.inputs) == 1 and len(tensor.shape) == 2:
            widths.append(len(rows[0]))
        else:
            refuse(
                "invalid_input", f"Input {tensor.name} has shape {tensor.expected}, which CSV cannot carry; send JSON."
            )
    return widths


def _tensor(rows: list[list[str]], start: int, width: int, tensor: TensorPlan) -> Array:
    read = _READERS.get(tensor.dtype.kind, _number)
    flat = [read(cell) for row in rows for cell in row[start : start + width]]
    shape = (len(rows), *(size if size >= 0 else width for size in tensor.shape[1:]))
    if tensor.shape[:1] != (-1,) and tensor.shape[:1] != (len(rows),):
        refuse("wrong_shape", f"{len(rows)} rows; input {tensor.name} has shape {tensor.expected}")
    names = tensor.columns

    def locate(path: tuple[int, ...]) -> list[str | int]:
        row, column = divmod(path[0], width)
        return ["rows", row, names[column] if names else start + column]

    return from_flat(flat, shape, tensor, locate)


def _number(cell: str) -> Any:
    """The cell as a number; null where it is empty; the text itself where it is none, for the refusal to quote."""
    cell = cell.strip()
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    if not cell:
        return None
    return _WORDS.get(cell.lower(), cell)


def _truth(cell: str) -> Any:
    return _TRUTHS.get(cell.strip().lower(), cell)


_READERS: dict[str, Callable[[str], Any]] = {"b": _truth, "O": str}


def _hint_at_header(error: InferenceError, rows: list[list[str]], plan: VersionPlan) -> NoReturn:
    """Raise the error again, saying so where the first line is the header line of a table."""
    first = [cell.strip() for cell in rows[0]]
    if error.code == "wrong_type" and not any(type(_number(cell)) in (int, float) for cell in first):
        message = "The first line holds no number; rows are sent without a header line, in the order of the columns."
        raise InferenceError("wrong_type", message, [Located(loc=["rows", 0], msg=message)]) from error
    raise error


def encode(
    call: Call, outputs: dict[str, Array], deployment: DeploymentRoute, version: VersionRoute, prediction_id: str
) -> Reply:
    """V1's answer, or CSV: a line per row with the cells of all outputs in order (for pictures label, then scores)."""
    style: Style = call.style
    if not style.csv:
        answered = Call(call.inputs, call.rows, call.client_id, call.pictures, style.document)
        return v1.encode(answered, outputs, deployment, version, prediction_id)
    lines = _labelled_lines(outputs, version) if call.pictures else _lines(call, outputs)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return b"text/csv; charset=utf-8", [], text.getvalue().encode("utf-8")


def _labelled_lines(outputs: dict[str, Array], version: VersionRoute) -> Iterable[list[Any]]:
    for item in labelled(version, outputs):
        yield [item["label"], *item["scores"].values()]


def _lines(call: Call, outputs: dict[str, Array]) -> list[list[Any]]:
    """Cells by row. Written and read once as JSON: that gives float32 its shortest digits, and NaN an empty cell."""
    count: int = call.style.document.count
    lines: list[list[Any]] = [[] for _ in range(count)]
    for array in outputs.values():
        rows = array.reshape(count, -1) if array.shape[:1] == (count,) else array.reshape(1, -1).repeat(count, axis=0)
        for line, cells in zip(lines, orjson.loads(dumps(to_json(rows))), strict=True):
            line.extend(int(cell) if cell is True or cell is False else cell for cell in cells)
    return lines
