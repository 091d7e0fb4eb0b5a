"""Ray Serve: one replica behind its proxy."""

import threading
from typing import Any

import ray
from onnx_model import PORT, OnnxModel
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1)
class Predict:
    def __init__(self) -> None:
        self.model = OnnxModel()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"predictions": self.model.predictions(body["instances"])}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Predict.bind(), route_prefix="/v1")
    threading.Event().wait()
