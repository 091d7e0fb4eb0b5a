"""What an uploader says of a version: task, labels, columns and the rest, read strictly and made comparable."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import msgspec

from controlplane.errors import DomainError, field_error
from inference.contracts import Activation, Column, Task
from inference.errors import InferenceError
from inference.runtime.preprocess import Pipeline

Named = TypeVar("Named", Task, Activation)

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
MOST_LABELS = 10_000
MOST_COLUMNS = 10_000
NAME_LENGTH = 200
# Control, format and bidirectional characters let one text pass for another; lone surrogates do not fit a database.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\uffff]"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{7,64}")
INTENDED_USE = ("modality", "body_part", "view", "age_range")
# Of a label's performance on record.
SHARES = ("threshold", "sensitivity", "specificity")
COUNTS = ("positives", "negatives")
MOST_CASES = 10**9


@dataclass(frozen=True, slots=True)
class Description:
    """All that is said of a version beside its bytes. `None` or empty means that validation finds it out.

    The first block is frozen when the version is ready, and is its identity together with the bytes.
    """

    task: Task | None = None
    activation: Activation | None = None
    labels: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    preprocessor: dict[str, Any] | None = None
    accepts_non_finite: bool = False

    source_commit: str = ""
    source_run_url: str = ""
    source_data_sha256: str = ""
    intended_use: dict[str, str] = field(default_factory=dict)
    performance: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    def identity(self, model_sha256: str) -> str:
        """sha256 over the bytes' hash and everything that changes what the version answers."""
        meaning = {
            "model": model_sha256,
            "task": self.task,
            "activation": self.activation,
            "labels": self.labels,
            "thresholds": self.thresholds,
            "columns": [(column.name, column.nullable) for column in self.columns],
            "preprocessor": self.preprocessor,
            "accepts_non_finite": self.accepts_non_finite,
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def with_columns(self, names: Sequence[str]) -> "Description":
        """The same with columns taken from a file's header, where none were given."""
        return self if self.columns else replace(self, columns=tuple(Column(name=name) for name in names))


def check_model_name(name: str) -> str:
    """The name itself. Raises DomainError `bad_name`: a–z, 0–9, - and _ alone, so that no two names look alike."""
    if MODEL_NAME.fullmatch(name) is None:
        raise field_error(
            "bad_name", "name", "A name has 1 to 60 characters of a–z, 0–9, - and _, and begins with a–z or 0–9."
        )
    return name


def describe(given: Mapping[str, Any]) -> Description:
    """Reads a description from form fields, JSON or a command's options; unknown fields are left alone.

    Raises DomainError: `bad_labels`, `bad_columns`, `bad_preprocessor` or `validation_error`, each naming its field.
    """
    labels = read_labels(given.get("labels"))
    return Description(
        task=_choice(given, "task", Task),
        activation=_choice(given, "activation", Activation),
        labels=labels,
        thresholds=read_thresholds(given.get("thresholds"), labels),
        columns=read_columns(given.get("columns")),
        preprocessor=read_preprocessor(given.get("preprocessor")),
        accepts_non_finite=_switch(given, "accepts_non_finite"),
        source_commit=_matching(given, "source_commit", COMMIT, "A commit is 7 to 64 hexadecimal digits."),
        source_run_url=_web_address(given, "source_run_url"),
        source_data_sha256=_matching(given, "source_data_sha256", SHA256, "A data hash is 64 hexadecimal digits."),
        intended_use=read_intended_use(given.get("intended_use")),
        performance=read_performance(given.get("performance"), labels),
        notes=read_text(given.get("notes"), "notes", 4000),
    )


def read_labels(given: Any) -> tuple[str, ...]:
    """Labels from a list, `a,b`, JSON, an `id2label` object or a Hugging Face config.json. Raises `bad_labels`."""
    value = _json_or_list(given, "bad_labels", "labels")
    if isinstance(value, dict):
        value = value.get("id2label", value)
        if not isinstance(value, dict):
            _refuse("bad_labels", "labels", "id2label is not an object.")
        numbers = [int(key) if re.fullmatch(r"[0-9]{1,6}", str(key)) else -1 for key in value]
        if sorted(numbers) != list(range(len(numbers))):
            _refuse("bad_labels", "labels", "The keys of id2label are not the numbers from 0 without a gap.")
        value = [name for _, name in sorted(zip(numbers, value.values(), strict=True), key=lambda pair: pair[0])]
    return _names(value, "bad_labels", "labels", "label", MOST_LABELS)


def read_columns(given: Any) -> tuple[Column, ...]:
    """Columns from a list of names or of {"name", "nullable", "keep"}, `a,b` or JSON. Raises `bad_columns`."""
    value = _json_or_list(given, "bad_columns", "columns")
    if isinstance(value, dict):
        _refuse("bad_columns", "columns", "Columns are a list, in the order of the model's input.")
    objects = [{"name": item} if isinstance(item, str) else item for item in value]
    columns: list[Column] = []
    for index, item in enumerate(objects):
        try:
            columns.append(msgspec.convert(item, Column))
        except msgspec.ValidationError as error:
            _refuse("bad_columns", ["columns", index], f"This is not a column: {error}.")
    _names([column.name for column in columns], "bad_columns", "columns", "column", MOST_COLUMNS)
    return tuple(columns)


def read_preprocessor(given: Any) -> dict[str, Any] | None:
    """A `preprocessor_config.json` as an object that the runtime can carry out. Raises `bad_preprocessor`."""
    if given in (None, "", b""):
        return None
    value = _json(given, "bad_preprocessor", "preprocessor")
    if not isinstance(value, dict):
        _refuse("bad_preprocessor", "preprocessor", "A preprocessor configuration is a JSON object.")
    try:
        Pipeline.from_config(value)
    except InferenceError as error:
        raise DomainError.from_inference(error) from None
    return value


def read_thresholds(given: Any, labels: Sequence[str] = ()) -> dict[str, float]:
    """Decision thresholds by label, each from 0 to 1. Raises `bad_labels` for a label that is not one of `labels`."""
    if given in (None, ""):
        return {}
    value = _json(given, "validation_error", "thresholds")
    if not isinstance(value, dict):
        _refuse("validation_error", "thresholds", "Thresholds are an object: label to a number from 0 to 1.")
    for label, threshold in value.items():
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            _refuse("validation_error", ["thresholds", label], "A threshold is a number from 0 to 1.")
        if labels and label not in labels:
            _refuse("bad_labels", ["thresholds", label], f"“{label}” is not one of the labels.")
    return {label: float(threshold) for label, threshold in value.items()}


def read_intended_use(given: Any) -> dict[str, str]:
    """Modality, body part, view and age range that the model was made for; absent ones are not stated."""
    if given in (None, ""):
        return {}
    value = _json(given, "validation_error", "intended_use")
    if not isinstance(value, dict):
        _refuse("validation_error", "intended_use", f"The intended use is an object of {', '.join(INTENDED_USE)}.")
    for name in value:
        if name not in INTENDED_USE:
            _refuse("validation_error", ["intended_use", name], f"Known are {', '.join(INTENDED_USE)}.")
    return {name: read_text(text, "intended_use", 200) for name, text in value.items() if text not in (None, "")}


def read_performance(given: Any, labels: Sequence[str] = ()) -> dict[str, Any]:
    """What is on record about a version: {"source": where it was measured, "labels": {label: SHARES and COUNTS}}.

    Raises `validation_error`, or `bad_labels` for a label that is not one of `labels`.
    """
    if given in (None, "", {}):
        return {}
    value = _json(given, "validation_error", "performance")
    if not isinstance(value, dict) or set(value) != {"source", "labels"} or not isinstance(value["labels"], dict):
        _refuse("validation_error", "performance", "The performance is an object of source and labels.")
    for label, figures in value["labels"].items():
        read_text(label, "performance", NAME_LENGTH)
        if labels and label not in labels:
            _refuse("bad_labels", ["performance", "labels", label], f"“{label}” is not one of the labels.")
        if not isinstance(figures, dict) or set(figures) != {*SHARES, *COUNTS}:
            message = f"Give {', '.join((*SHARES, *COUNTS))}."
            _refuse("validation_error", ["performance", "labels", label], message)
        for name, figure in figures.items():
            _check_figure(figure, label, name)
    return {"source": read_text(value["source"], "performance", 200), "labels": value["labels"]}


def _check_figure(figure: Any, label: str, name: str) -> None:
    where = ["performance", "labels", label, name]
    if name in COUNTS:
        if isinstance(figure, bool) or not isinstance(figure, int) or not 1 <= figure <= MOST_CASES:
            _refuse("validation_error", where, "A number of cases is a whole number from 1.")
    elif isinstance(figure, bool) or not isinstance(figure, int | float) or not 0 <= figure <= 1:
        _refuse("validation_error", where, "This is a number from 0 to 1.")


def read_text(given: Any, name: str, most: int) -> str:
    """A text for people: line breaks and tabs allowed, other control characters not. Raises `bad_text`."""
    if given is None:
        return ""
    if not isinstance(given, str):
        _refuse("validation_error", name, "This is not a text.")
    if len(given) > most:
        _refuse("validation_error", name, f"At most {most} characters.")
    if "\x00" in given or any("\ud800" <= character <= "\udfff" for character in given):
        raise field_error("bad_text", name, "The text contains U+0000 or half of a surrogate pair.")
    return given.strip()


def _names(value: Any, code: str, where: str, what: str, most: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse(code, where, f"This is not a list of {what}s.")
    if len(value) > most:
        _refuse(code, where, f"At most {most} {what}s.")
    seen: dict[str, int] = {}
    for index, name in enumerate(value):
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            _refuse(code, [where, index], f"A {what} is a text that neither begins nor ends with white space.")
        if len(name) > NAME_LENGTH or UNPRINTABLE.search(name):
            _refuse(code, [where, index], f"A {what} has at most {NAME_LENGTH} printable characters.")
        if name in seen:
            _refuse(
                code, [where, index], f"The {what} “{name}” is there twice, as number {seen[name] + 1} and {index + 1}."
            )
        seen[name] = index
    return tuple(value)


def _json_or_list(given: Any, code: str, where: str) -> Any:
    """A value from JSON, or a list from `a,b`; an empty one is an empty list."""
    if given in (None, "", b"", ()):
        return []
    if isinstance(given, str) and given.lstrip()[:1] not in ("[", "{"):
        return [part.strip() for part in given.split(",")]
    return _json(given, code, where)


def _json(given: Any, code: str, where: str) -> Any:
    if not isinstance(given, str | bytes):
        return list(given) if isinstance(given, tuple) else given
    try:
        text = given.decode("utf-8-sig") if isinstance(given, bytes) else given
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_key_once)
    except UnicodeDecodeError:
        _refuse(code, where, "The file is not UTF-8.")
    except json.JSONDecodeError as error:
        _refuse(code, where, f"This is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.")
    except (ValueError, RecursionError):
        _refuse(code, where, "The JSON has NaN, a key twice, a number with too many digits, or is nested too deeply.")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _choice(given: Mapping[str, Any], name: str, kind: type[Named]) -> Named | None:
    value = given.get(name)
    if value in (None, ""):
        return None
    try:
        return kind(value)
    except ValueError:
        _refuse("validation_error", name, f"Known are {', '.join(kind)}.")


def _switch(given: Mapping[str, Any], name: str) -> bool:
    value = str(given.get(name) or "").lower()
    if value not in ("", "0", "1", "true", "false", "on", "off"):
        _refuse("validation_error", name, "This is true or false.")
    return value in ("1", "true", "on")


def _matching(given: Mapping[str, Any], name: str, pattern: re.Pattern[str], sentence: str) -> str:
    value = read_text(given.get(name), name, 100).lower()
    if value and pattern.fullmatch(value) is None:
        _refuse("validation_error", name, sentence)
    return value


def _web_address(given: Mapping[str, Any], name: str) -> str:
    value = read_text(given.get(name), name, 200)
    if value and re.fullmatch(r"https?://[^\s<>\"']+", value) is None:
        _refuse("validation_error", name, "This is not an http or https address.")
    return value


def _refuse(code: str, where: str | Sequence[str | int], message: str) -> NoReturn:
    raise field_error(code, where, message)
