"""Runtimes for the heavy lane: a child process per device that loads models and runs batches.

A Celery worker holds one `RuntimeHost` per device. The child is an interpreter of its own (spawned, never forked: CUDA
does not survive a fork, and Celery's daemonic children may not use multiprocessing), talks over a socket pair in
MessagePack and raw buffers, and ends with its host. Whatever kills it, a segmentation fault in a kernel or the
out-of-memory killer, costs the batch it ran and nothing else: the next batch finds a new child.
"""

import ctypes
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort

import inference
from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.pictures import DecodedPicture, decode_each
from inference.runtime.pixels import PictureStats
from inference.runtime.scores import Labelled, labelled
from inference.runtime.tensors import NUMPY_DTYPES
from inference.worker_wire import (
    Ready,
    RunAnswer,
    RunRequest,
    TensorHead,
    Tensors,
    WireClosed,
    pack,
    receive,
    send,
    unpack,
)

logger = logging.getLogger(__name__)

MODEL_BYTES = 2 * 1024**3
_START_S = 120.0
_CLOSE_S = 5.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "TZ")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "ORT_", "OPENBLAS_", "OMP_")


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One job's input: pictures as sent (one row each), or tensors by input name.

    `queued_at` (monotonic seconds) is when it began to wait; by default when `predict` is called.
    """

    pictures: Sequence[bytes] = ()
    inputs: Tensors = field(default_factory=dict)
    queued_at: float | None = None


@dataclass(slots=True)
class WorkResult:
    """What became of one item: `error`, or `outputs` by name.

    `labelled`: one entry per row, as `inference.runtime.scores.labelled` makes them. `stats` and `warnings`: one entry
    per picture. `device`: where it was computed, "cpu" or "cuda:0"; "" where it was not.
    `queue_ms`: waiting, decoding and loading; `compute_ms`: the run that the item was part of.
    """

    outputs: Tensors | None = None
    error: InferenceError | None = None
    labelled: list[Labelled] = field(default_factory=list)
    stats: list[PictureStats] = field(default_factory=list)
    warnings: list[list[str]] = field(default_factory=list)
    device: str = ""
    queue_ms: float = 0.0
    compute_ms: float = 0.0


def cuda_devices() -> int:
    """How many NVIDIA devices can be computed on: 0 without a driver, a device, or ONNX Runtime's CUDA provider."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class _Child:
    """A running child and the socket to it."""

    def __init__(self, device: str, threads: int, model_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "inference.worker_child"),
                    *(str(theirs.fileno()), device, str(threads), str(model_bytes)),
                ],
                pass_fds=(theirs.fileno(),),
                # The pipe that tells the child of our end; nothing is ever written to it.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=_environment(device),
                # A stop signal for the host's process group must not take the batch away from under it.
                start_new_session=True,
            )
        self.wire = ours
        self.wire.settimeout(_START_S)
        try:
            receive(self.wire, Ready)
        except (OSError, WireClosed) as error:
            self.end(kill=True)
            raise InferenceError("worker_lost", "The runtime process did not start.") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self, *, kill: bool) -> int:
        """Close or kill; returns the exit status as `Popen` gives it."""
        self.wire.close()
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        with self._process.stdin:
            try:
                return self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                return self._process.wait()

    def forget(self) -> None:
        """Close our ends only: after a fork it is another process's child."""
        self.wire.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.returncode = 0


class RuntimeHost:
    """One device's runtime. Thread-safe: batches take turns. The child starts with the first batch.

    `device`: "cpu", "cuda:N", or "auto" for the first NVIDIA device where there is one, else the CPU. `threads` compute
    one run (by default as many as the machine has cores). `model_bytes`: the files of all models that are held.
    """

    def __init__(self, device: str = "auto", *, threads: int | None = None, model_bytes: int = MODEL_BYTES) -> None:
        if device == "auto":
            device = "cuda:0" if cuda_devices() else "cpu"
        self.device = device
        self._threads = threads or os.cpu_count() or 1
        self._model_bytes = model_bytes
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        child = self._child
        return child.pid if child is not None and child.is_alive() else None

    def predict(
        self, version: VersionRoute, artifact_path: str, batch: Sequence[WorkItem], *, timeout_s: float = 300.0
    ) -> list[WorkResult]:
        """Run a batch of one version; one result per item, in order. Blocks. Raises nothing for what an item did.

        The file at `artifact_path` must have the version's hash. A picture that cannot be read, or an input that the
        model rejects, fails its item alone. A child that dies or takes longer than `timeout_s` fails every item of the
        batch that it was given, with `worker_lost`.
        """
        began = time.monotonic()
        results = [WorkResult() for _ in batch]
        feeds = self._feeds(version, batch, results)
        ready = [index for index, feed in enumerate(feeds) if feed is not None]
        if ready:
            with self._lock:
                started = time.monotonic()
                answers = self._run(version, artifact_path, [feeds[index] or {} for index in ready], timeout_s)
            for index, answer in zip(ready, answers, strict=True):
                result = results[index]
                result.outputs, result.error, result.device = answer.outputs, answer.error, answer.device
                result.compute_ms = answer.compute_ms
                waited_s = started - (batch[index].queued_at or began)
                result.queue_ms = max(0.0, waited_s * 1000) + answer.load_ms
                if answer.outputs is not None:
                    result.labelled = labelled(version, answer.outputs)
        return results

    def close(self) -> None:
        """End the child. A later `predict` starts another."""
        with self._lock:
            if self._child is not None:
                self._child.end(kill=False)
                self._child = None

    def _feeds(
        self, version: VersionRoute, batch: Sequence[WorkItem], results: list[WorkResult]
    ) -> list[Tensors | None]:
        """Tensors of each item; None where its pictures failed, which its result then says."""
        pictures = [picture for item in batch for picture in item.pictures]
        try:
            decoded = iter(decode_each(pictures, version) if pictures else [])
        except InferenceError as error:
            for item, result in zip(batch, results, strict=True):
                result.error = error if item.pictures else None
            return [None if item.pictures else item.inputs for item in batch]
        return [
            self._feed(version, [next(decoded) for _ in item.pictures], result) if item.pictures else item.inputs
            for item, result in zip(batch, results, strict=True)
        ]

    def _feed(
        self, version: VersionRoute, pictures: Sequence[DecodedPicture | InferenceError], result: WorkResult
    ) -> Tensors | None:
        decoded: list[DecodedPicture] = []
        for picture in pictures:
            if isinstance(picture, InferenceError):
                result.error = picture
                return None
            decoded.append(picture)
        result.stats = [picture.stats for picture in decoded]
        result.warnings = [picture.warnings for picture in decoded]
        if len({picture.tensor.shape for picture in decoded}) > 1:
            result.error = InferenceError("wrong_shape", "The pictures of one call must have one size.")
            return None
        taken = version.signature.inputs[0]
        tensor = np.stack([picture.tensor for picture in decoded])
        return {taken.name: tensor.astype(NUMPY_DTYPES[taken.datatype], copy=False)}

    def _run(
        self, version: VersionRoute, artifact_path: str, feeds: list[Tensors], timeout_s: float
    ) -> "list[_Answer]":
        buffers: list[memoryview] = []
        items: list[list[TensorHead]] = [pack(feed, buffers) for feed in feeds]
        request = RunRequest(artifact_path, version.artifact_sha256, version.signature.batched, items)
        try:
            child = self._living_child()
            child.wire.settimeout(timeout_s)
            send(child.wire, request, buffers)
            answer, buffer = receive(child.wire, RunAnswer)
        except InferenceError as error:
            return [_Answer(None, error)] * len(feeds)
        except (OSError, WireClosed) as error:
            lost = self._lose(error)
            return [_Answer(None, lost)] * len(feeds)
        return self._read(answer, buffer)

    def _read(self, answer: RunAnswer, buffer: memoryview) -> "list[_Answer]":
        device = self.device if answer.device == "cuda" else answer.device
        at = 0
        found = []
        for item in answer.items:
            if item.code:
                found.append(_Answer(None, InferenceError(item.code, item.message), item.compute_ms, device))
                continue
            outputs, at = unpack(item.outputs, buffer, at)
            found.append(_Answer(outputs, None, item.compute_ms, device, answer.load_ms))
        return found

    def _living_child(self) -> _Child:
        """The child of this very process, started where there is none."""
        if self._child is not None and self._owner != os.getpid():
            self._child.forget()
            self._child = None
        if self._child is not None and not self._child.is_alive():
            logger.warning("runtime child on %s ended while idle, status %s", self.device, self._child.end(kill=True))
            self._child = None
        if self._child is None:
            self._owner = os.getpid()
            self._child = _Child(self.device, self._threads, self._model_bytes)
        return self._child

    def _lose(self, error: Exception) -> InferenceError:
        """Put the child away after it did not answer."""
        child, self._child = self._child, None
        # One that ended by itself may still be writing why.
        status = child.end(kill=isinstance(error, TimeoutError)) if child is not None else None
        logger.error("runtime child on %s lost (%s), status %s", self.device, type(error).__name__, status)
        if isinstance(error, TimeoutError):
            return InferenceError("worker_lost", "The runtime did not answer in time and was ended.")
        return InferenceError("worker_lost")


@dataclass(frozen=True, slots=True)
class _Answer:
    """One item's share of a child's answer."""

    outputs: Tensors | None
    error: InferenceError | None
    compute_ms: float = 0.0
    device: str = ""
    load_ms: float = 0.0


def _environment(device: str) -> dict[str, str]:
    """What an interpreter and CUDA need, and no secret of the host's: models run native code."""
    kept = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    kept["PYTHONPATH"] = str(Path(inference.__file__).parents[1])
    kept["PYTHONDONTWRITEBYTECODE"] = "1"
    if device.startswith("cuda:"):
        kept["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
    return kept
