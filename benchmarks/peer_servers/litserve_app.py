"""LitServe: one API, one worker, batching off."""

from typing import Any

import litserve
from onnx_model import PORT, OnnxModel


class Predict(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = OnnxModel()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["instances"]

    def predict(self, instances: Any) -> list[Any]:
        return self.model.predictions(instances)

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        return {"predictions": output}


if __name__ == "__main__":
    server = litserve.LitServer(Predict(api_path="/v1"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
