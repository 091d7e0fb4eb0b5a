"""What ONNX Runtime's exceptions say, as sentences for people: no source path, no C++ signature, no status number."""

import re

from inference.errors import InferenceError

_MOST = 400

_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE = re.compile(r"/\S*onnxruntime\S*/[^\s:]+:\d+ ")
_SHORT_SOURCE = re.compile(r"\b[\w-]+\.(?:cc|h|cpp):\d+ \w+ ")
_ASSERTION = re.compile(r"^.{0,200}? was false\. ?")
_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]*")
_ADVICE = " Please fix either the inputs/outputs or the model."
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


class OutOfMemory(InferenceError):
    """The runtime could not get the memory that the model asked for."""


def sentence(error: BaseException) -> str:
    """`error` in at most 400 characters that can be shown: which node failed, if one did, and why."""
    text = " ".join(str(error).split())
    text = _STATUS.sub("", text)
    node = _NODE.search(text)
    where = ""
    if node is not None:
        where = f"{node[1]} node{f' {node[2]!r}' if node[2] else ''}: "
        text = text[node.end() :]
    while (source := _SOURCE.search(text)) is not None:
        text = text[: source.start()] + _without_signature(text[source.end() :])
    text = _SHORT_SOURCE.sub("", _STATUS.sub("", text))
    text = _ASSERTION.sub("", text) or text
    text = _PATH.sub("…", text.replace(_ADVICE, "")).strip()
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in where + text)
    return shown[:_MOST] or type(error).__name__


def _without_signature(text: str) -> str:
    """Drop the C++ function that ONNX Runtime names before its message: up to the parenthesis that closes it."""
    opened = text.find("(")
    if opened < 0:
        return text
    depth = 0
    for at in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            rest = text[at + 1 :].removeprefix("::<lambda").lstrip()
            rest = rest.removeprefix("const").lstrip()
            return rest.partition("] ")[2] if rest.startswith("[with ") else rest
    return text


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in _OUT_OF_MEMORY)


def run_error(error: BaseException) -> InferenceError:
    """The failure of a run: model_rejected_input with the runtime's reason."""
    if is_out_of_memory(error):
        return OutOfMemory("model_rejected_input", "The model needs more memory for this input than there is.")
    return InferenceError("model_rejected_input", f"The model could not compute with this input: {sentence(error)}")


_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)")
_IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_LOAD_CODES = (
    ("protobuf parsing failed", "corrupt_model"),
    ("No graph was found", "corrupt_model"),
    ("Could not find an implementation", "unsupported_operator"),
    ("is not a registered function/op", "unsupported_operator"),
    ("No Op registered for", "unsupported_operator"),
    ("No opset import for domain", "unsupported_operator"),
    ("not acyclic", "invalid_graph"),
    ("Duplicate definition", "invalid_graph"),
    ("is not a graph input, initializer", "invalid_graph"),
    ("External data", "external_data_not_allowed"),
    ("external data", "external_data_not_allowed"),
    ("MLDataType for", "unsupported_type"),
)


def load_error(error: BaseException) -> InferenceError:
    """The failure of a load under the code that fits it, `load_failed` where none does."""
    text = str(error)
    if is_out_of_memory(error):
        return OutOfMemory("load_failed", "The model needs more memory to load than there is.")
    if (opset := _OPSET.search(text)) is not None:
        return InferenceError(
            "unsupported_opset",
            f"The model uses opset {opset[1]} of {opset[2]}; this runtime supports up to opset {opset[3]}.",
        )
    if (version := _IR_VERSION.search(text)) is not None:
        return InferenceError(
            "unsupported_opset",
            f"The model uses IR version {version[1]}; this runtime supports up to IR version {version[2]}.",
        )
    for mark, code in _LOAD_CODES:
        if mark in text:
            return InferenceError(code, f"ONNX Runtime refuses the model: {sentence(error)}")
    return InferenceError("load_failed", f"ONNX Runtime could not load the model: {sentence(error)}")
