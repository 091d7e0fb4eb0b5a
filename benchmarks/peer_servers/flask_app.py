"""Flask behind gunicorn: `gunicorn flask_app:app`."""

from typing import Any

from flask import Flask, request
from onnx_model import OnnxModel

app = Flask(__name__)
model = OnnxModel()


@app.post("/v1")
def predict() -> dict[str, Any]:
    return {"predictions": model.predictions(request.get_json()["instances"])}
