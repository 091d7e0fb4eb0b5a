"""The least that serves the same model: a bare ASGI application and a bare FastAPI one, each in one uvicorn process.

    python -m benchmarks.bare asgi MODEL.onnx PORT

Neither knows keys, splits, a log or limits. Both read the V1 body and answer the V1 answer.
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

_JSON = [(b"content-type", b"application/json")]


class Model:
    """The model on one thread, as the product runs it."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def answer(self, instances: list[list[float]]) -> dict[str, Any]:
        outputs = self._session.run(self._outputs, {self._input: np.array(instances, np.float32)})
        named = dict(zip(self._outputs, (array.tolist() for array in outputs), strict=True))
        return {"predictions": [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]}


class BareApp:
    """The body read, the model run on the event loop, the answer written."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        content = orjson.dumps(self._model.answer(orjson.loads(body)["instances"]))
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, length]})
        await send({"type": "http.response.body", "body": content})


def fastapi_app(model: Model) -> "FastAPI":
    """What FastAPI's own tutorial leads to: a typed body, an async function, a dict answered."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        instances: list[list[float]]

    app = FastAPI()

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        return model.answer(body.instances)

    return app


def main(kind: str, path: str, port: int) -> None:
    model = Model(path)
    app: Any = BareApp(model) if kind == "asgi" else fastapi_app(model)
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", lifespan="off", log_level="error", ws="none"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
