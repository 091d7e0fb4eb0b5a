"""Whether the rows of one run leave each other alone, so that calls of several callers may share it."""

from typing import Any

import numpy as np

from inference.errors import InferenceError
from inference.runtime.onnx import OnnxModel
from inference.runtime.ort_errors import OutOfMemory

Array = np.ndarray[Any, np.dtype[Any]]

_ROWS = 3


def rows_are_independent(model: OnnxModel, feed: dict[str, Array]) -> bool:
    """Run some rows together and alone: a batch of several callers is safe only where both agree.

    `feed` is an input that the model takes, of at least one row. Raises OutOfMemory.
    """
    sizes = {array.shape[0] for array in feed.values()}
    if len(sizes) != 1:
        return False
    rows = {name: np.concatenate([array] * _ROWS)[:_ROWS] for name, array in feed.items()}
    random = np.random.default_rng(1)
    for name, array in rows.items():
        if array.dtype.kind == "f":
            # Downwards, so that no number outgrows its datatype.
            rows[name] = (array * random.uniform(0.7, 1.0, array.shape)).astype(array.dtype)
    try:
        together = model.run(rows)
        alone = [model.run({name: array[row : row + 1] for name, array in rows.items()}) for row in range(_ROWS)]
    except OutOfMemory:
        raise
    except InferenceError:
        return False
    for name, array in together.items():
        parts = [run[name] for run in alone]
        if array.shape[:1] != (_ROWS,) or any(part.shape[:1] != (1,) for part in parts):
            return False
        if not _agree(array, np.concatenate(parts)):
            return False
    return True


def _agree(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind != "f":
        return bool((left == right).all())
    finite = right[np.isfinite(right)].astype(np.float64)
    scale = float(np.abs(finite).max(initial=1e-6))
    return bool(np.allclose(left, right, rtol=1e-2, atol=1e-3 * scale, equal_nan=True))
