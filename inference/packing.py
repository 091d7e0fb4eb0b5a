"""Tensors in the log's lines as they lie in memory, and what they are spelled out to by who reads the lines.

A call's numbers as text are the most expensive part of its record; as base64 they cost a copy. So the front door packs
the usual call, whose numbers are its own and all of which are kept, and the ingester, which runs at a low priority,
spells out. What it makes of a line is what `inference.capture` would have written.
"""

import sys
from collections.abc import Mapping
from struct import calcsize
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from inference import capture
from inference.contracts import Activation, DeploymentRoute, Packed, SpoolLine, SpoolRecord, VersionRoute

Array = npt.NDArray[Any]
Columns = dict[str, Any]

# Layouts kept by who packs and by who spells out; past that all begin anew.
_MOST = 1024
_NUMBERS = "fiub"
# What the standard library calls the little-endian dtypes, on a machine whose own order that is.
_CODES = {"<f4": "f", "<f8": "d", "<i8": "q", "<i4": "i", "|b1": "?", "|u1": "B"} if sys.byteorder == "little" else {}
_SIZES = {code: calcsize(f"={code}") for code in _CODES.values()}


class Tensor(msgspec.Struct, array_like=True):
    """A tensor [rows, *inner] of a numpy dtype."""

    name: str
    dtype: str
    inner: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: Array) -> "Tensor":
        return cls(name, array.dtype.newbyteorder("<").str, array.shape[1:])

    def read(self, data: bytes) -> Array:
        """Raises ValueError where the bytes are not whole rows."""
        return np.frombuffer(data, self.dtype).reshape(-1, *self.inner)

    def read_row(self, data: bytes) -> list[Any] | None:
        """The values of the one row that the bytes are, where it is a vector or a number; None where they are not."""
        code = _CODES.get(self.dtype)
        if code is None or len(self.inner) > 1 or len(data) != _SIZES[code] * (self.inner[0] if self.inner else 1):
            return None
        values: list[Any] = memoryview(data).cast(code).tolist()  # type: ignore[call-overload]  # one of _CODES
        return values


class Layout(msgspec.Struct, array_like=True):
    """What the lists of a packed call are called. `columns`: of the input's cells. `named`: they are what the payload
    is kept by; else the input's own name is. `labels`: of the scores, which are output number `score`; none: no scores.
    """

    input: Tensor
    outputs: list[Tensor]
    columns: list[str]
    named: bool
    labels: list[str]
    score: int
    payload: bool


class Spelled(msgspec.Struct):
    """The four fields of a record."""

    inputs: dict[str, Any] | None
    outputs: dict[str, Any] | None
    features: Columns
    scores: Columns | None


class Packer:
    """Packs the calls of one process; the layout of a version's calls is made, and proved, at its first."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, bool], tuple[VersionRoute, Layout | None, msgspec.Raw]] = {}

    def pack(
        self,
        record: SpoolRecord,
        deployment: DeploymentRoute,
        version: VersionRoute,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> bool:
        """Set `packed` of a served call's record; False, and nothing set, where `capture.fill` has to."""
        if len(inputs) != 1:
            return False
        [tensor] = inputs.values()
        cells = tensor.size
        for array in outputs.values():
            cells = max(cells, array.size)
        # Before the layout is made: a first call that is too large would say nothing of the others.
        if cells > capture.PAYLOAD_CELLS:
            return False
        payload = capture.keeps_payload(record.id, deployment.capture)
        held = self._layouts.get((version.id, payload))
        if held is None or held[0] is not version:
            held = self._made(record, deployment, version, inputs, outputs, payload)
        layout, rows = held[1], record.rows
        if layout is None or tensor.shape != (rows, *layout.input.inner):
            return False
        for form, array in zip(layout.outputs, outputs.values(), strict=True):
            if array.shape != (rows, *form.inner):
                return False
        record.packed = Packed(held[2], tensor.tobytes(), [array.tobytes() for array in outputs.values()])
        return True

    def _made(
        self,
        record: SpoolRecord,
        deployment: DeploymentRoute,
        version: VersionRoute,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        payload: bool,
    ) -> tuple[VersionRoute, Layout | None, msgspec.Raw]:
        if len(self._layouts) >= _MOST:
            self._layouts.clear()
        layout = _layout(version, inputs, outputs, payload)
        raw = msgspec.Raw(msgspec.json.encode(layout))
        if layout is not None and not _says_the_same(layout, raw, record, deployment, version, inputs, outputs):
            layout = None
        held = self._layouts[version.id, payload] = version, layout, raw
        return held


def _layout(
    version: VersionRoute, inputs: Mapping[str, Array], outputs: Mapping[str, Array], payload: bool
) -> Layout | None:
    """How such a call would be spelled out; None where its numbers are not simply those of its tensors."""
    [(name, tensor)] = inputs.items()
    if not 0 < tensor.ndim <= 2 or any(
        array.ndim == 0 or array.dtype.kind not in _NUMBERS for array in (tensor, *outputs.values())
    ):
        return None
    if version.activation is not Activation.NONE or any(column.keep != "keep" for column in version.columns):
        return None
    width = 1 if tensor.ndim == 1 else tensor.shape[1]
    columns = [column.name for column in version.columns]
    named = len(columns) == width > 0
    if not named:
        columns = [name] if width == 1 else [f"{name}[{place}]" for place in range(width)]
    spec = version.signature.outputs[version.signature.score_output].name
    place = list(outputs).index(spec) if spec in outputs else 0
    scores = outputs.get(spec)
    labels: list[str] = []
    if scores is not None and 0 < scores.ndim <= 2:
        many = 1 if scores.ndim == 1 else scores.shape[1]
        own = [spec] if many == 1 else [f"{spec}[{each}]" for each in range(many)]
        labels = list(version.labels) if len(version.labels) == many else own
    forms = [Tensor.of(each, array) for each, array in outputs.items()]
    return Layout(Tensor.of(name, tensor), forms, columns, named, labels, place, payload)


def _says_the_same(
    layout: Layout,
    raw: msgspec.Raw,
    record: SpoolRecord,
    deployment: DeploymentRoute,
    version: VersionRoute,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> bool:
    """Whether the call, packed and spelled out, is what `capture.fill` makes of it."""
    filled = msgspec.structs.replace(record, warnings=[])
    capture.fill(filled, version, deployment.capture, inputs, outputs)
    [tensor] = inputs.values()
    packed = Packed(raw, tensor.tobytes(), [array.tobytes() for array in outputs.values()])
    try:
        made = spelled(packed)
    except msgspec.ValidationError:
        return False
    mine = (made.inputs, made.outputs, made.features, made.scores)
    theirs = (filled.inputs, filled.outputs, filled.features, filled.scores)
    return not filled.warnings and orjson.dumps(mine) == orjson.dumps(theirs)


def spelled(packed: Packed) -> Spelled:
    """What a packed call says. Raises msgspec.ValidationError where it is damaged."""
    layout = _read_layout(bytes(packed.layout))
    if (row := _spelled_row(layout, packed)) is not None:
        return row
    try:
        tensor = layout.input.read(packed.input)
        arrays = [form.read(data) for form, data in zip(layout.outputs, packed.outputs, strict=True)]
    except (ValueError, TypeError) as error:
        raise msgspec.ValidationError(f"the packed tensors do not fit their layout: {error}") from error
    features = _columns(layout.columns, tensor)
    scores = _columns(layout.labels, arrays[layout.score]) if layout.labels else None
    if not layout.payload:
        return Spelled(None, None, features, scores)
    inputs = features if layout.named else {layout.input.name: _plain(tensor)}
    outputs = {form.name: _plain(array) for form, array in zip(layout.outputs, arrays, strict=True)}
    return Spelled(inputs, outputs, features, scores)


def _spelled_row(layout: Layout, packed: Packed) -> Spelled | None:
    """The same of a call of one row of finite numbers, the usual one, in a third of the time; None for any other."""
    if len(packed.outputs) != len(layout.outputs):
        return None
    rows = [form.read_row(data) for form, data in zip(layout.outputs, packed.outputs, strict=True)]
    row = layout.input.read_row(packed.input)
    if row is None or len(row) != len(layout.columns):
        return None
    total = sum(row)
    for values in rows:
        if values is None:
            return None
        total += sum(values)
    # A sum is finite only where every value is.
    if total - total:
        return None
    features = dict(zip(layout.columns, zip(row, strict=True), strict=True))
    scores = None
    if layout.labels:
        values = rows[layout.score] or []
        if len(values) != len(layout.labels):
            return None
        scores = dict(zip(layout.labels, zip(values, strict=True), strict=True))
    if not layout.payload:
        return Spelled(None, None, features, scores)
    inputs = features if layout.named else {layout.input.name: [row] if layout.input.inner else row}
    outputs = {form.name: [values] if form.inner else values for form, values in zip(layout.outputs, rows, strict=True)}
    return Spelled(inputs, outputs, features, scores)


def spell_out(line: SpoolLine) -> Spelled:
    """Put what the line's packed tensors say into its other fields, and return it. Raises as `spelled`."""
    assert line.packed is not None
    made = spelled(line.packed)
    line.features = msgspec.Raw(orjson.dumps(made.features))
    if made.inputs is not None:
        line.inputs = line.features if made.inputs is made.features else msgspec.Raw(orjson.dumps(made.inputs))
        line.outputs = msgspec.Raw(orjson.dumps(made.outputs))
    if made.scores is not None:
        line.scores = msgspec.Raw(orjson.dumps(made.scores))
    line.packed = None
    return made


_layouts: dict[bytes, Layout] = {}
_decoder = msgspec.json.Decoder(Layout)


def _read_layout(raw: bytes) -> Layout:
    layout = _layouts.get(raw)
    if layout is None:
        if len(_layouts) >= _MOST:
            _layouts.clear()
        layout = _layouts[raw] = _decoder.decode(raw)
    return layout


def _columns(names: list[str], table: Array) -> Columns:
    """Values over rows by name, of a single row a tuple each; where one is not finite lists, with None for it, as they
    are read back from JSON.
    """
    if len(table) == 1:
        row = table.ravel().tolist()
        # A sum is finite only where every value is.
        if (total := sum(row)) - total == 0:
            return dict(zip(names, zip(row, strict=True), strict=True))
        lists = [[value] for value in row]
    else:
        lists = table.reshape(len(table), -1).T.tolist()
    if table.dtype.kind == "f" and not np.isfinite(table).all():
        lists = orjson.loads(orjson.dumps(lists))
    return dict(zip(names, lists, strict=True))


def _plain(table: Array) -> Any:
    values = table.tolist()
    return orjson.loads(orjson.dumps(values)) if table.dtype.kind == "f" and not np.isfinite(table).all() else values
