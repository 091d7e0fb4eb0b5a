"""What of a prediction is written to the log: used by the front door before an answer and by the workers after a job.

Two parts of a record are filled. `inputs` and `outputs` are the payload, kept as the deployment's policy and each
column's `keep` say. `features` and `scores` are what rollups count, always there; in them text of a column that must
not be kept stands as its salted hash, so that categories can be counted without being known.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy.typing as npt
import orjson

from inference.contracts import Activation, CapturePolicy, SpoolRecord, VersionRoute
from inference.runtime.scores import scores_of
from inference.runtime.tensors import dumps, to_json

# A payload of more cells is not kept: one line of the spool stays below about half a megabyte.
PAYLOAD_CELLS = 16_384
# What rollups count: all columns of all rows up to here, evenly spaced rows of a larger call.
FEATURE_CELLS = 262_144
FEATURE_COLUMNS = 512
SCORE_COLUMNS = 1_024
# A warning in the record: the payload had more than PAYLOAD_CELLS.
TOO_LARGE = "payload_too_large_to_keep"

Array = npt.NDArray[Any]


def fill(
    record: SpoolRecord,
    version: VersionRoute,
    policy: CapturePolicy,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> None:
    """Set `inputs`, `outputs`, `features` and `scores` of a served prediction's record.

    `inputs` and `outputs` are tensors by name as the model took and gave them; pictures are never passed in here as
    anything but tensors, and a tensor of rank 3 or more is no feature and is not kept for picture tasks.
    """
    if version.columns and len(inputs) == 1:
        _fill_columns(record, version, policy, next(iter(inputs.values())))
    else:
        _fill_tensors(record, version, policy, inputs)
    if record.inputs is not None:
        record.outputs = _payload_of(record, outputs)
    record.scores = _scores(version, outputs)


def keeps_payload(record_id: str, policy: CapturePolicy) -> bool:
    """Whether this prediction's payload is in the kept share; decided by its id, so a retried write decides alike."""
    return policy.payload_share >= 1.0 or int(record_id[-6:], 16) < policy.payload_share * 0x100_0000


def hashed(value: str, salt: str) -> str:
    """The stand-in of a text that must not be kept: 64 bits of a hash salted per deployment, as hex."""
    return blake2b(value.encode("utf-8", "replace"), digest_size=8, key=bytes.fromhex(salt)[:64]).hexdigest()


def _fill_columns(record: SpoolRecord, version: VersionRoute, policy: CapturePolicy, tensor: Array) -> None:
    """One tensor [rows, columns] whose columns have names."""
    columns = version.columns
    cells, whole = tensor.size, tensor
    tensor = _sparse(tensor, cells)
    lists = _columns_of(tensor, len(columns))
    if lists is None:
        _fill_tensors(record, version, policy, {version.signature.inputs[0].name: whole})
        return
    names = _names_kept_whole(version)
    if names is not None:
        features = dict(zip(names, lists, strict=True))
        record.features = features
        if keeps_payload(record.id, policy):
            _keep_columns(record, features, cells)
        return
    features = {}
    kept: dict[str, list[Any]] = {}
    for column, values in zip(columns, lists, strict=True):
        if column.keep == "keep":
            features[column.name] = kept[column.name] = values
            continue
        stands = [hashed(_text(value), policy.hash_salt) for value in values]
        features[column.name] = stands if tensor.dtype.kind == "O" else values
        if column.keep == "hash":
            kept[column.name] = stands
    record.features = features
    if keeps_payload(record.id, policy):
        _keep_columns(record, kept, cells)


def _keep_columns(record: SpoolRecord, columns: dict[str, list[Any]], cells: int) -> None:
    if cells <= PAYLOAD_CELLS:
        record.inputs = columns
    else:
        record.warnings = [*record.warnings, TOO_LARGE]


def _names_kept_whole(version: VersionRoute) -> tuple[str, ...] | None:
    """The columns' names where the log keeps them all, the usual case; None where some are hashed or dropped."""
    known = _kept_whole.get(version.id)
    if known is None or known[0] is not version:
        if len(_kept_whole) >= _VERSIONS_REMEMBERED:
            _kept_whole.clear()
        whole = all(column.keep == "keep" for column in version.columns)
        known = _kept_whole[version.id] = version, tuple(c.name for c in version.columns) if whole else None
    return known[1]


# By version id, worked out once for each route object.
_kept_whole: dict[str, tuple[VersionRoute, tuple[str, ...] | None]] = {}
_VERSIONS_REMEMBERED = 1024


def _fill_tensors(
    record: SpoolRecord, version: VersionRoute, policy: CapturePolicy, inputs: Mapping[str, Array]
) -> None:
    """Tensors whose columns have no names: column j of an input `x` counts as `x[j]`."""
    counted: dict[str, tuple[Array, int]] = {}
    columns = 0
    for name, tensor in inputs.items():
        if tensor.ndim > 2 or tensor.ndim == 0:
            continue
        width = 1 if tensor.ndim == 1 else tensor.shape[1]
        if 0 < width <= FEATURE_COLUMNS - columns:
            counted[name] = tensor, width
            columns += width
    cells = sum(tensor.size for tensor, _ in counted.values())
    features: dict[str, list[Any]] = {}
    for name, (tensor, width) in counted.items():
        lists = _columns_of(_sparse(tensor, cells), width) or []
        features.update(zip(_names(name, width), lists, strict=True))
    record.features = features
    if keeps_payload(record.id, policy) and not version.task.takes_pictures:
        record.inputs = _payload_of(record, inputs)


def _payload_of(record: SpoolRecord, tensors: Mapping[str, Array]) -> dict[str, Any] | None:
    cells = 0
    for tensor in tensors.values():
        cells += tensor.size
    if cells > PAYLOAD_CELLS:
        if TOO_LARGE not in record.warnings:
            record.warnings = [*record.warnings, TOO_LARGE]
        return None
    return {name: _plain(tensor) for name, tensor in tensors.items()}


def _scores(version: VersionRoute, outputs: Mapping[str, Array]) -> dict[str, list[Any]] | None:
    """Per label the score over rows; without labels the numbers of the score output, for rollups of the predictions."""
    spec = version.signature.outputs[version.signature.score_output]
    plain = outputs.get(spec.name)
    if version.activation is Activation.NONE and plain is not None and plain.shape == (1, len(version.labels)):
        # The usual call, one row of finished scores, without the detour over a float64 table: 1 us instead of 6.
        return {label: [score] for label, score in zip(version.labels, plain[0].tolist(), strict=True)}
    if plain is not None and plain.size > FEATURE_CELLS:
        outputs = {spec.name: _sparse(plain, plain.size)}
    table = scores_of(version, dict(outputs))
    if table is None:
        found = outputs.get(spec.name)
        if found is None or not 0 < found.ndim <= 2 or found.dtype.kind == "O":
            return None
        table = found.reshape(len(found), -1)
    width = table.shape[1]
    names = version.labels if len(version.labels) == width else _names(spec.name, width)
    if table.shape[1] > SCORE_COLUMNS:
        return None
    lists = [[score] for score in table[0].tolist()] if len(table) == 1 else table.T.tolist()
    return dict(zip(names, lists, strict=True))


def _columns_of(tensor: Array, width: int) -> list[list[Any]] | None:
    """The tensor as `width` lists over its rows, or None where it is not a table of that width."""
    if tensor.ndim > 2 or tensor.ndim == 0 or tensor.size != len(tensor) * width:
        return None
    if tensor.dtype.kind == "O":
        return [[_text(value) for value in column] for column in tensor.reshape(-1, width).T]
    if len(tensor) == 1:
        return [[value] for value in _numbers(tensor.reshape(-1))]
    lists: list[list[Any]] = _numbers(tensor.reshape(-1, width).T)
    return lists


@lru_cache(maxsize=256)
def _names(name: str, width: int) -> tuple[str, ...]:
    return (name,) if width == 1 else tuple(f"{name}[{j}]" for j in range(width))


def _sparse(tensor: Array, cells: int) -> Array:
    """Of a call with more than FEATURE_CELLS `cells` every k-th row, taken before lists are made of them."""
    if cells <= FEATURE_CELLS or not tensor.ndim:
        return tensor
    return tensor[:: -(-cells // FEATURE_CELLS)]


def _plain(tensor: Array) -> Any:
    if tensor.dtype.kind != "O":
        return _numbers(tensor)
    return _map_text(tensor.tolist(), _text)


def _numbers(tensor: Array) -> Any:
    """As lists. float32 0.1 is 0.1 in the log, as it was sent and is answered, not 0.10000000149011612.

    What is too large for a payload is counted and never shown: there the detour would only cost memory.
    """
    if tensor.dtype.kind != "f" or tensor.size > PAYLOAD_CELLS:
        return tensor.tolist()
    return orjson.loads(dumps(to_json(tensor)))


def _map_text(value: Any, change: Callable[[Any], str]) -> Any:
    return [_map_text(item, change) for item in value] if isinstance(value, list) else change(value)


def _text(value: Any) -> str:
    """A cell of a BYTES tensor as text that PostgreSQL can store: no U+0000, no half of a surrogate pair."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
