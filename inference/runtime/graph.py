"""Read an ONNX file that a stranger made without running it: is it ONNX, is it whole, does it stay inside itself."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, Message

from inference.errors import InferenceError

# (domain, operator) of everything that this ONNX Runtime has a schema for; "" is ONNX's own domain.
OPERATORS: frozenset[tuple[str, str]] = frozenset(
    (schema.domain, schema.name) for schema in ort.capi.onnxruntime_pybind11_state.get_all_operator_schema()
)
DOMAINS: frozenset[str] = frozenset(domain for domain, _ in OPERATORS)

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt or Keras file is one)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes .h5"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"BZh", "a bzip2 file"),
    (b"GGUF", "a GGUF model"),
)
# Every name of an input, an output or a dimension is shown, sent and stored.
_NAME_LENGTH = 256
_MOST_ENDS = 4096
_MOST_OPERATORS = 500
_MOST_PARAMETERS = 2**53

_ADVICE = "Export the model to ONNX and upload that file."


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the report says of a file. `operators`: how often each occurs, subgraphs and functions included."""

    opset: dict[str, int]
    ir_version: int
    producer: str
    operators: dict[str, int]
    parameters: int


def parse(data: bytes | memoryview) -> onnx.ModelProto:
    """The file as a model; raises InferenceError not_onnx or corrupt_model with a sentence that says what it is."""
    head = bytes(data[:512])
    if not head:
        raise InferenceError("not_onnx", "The file is empty.")
    if (kind := _foreign(head, bytes(data[-1:]))) is not None:
        raise InferenceError("not_onnx", f"The file is {kind}, not an ONNX model. {_ADVICE}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        if not _looks_like_onnx(head):
            raise InferenceError("not_onnx", f"The file is not an ONNX model. {_ADVICE}") from error
        raise InferenceError("corrupt_model", "The ONNX file is damaged or incomplete; upload it again.") from error
    if not model.HasField("graph"):
        if not model.ir_version and not model.opset_import:
            raise InferenceError("not_onnx", f"The file is not an ONNX model. {_ADVICE}")
        raise InferenceError("corrupt_model", "The ONNX file is incomplete: it holds no graph.")
    if not model.graph.node and not model.graph.output and not model.graph.input:
        raise InferenceError("corrupt_model", "The ONNX file is damaged: its graph is empty.")
    return model


def _foreign(head: bytes, last: bytes) -> str | None:
    for magic, kind in _FOREIGN:
        if head.startswith(magic):
            return kind
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and last in (b".", b""):
        return "a Python pickle"
    if head[4:8] in (b"TFL3", b"ORTM"):
        return "a TensorFlow Lite model" if head[4:8] == b"TFL3" else "in ONNX Runtime's own format"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return "an HTML or XML page (was a download page saved instead of the file?)"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "a text"
    if head[8:9] == b"{" and head[:8].endswith(b"\x00\x00\x00"):
        return "a safetensors file"
    return None


def _looks_like_onnx(head: bytes) -> bool:
    """Whether the bytes begin like a saved ModelProto: its ir_version, or names that exporters write early."""
    begins = len(head) > 1 and head[0] == 0x08 and 0 < head[1] < 64
    return begins or any(mark in head for mark in (b"onnx", b"pytorch", b"tf2onnx", b"ai.onnx"))


def check(model: onnx.ModelProto) -> None:
    """Refuse what must never reach the runtime, and what people should hear of in words.

    Raises InferenceError unsupported_operator or invalid_graph; `check_messages` comes first.
    """
    functions = {(_domain(function.domain), function.name) for function in model.functions}
    for graph in _graphs_of(model):
        _check_operators(graph.node, functions)
        _check_names(graph)
        _check_acyclic(graph.node)
    for function in model.functions:
        _check_operators(function.node, functions)
        _check_acyclic(function.node)
    if not model.graph.output:
        raise InferenceError("invalid_graph", "The graph has no outputs.")
    _check_ends(model.graph)


def check_messages(message: Message) -> None:
    """Walk every message below `message`: refuse a tensor that points outside the file, and text that is not Unicode.

    Raises InferenceError external_data_not_allowed or corrupt_model. To be called before any name is read.
    """
    stack: list[Message] = [message]
    while stack:
        current = stack.pop()
        if isinstance(current, onnx.TensorProto):
            # Its fields are not listed: that would copy every weight.
            _check_text(current.name)
            _refuse_external(current)
            continue
        for field, value in current.ListFields():
            values = value if field.is_repeated else (value,)
            if field.message_type is not None:
                stack.extend(values)
            elif field.type == field.TYPE_STRING:
                for text in values:
                    _check_text(text)


def _refuse_external(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
        return
    raise InferenceError(
        "external_data_not_allowed",
        f"{f'Tensor {tensor.name!r}' if tensor.name else 'A tensor'} keeps its values outside the file. "
        "Save the model as one file, with its weights inside.",
    )


def _check_text(text: Any) -> None:
    """The protobuf library hands out bytes where a text field holds no UTF-8."""
    if isinstance(text, bytes):
        raise InferenceError("corrupt_model", "The ONNX file is damaged: a name in it is not text.")


def facts(model: onnx.ModelProto) -> GraphFacts:
    """Count what the file holds. Parameters are the elements of all initializers."""
    operators: Counter[str] = Counter()
    parameters = 0
    for graph in _graphs_of(model):
        operators.update(_operator(node) for node in graph.node)
        parameters += sum(math.prod(tensor.dims) for tensor in graph.initializer)
        parameters += sum(math.prod(tensor.values.dims) for tensor in graph.sparse_initializer)
    for function in model.functions:
        operators.update(_operator(node) for node in function.node)
    return GraphFacts(
        opset={printable(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import[:_MOST_OPERATORS]},
        ir_version=model.ir_version,
        producer=printable(f"{model.producer_name} {model.producer_version}".strip()),
        operators=dict(operators.most_common(_MOST_OPERATORS)),
        # A damaged file may say anything of its tensors' sizes.
        parameters=max(0, min(parameters, _MOST_PARAMETERS)),
    )


def printable(text: str) -> str:
    """`text` as a page and a database can take it: no control characters, at most 256 characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:_NAME_LENGTH])


def _operator(node: onnx.NodeProto) -> str:
    domain = _domain(node.domain)
    return printable(f"{domain}.{node.op_type}" if domain else node.op_type)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, those of training, and every subgraph of each and of the functions."""
    stack = [model.graph]
    for training in model.training_info:
        stack += [training.initialization, training.algorithm]
    for function in model.functions:
        stack.extend(_subgraphs(function.node))
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(_subgraphs(graph.node))


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _check_operators(nodes: Iterable[onnx.NodeProto], functions: set[tuple[str, str]]) -> None:
    for node in nodes:
        domain = _domain(node.domain)
        if (domain, node.op_type) in functions or (domain, node.op_type) in OPERATORS:
            continue
        if domain not in DOMAINS:
            raise InferenceError(
                "unsupported_operator",
                f"Operator {node.op_type} belongs to the domain {domain!r}, which the runtime does not have. "
                "Custom operators can't be served; export the model with standard ones.",
            )
        where = f" of the domain {domain}" if domain else ""
        raise InferenceError("unsupported_operator", f"The runtime has no operator {node.op_type!r}{where}.")


def _check_ends(graph: onnx.GraphProto) -> None:
    """Names of inputs, outputs and their dimensions must be such that people and JSON can carry them."""
    if len(graph.input) - len(graph.initializer) > _MOST_ENDS or len(graph.output) > _MOST_ENDS:
        raise InferenceError("invalid_graph", f"The graph has more than {_MOST_ENDS:,} inputs or outputs.")
    for value in (*graph.input, *graph.output):
        for name in (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)):
            if printable(name) != name:
                raise InferenceError(
                    "invalid_graph",
                    f"The name {printable(name)!r} has control characters, or more than {_NAME_LENGTH} characters.",
                )
        if not value.name:
            raise InferenceError("invalid_graph", "An input or output has no name.")


def _check_names(graph: onnx.GraphProto) -> None:
    """Each value is made once: by an input (which an initializer may give a default) or by one node."""
    made: set[str] = set()
    for names in (
        [value.name for value in graph.input],
        [name for node in graph.node for name in node.output if name],
    ):
        for name in names:
            if name in made:
                raise InferenceError("invalid_graph", f"The name {name!r} is given to two values.")
            made.add(name)
    initializers = [tensor.name for tensor in graph.initializer]
    initializers += [tensor.values.name for tensor in graph.sparse_initializer]
    for names in (initializers, [value.name for value in graph.output]):
        doubled = [name for name, times in Counter(names).items() if times > 1]
        if doubled:
            raise InferenceError("invalid_graph", f"The name {doubled[0]!r} is given to two values.")


def _check_acyclic(nodes: Any) -> None:
    """Order the nodes by what they need; what can't be ordered is a cycle. A subgraph needs what it captures."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waiting: list[int] = []
    feeds: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needs = {maker[name] for name in _needed(node) if name in maker}
        waiting.append(len(needs))
        for need in needs:
            feeds.setdefault(need, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    ordered = 0
    while ready:
        index = ready.pop()
        ordered += 1
        for user in feeds.get(index, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if ordered < len(nodes):
        stuck = next(node for index, node in enumerate(nodes) if waiting[index])
        raise InferenceError(
            "invalid_graph", f"The graph has a cycle through {stuck.op_type} node {stuck.name or stuck.output[0]!r}."
        )


def _needed(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads: its inputs, and whatever its subgraphs read that they do not make themselves."""
    yield from node.input
    for graph in _subgraphs([node]):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        for inner in graph.node:
            yield from (name for name in _needed(inner) if name not in own)
        yield from (value.name for value in graph.output if value.name not in own)
