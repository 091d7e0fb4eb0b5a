"""What a job carries, as it lies in the vault: pictures without identifiers, or tensors; MessagePack, never pickle."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from controlplane.jobs.bodies import Asked
from controlplane.jobs.models import PayloadKind
from inference.runtime.deidentify import deidentify_in_sandbox
from inference.runtime.tensors import NUMPY_DTYPES

# No names but the signature's own dtypes can be read back.
_DTYPES = {dtype.str for dtype in NUMPY_DTYPES.values()}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    content: bytes = b""
    # str or bytes, as the runtime takes them.
    texts: list[Any] | None = None


class _Stored(msgspec.Struct):
    pictures: list[bytes] = []
    inputs: dict[str, _Tensor] = {}


@dataclass(slots=True)
class Payload:
    """A job's input: pictures, or tensors by input name."""

    pictures: list[bytes] = field(default_factory=list)
    inputs: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def kind(self) -> PayloadKind:
        if not self.pictures:
            return PayloadKind.TENSORS
        return PayloadKind.PICTURE if len(self.pictures) == 1 else PayloadKind.PICTURES


def without_identifiers(asked: Asked, salt: bytes) -> tuple[Payload, list[str]]:
    """The payload that may be stored, and warnings (text burned into the pixels). Blocks in the sandbox.

    Raises InferenceError for pictures that cannot be read: identifiers can only be removed from what is understood.
    """
    pictures: list[bytes] = []
    warnings: list[str] = []
    for picture in asked.pictures:
        cleaned = deidentify_in_sandbox(picture, salt=salt)
        pictures.append(cleaned.data)
        warnings += [warning for warning in cleaned.warnings if warning not in warnings]
    return Payload(pictures, asked.inputs), warnings


def pack(payload: Payload) -> bytes:
    inputs = {name: _stored(array) for name, array in payload.inputs.items()}
    return msgspec.msgpack.encode(_Stored(payload.pictures, inputs))


def unpack(content: bytes) -> Payload:
    """Raises msgspec.ValidationError or ValueError for what `pack` did not make."""
    stored = msgspec.msgpack.decode(content, type=_Stored)
    return Payload(stored.pictures, {name: _array(tensor) for name, tensor in stored.inputs.items()})


def _stored(array: np.ndarray[Any, Any]) -> _Tensor:
    if array.dtype == object:
        return _Tensor(array.dtype.str, array.shape, texts=list(array.ravel()))
    return _Tensor(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())


def _array(tensor: _Tensor) -> np.ndarray[Any, Any]:
    if tensor.texts is not None:
        texts = np.empty(len(tensor.texts), dtype=object)
        texts[:] = tensor.texts
        return texts.reshape(tensor.shape)
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"a tensor of dtype {tensor.dtype} was not stored here")
    return np.frombuffer(tensor.content, dtype=np.dtype(tensor.dtype)).reshape(tensor.shape).copy()
