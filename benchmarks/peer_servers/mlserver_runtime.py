"""MLServer: a custom runtime, as its documentation shows for a model that it has none for."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import OnnxModel


class OnnxRuntime(MLModel):
    async def load(self) -> bool:
        self.onnx = OnnxModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        results = self.onnx.run(rows)
        outputs = [
            NumpyCodec.encode_output(name, array) for name, array in zip(self.onnx.outputs, results, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
