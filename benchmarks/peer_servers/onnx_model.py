"""The ONNX file on one thread, and the V1 answer: what every peer's program is given."""

import os
from typing import Any

import numpy as np
import onnxruntime

FILE = os.environ["MODEL"]
PORT = int(os.environ["PORT"])


class OnnxModel:
    """The one input's name, the outputs' names, and how it runs."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(FILE, options, providers=["CPUExecutionProvider"])
        (taken,) = self._session.get_inputs()
        self.input, self.shape = taken.name, tuple(taken.shape[1:])
        self.outputs = {output.name: (output.type, tuple(output.shape[1:])) for output in self._session.get_outputs()}

    def run(self, rows: Any) -> list[Any]:
        results: list[Any] = self._session.run(list(self.outputs), {self.input: rows})
        return results

    def predictions(self, instances: Any) -> list[Any]:
        """A bare value a row for one output, a dict by name for several."""
        columns = [array.tolist() for array in self.run(np.asarray(instances, np.float32))]
        if len(columns) == 1:
            return list(columns[0])
        return [dict(zip(self.outputs, row, strict=True)) for row in zip(*columns, strict=True)]
