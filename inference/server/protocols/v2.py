"""Open Inference Protocol V2 over REST with the binary tensor extension.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's extension_binary_data.
"""

import tomllib
from dataclasses import dataclass
from importlib import metadata as packages
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from inference.contracts import Datatype, DeploymentRoute, TensorSpec, VersionRoute
from inference.errors import InferenceError
from inference.runtime.cells import from_base64
from inference.runtime.plans import Array, TensorPlan, VersionPlan, plan_of
from inference.runtime.tensors import (
    dumps,
    fits,
    from_buffer,
    from_flat,
    from_json,
    non_finite_warnings,
    split_elements,
    to_json,
)
from inference.server.protocols import PICTURE_TYPES, Call, Headers, Reply, content_type, refuse_media_type
from inference.server.protocols.body import (
    SHORT_BYTES,
    bad_request,
    count_colons,
    did_you_mean,
    may_hold_booleans,
    mistaken_for,
    parse,
    refuse_duplicate_keys,
)
from inference.server.protocols.features import cap_rows, check_rows, count_keys, refuse

_JSON = b"application/json"
_BINARY = b"application/octet-stream"
_LENGTH = b"inference-header-content-length"
_MAX_ID = 128
_DATATYPES = frozenset(Datatype)
_INTEGERS = frozenset({int})


@dataclass(frozen=True, slots=True)
class Style:
    """Which outputs were asked for (None: all), and which of them as binary: by name, else `binary`."""

    wanted: dict[str, bool] | None
    binary: bool


_ALL_AS_JSON = Style(None, False)


class _Buffer:
    """The binary part of a body, taken from the front input by input."""

    def __init__(self, content: memoryview | None) -> None:
        self.content = content
        self.taken = 0

    def take(self, size: Any, loc: tuple[str | int, ...]) -> memoryview:
        if type(size) is not int or size < 0:
            raise bad_request("binary_data_size must be a whole number of bytes.", *loc)
        if self.content is None:
            message = "binary_data_size needs the header Inference-Header-Content-Length, the length of the JSON part."
            raise bad_request(message, *loc)
        start, self.taken = self.taken, self.taken + size
        if self.taken > len(self.content):
            message = f"The inputs declare more than the {len(self.content)} bytes that follow the JSON part."
            raise InferenceError("bad_binary", message)
        return self.content[start : self.taken]

    def finish(self) -> None:
        if self.content is not None and self.taken != len(self.content):
            message = f"{len(self.content)} bytes follow the JSON part; the inputs declare {self.taken}."
            raise InferenceError("bad_binary", message)


_NO_BUFFER = _Buffer(None)


def decode(body: bytes, headers: Headers, deployment: DeploymentRoute, version: VersionRoute) -> Call:
    """The call in an inference request: JSON, or JSON with binary tensors behind it. Raises InferenceError."""
    if headers.get(b"content-type") != _JSON and (kind := content_type(headers)):
        refuse_media_type(kind, forms=True)
        if kind in PICTURE_TYPES:
            message = "A raw picture is read at /v1 and /invocations; here it is a BYTES tensor."
            raise InferenceError("unsupported_media_type", message)
    length = headers.get(_LENGTH)
    head, buffer = (body, _NO_BUFFER) if length is None else _split(body, length)
    plan = plan_of(version)
    document = parse(head, lenient=plan.lenient)
    if type(document) is not dict:
        raise bad_request("The body must be a JSON object with inputs.")
    tensors = document.get("inputs")
    if type(tensors) is not list or not tensors:
        near = mistaken_for((key for key in document if key != "inputs"), ("inputs",))
        raise bad_request(f"The body must have inputs, a list of tensors{near}", "inputs")
    colons = count_colons(head)
    if colons != len(document) + sum([len(tensor) for tensor in tensors if type(tensor) is dict]):
        # Parameters hold keys too.
        keys = count_keys(document)
        if colons != keys:
            refuse_duplicate_keys(head, keys)
    style = _style(document, version) if "outputs" in document or "parameters" in document else _ALL_AS_JSON
    booleans = len(head) < SHORT_BYTES or not plan.floats or may_hold_booleans(head)
    inputs, pictures = _inputs(tensors, buffer, deployment, plan, booleans)
    buffer.finish()
    rows = len(pictures) if pictures else check_rows(inputs, plan)
    return Call(inputs, rows, _client_id(document), pictures, style)


def _split(body: bytes, length: bytes) -> tuple[bytes, _Buffer]:
    if not length.isdigit() or len(length) > 18 or not 0 < int(length) <= len(body):
        message = f"Inference-Header-Content-Length must be the length of the JSON part, 1 to {len(body)} bytes."
        raise InferenceError("bad_header", message)
    size = int(length)
    return bytes(body[:size]), _Buffer(memoryview(body)[size:])


def _client_id(document: dict[str, Any]) -> str:
    """The caller's id where it can be kept: one that is too long or not printable is replaced, as with X-Client-Id."""
    given = document.get("id", "")
    if type(given) is not str:
        raise bad_request("id must be a text.", "id")
    return given if len(given) <= _MAX_ID and given.isprintable() else ""


def _parameters(holder: dict[str, Any], *loc: str | int) -> dict[str, Any]:
    given = holder.get("parameters")
    if given is None:
        return {}
    if type(given) is not dict:
        raise bad_request("parameters must be an object.", *loc, "parameters")
    if "shared_memory_region" in given:
        refuse("invalid_input", "shared memory is not supported", *loc, "parameters", "shared_memory_region")
    return given


def _flag(parameters: dict[str, Any], name: str, default: bool, *loc: str | int) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise bad_request(f"{name} must be true or false.", *loc, "parameters", name)
    return value


def _style(document: dict[str, Any], version: VersionRoute) -> Style:
    binary = _flag(_parameters(document), "binary_data_output", False)
    outputs = document.get("outputs")
    if not outputs:
        return Style(None, binary)
    if type(outputs) is not list:
        raise bad_request("outputs must be a list.", "outputs")
    known = [spec.name for spec in version.signature.outputs]
    wanted: dict[str, bool] = {}
    for index, output in enumerate(outputs):
        name = output.get("name") if type(output) is dict else None
        if type(name) is not str:
            raise bad_request("every output needs a name.", "outputs", index)
        if name not in known:
            refuse(
                "unknown_feature", f"the model has no output {name[:80]!r}{did_you_mean(name, known)}", "outputs", index
            )
        if name in wanted:
            refuse("invalid_input", f"output {name} is asked for twice", "outputs", index)
        parameters = _parameters(output, "outputs", index)
        if "classification" in parameters:
            refuse("invalid_input", "the classification extension is not supported", "outputs", index)
        wanted[name] = _flag(parameters, "binary_data", binary, "outputs", index)
    return Style(wanted, binary)


def _inputs(
    tensors: list[Any], buffer: _Buffer, deployment: DeploymentRoute, plan: VersionPlan, booleans: bool
) -> tuple[dict[str, Array], list[bytes]]:
    inputs: dict[str, Array] = {}
    pictures: list[bytes] = []
    for index, tensor in enumerate(tensors):
        name = tensor.get("name") if type(tensor) is dict else None
        if type(name) is not str:
            raise bad_request("every input needs a name.", "inputs", index)
        planned = plan.by_name.get(name)
        if planned is None:
            hint = did_you_mean(name, plan.by_name)
            refuse("unknown_feature", f"the model has no input {name[:80]!r}{hint}", "inputs", index)
        if name in inputs or pictures:
            refuse("invalid_input", f"input {name} is given twice", "inputs", index)
        content = None
        if (
            "parameters" in tensor
            and (size := _parameters(tensor, "inputs", index).get("binary_data_size")) is not None
        ):
            content = buffer.take(size, ("inputs", index, "parameters", "binary_data_size"))
        if plan.pictures and tensor.get("datatype") == "BYTES" != planned.datatype:
            pictures = _pictures(tensor, content, deployment, index)
        else:
            inputs[name] = _tensor(tensor, content, planned, deployment, plan, index, booleans)
    if not pictures and len(inputs) != len(plan.inputs):
        missing = [name for name in plan.by_name if name not in inputs]
        refuse("unknown_feature", f"input {', '.join(missing)} is missing", "inputs")
    return inputs, pictures


def _shape(tensor: dict[str, Any], index: int, expected: str) -> tuple[int, ...]:
    """The declared shape where it is one that can be served: whole numbers of at least 1, fewer than 2^63 elements."""
    shape = tensor.get("shape")
    if type(shape) is not list or not _INTEGERS.issuperset(map(type, shape)):
        refuse("wrong_shape", f"shape must be a list of whole numbers, expected {expected}", "inputs", index, "shape")
    if (shape and min(shape) < 1) or prod(shape) >= 2**63:
        message = f"{shape[:16]} is not a shape that can be served, expected {expected}"
        refuse("wrong_shape", message, "inputs", index, "shape")
    return tuple(shape)


def _tensor(
    tensor: dict[str, Any],
    content: memoryview | None,
    planned: TensorPlan,
    deployment: DeploymentRoute,
    plan: VersionPlan,
    index: int,
    booleans: bool,
) -> Array:
    datatype = tensor.get("datatype")
    if datatype != planned.datatype:
        known = type(datatype) is str and datatype in _DATATYPES
        shown = repr(datatype[:40]) if type(datatype) is str else "this"
        what = "is the wrong datatype" if known else "is not a datatype"
        refuse("wrong_type", f"{shown} {what}, expected {planned.datatype}", "inputs", index, "datatype")
    shape = _shape(tensor, index, planned.expected)
    if not fits(shape, planned):
        refuse("wrong_shape", f"{list(shape)} does not fit, expected {planned.expected}", "inputs", index, "shape")
    if plan.batched:
        cap_rows(shape[0], deployment)

    def locate(path: tuple[int, ...]) -> list[str | int]:
        return ["inputs", index, "data", *path]

    data = tensor.get("data")
    if content is not None:
        if data is not None:
            refuse("invalid_input", "has both data and binary_data_size", "inputs", index)
        return from_buffer(content, shape, planned, locate)
    if type(data) is not list:
        refuse("wrong_shape", f"data must be a list of {prod(shape)} values", "inputs", index, "data")
    if data and type(data[0]) is list and len(shape) > 1:
        array = from_json(data, planned, locate, booleans=booleans)
        if array.shape != shape:
            refuse(
                "wrong_shape", f"data has shape {list(array.shape)}, shape says {list(shape)}", "inputs", index, "data"
            )
        return array
    if len(data) != prod(shape):
        message = f"has {len(data)} values, the shape {list(shape)} makes {prod(shape)}"
        refuse("wrong_shape", message, "inputs", index, "data")
    return from_flat(data, shape, planned, locate, booleans=booleans)


def _pictures(
    tensor: dict[str, Any], content: memoryview | None, deployment: DeploymentRoute, index: int
) -> list[bytes]:
    """The files of a BYTES tensor of shape [n] or [n, 1]: binary as they are, in JSON as base64."""
    shape = _shape(tensor, index, "[n]")
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        refuse("wrong_shape", f"{list(shape)} does not fit, expected [n] pictures", "inputs", index, "shape")
    cap_rows(shape[0], deployment)
    if content is not None:
        elements = split_elements(content, shape[0])
        if elements is None:
            message = f"the binary data is not {shape[0]} pictures, each after its length in 4 bytes"
            refuse("wrong_shape", message, "inputs", index)
        return [bytes(element) for element in elements]
    data = tensor.get("data")
    if type(data) is not list or len(data) != shape[0]:
        refuse("wrong_shape", f"data must be a list of {shape[0]} base64 texts", "inputs", index, "data")
    pictures = []
    for position, text in enumerate(data):
        try:
            pictures.append(from_base64(text))
        except ValueError:
            refuse("wrong_type", "is not a picture in base64", "inputs", index, "data", position)
    return pictures


def encode(
    call: Call, outputs: dict[str, Array], deployment: DeploymentRoute, version: VersionRoute, prediction_id: str
) -> Reply:
    """The response for the outputs that were asked for; `id` is the caller's, else the prediction's."""
    style: Style = call.style
    datatypes = {spec.name: spec.datatype for spec in version.signature.outputs}
    listed: list[dict[str, Any]] = []
    chunks: list[bytes | memoryview] = []
    for name in outputs if style.wanted is None else style.wanted:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": array.shape}
        if style.binary if style.wanted is None else style.wanted[name]:
            chunk = to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(chunk)}
            chunks.append(chunk)
        else:
            entry["data"] = to_json(array.reshape(-1))
        listed.append(entry)
    document: dict[str, Any] = {
        "model_name": deployment.name,
        "model_version": str(version.number),
        "id": call.client_id or prediction_id,
        "outputs": listed,
    }
    head = dumps(document)
    if b"null" in head and (warnings := non_finite_warnings(outputs)):
        head = dumps({**document, "parameters": {"warnings": " ".join(warnings)}})
    if not chunks:
        return _JSON, [], head
    return _BINARY, [(_LENGTH, b"%d" % len(head))], b"".join([head, *chunks])


def to_bytes(array: Array) -> bytes | memoryview:
    """Little-endian elements in row-major order, of the array's own memory where they lie so; texts as UTF-8, each
    after its length in 4 bytes.
    """
    if array.dtype.kind != "O":
        plain = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        return plain.reshape(-1).view(np.uint8).data
    parts: list[bytes] = []
    for element in array.flat:
        content = element if isinstance(element, bytes) else str(element).encode("utf-8")
        parts += (len(content).to_bytes(4, "little"), content)
    return b"".join(parts)


def server_metadata() -> bytes:
    """What `GET /v2` answers."""
    return dumps({"name": "signalbox", "version": _version(), "extensions": ["binary_tensor_data"]})


def metadata(deployment: DeploymentRoute, version: VersionRoute) -> bytes:
    """What `GET /v2/models/{deployment}` answers: versions that may be called, inputs and outputs of this one."""
    return dumps(
        {
            "name": deployment.name,
            "versions": [str(number) for number in sorted(deployment.versions)],
            "platform": "onnxruntime_onnx",
            "inputs": list(map(_described, version.signature.inputs)),
            "outputs": list(map(_described, version.signature.outputs)),
        }
    )


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _version() -> str:
    """The product's version, from pyproject.toml: beside the code in a checkout, in the metadata where installed."""
    project = Path(__file__).parents[3] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"])
    return packages.version("signalbox")
