"""Routes made from a few words, for tests of the prediction API's documents: no model behind them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inference.contracts import (
    Activation,
    Column,
    Datatype,
    DeploymentRoute,
    Share,
    Signature,
    Task,
    TensorSpec,
    VersionRoute,
)
from inference.errors import InferenceError
from inference.runtime.plans import Array

JSON = {b"content-type": b"application/json"}


def f16(values: Any) -> Array:
    return np.asarray(values, dtype=np.float16)


def f32(values: Any) -> Array:
    return np.asarray(values, dtype=np.float32)


def i64(values: Any) -> Array:
    return np.asarray(values, dtype=np.int64)


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype(datatype), shape=shape)


def version_of(
    *inputs: TensorSpec,
    outputs: tuple[TensorSpec, ...] = (),
    batched: bool = True,
    columns: tuple[str, ...] = (),
    nullable: tuple[str, ...] = (),
    task: Task = Task.TENSOR,
    labels: tuple[str, ...] = (),
    activation: Activation = Activation.NONE,
    accepts_non_finite: bool = False,
) -> VersionRoute:
    """A version whose one input is `x` FP32 [n, 3] and whose one output is `y` FP32 [n, 1], unless others are given."""
    signature = Signature(
        inputs=inputs or (spec("x", "FP32", -1, 3),),
        outputs=outputs or (spec("y", "FP32", -1, 1),),
        batched=batched,
    )
    return VersionRoute(
        id="v",
        model="toy",
        number=7,
        artifact_sha256="0" * 64,
        artifact_bytes=1,
        signature=signature,
        task=task,
        activation=activation,
        labels=labels,
        columns=tuple(Column(name=name, nullable=name in nullable) for name in columns),
        accepts_non_finite=accepts_non_finite,
    )


def deployment_of(version: VersionRoute, *, max_rows: int = 8) -> DeploymentRoute:
    return DeploymentRoute(
        id="d",
        name="toy-live",
        team_id="t",
        model="toy",
        revision=1,
        salt="s",
        task=version.task,
        live=(Share(number=version.number, basis_points=10_000),),
        versions={version.number: version},
        max_rows=max_rows,
    )


def refused(call: Callable[[], Any], code: str, status: int) -> InferenceError:
    """The error of a call that must be refused so."""
    with pytest.raises(InferenceError) as caught:
        call()
    assert (caught.value.code, caught.value.status) == (code, status), caught.value
    assert caught.value.message
    assert len(caught.value.errors) <= 20
    return caught.value
