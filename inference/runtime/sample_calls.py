"""Bodies of predict calls made from a signature: what documentation shows, and what really works when it is sent."""

import json
from math import prod
from typing import Any

from inference.contracts import Datatype, TensorSpec, VersionRoute
from inference.runtime.plans import plan_of

Sample = dict[str, list[Any]]

# Eight by eight grey pixels: a small PNG that every decoder takes.
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR4nGNsYIAAJgaKGAAmCACQXTClHgAAAABJRU5ErkJggg=="
# A free dimension that is not the batch gets this many cells in an example.
_FREE = 1
# A body with more cells is no help to a reader; programs then make it.
MOST_CELLS = 2048
# What validation tries first, so that an example made of them runs; 0 would read as a value that is missing.
_NEUTRAL: dict[Datatype, Any] = {Datatype.BOOL: True, Datatype.BYTES: "0"}


def v1_body(version: VersionRoute, sample: Sample | None) -> dict[str, Any] | None:
    """A V1 body of one row (of as many as the model insists on), named where the cells or the inputs have names.

    None where it has more cells than a reader wants to see.
    """
    if version.task.takes_pictures:
        return {"instances": [{"b64": _PNG}]}
    if _is_large(version):
        return None
    inputs = version.signature.inputs
    names = plan_of(version).columns
    whole = is_whole(version)
    rows = {}
    for spec in inputs:
        row: Any = _row_of(spec, _row_shape(spec, names), sample, names)
        rows[spec.name] = [row] * _batch(spec) if whole and spec.shape else row
    row = next(iter(rows.values())) if len(inputs) == 1 else rows
    if names and not whole:
        row = dict(zip(names, row, strict=True))
    return {"instances": [row] * (1 if whole else _batch(inputs[0]))}


def v1_filled(version: VersionRoute, *, python: bool) -> str:
    """Source, in Python or JavaScript, of an expression that makes a V1 body too large to be shown."""
    start = 0 if is_whole(version) else 1
    rows = {spec.name: _source(_neutral(spec), spec.shape[start:], python) for spec in version.signature.inputs}
    named = "{" + ", ".join(f"{json.dumps(name)}: {row}" for name, row in rows.items()) + "}"
    row = next(iter(rows.values())) if len(rows) == 1 else named
    batch = _batch(version.signature.inputs[0]) if start else 1
    return '{"instances": ' + (f"[{row}] * {batch}" if python else f"Array({batch}).fill({row})") + "}"


def v2_body(version: VersionRoute, sample: Sample | None) -> dict[str, Any] | None:
    """A V2 body as `v1_body`, with flat data."""
    if version.task.takes_pictures:
        name = version.signature.inputs[0].name
        return {"inputs": [{"name": name, "datatype": "BYTES", "shape": [1], "data": [_PNG]}]}
    if _is_large(version):
        return None
    names = plan_of(version).columns
    tensors = []
    for spec in version.signature.inputs:
        row = _row_of(spec, _row_shape(spec, names), sample, names)
        batch = [_batch(spec)] if spec.shape else []
        tensors.append(
            {
                "name": spec.name,
                "datatype": str(spec.datatype),
                "shape": [*batch, *_shape_of(row)],
                "data": _flat(row) * prod(batch),
            }
        )
    return {"inputs": tensors}


def v2_specs(version: VersionRoute) -> tuple[TensorSpec, ...]:
    """The inputs of the V2 call: for pictures the files themselves, as base64 texts."""
    inputs = version.signature.inputs
    if version.task.takes_pictures:
        return (TensorSpec(name=inputs[0].name, datatype=Datatype.BYTES, shape=(-1,)),)
    return inputs


def is_whole(version: VersionRoute) -> bool:
    """Whether one instance is a whole tensor: the model has no batch dimension, not even one of a fixed size."""
    signature = version.signature
    firsts = {spec.shape[:1] for spec in (*signature.inputs, *signature.outputs)}
    return not signature.batched and (len(firsts) > 1 or firsts == {()})


def _is_large(version: VersionRoute) -> bool:
    return (
        sum(prod(_FREE if size < 0 else size for size in spec.shape) for spec in version.signature.inputs) > MOST_CELLS
    )


def _batch(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.shape and spec.shape[0] > 0 else 1


def _neutral(spec: TensorSpec) -> Any:
    return _NEUTRAL.get(spec.datatype, 0.5 if spec.datatype.startswith("FP") else 1)


def _source(value: Any, shape: tuple[int, ...], python: bool) -> str:
    source = repr(value) if python else json.dumps(value)
    for size in reversed(shape):
        count = _FREE if size < 0 else size
        source = f"[{source}] * {count}" if python else f"Array({count}).fill({source})"
    return source


def _row_shape(spec: TensorSpec, names: tuple[str, ...]) -> tuple[int, ...]:
    return (len(names),) if names else spec.shape[1:]


def _row_of(spec: TensorSpec, shape: tuple[int, ...], sample: Sample | None, names: tuple[str, ...]) -> Any:
    """Values of one row: from `sample` by input or by column name where it has them, else neutral ones of `shape`."""
    if sample and spec.name in sample and spec.name not in names:
        return sample[spec.name] if shape else _first(sample[spec.name], _neutral(spec))
    if names:
        return [_first((sample or {}).get(name), _neutral(spec)) for name in names]
    row: Any = _neutral(spec)
    for size in reversed(shape):
        row = [row] * (_FREE if size < 0 else size)
    return row


def _first(values: Any, otherwise: Any) -> Any:
    if isinstance(values, list):
        return values[0] if values else otherwise
    return otherwise if values is None else values


def _shape_of(value: Any) -> list[int]:
    return [len(value), *_shape_of(value[0])] if isinstance(value, list) else []


def _flat(value: Any) -> list[Any]:
    return [cell for item in value for cell in _flat(item)] if isinstance(value, list) else [value]
