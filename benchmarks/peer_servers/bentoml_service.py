"""BentoML: a service of one worker, batching off: `bentoml serve bentoml_service:Predict`."""

from typing import Any

import bentoml
import numpy as np
from onnx_model import OnnxModel


@bentoml.service(workers=1)
class Predict:
    def __init__(self) -> None:
        self.model = OnnxModel()

    @bentoml.api(route="/v1")
    def predict(self, instances: np.ndarray) -> dict[str, Any]:
        return {"predictions": self.model.predictions(instances)}
