"""Triton through PyTriton: the server's own front end, the model in this process, dynamic batching as by default."""

import socket
from typing import Any

import numpy as np
from onnx_model import PORT, OnnxModel
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
model = OnnxModel()


@batch
def infer(**inputs: Any) -> dict[str, Any]:
    # An output of one value a row has a second axis here: Triton's batches have no rows without one.
    results = [array.reshape(len(array), -1) for array in model.run(inputs[model.input])]
    return dict(zip(model.outputs, results, strict=True))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=_free_port(),
        allow_metrics=False,
        exit_on_error=True,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="bench",
            infer_func=infer,
            inputs=[Tensor(name=model.input, dtype=np.float32, shape=model.shape)],
            outputs=[
                Tensor(name=name, dtype=_DTYPES[kind], shape=shape or (1,))
                for name, (kind, shape) in model.outputs.items()
            ],
            config=ModelConfig(max_batch_size=64),
        )
        triton.serve()
