"""The seam of the runtimes: what computes a model file in serving processes and workers.

Validation always uses ONNX Runtime, so whatever runtime serves a version must give the answers that ONNX Runtime gives.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from inference.contracts import Signature
from inference.runtime.onnx import CPU, load_model

Arrays = dict[str, np.ndarray[Any, Any]]


class Runtime(Protocol):
    """A loaded model: see inference.runtime.onnx.OnnxModel. `run` may be called by several threads at once."""

    @property
    def signature(self) -> Signature: ...

    @property
    def device(self) -> str: ...

    def run(self, inputs: Arrays) -> Arrays: ...

    def measure(self, rows: int = 1) -> float: ...

    def sample_inputs(self, rows: int = 1) -> Arrays: ...


class Loader(Protocol):
    """Loads a file, or returns None to leave it to the next loader. Raises InferenceError with a code of validation."""

    def __call__(self, data: bytes, *, threads: int = 1, providers: Sequence[str] = (CPU,)) -> Runtime | None: ...


# Asked in this order; the last one takes everything. A further runtime is a module beside this one and a line here.
LOADERS: list[Loader] = [
    load_model,
]


def load(data: bytes, *, threads: int = 1, providers: Sequence[str] = (CPU,)) -> Runtime:
    """The model of a validated file, by the first runtime that takes it; `providers` in the order of preference.

    Raises InferenceError with a code of validation.
    """
    loaded = (loader(data, threads=threads, providers=providers) for loader in LOADERS)
    return next(model for model in loaded if model is not None)
