"""Log lines of usual calls, printed from a template: one row of numbers, answered on the event loop.

A record is some eighty small lists, encoded column by column. Of two calls by one key to one version only the id, the
times and the numbers differ: so the first call's record is filled as any other (`inference.capture`) and encoded with
gaps, and the calls after it put their numbers there, all of which are turned to text at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy.typing as npt
import orjson

from inference import capture
from inference.contracts import Activation, DeploymentRoute, Lane, SpoolRecord, VersionRoute

# Templates kept: keys times versions that are called; past that all begin anew.
_MOST = 512
_MOST_CELLS = 2048
_GAP = cast(Any, msgspec.Raw(b"%b"))

Array = npt.NDArray[Any]
_Key = tuple[str, str, str, int, bool, bool, bool]


@dataclass(frozen=True, slots=True)
class _Template:
    """`text` has gaps in the order of SpoolRecord's fields, b"" where every call's record is to be filled.

    `payload`: inputs and outputs are kept. `row`, `shapes`: of the input and the outputs. `scores`: where in the
    outputs' numbers the scores lie.
    """

    version: VersionRoute
    text: bytes = b""
    payload: bool = False
    row: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    scores: slice | None = None

    def printed(self, record: SpoolRecord, tensor: Array, outputs: Mapping[str, Array]) -> bytes:
        """The record's line."""
        numbers = [record.at, record.compute_ms, record.total_ms, *tensor.ravel().tolist()]
        first = len(numbers)
        for array in outputs.values():
            numbers += array.ravel().tolist()
        texts = orjson.dumps(numbers)[1:-1].split(b",")
        cells, results = texts[3:first], texts[first:]
        payload = (*cells, *results) if self.payload else ()
        scores = results[self.scores] if self.scores is not None else ()
        return self.text % (record.id.encode(), *texts[:3], *payload, *cells, *scores)


class Lines:
    """The templates of this process, by key and version."""

    def __init__(self) -> None:
        self._templates: dict[_Key, _Template] = {}

    def line(
        self,
        record: SpoolRecord,
        deployment: DeploymentRoute,
        version: VersionRoute,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> bytes | None:
        """The line of a served call, for `SpoolWriter.append_line`; None where its record is to be filled and appended.

        `record` lacks nothing but what `capture.fill` sets, which it is left without.
        """
        if record.lane is not Lane.INLINE or record.rows != 1 or len(inputs) != 1:
            return None
        if record.client_id or record.idempotency_key or record.context or record.warnings:
            return None
        [tensor] = inputs.values()
        payload = capture.keeps_payload(record.id, deployment.capture)
        ids = record.key_id, deployment.id, version.id, record.routes_generation
        key = (*ids, record.pinned, payload, record.cached)
        template = self._templates.get(key)
        if template is None or template.version is not version:
            if len(self._templates) >= _MOST:
                self._templates.clear()
            self._templates[key] = _made(record, deployment, version, inputs, outputs)
            return None
        if tensor.shape != template.row or tuple([array.shape for array in outputs.values()]) != template.shapes:
            return None
        return template.printed(record, tensor, outputs)


def _made(
    record: SpoolRecord,
    deployment: DeploymentRoute,
    version: VersionRoute,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> _Template:
    """The template of calls like this one, proved by printing this one."""
    sample = msgspec.structs.replace(record)
    capture.fill(sample, version, deployment.capture, inputs, outputs)
    [tensor] = inputs.values()
    if tensor.size + sum(array.size for array in outputs.values()) > _MOST_CELLS or sample.warnings:
        return _Template(version)
    gapped = msgspec.structs.replace(
        sample,
        id=cast(str, msgspec.Raw(b'"%b"')),
        at=_GAP,
        compute_ms=_GAP,
        total_ms=_GAP,
        key_id=record.key_id.replace("%", "%%"),
        deployment_id=record.deployment_id.replace("%", "%%"),
        version_id=record.version_id.replace("%", "%%"),
        inputs=_gapped(sample.inputs),
        outputs=_gapped(sample.outputs),
        features=_gapped(sample.features),
        scores=_gapped(sample.scores),
    )
    template = _Template(
        version,
        msgspec.json.encode(gapped),
        sample.inputs is not None,
        tensor.shape,
        tuple(array.shape for array in outputs.values()),
        _scores_in(sample, version, outputs),
    )
    try:
        printed = msgspec.json.decode(template.printed(sample, tensor, outputs), type=SpoolRecord)
    except (TypeError, ValueError, msgspec.MsgspecError):
        # More or fewer numbers than gaps, or texts among them: columns that are hashed or dropped, or an activation.
        return _Template(version)
    same = msgspec.json.encode(printed) == msgspec.json.encode(sample)
    return template if same and version.activation is Activation.NONE else _Template(version)


def _gapped(value: Any) -> Any:
    """The same objects and lists with a gap for each number."""
    if isinstance(value, dict):
        return {name.replace("%", "%%"): _gapped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_gapped(item) for item in value]
    return value if value is None or isinstance(value, str) else _GAP


def _scores_in(sample: SpoolRecord, version: VersionRoute, outputs: Mapping[str, Array]) -> slice | None:
    start = 0
    name = version.signature.outputs[version.signature.score_output].name
    for each, array in outputs.items():
        if each == name:
            return slice(start, start + array.size) if sample.scores is not None else None
        start += array.size
    return None
