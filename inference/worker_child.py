"""The child of a runtime host: holds models of one device, runs batches, and ends with its host.

Run by `RuntimeHost` as `python -m inference.worker_child SOCKET_FD DEVICE THREADS MODEL_BYTES`; not meant for people.
"""

import hashlib
import hmac
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.errors import InferenceError
from inference.runtime.loading import Runtime, load
from inference.runtime.onnx import CPU
from inference.worker_wire import (
    ItemAnswer,
    Ready,
    RunAnswer,
    RunRequest,
    Tensors,
    WireClosed,
    pack,
    receive,
    send,
    unpack,
)

logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"

# Rows of one run: the gain of larger batches is small, and their memory is not.
MAX_ROWS = 64
_OWNER_CHECK_MS = 1000


@dataclass(slots=True)
class _Held:
    model: Runtime
    size: int


@dataclass(slots=True)
class _Done:
    """One item after its run: outputs or an error, and the milliseconds of the run that it was part of."""

    outputs: Tensors | None = None
    error: InferenceError | None = None
    compute_ms: float = 0.0


class Models:
    """Loaded models by the hash of their file, the least recently used leaving first when `budget_bytes` is passed."""

    def __init__(self, *, threads: int, providers: Sequence[str], budget_bytes: int) -> None:
        self._threads = threads
        self._providers = providers
        self._budget_bytes = budget_bytes
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def get(self, path: str, sha256: str) -> tuple[Runtime, float]:
        """The model and the milliseconds that loading took; raises InferenceError where the file is not loadable."""
        held = self._held.get(sha256)
        if held is not None:
            self._held.move_to_end(sha256)
            return held.model, 0.0
        started = time.perf_counter()
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InferenceError("version_not_ready", "The model's file is not on this machine yet.") from error
        # The bytes that are hashed are the bytes that are loaded.
        if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), sha256):
            raise InferenceError("load_failed", "The model's file does not have the hash it was registered with.")
        model = load(data, threads=self._threads, providers=self._providers)
        self._make_room(len(data))
        self._held[sha256] = _Held(model, len(data))
        return model, (time.perf_counter() - started) * 1000

    def _make_room(self, size: int) -> None:
        while self._held and sum(held.size for held in self._held.values()) + size > self._budget_bytes:
            self._held.popitem(last=False)


def run_items(model: Runtime, items: Sequence[Tensors], *, batched: bool) -> list[_Done]:
    """Run each item, several in one run where `batched` and their tensors fit together; a bad one fails alone."""
    done: dict[int, _Done] = {}
    for group in _groups(items) if batched else [[index] for index in range(len(items))]:
        together = _run_together(model, [items[index] for index in group])
        if together is None:
            together = [_run_alone(model, items[index]) for index in group]
        done.update(zip(group, together, strict=True))
    return [done[index] for index in range(len(items))]


def _groups(items: Sequence[Tensors]) -> list[list[int]]:
    """Indexes of items whose tensors differ in nothing but rows, in groups of at most MAX_ROWS rows."""
    groups: list[list[int]] = []
    open_groups: dict[object, tuple[list[int], int]] = {}
    for index, item in enumerate(items):
        key = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in item.items()))
        rows = _rows(item)
        group, held = open_groups.get(key, ([], MAX_ROWS))
        if held + rows > MAX_ROWS:
            group, held = [], 0
            groups.append(group)
        group.append(index)
        open_groups[key] = (group, held + rows)
    return groups


def _rows(item: Tensors) -> int:
    """Rows of an item whose tensors agree on them; others never share a run."""
    counts = {array.shape[0] if array.ndim else -1 for array in item.values()}
    count = counts.pop() if len(counts) == 1 else -1
    return count if count > 0 else MAX_ROWS


def _run_together(model: Runtime, items: list[Tensors]) -> list[_Done] | None:
    """One run for all, or None where that fails or the outputs can't be told apart."""
    if len(items) == 1:
        return [_run_alone(model, items[0])]
    joined = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
    rows = [_rows(item) for item in items]
    started = time.perf_counter()
    try:
        outputs = model.run(joined)
    except InferenceError:
        return None
    compute_ms = (time.perf_counter() - started) * 1000
    if any(array.ndim == 0 or array.shape[0] != sum(rows) for array in outputs.values()):
        return None
    ends = np.cumsum(rows).tolist()
    return [
        _Done({name: array[end - count : end] for name, array in outputs.items()}, None, compute_ms)
        for end, count in zip(ends, rows, strict=True)
    ]


def _run_alone(model: Runtime, item: Tensors) -> _Done:
    started = time.perf_counter()
    try:
        outputs = model.run(item)
    except InferenceError as error:
        return _Done(error=error, compute_ms=(time.perf_counter() - started) * 1000)
    return _Done(outputs, None, (time.perf_counter() - started) * 1000)


def answer(models: Models, request: RunRequest, buffer: memoryview, buffers: list[memoryview]) -> RunAnswer:
    """Load what is needed, run all items, and append their outputs' bytes to `buffers`."""
    items: list[Tensors] = []
    at = 0
    for heads in request.items:
        tensors, at = unpack(heads, buffer, at)
        items.append(tensors)
    try:
        model, load_ms = models.get(request.artifact_path, request.artifact_sha256)
    except InferenceError as error:
        failed = [ItemAnswer(code=error.code, message=error.message) for _ in items]
        return RunAnswer(failed, device="")
    answers = []
    for done in run_items(model, items, batched=request.batched):
        if done.outputs is None:
            error_ = done.error or InferenceError("internal")
            answers.append(ItemAnswer(code=error_.code, message=error_.message, compute_ms=done.compute_ms))
        else:
            answers.append(ItemAnswer(pack(done.outputs, buffers), done.compute_ms))
    return RunAnswer(answers, model.device, load_ms)


def serve(wire: socket.socket, models: Models) -> None:
    """Answer requests until the host closes the socket."""
    while True:
        try:
            request, buffer = receive(wire, RunRequest)
        except WireClosed:
            return
        buffers: list[memoryview] = []
        try:
            reply: RunAnswer = answer(models, request, buffer, buffers)
        except Exception:  # the edge of the process: the host is told, the log has the rest
            logger.exception("runtime child failed on a batch of %d", len(request.items))
            buffers.clear()
            reply = RunAnswer([ItemAnswer(code="internal") for _ in request.items], device="")
        send(wire, reply, buffers)


def end_with_host(host: int) -> None:
    """Exit as soon as the host is gone, also in the middle of a run: its end of our standard input closes, or we are
    handed to another parent (a fork of the host may keep that end open)."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while os.getppid() == host and not poll.poll(_OWNER_CHECK_MS):
        pass
    os._exit(0)


def main() -> None:
    descriptor, device, threads, budget_bytes = sys.argv[1:5]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Ctrl-C reaches the whole terminal group; the host decides when its child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_host, args=(os.getppid(),), daemon=True).start()
    providers = [CUDA, CPU] if device.startswith("cuda") else [CPU]
    with socket.socket(fileno=int(descriptor)) as wire:
        send(wire, Ready(pid=os.getpid()), [])
        serve(wire, Models(threads=int(threads), providers=providers, budget_bytes=int(budget_bytes)))


if __name__ == "__main__":
    main()
