"""Arrays to and from the binary tensors of the Open Inference Protocol V2.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's extension_binary_data: a
JSON part, whose length is in `Inference-Header-Content-Length`, then each tensor's little-endian elements in row-major
order; texts (BYTES) each after their length in 4 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from signalbox_client.endpoint import Part
from signalbox_client.errors import InvalidInput
from signalbox_client.replies import object_of, unexpected
from signalbox_client.results import TensorSpec

Array = npt.NDArray[Any]
Inputs = Array | Sequence[Any] | Mapping[str, Any]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "UINT8": "u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = "inference-header-content-length"
# (name, datatype, shape, bytes)
_Described = tuple[str, str, tuple[int, ...], int]


def named(inputs: Inputs, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The inputs by name: a mapping as it is, anything else under the model's only input. Raises InvalidInput."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInput(f"The model has {len(specs)} inputs: give a dict with {names}.", code="invalid_input")
    return {specs[0].name: inputs}


def fitted(name: str, value: Any, datatype: str | None) -> tuple[str, Array]:
    """(datatype, array) as the model takes it, where that loses nothing but precision; `datatype`: of the signature.

    Numbers become floats, wider floats narrower ones, integers another width if all fit. Raises InvalidInput. What the
    signature does not tell (None) is sent as it is, and the server says what it thinks of it.
    """
    array = np.asarray(value)
    kind = array.dtype.kind
    if kind in "OSU" or datatype == "BYTES":
        return "BYTES", array
    if datatype not in DTYPES:
        # What this version of the client does not know, or an input that the model does not have.
        own = _DATATYPES.get(array.dtype.newbyteorder("<"))
        if own is None:
            raise InvalidInput(f"Input {name}: arrays of {array.dtype} cannot be sent.", code="wrong_type")
        return own, array
    wanted = DTYPES[datatype]
    if array.dtype == wanted:
        return datatype, array
    if not _loses_precision_at_most(array, wanted):
        message = f"Input {name} takes {datatype}, and {array.dtype} cannot be made that without losing values."
        raise InvalidInput(message, code="wrong_type")
    with np.errstate(over="ignore"):
        # What overflows becomes an infinity, which the server refuses by its cell.
        return datatype, array.astype(wanted)


def _loses_precision_at_most(array: Array, wanted: np.dtype[Any]) -> bool:
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        return array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
    return bool(np.can_cast(array.dtype, wanted, "same_kind"))


def encode(
    inputs: Mapping[str, Any], specs: Sequence[TensorSpec], outputs: Sequence[str] | None = None
) -> tuple[int, list[Part]]:
    """(length of the JSON part, the body in pieces). Arrays that are contiguous and of the right type are not copied.

    `outputs`: the outputs to answer with, all where None; always in binary. Raises InvalidInput.
    """
    datatypes = {spec.name: spec.datatype for spec in specs}
    described: list[_Described] = []
    parts: list[Part] = [b""]
    for name, value in inputs.items():
        datatype, array = fitted(name, value, datatypes.get(name))
        part = _texts(name, array) if datatype == "BYTES" else _bytes_of(array)
        described.append((name, datatype, array.shape, len(part)))
        parts.append(part)
    parts[0] = head = _head(tuple(described), None if outputs is None else tuple(outputs))
    return len(head), parts


@lru_cache(maxsize=512)
def _head(described: tuple[_Described, ...], outputs: tuple[str, ...] | None) -> bytes:
    """The JSON part. An app asks in the same few shapes again and again."""
    document: dict[str, Any] = {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
            for name, datatype, shape, size in described
        ],
        "parameters": {"binary_data_output": True},
    }
    if outputs is not None:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return json.dumps(document, separators=(",", ":")).encode()


def _bytes_of(array: Array) -> memoryview:
    """The array's elements, little-endian in row-major order; its own memory where it lies so already."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data if plain.size else memoryview(b"")


def _texts(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for index, element in enumerate(array.reshape(-1).tolist()):
        if isinstance(element, str):
            content = element.encode("utf-8", "surrogatepass")
        elif isinstance(element, (bytes, bytearray, memoryview)):
            content = bytes(element)
        else:
            message = f"Input {name}: element {index} is {type(element).__name__}, neither text nor bytes."
            raise InvalidInput(message, code="wrong_type")
        parts += (len(content).to_bytes(4, "little"), content)
    return b"".join(parts)


def decode(response: httpx.Response) -> tuple[dict[str, Array], dict[str, Any]]:
    """(outputs by name, the JSON part). Arrays of numbers are read-only views of the answer; texts are of `str`.

    Raises ServerError where the answer is not of this form.
    """
    content = response.content
    length = response.headers.get(_LENGTH)
    if length is None:
        taken = len(content)
        document = object_of(content, response)
    elif length.isdigit() and int(length) <= len(content):
        taken = int(length)
        document = object_of(content[:taken], response)
    else:
        raise unexpected(response, "The answer's JSON part is longer than the answer.")
    outputs: dict[str, Array] = {}
    try:
        for entry in document["outputs"]:
            shape = tuple(map(int, entry["shape"]))
            size = entry.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[entry["name"]] = _listed(entry["data"], entry["datatype"], shape)
                continue
            end = taken + size
            if size < 0 or end > len(content):
                raise ValueError(end)
            outputs[entry["name"]] = _array(content, taken, end, entry["datatype"], shape)
            taken = end
        if taken != len(content):
            raise ValueError(taken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(response, "The answer's tensors do not have the form of their protocol.") from error
    return outputs, document


def _array(content: bytes, start: int, end: int, datatype: str, shape: tuple[int, ...]) -> Array:
    """Raises ValueError or KeyError where the bytes are not a tensor of that type and shape."""
    if datatype == "BYTES":
        return _objects(list(_elements(memoryview(content)[start:end])), shape)
    dtype = DTYPES[datatype]
    count = prod(shape)
    if count * dtype.itemsize != end - start:
        raise ValueError(shape)
    return np.frombuffer(content, dtype, count, start).reshape(shape)


def _elements(buffer: memoryview) -> Iterator[str]:
    offset = 0
    while offset < len(buffer):
        start = offset + 4
        offset = start + int.from_bytes(buffer[offset:start], "little")
        if offset > len(buffer):
            raise ValueError(offset)
        yield str(buffer[start:offset], "utf-8", "replace")


def _objects(elements: list[str], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _listed(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Array:
    """An output that came as JSON; null is a number that JSON cannot write, NaN."""
    if datatype == "BYTES":
        return _objects([str(element) for element in data], shape)
    dtype = DTYPES[datatype]
    values = [np.nan if element is None else element for element in data] if dtype.kind == "f" else data
    return np.array(values, dtype=dtype).reshape(shape)
