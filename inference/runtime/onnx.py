"""Models in ONNX Runtime: load from bytes, read the signature, run, measure."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from inference.contracts import Datatype, Signature, TensorSpec
from inference.errors import InferenceError
from inference.runtime.ort_errors import load_error, run_error
from inference.runtime.plans import NUMPY_DTYPES

CPU = "CPUExecutionProvider"

DATATYPES = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}

_DEVICES = {CPU: "cpu", "CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}

# What the bindings raise: their own classes derive from Exception alone, and share no base class.
_state = ort.capi.onnxruntime_pybind11_state
ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.EngineError,
    _state.EPFail,
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.ModelLoadCanceled,
    _state.ModelLoaded,
    _state.ModelRequiresCompilation,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
    RuntimeError,
    ValueError,  # also UnicodeError, of text that is not Unicode
    TypeError,
    MemoryError,
)

_WARM_UP_RUNS = 3
_MEASURE_RUNS = 50
_MEASURE_S = 0.25


class OnnxModel:
    """A loaded model. `run` may be called by several threads at once. `device` is "cpu" or "cuda"."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.signature = read_signature(session)
        self.device: str = _DEVICES.get(session.get_providers()[0], "cpu")
        self._session = session
        # The bindings' own run, without the wrapper's check of names: callers build the feed from the signature.
        self._run = session._sess.run
        self._output_names = [spec.name for spec in self.signature.outputs]
        self._text_inputs = [spec.name for spec in self.signature.inputs if spec.datatype is Datatype.BYTES]

    def run(
        self, inputs: dict[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute `outputs` (all by default) from one array per input; text as object arrays of str or UTF-8 bytes.

        Raises InferenceError: model_rejected_input with the runtime's reason, bad_text for bytes that are not UTF-8.
        """
        names = self._output_names if outputs is None else list(outputs)
        if self._text_inputs:
            inputs = self._with_text(inputs)
        try:
            results = self._run(names, inputs, None)
        except ORT_ERRORS as error:
            raise run_error(error) from error
        return dict(zip(names, results, strict=True))

    def _with_text(self, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """ONNX Runtime would read bytes as their repr, so they become str first."""
        inputs = dict(inputs)
        for name in self._text_inputs:
            array = inputs.get(name)
            if array is None or not any(isinstance(cell, bytes) for cell in array.flat):
                continue
            try:
                cells = [cell.decode() if isinstance(cell, bytes) else cell for cell in array.flat]
            except UnicodeDecodeError as error:
                raise InferenceError("bad_text", f"Input {name} has text that is not UTF-8.") from error
            inputs[name] = np.array(cells, dtype=object).reshape(array.shape)
        return inputs

    def sample_inputs(
        self, rows: int = 1, *, size: int = 1, value: float | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Made-up inputs, the same at every call: see `sample_inputs`."""
        return sample_inputs(self.signature, rows, size=size, value=value)

    def measure(self, rows: int = 1, *, inputs: dict[str, np.ndarray[Any, Any]] | None = None) -> float:
        """Median seconds of a run on `inputs`, else made-up ones: 3 warm-up runs, then at most 50 in about 0.25 s."""
        return median_seconds(self.run, self.sample_inputs(rows) if inputs is None else inputs)


def load_model(data: bytes, *, threads: int = 1, providers: Sequence[str] = (CPU,)) -> OnnxModel:
    """Load the ONNX file `data`; `threads` compute one run. Providers that this installation lacks are passed over.

    Raises InferenceError: corrupt_model, unsupported_opset, unsupported_operator, invalid_graph, unsupported_type,
    external_data_not_allowed or load_failed.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Fatal only: what is wrong with a call is raised, and must not reach the log with pieces of its input.
    options.log_severity_level = 4
    # Spinning threads would take the cores that other models and the event loop need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Weights are held beside the arena, whose blocks double as they grow.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Without VNNI the fast 8-bit kernels saturate: an INT8 X-ray model's scores moved by up to 0.36 between processors.
    options.add_session_config_entry("session.x64quantprecision", "1")
    available = ort.get_available_providers()
    chosen = [provider for provider in providers if provider in available] or [CPU]
    try:
        session = ort.InferenceSession(data, options, providers=chosen)
    except ORT_ERRORS as error:
        raise load_error(error) from error
    # Kept for a second start with other providers, which nobody asks for: as much memory again as the weights take.
    session._model_bytes = None
    return OnnxModel(session)


def median_seconds(
    run: Callable[[dict[str, np.ndarray[Any, Any]]], object], inputs: dict[str, np.ndarray[Any, Any]]
) -> float:
    """Median seconds of `run` on `inputs`: 3 warm-up runs, then at most 50 in about 0.25 s."""
    for _ in range(_WARM_UP_RUNS):
        run(inputs)
    times: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while len(times) < 3 or (len(times) < _MEASURE_RUNS and time.perf_counter() < end):
        started = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - started)
    return median(times)


def read_signature(session: ort.InferenceSession) -> Signature:
    """The session's inputs and outputs as specs; raises InferenceError unsupported_type for what V2 has no name for."""
    inputs = tuple(_spec(argument, "Input") for argument in session.get_inputs())
    outputs = tuple(_spec(argument, "Output") for argument in session.get_outputs())
    return Signature(inputs=inputs, outputs=outputs, batched=shares_rows(inputs, outputs))


def _spec(argument: Any, kind: str) -> TensorSpec:
    datatype = DATATYPES.get(argument.type)
    if datatype is None:
        raise InferenceError(
            "unsupported_type",
            f"{kind} {argument.name} has the type {argument.type}; numbers, booleans and strings can be served.",
        )
    shape, dims = [], []
    for size in argument.shape:
        fixed = isinstance(size, int) and size >= 0
        shape.append(size if fixed else -1)
        # Names such as unk__3 are ONNX Runtime's own, for sizes that it could not infer.
        named = isinstance(size, str) and not size.startswith("unk__")
        dims.append(size if named else "")
    return TensorSpec(name=argument.name, datatype=datatype, shape=tuple(shape), dims=tuple(dims))


def shares_rows(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether every tensor's first dimension is dynamic and none is named otherwise than the others."""
    specs = inputs + outputs
    if not inputs or any(not spec.shape or spec.shape[0] != -1 for spec in specs):
        return False
    return len({spec.dims[0] for spec in specs if spec.dims[0]}) <= 1


def sample_inputs(
    signature: Signature, rows: int = 1, *, size: int = 1, value: float | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """One made-up array per input, the same at every call.

    A dynamic first dimension becomes `rows`, any other `size`. Floats are standard normal, whole numbers and booleans
    1, text "0"; with `value` every cell is that.
    """
    random = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    made: dict[str, np.ndarray[Any, Any]] = {}
    for spec in signature.inputs:
        shape = tuple(
            fixed if fixed >= 0 else _size_of(name, rows if axis == 0 else size, sizes)
            for axis, (fixed, name) in enumerate(zip(spec.shape, spec.dims, strict=True))
        )
        made[spec.name] = _made_up(spec.datatype, shape, random, value)
    return made


def _size_of(name: str, fallback: int, sizes: dict[str, int]) -> int:
    """Dimensions of one name have one size."""
    return sizes.setdefault(name, fallback) if name else fallback


def _made_up(
    datatype: Datatype, shape: tuple[int, ...], random: np.random.Generator, value: float | None
) -> np.ndarray[Any, Any]:
    dtype = NUMPY_DTYPES[datatype]
    if datatype is Datatype.BYTES:
        return np.full(shape, "0" if value is None else f"{value:g}", dtype=object)
    if value is not None:
        return np.full(shape, value, dtype=dtype)
    if dtype.kind == "f":
        return cast(np.ndarray[Any, Any], np.asarray(random.standard_normal(shape)).astype(dtype))
    return np.ones(shape, dtype=dtype)


def feed_error(signature: Signature, inputs: Mapping[str, np.ndarray[Any, Any]]) -> str | None:
    """Why `inputs` do not fit the signature by name, datatype or fixed dimensions; None where they do."""
    expected = {spec.name: spec for spec in signature.inputs}
    if missing := sorted(expected.keys() - inputs.keys()):
        return f"Input {missing[0]} is missing."
    if unknown := sorted(inputs.keys() - expected.keys()):
        return f"The model has no input {unknown[0]}."
    for name, array in inputs.items():
        spec = expected[name]
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            return f"Input {name} has the shape {list(array.shape)}, expected {list(spec.shape)}."
        if array.dtype != NUMPY_DTYPES[spec.datatype]:
            return f"Input {name} has the datatype {array.dtype}, expected {spec.datatype}."
    return None
