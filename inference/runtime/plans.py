"""What is known of a version's inputs before a call comes: compiled once, read by every call."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from inference.contracts import Datatype, TensorSpec, VersionRoute

Array = np.ndarray[Any, np.dtype[Any]]
# Gives the path of the cell at these indices of the tensor (or at this one index of a flat list).
Locate = Callable[[tuple[int, ...]], list[str | int]]

NUMPY_DTYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype(np.uint16),
    Datatype.UINT32: np.dtype(np.uint32),
    Datatype.UINT64: np.dtype(np.uint64),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype(np.int16),
    Datatype.INT32: np.dtype(np.int32),
    Datatype.INT64: np.dtype(np.int64),
    Datatype.FP16: np.dtype(np.float16),
    Datatype.FP32: np.dtype(np.float32),
    Datatype.FP64: np.dtype(np.float64),
    # Text and bytes travel as Python objects, as ONNX Runtime takes them.
    Datatype.BYTES: np.dtype(np.object_),
}

NUMBERS = frozenset({int, float})
_PLANS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What is known of one input before a call comes. `shape` has -1 for a dimension that the caller chooses.

    `code`: the dtype's character, which for floats is that of `struct`, too.
    `kinds`: the types that a valid cell has after JSON was parsed. `nullable`: None, or a mask over the last dimension
    (of length 1 where it speaks of the whole tensor), True where null or NaN is a missing value. `columns`: the names
    of a row's cells, where they have names.
    `expected`: the shape as people read it, [n, 30].
    `tail`: the sizes after the first where only the first is free, which makes the usual shape cheap to compare.
    `width`: of the rows of a float table [n, width], whose conversion has a quicker way; 0 for any other tensor.
    `vector`: for [n, 1] inputs the plan for [n], since a column of single numbers may be sent as bare numbers.
    """

    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    code: str
    shape: tuple[int, ...]
    kinds: frozenset[type]
    nullable: Array | None
    accepts_non_finite: bool
    columns: tuple[str, ...]
    tail: tuple[int, ...] | None
    width: int
    expected: str
    vector: "TensorPlan | None" = None


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """The inputs of one version, compiled. `lenient`: NaN may be a value somewhere, so its literals are parsed.

    `pictures`: the task takes pictures. `floats`: it takes none, and an input is of floats. `batched`: as in the
    signature.
    `columns` and `pick`: names of the single input's cells, and what takes them in order out of an object.
    `table`: the input, where it is the only one, is a float table and its rows are the call's: the usual model.
    """

    version: VersionRoute
    inputs: tuple[TensorPlan, ...]
    by_name: dict[str, TensorPlan]
    lenient: bool
    pictures: bool
    floats: bool
    batched: bool
    columns: tuple[str, ...]
    pick: Callable[[Any], tuple[Any, ...]] | None
    table: TensorPlan | None


_plans: dict[str, VersionPlan] = {}


def plan_of(version: VersionRoute) -> VersionPlan:
    """The version's plan, compiled at its first call and kept while the same route object is used."""
    plan = _plans.get(version.id)
    if plan is None or plan.version is not version:
        if len(_plans) >= _PLANS_KEPT:
            _plans.clear()
        plan = _plans[version.id] = _compile(version)
    return plan


def _compile(version: VersionRoute) -> VersionPlan:
    specs = version.signature.inputs
    names = tuple(column.name for column in version.columns)
    named = len(specs) == 1 and bool(names) and len(specs[0].shape) == 2 and specs[0].shape[-1] in (-1, len(names))
    pick: Callable[[Any], tuple[Any, ...]] | None = None
    if named:
        getter = itemgetter(*names)
        pick = getter if len(names) > 1 else lambda row: (getter(row),)
    inputs = tuple(_plan_tensor(spec, version, names if named else ()) for spec in specs)
    return VersionPlan(
        version=version,
        inputs=inputs,
        by_name={tensor.name: tensor for tensor in inputs},
        lenient=version.accepts_non_finite or any(column.nullable for column in version.columns),
        pictures=version.task.takes_pictures,
        floats=not version.task.takes_pictures and any(tensor.dtype.kind == "f" for tensor in inputs),
        batched=version.signature.batched,
        columns=names if named else (),
        pick=pick,
        table=inputs[0] if version.signature.batched and len(inputs) == 1 and inputs[0].width else None,
    )


def _plan_tensor(spec: TensorSpec, version: VersionRoute, columns: tuple[str, ...]) -> TensorPlan:
    dtype = NUMPY_DTYPES[spec.datatype]
    nullable: Array | None = None
    if dtype.kind == "f":
        by_name = {column.name: column.nullable for column in version.columns}
        mask = np.array([by_name[name] for name in columns] or [by_name.get(spec.name, False)])
        nullable = mask if mask.any() else None
    kinds: frozenset[type]
    if dtype.kind == "f":
        kinds = NUMBERS if nullable is None else NUMBERS | {type(None)}
    else:
        kinds = frozenset({{"b": bool, "O": str}.get(dtype.kind, int)})
    shape = (*spec.shape[:-1], len(columns)) if columns else spec.shape
    plan = TensorPlan(
        name=spec.name,
        datatype=spec.datatype,
        dtype=dtype,
        code=dtype.char,
        shape=shape,
        kinds=kinds,
        nullable=nullable,
        accepts_non_finite=version.accepts_non_finite,
        columns=columns,
        tail=shape[1:] if shape[:1] == (-1,) and -1 not in shape[1:] else None,
        width=shape[1] if dtype.kind == "f" and len(shape) == 2 and shape[0] == -1 and shape[1] > 0 else 0,
        expected="[" + ", ".join("n" if size < 0 else str(size) for size in shape) + "]",
    )
    if len(shape) == 2 and shape[1] == 1:
        return replace(
            plan, vector=replace(plan, shape=shape[:1], columns=(), width=0, tail=() if shape[0] < 0 else None)
        )
    return plan
