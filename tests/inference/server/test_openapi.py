"""The OpenAPI document of a deployment: valid, its examples decode, and its programs run and get the answer."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]  # no stubs are installed
import numpy as np
import pytest
from msgspec.structs import replace

from inference.contracts import Task, VersionRoute
from inference.errors import InferenceError
from inference.runtime.openapi import describe, examples
from inference.server.protocols import v1, v2
from tests.inference.signatures import deployment_of, spec, version_of

NAMED = version_of(columns=("amount", 'it\'s "age"', "país"), nullable=("país",))
TWO = version_of(spec("a", "FP16", -1, 2), spec("s", "BYTES", -1), spec("b", "BOOL", -1, 1))
PICTURES = version_of(spec("pixels", "FP32", -1, 1, 8, 8), task=Task.IMAGE_CLASSIFICATION, labels=("no", "yes"))
LARGE = version_of(spec("image", "FP32", -1, 3, 64, 64))
CASES = {
    "named": NAMED,
    "plain": version_of(),
    "two": TWO,
    "fixed": version_of(spec("x", "INT64", 2, 3), outputs=(spec("y", "FP32", 2, 2),), batched=False),
    "matrix": version_of(spec("x", "INT64", 2, 3), outputs=(spec("y", "FP32", 5),), batched=False),
    "vector": version_of(spec("x", "INT64", 4), batched=False),
    "free": version_of(spec("x", "UINT8", -1, -1, 2)),
    "large": LARGE,
    "pictures": PICTURES,
}
every_case = pytest.mark.parametrize("version", CASES.values(), ids=CASES.keys())


@pytest.mark.unit
@every_case
def test_its_examples_are_decoded_and_fit_their_schemas(version: VersionRoute) -> None:
    deployment = deployment_of(version)
    document = describe(deployment, version, "http://host")
    json.dumps(document)
    for path, decode in (("/v1/models/toy-live:predict", v1.decode), ("/v2/models/toy-live/infer", v2.decode)):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        jsonschema.Draft202012Validator.check_schema(content["schema"])
        assert ("example" in content) is (version is not LARGE)
        if "example" in content:
            jsonschema.validate(content["example"], content["schema"])
            call = decode(json.dumps(content["example"]).encode(), {}, deployment, version)
            assert call.rows == 1
            assert bool(call.pictures) is version.task.takes_pictures


@pytest.mark.unit
def test_the_document_names_every_answer() -> None:
    document = describe(deployment_of(NAMED), NAMED, "http://host")
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "http://host"}]
    predict = document["paths"]["/v1/models/toy-live:predict"]["post"]
    assert "too_deep" in predict["responses"]["400"]["description"]
    row = predict["requestBody"]["content"]["application/json"]["schema"]["properties"]["instances"]["items"]
    assert row["required"] == ["amount", 'it\'s "age"', "país"]
    assert row["properties"]["país"]["type"] == ["number", "null"]


@pytest.mark.unit
def test_the_document_names_every_header_of_an_answer() -> None:
    def headers(**options: Any) -> set[str]:
        document = describe(replace(deployment_of(NAMED), **options), NAMED, "http://host")
        for operations in document["paths"].values():
            named = operations["post"]["responses"]["200"]["headers"]
            assert named == {
                name: {"$ref": f"#/components/headers/{name}"} for name in document["components"]["headers"]
            }
        return set(named)

    limits = {f"RateLimit-{name}" for name in ("Limit", "Remaining", "Reset", "Policy")}
    always = {"X-Prediction-Id", "X-Model-Version", "X-Split-Revision", "X-Request-Id"}
    assert headers() == always | limits
    assert headers(cache_ttl_s=60) == always | limits | {"X-Cache"}


@pytest.mark.unit
def test_a_sample_fills_the_examples() -> None:
    sample: dict[str, list[Any]] = {"amount": [12.5], "país": [None]}
    document = describe(deployment_of(NAMED), NAMED, "http://host", sample)
    content = document["paths"]["/v1/models/toy-live:predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == {"instances": [{"amount": 12.5, 'it\'s "age"': 0.5, "país": None}]}
    sample = {"a": [1.5, 2.5], "s": ["hi"]}
    document = describe(deployment_of(TWO), TWO, "http://host", sample)
    inputs = _v2_example(document)["inputs"]
    assert [(tensor["shape"], tensor["data"]) for tensor in inputs] == [
        ([1, 2], [1.5, 2.5]),
        ([1], ["hi"]),
        ([1, 1], [True]),
    ]


def _v2_example(document: dict[str, Any]) -> dict[str, Any]:
    content = document["paths"]["/v2/models/toy-live/infer"]["post"]["requestBody"]["content"]["application/json"]
    return cast(dict[str, Any], content["example"])


class _Front(ThreadingHTTPServer):
    """A front door that decodes and encodes as the real one does, with an answer made of ones."""

    version: VersionRoute


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        version = cast(_Front, self.server).version
        deployment = deployment_of(version)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/models/toy-live:predict"
        assert self.headers["Authorization"] == "Bearer sb_key"
        headers = {b"content-type": self.headers["Content-Type"].encode()}
        try:
            call = v1.decode(body, headers, deployment, version)
            kind, _, answer = v1.encode(call, {"y": np.ones((call.rows, 2), np.float32)}, deployment, version, "p")
            status = 200
        except InferenceError as error:
            status, kind, answer = error.status, b"text/plain", str(error).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind.decode())
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test asserts, it does not read a log."""


@pytest.fixture
def front() -> Iterator[_Front]:
    server = _Front(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
@pytest.mark.parametrize("case", ["named", "two", "matrix", "large", "pictures"])
def test_its_programs_run_as_they_are(case: str, language: str, front: _Front, tmp_path: Path) -> None:
    version = CASES[case]
    program = {"curl": "bash", "python": sys.executable, "javascript": "node"}[language]
    if shutil.which(program) is None or (language == "curl" and shutil.which("curl") is None):
        pytest.skip(f"{program} is not installed")
    front.version = version
    url = f"http://127.0.0.1:{front.server_port}"
    source = examples(deployment_of(version), version, url, "sb_key")[language]
    path = tmp_path / {"curl": "call.sh", "python": "call.py", "javascript": "call.mjs"}[language]
    path.write_text(source, "utf-8")
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run([program, path], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    answer = json.loads(done.stdout)
    assert len(answer["predictions"]) == 1
