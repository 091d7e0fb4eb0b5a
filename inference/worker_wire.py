"""How a runtime host and its child talk: one MessagePack head and raw buffers, over a socket pair.

Nothing is ever unpickled. A message is 12 bytes (length of the head, length of the buffers), the head, the buffers.
"""

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

_FRAME = struct.Struct("<IQ")

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Head = TypeVar("Head", bound=msgspec.Struct)


class WireClosed(Exception):
    """The other side is gone."""


class TensorHead(msgspec.Struct):
    """One tensor: `texts` where its elements are text or bytes, else `size` bytes among the buffers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int = 0
    texts: list[Any] | None = None


class RunRequest(msgspec.Struct):
    """Run one version's items. `batched`: rows of several items may share a run."""

    artifact_path: str
    artifact_sha256: str
    batched: bool
    items: list[list[TensorHead]]


class ItemAnswer(msgspec.Struct):
    """Outputs of one item, or why it has none (`code` of the error table). `compute_ms`: the run that it was in."""

    outputs: list[TensorHead] = []
    compute_ms: float = 0.0
    code: str = ""
    message: str = ""


class Ready(msgspec.Struct):
    """The first message of a child: its interpreter and ONNX Runtime are up."""

    pid: int


class RunAnswer(msgspec.Struct):
    """`device` is "cpu" or "cuda"; `load_ms` 0 where the model was held already."""

    items: list[ItemAnswer]
    device: str
    load_ms: float = 0.0


def pack(tensors: Mapping[str, Array], buffers: list[memoryview]) -> list[TensorHead]:
    """Heads of `tensors`; their bytes are appended to `buffers`."""
    heads = []
    for name, array in tensors.items():
        if array.dtype.kind in "OUS":
            heads.append(TensorHead(name, "O", array.shape, texts=list(array.astype(object).flat)))
            continue
        whole = np.ascontiguousarray(array)
        heads.append(TensorHead(name, whole.dtype.str, array.shape, whole.nbytes))
        if whole.nbytes:
            buffers.append(whole.reshape(-1).view(np.uint8).data)
    return heads


def unpack(heads: Sequence[TensorHead], buffer: memoryview, at: int) -> tuple[Tensors, int]:
    """The tensors that `heads` describe, read from `buffer` at offset `at`, and the offset behind them."""
    tensors: Tensors = {}
    for head in heads:
        if head.texts is not None:
            array = np.empty(len(head.texts), object)
            array[:] = head.texts
            tensors[head.name] = array.reshape(head.shape)
            continue
        tensors[head.name] = np.frombuffer(buffer[at : at + head.size], np.dtype(head.dtype)).reshape(head.shape)
        at += head.size
    return tensors, at


def send(wire: socket.socket, head: msgspec.Struct, buffers: Sequence[memoryview]) -> None:
    """Write one message; raises OSError as sockets do, TimeoutError when the socket's timeout passes."""
    encoded = msgspec.msgpack.encode(head)
    wire.sendall(_FRAME.pack(len(encoded), sum(buffer.nbytes for buffer in buffers)) + encoded)
    for buffer in buffers:
        wire.sendall(buffer)


def receive(wire: socket.socket, kind: type[Head]) -> tuple[Head, memoryview]:
    """Read one message: its head and its buffers as one; raises WireClosed at the end of the stream."""
    head_bytes, buffer_bytes = _FRAME.unpack(_read(wire, _FRAME.size))
    head = msgspec.msgpack.decode(_read(wire, head_bytes), type=kind)
    return head, memoryview(_read(wire, buffer_bytes))


def _read(wire: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = wire.recv_into(view)
        if count == 0:
            raise WireClosed
        view = view[count:]
    return data
