"""Tensors in the log's lines as they lie in memory, and what they are spelled out to by who reads the lines.

A call's numbers as text are the most expensive part of its record; as base64 they cost a copy. So the front door packs
the usual call, whose numbers are its own and all of which are kept, and the ingester, which runs at a low priority,
spells out. What it makes of a line is what `inference.capture` would have written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from inference import capture
from inference.contracts import Activation, DeploymentRoute, Packed, Source, SpoolLine, SpoolRecord, VersionRoute
from inference.runtime.tensors import dumps, to_json

Array = npt.NDArray[Any]

# Layouts kept by who packs and by who spells out; past that all begin anew.
_MOST = 1024
_NUMBERS = "fiub"
# What numbers lie in memory as; of a layout that a damaged line names nothing else is read.
_DTYPES = frozenset(("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"))


class Tensor(msgspec.Struct, array_like=True):
    """A tensor [rows, *inner] of a numpy dtype."""

    name: str
    dtype: str
    inner: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: Array) -> "Tensor":
        return cls(name, array.dtype.newbyteorder("<").str, array.shape[1:])

    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.inner)

    def read(self, data: bytes) -> Array:
        """Raises ValueError where the bytes are not whole rows."""
        return np.frombuffer(data, self.dtype).reshape(-1, *self.inner)


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


@dataclass(slots=True, eq=False)
class Block:
    """What calls of one layout say, one below the other: `features` [rows, columns] and `scores` [rows, labels]."""

    columns: list[str]
    features: Array
    labels: list[str]
    scores: Array


class Part(NamedTuple):
    """The rows of a block that are one call's."""

    block: Block
    start: int
    stop: int


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
    if any(array.ndim == 0 or array.dtype.kind not in _NUMBERS for array in (tensor, *outputs.values())):
        return None
    if version.activation is not Activation.NONE or any(column.keep != "keep" for column in version.columns):
        return None
    columns: list[str] = []
    named = False
    if tensor.ndim > 2:
        # Its numbers are no features.
        payload = payload and not version.task.takes_pictures
    else:
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
    theirs = {name: getattr(filled, name) for name in made}
    return not filled.warnings and orjson.dumps(made) == orjson.dumps(theirs)


def spelled(packed: Packed) -> dict[str, Any]:
    """The four fields of a record that a packed call stands for. Raises msgspec.ValidationError where it is damaged."""
    line = SpoolLine(id="", at=0.0, source=Source.LIVE, packed=packed)
    if spell_out([line]) == [None]:
        raise msgspec.ValidationError("the packed tensors do not fit their layout")
    fields = {"inputs": line.inputs, "outputs": line.outputs, "features": line.features, "scores": line.scores}
    return {name: orjson.loads(raw) if (raw := bytes(given)) else None for name, given in fields.items()}


def spell_out(lines: Sequence[SpoolLine]) -> list[Part | None]:
    """Put what packed lines say into their other fields, all calls of a layout together; where each one's numbers are.
    None, and nothing put, for a line that is damaged.
    """
    found: list[Part | None] = [None] * len(lines)
    groups: dict[bytes, list[int]] = {}
    for place, line in enumerate(lines):
        if line.packed is not None:
            groups.setdefault(bytes(line.packed.layout), []).append(place)
    for raw, places in groups.items():
        try:
            spelling = _spelling_of(raw)
        except (ValueError, TypeError, IndexError):  # msgspec's errors are ValueErrors
            continue
        whole = [place for place in places if spelling.fits(lines[place].packed)]
        if not whole:
            continue
        for place, part in zip(whole, spelling.spell([lines[place] for place in whole]), strict=True):
            found[place] = part
    return found


class _Spelling:
    """How calls of one layout are written as JSON. Raises ValueError, TypeError or IndexError for none."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._row_bytes = layout.input.row_bytes()
        self._output_bytes = [form.row_bytes() for form in layout.outputs]
        scored = layout.outputs[layout.score]
        if any(form.dtype not in _DTYPES or min(form.inner, default=1) < 0 for form in (layout.input, *layout.outputs)):
            raise ValueError("the tensors are not of numbers")
        if not self._row_bytes or any(
            names and len(names) != prod(tensor.inner)
            for names, tensor in ((layout.columns, layout.input), (layout.labels, scored))
        ):
            raise ValueError("the names are not those of the tensors' columns")
        self._features = _template(layout.columns, b"[%b]")
        self._scores = _template(layout.labels, b"[%b]")
        self._inputs = _template([layout.input.name], b"%b")
        self._outputs = _template([form.name for form in layout.outputs], b"%b")

    def fits(self, packed: Packed | None) -> bool:
        """Whether the bytes are as many rows of each tensor."""
        assert packed is not None
        rows, torn = divmod(len(packed.input), self._row_bytes)
        return (
            rows > 0
            and not torn
            and len(packed.outputs) == len(self._output_bytes)
            and all(len(data) == rows * size for data, size in zip(packed.outputs, self._output_bytes, strict=True))
        )

    def spell(self, lines: Sequence[SpoolLine]) -> list[Part]:
        """The parts of lines that fit, and their fields."""
        layout = self._layout
        calls = [packed for line in lines if (packed := line.packed) is not None]
        stops = [*accumulate(len(packed.input) // self._row_bytes for packed in calls)]
        spans = [*zip([0, *stops], stops, strict=False)]
        tensor = layout.input.read(b"".join([packed.input for packed in calls]))
        arrays = [
            form.read(b"".join([packed.outputs[place] for packed in calls]))
            for place, form in enumerate(layout.outputs)
        ]
        table = tensor.reshape(len(tensor), -1) if layout.columns else np.empty((len(tensor), 0))
        scores = arrays[layout.score].reshape(len(tensor), -1) if layout.labels else np.empty((len(tensor), 0))
        block = Block(layout.columns, table, layout.labels, scores)
        nothing = [b""] * len(lines)
        features = _by_column(self._features, table, spans)
        # As the decision was taken: a float32 just below a threshold is not to be rounded onto it.
        exact = scores.astype(np.float64) if scores.dtype.kind == "f" else scores
        told = _by_column(self._scores, exact, spans) if layout.labels else nothing
        inputs = outputs = nothing
        if layout.payload:
            inputs = features if layout.named else [self._inputs % (text,) for text in _by_call(tensor, spans)]
            outputs = [
                self._outputs % texts for texts in zip(*(_by_call(array, spans) for array in arrays), strict=True)
            ]
        for line, *texts in zip(lines, features, told, inputs, outputs, strict=True):
            line.features, line.scores, line.inputs, line.outputs = map(msgspec.Raw, texts)
            line.packed = None
        return [Part(block, start, stop) for start, stop in spans]


def _template(names: Sequence[str], value: bytes) -> bytes:
    """An object with these keys, for bytes' `%`."""
    return b"{%b}" % b",".join([orjson.dumps(name).replace(b"%", b"%%") + b":" + value for name in names])


def _by_column(template: bytes, table: Array, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """For each call the template filled with the values of each column of `table` [rows, columns]."""
    if not table.shape[1]:
        return [template] * len(spans)
    if spans[-1][1] == len(spans):
        # The usual calls, of one row each.
        return [template % tuple(row.split(b",")) for row in dumps(to_json(table))[2:-2].split(b"],[")]
    return [template % tuple(dumps(to_json(table[start:stop].T))[2:-2].split(b"],[")) for start, stop in spans]


def _by_call(array: Array, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """For each call its rows of `array` as JSON."""
    if spans[-1][1] == len(spans) and array.ndim <= 2 and array.size:
        text = dumps(to_json(array))
        if array.ndim == 1:
            return [b"[%b]" % value for value in text[1:-1].split(b",")]
        return [b"[[%b]]" % row for row in text[2:-2].split(b"],[")]
    return [dumps(to_json(array[start:stop])) for start, stop in spans]


_spellings: dict[bytes, _Spelling] = {}
_decoder = msgspec.json.Decoder(Layout)


def _spelling_of(raw: bytes) -> _Spelling:
    spelling = _spellings.get(raw)
    if spelling is None:
        if len(_spellings) >= _MOST:
            _spellings.clear()
        spelling = _spellings[raw] = _Spelling(_decoder.decode(raw))
    return spelling
