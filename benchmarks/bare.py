"""The least that serves the same model: a loop without HTTP, a bare ASGI application, a bare FastAPI one.

    python -m benchmarks.bare asgi|fastapi MODEL.onnx PORT
    python -m benchmarks.bare loop MODEL ROWS SECONDS

None of them knows keys, splits, a log or limits. The ASGI one takes the forms of benchmarks/calls.py, each at its own
path; it is the floor of what uvicorn and ONNX Runtime cost. FastAPI's takes V1.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_LENGTH = b"inference-header-content-length"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Model:
    """The model on one thread, as the product runs it."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (taken,) = self._session.get_inputs()
        self._input = taken.name
        self.takes_pictures = len(taken.shape) == 4
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, rows: Any) -> list[Any]:
        results: list[Any] = self._session.run(self.outputs, {self._input: rows})
        return results

    def answer(self, instances: list[Any]) -> dict[str, Any]:
        """The V1 answer: a bare value a row for one output, a dict by name for several."""
        columns = [array.tolist() for array in self.run(np.array(instances, np.float32))]
        if len(columns) == 1:
            return {"predictions": columns[0]}
        return {"predictions": [dict(zip(self.outputs, row, strict=True)) for row in zip(*columns, strict=True)]}


class BareApp:
    """The body read, the model run on the event loop, the answer written."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.forms = {"/v1": self._v1, "/v2": self._v2, "/v2-binary": self._binary}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        headers, content = self.forms[scope["path"]](body, scope["headers"])
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _v1(self, body: bytes, _: Any) -> tuple[list[Any], bytes]:
        return [_JSON], orjson.dumps(self._model.answer(orjson.loads(body)["instances"]))

    def _v2(self, body: bytes, _: Any) -> tuple[list[Any], bytes]:
        (tensor,) = orjson.loads(body)["inputs"]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        outputs = [
            {**self._described(name, array), "data": array.ravel().tolist()}
            for name, array in zip(self._model.outputs, self._model.run(rows), strict=True)
        ]
        return [_JSON], orjson.dumps({"model_name": "bench", "outputs": outputs})

    def _binary(self, body: bytes, headers: Any) -> tuple[list[Any], bytes]:
        size = int(next(value for name, value in headers if name == _LENGTH))
        (tensor,) = orjson.loads(body[:size])["inputs"]
        rows = np.frombuffer(body, np.float32, offset=size).reshape(tensor["shape"])
        results = self._model.run(rows)
        outputs = [
            {**self._described(name, array), "parameters": {"binary_data_size": array.nbytes}}
            for name, array in zip(self._model.outputs, results, strict=True)
        ]
        head = orjson.dumps({"model_name": "bench", "outputs": outputs})
        content = b"".join([head, *(array.tobytes() for array in results)])
        return [_BINARY, (_LENGTH, b"%d" % len(head))], content

    @staticmethod
    def _described(name: str, array: Any) -> dict[str, Any]:
        return {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": list(array.shape)}


def fastapi_app(model: Model) -> "FastAPI":
    """What FastAPI's own tutorial leads to: a typed body, an async function, a dict answered."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        instances: list[list[float]]

    class Pictures(BaseModel):
        instances: list[list[list[list[float]]]]

    app = FastAPI()

    if model.takes_pictures:

        @app.post("/v1")
        async def classify(body: Pictures) -> dict[str, Any]:
            return model.answer(body.instances)

    else:

        @app.post("/v1")
        async def predict(body: Rows) -> dict[str, Any]:
            return model.answer(body.instances)

    return app


def loop(name: str, rows: int, seconds: float) -> dict[str, float]:
    """The model alone, call after call: calls a second, and the median of a call in microseconds."""
    from benchmarks.models import MODELS

    model, batch = Model(str(MODELS[name].file())), MODELS[name].rows(rows)
    took: list[int] = []
    for _ in range(10):
        model.run(batch)
    began_at = time.perf_counter()
    while (elapsed := time.perf_counter() - began_at) < seconds:
        call_at = time.perf_counter_ns()
        model.run(batch)
        took.append(time.perf_counter_ns() - call_at)
    return {"per_s": len(took) / elapsed, "p50_ms": sorted(took)[len(took) // 2] / 1e6}


def main(kind: str, path: str, *rest: str) -> None:
    if kind == "loop":
        print(json.dumps(loop(path, int(rest[0]), float(rest[1]))))
        return
    model = Model(path)
    app: Any = BareApp(model) if kind == "asgi" else fastapi_app(model)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(rest[0]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
        ws="none",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
