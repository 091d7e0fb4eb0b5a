"""Validate an uploaded model: read it, load it, run it, and say what it is or why it is refused.

`validate_in_sandbox` is what the control plane calls; `validate_bytes` runs in the throw-away child.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from inference.contracts import Activation, ReportCheck, Signature, Task, ValidationReport, ValidationRequest
from inference.errors import InferenceError
from inference.runtime import checks, golden, graph, meaning
from inference.runtime.independence import rows_are_independent
from inference.runtime.onnx import DATATYPES, OnnxModel, feed_error, load_model
from inference.runtime.ort_errors import OutOfMemory
from inference.runtime.sandbox import Limits, Sandbox, SandboxKilled
from inference.runtime.sandbox_child import LINE_BYTES, say
from inference.runtime.zipmap import ZipMapCut, cut_zipmap

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

# Modules that a sandbox should import before its first child.
PRELOAD = ("inference.runtime.validate",)
FUNCTION = "inference.runtime.validate:validate_bytes"

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own bound
WALL_S = 25.0
_MEMORY_FLOOR = 2 * 1024**3
_LARGE_BYTES = 100 * 1024**2
_LARGE_BYTES_PER_S = 20 * 1024**2
_CHILD_FILE_BYTES = 1024**2
_REASON_LENGTH = 1000
# As told while validation runs: six bytes a letter at most in JSON, and room for the rest of the line.
_TOLD_LENGTH = LINE_BYTES // 6 - 100
# Made-up inputs are tried with these sizes of their free dimensions, then with these values in every cell.
_SIZES = (1, 8, 64, 224)
_VALUES = (None, 0.0)

_ELEMENTS = frozenset(onnx.TensorProto.DataType.values())
_CONTAINERS = {
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "an optional value",
    "sparse_tensor_type": "a sparse tensor",
}


class _Order(msgspec.Struct):
    """What goes to the child: files by content, since it can open none."""

    request: ValidationRequest
    model: memoryview
    golden: memoryview | None = None


class _Finding(msgspec.Struct):
    """What comes back. `rewritten`: the model without its ZipMap tail."""

    report: ValidationReport
    rewritten: bytes | None = None


def limits_for(model_bytes: int) -> Limits:
    """2 GB and six times the file (parsed, loaded, optimised, run). 25 s, so that a report comes by 30; files beyond
    100 MB, which are slow to load without malice, get a second more per 20 MB."""
    wall_s = WALL_S + max(0, model_bytes - _LARGE_BYTES) / _LARGE_BYTES_PER_S
    return Limits(
        memory_bytes=_MEMORY_FLOOR + 6 * model_bytes, cpu_s=2 * wall_s, wall_s=wall_s, file_bytes=_CHILD_FILE_BYTES
    )


def validate_in_sandbox(
    sandbox: Sandbox,
    request: ValidationRequest,
    limits: Limits | None = None,
    *,
    on_checks: Callable[[tuple[ReportCheck, ...]], None] | None = None,
) -> ValidationReport:
    """Validate the files that `request` names in a child of `sandbox`; writes `rewritten_path` where a tail was cut.

    Every fault of the model is a report with ok False; where the child was killed it names the check that ran.
    `on_checks` is called with all checks done so far, at most five times a second (Sandbox.call's `on_lines`).
    Raises OSError for files that cannot be read here.
    """
    path = Path(request.model_path)
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        return _rejected(InferenceError("too_large", "An ONNX file can be 2 GB at most."), model_bytes=size)
    limits = limits or limits_for(size)
    done: dict[str, ReportCheck] = {}  # by name, since a child whose parent was lost starts over

    def heard(lines: list[bytes]) -> None:
        done.update((check.name, check) for check in _read_checks(lines))
        if on_checks is not None:
            on_checks(tuple(done.values()))

    try:
        packed = golden.pack(Path(request.golden_path)) if request.golden_path else None
        order = _Order(request, memoryview(path.read_bytes()), memoryview(packed) if packed is not None else None)
        result = sandbox.call(FUNCTION, msgspec.msgpack.encode(order), limits, on_lines=heard)
    except InferenceError as error:
        return _rejected(error, model_bytes=size)
    except SandboxKilled as killed:
        report = _killed(killed, limits)
        running = checks.unfinished(checks.plan(golden=request.golden_path is not None), done)[:1]
        failed = tuple(ReportCheck(name=name, ok=False, detail=report.reason) for name in running)
        return msgspec.structs.replace(report, model_bytes=size, checks=(*done.values(), *failed))
    finding = msgspec.msgpack.decode(result.output, type=_Finding)
    if finding.rewritten is not None and request.rewritten_path:
        Path(request.rewritten_path).write_bytes(finding.rewritten)
    report = finding.report
    if not result.isolated:
        warning = "This host allows no network isolation, so the model was checked in a child that is not isolated."
        report = msgspec.structs.replace(report, warnings=(*report.warnings, warning))
    return msgspec.structs.replace(report, isolated=result.isolated)


def _read_checks(lines: Iterable[bytes]) -> list[ReportCheck]:
    """The checks that a child told. One that the model took over may tell anything: what is no check is left out."""
    found = []
    for line in lines:
        try:
            check = msgspec.json.decode(line, type=ReportCheck)
        except msgspec.MsgspecError:
            logger.warning("a validation told what is no check: %r", line[:200])
        else:
            name = _printable(check.name)[:40]
            found.append(ReportCheck(name=name, ok=check.ok, detail=_printable(check.detail)))
    return found


def _killed(killed: SandboxKilled, limits: Limits) -> ValidationReport:
    why = {
        "memory": f"memory: the model needs more than {limits.memory_bytes / 1024**2:,.0f} MB to load and run once.",
        "timeout": f"timeout: the model did not load and run once within {limits.wall_s:g} seconds.",
        "crash": "crash: the runtime crashed while it loaded or ran the model.",
    }[killed.reason]
    return _rejected(InferenceError("validation_failed", f"Validation ended by {why}"))


def _rejected(error: InferenceError, **known: Any) -> ValidationReport:
    # Names of the file's own making may stand in it.
    reason = _printable(error.message)[:_REASON_LENGTH]
    return ValidationReport(ok=False, code=error.code, reason=reason, runtime=f"onnxruntime {ort.__version__}", **known)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def validate_bytes(argument: bytes) -> bytes:
    """The sandbox's function: a packed order in, a packed finding out."""
    order = msgspec.msgpack.decode(argument, type=_Order)
    return msgspec.msgpack.encode(_Validation(order.request, order.model, order.golden).finding())


def validate(request: ValidationRequest) -> ValidationReport:
    """Validate in this process, without a child around it: for files that are trusted, and for tests."""
    packed = golden.pack(Path(request.golden_path)) if request.golden_path else None
    model = memoryview(Path(request.model_path).read_bytes())
    finding = _Validation(request, model, memoryview(packed) if packed is not None else None).finding()
    if finding.rewritten is not None and request.rewritten_path:
        Path(request.rewritten_path).write_bytes(finding.rewritten)
    return finding.report


class _Validation:
    """One run over one file: each step adds to what the report will say, and the first fault ends it."""

    def __init__(self, request: ValidationRequest, data: memoryview, golden_data: memoryview | None) -> None:
        self._request = request
        self._data = data
        self._golden_data = golden_data
        self._known: dict[str, Any] = {"model_bytes": len(data)}
        self._checks: list[ReportCheck] = []
        self._warnings: list[str] = []
        self._rewritten: bytes | None = None

    def finding(self) -> _Finding:
        try:
            self._read_file()
            self._load()
            self._interpret()
            self._run()
        except OutOfMemory as error:
            raise MemoryError from error
        except InferenceError as error:
            report = _rejected(error, warnings=tuple(self._warnings), **self._known)
            self._ended(ok=False, detail=report.reason)
            return _Finding(msgspec.structs.replace(report, checks=tuple(self._checks)))
        report = ValidationReport(
            ok=True,
            checks=tuple(self._checks),
            warnings=tuple(self._warnings),
            runtime=f"onnxruntime {ort.__version__}",
            **self._known,
        )
        return _Finding(report, self._rewritten)

    def _ended(self, *, ok: bool | None, detail: str = "") -> None:
        """Note how the step ended, and tell it to whoever waits."""
        check = ReportCheck(name=self._step, ok=ok, detail=detail)
        self._checks.append(check)
        say(msgspec.json.encode(msgspec.structs.replace(check, detail=detail[:_TOLD_LENGTH])))

    def _passed(self, detail: str = "") -> None:
        self._ended(ok=True, detail=detail)

    def _counted(self, number: int) -> None:
        self._ended(ok=True if number else None, detail=str(number or ""))

    def _read_file(self) -> None:
        """The protobuf, before any of it reaches the runtime."""
        self._step = "file"
        self._model = graph.parse(self._data)
        graph.check_messages(self._model)
        facts = graph.facts(self._model)
        self._known |= {
            "opset": facts.opset,
            "ir_version": facts.ir_version,
            "producer": facts.producer,
            "operators": facts.operators,
            "parameters": facts.parameters,
        }
        self._passed(f"ONNX, {len(self._data):,} bytes")
        self._step = "graph"
        graph.check(self._model)
        self._passed(f"{sum(facts.operators.values()):,} operators, {facts.parameters:,} parameters")
        self._cut: ZipMapCut | None = cut_zipmap(self._model)
        if self._cut is not None:
            self._known["zipmap_cut"] = True
            self._rewritten = self._model.SerializeToString()
            names = ", ".join(self._cut.outputs)
            self._step = "zipmap"
            self._passed(f"{names} gives plain scores now")
        self._step = "types"
        for value in (*self._model.graph.input, *self._model.graph.output):
            _refuse_type(value)
        self._passed()

    def _load(self) -> None:
        self._step = "load"
        before = _resident_bytes()
        started = time.perf_counter()
        self._loaded: OnnxModel = load_model(bytes(self._data) if self._rewritten is None else self._rewritten)
        self._signature: Signature = self._loaded.signature
        self._memory_before = before
        self._passed(f"{(time.perf_counter() - started) * 1000:.0f} ms")

    def _interpret(self) -> None:
        """Task, activation and score output, and whether labels, columns and preprocessor fit them."""
        request = self._request
        self._step = "meaning"
        tails = [meaning.tail_of(self._model, spec.name) for spec in self._signature.outputs]
        cut = self._cut.outputs if self._cut is not None else ()
        score = meaning.score_output(self._signature, tails, cut, len(request.labels))
        tail = tails[score] if tails else meaning.Tail()
        carried = self._cut.labels if self._cut is not None and self._cut.labels else tail.labels
        self._signature = msgspec.structs.replace(self._signature, score_output=score)
        output = self._signature.outputs[score]
        width = meaning.width_of(output)
        labels = request.labels or carried
        task = request.task or meaning.infer_task(
            self._signature, tail, score=score, labels=len(labels), preprocessor=request.preprocessor is not None
        )
        meaning.check_task(task, output)
        activation = request.activation or meaning.default_activation(task, tail, width)
        self._known |= {"signature": self._signature, "task": task, "activation": activation, "labels": labels}
        said = "given" if request.activation else f"{output.name} comes from {tail.applied}"
        if not request.activation and tail.applied is Activation.NONE:
            said = f"for {task}"
        self._passed(f"{task}; activation {activation} ({said}); scores in {output.name}")
        if request.activation not in (None, Activation.NONE) and tail.applied is not Activation.NONE:
            self._warnings.append(f"The graph applies {tail.applied} itself; {activation} would be a second one.")
        self._width = width
        self._step = "labels"
        meaning.check_labels(labels, task, width, carried)
        self._counted(len(labels))
        self._step = "columns"
        meaning.check_columns(request.columns, task, self._signature)
        self._counted(len(request.columns))
        self._step = "preprocessor"
        detail = meaning.check_preprocessor(request.preprocessor, task, self._signature)
        self._ended(ok=True if detail else None, detail=detail)
        if task.takes_pictures and request.preprocessor is None:
            self._warnings.append("Without a preprocessor only tensors can be sent, no pictures.")
        if not labels and task in (Task.IMAGE_CLASSIFICATION, Task.IMAGE_MULTILABEL, Task.TABULAR_CLASSIFICATION):
            self._warnings.append("No labels were given; answers number them from 0.")

    def _run(self) -> None:
        """Golden inputs or made-up ones, then the cost of one row and whether rows may share a run."""
        if self._golden_data is not None:
            feed, outputs = self._run_golden(self._golden_data)
        else:
            self._step = "sample"
            feed, outputs = self._run_made_up()
            self._passed("made-up inputs")
        self._known["memory_bytes"] = max(0, _resident_bytes() - self._memory_before)
        self._check_outputs(outputs)
        self._step = "batching"
        if self._signature.batched and not rows_are_independent(self._loaded, feed):
            self._signature = msgspec.structs.replace(self._signature, batched=False)
            self._known["signature"] = self._signature
            self._warnings.append("Rows of one run influence each other, so calls are not batched together.")
        self._ended(ok=self._signature.batched or None)
        self._step = "latency"
        one = {name: array[:1] for name, array in feed.items()} if self._signature.batched else feed
        self._known["latency_ms"] = self._loaded.measure(inputs=one) * 1000
        self._passed(f"{self._known['latency_ms']:.3g} ms a row, one thread")

    def _run_golden(self, data: memoryview) -> tuple[dict[str, Array], dict[str, Array]]:
        self._step = "golden"
        sets = golden.read(data, self._signature)
        largest = 0.0
        for entry in sets:
            feed = golden.feed_of(entry, self._signature)
            if (fault := feed_error(self._signature, feed)) is not None:
                raise InferenceError("bad_golden", f"The golden inputs cannot be used: {entry.name}: {fault}")
            outputs = self._compute(feed)
            largest = max(
                largest, golden.largest_error(entry.name, outputs, golden.expected_of(entry, self._signature))
            )
        self._known |= {"golden_sets": len(sets), "golden_max_error": largest}
        self._passed(f"{len(sets)} reproduced, largest difference {largest:.3g}")
        return feed, outputs

    def _compute(self, feed: dict[str, Array]) -> dict[str, Array]:
        try:
            return self._loaded.run(feed)
        except OutOfMemory:
            raise
        except InferenceError as error:
            reason = error.message.removeprefix("The model could not compute with this input: ")
            raise InferenceError("sample_failed", f"The model fails on the sample input. {reason}") from error

    def _run_made_up(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The first made-up input that the model takes; where it takes none, the first refusal is raised."""
        first: InferenceError | None = None
        free = any(-1 in spec.shape[1:] for spec in self._signature.inputs)
        for value in _VALUES:
            for size in _SIZES if free else _SIZES[:1]:
                feed = self._loaded.sample_inputs(size=size, value=value)
                try:
                    return feed, self._compute(feed)
                except OutOfMemory:
                    raise
                except InferenceError as error:
                    first = first or error
        assert first is not None
        raise first

    def _check_outputs(self, outputs: dict[str, Array]) -> None:
        """What the file does not say, the first run shows: the number of scores; and whether they are finite."""
        self._step = "outputs"
        spec = self._signature.outputs[self._signature.score_output]
        got = outputs[spec.name]
        if self._width is None and got.ndim >= 2 and got.size == got.shape[0] * got.shape[1]:
            meaning.check_labels(self._known["labels"], self._known["task"], got.shape[1], ())
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self._warnings.append(f"Output {name} had NaN or an infinity on the sample input.")
        self._passed()


def _refuse_type(value: Any) -> None:
    """Refuse what has no name in the Open Inference Protocol, in words, before the runtime refuses it in its own."""
    kind = value.type.WhichOneof("value")
    if kind == "tensor_type":
        element = value.type.tensor_type.elem_type
        name = onnx.TensorProto.DataType.Name(element).lower() if element in _ELEMENTS else f"type {element}"
        if element == onnx.TensorProto.UNDEFINED or f"tensor({name})" in DATATYPES:
            return
        what = f"a tensor of {name}"
    elif kind is None:
        return  # the runtime infers it
    else:
        what = _CONTAINERS.get(kind, "of an unknown type")
    raise InferenceError(
        "unsupported_type", f"{value.name} is {what}; tensors of numbers, booleans and strings can be served."
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
