"""What a piece of feedback says, read from a request, and whether it fits the version it speaks of."""

import math
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.dateparse import parse_datetime

from controlplane.catalog.models import ModelVersion
from controlplane.errors import DomainError, field_error
from inference.contracts import Task

COMMENT_LENGTH = 2_000
LABEL_LENGTH = 200
LABELS = 1_000
CLOCK_SLACK = timedelta(seconds=60)
ONE_LABEL = (Task.TABULAR_CLASSIFICATION, Task.IMAGE_CLASSIFICATION)


@dataclass(frozen=True, slots=True)
class Statement:
    """One row of feedback: which prediction, and what was true. `truth` is {} for an ungradable case."""

    truth: dict[str, Any]
    prediction_id: uuid.UUID | None = None
    deployment: str = ""
    client_id: str = ""
    certainty: float | None = None
    ungradable: bool = False
    comment: str = ""
    observed_at: datetime | None = None
    # When it was said, where that is not now: of history that is filled in, never of a request.
    given_at: datetime | None = None
    # Whether it was said before the model's answer was seen; None where nobody can tell.
    blind: bool | None = None


def read_statement(row: Any, now: datetime, prediction_id: uuid.UUID | None = None) -> Statement:
    """The statement in a JSON object. Raises DomainError naming the field that is wrong."""
    if not isinstance(row, dict):
        raise DomainError("validation_error", "A feedback is a JSON object.")
    known = {"prediction_id", "deployment", "client_id", "label", "labels", "value", "certainty", "ungradable",
             "comment", "observed_at"}  # fmt: skip
    for name in row:
        if name not in known:
            raise field_error("validation_error", str(name)[:60], f"There is no field “{str(name)[:60]}”.")
    deployment = client_id = ""
    if prediction_id is None:
        prediction_id, deployment, client_id = _names(row)
    ungradable = row.get("ungradable", False)
    if not isinstance(ungradable, bool):
        raise field_error("validation_error", "ungradable", "Say true or false.")
    return Statement(
        truth={} if ungradable else _truth(row),
        prediction_id=prediction_id,
        deployment=deployment,
        client_id=client_id,
        certainty=_certainty(row.get("certainty")),
        ungradable=ungradable,
        comment=_text(row.get("comment") or "", "comment", COMMENT_LENGTH),
        observed_at=_observed_at(row.get("observed_at"), now),
    )


def _names(row: dict[str, Any]) -> tuple[uuid.UUID | None, str, str]:
    if row.get("prediction_id") is not None:
        return parse_id(row["prediction_id"]), "", ""
    if row.get("deployment") is None or row.get("client_id") in (None, ""):
        raise field_error("validation_error", "prediction_id", "Name prediction_id, or deployment and client_id.")
    return None, _text(row["deployment"], "deployment", 60), _text(row["client_id"], "client_id", 128)


def parse_id(value: Any) -> uuid.UUID:
    """A prediction id out of a request. Raises DomainError validation_error."""
    if isinstance(value, str) and len(value) == 36:
        try:
            return uuid.UUID(value)
        except ValueError:
            pass
    raise field_error("validation_error", "prediction_id", "This is not a prediction id.")


def _truth(row: dict[str, Any]) -> dict[str, Any]:
    given = [name for name in ("label", "labels", "value") if row.get(name) is not None]
    if len(given) != 1:
        raise field_error("validation_error", given[-1] if given else "label", "Give one of label, labels and value.")
    name = given[0]
    value = row[name]
    if name == "value":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise field_error("validation_error", "value", "A value is a finite number.")
        return {"value": value}
    if name == "label":
        return {"label": _label(value, ["label"])}
    if not isinstance(value, list) or len(value) > LABELS:
        raise field_error("validation_error", "labels", f"labels is a list of at most {LABELS} labels.")
    return {"labels": [_label(item, ["labels", index]) for index, item in enumerate(value)]}


def _label(value: Any, path: list[str | int]) -> str:
    # Class names that are numbers are often sent as numbers.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return _text(value, path, LABEL_LENGTH)


def _certainty(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise field_error("validation_error", "certainty", "A certainty is a number from 0 to 1.")
    return float(value)


def _observed_at(value: Any, now: datetime) -> datetime | None:
    if value is None:
        return None
    try:
        moment = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise field_error("validation_error", "observed_at", "A time reads 2026-03-01T12:00:00Z, with its time zone.")
    if moment > now + CLOCK_SLACK:
        raise field_error("validation_error", "observed_at", "This time lies in the future.")
    return moment


def _text(value: Any, path: str | list[str | int], most: int) -> str:
    if not isinstance(value, str):
        raise field_error("validation_error", path, "A text is needed here.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise field_error("bad_text", path, "The text contains U+0000 or half of a surrogate pair.")
    if len(value) > most:
        raise field_error("validation_error", path, f"The text is longer than {most} characters.")
    return value


def check_fits(statement: Statement, version: ModelVersion, rows: int, scores: dict[str, Any] | None) -> None:
    """Raises DomainError where the truth is none that this version could have told, or has the wrong form."""
    if statement.ungradable:
        return
    task, truth = Task(version.task), statement.truth
    if task is Task.TABULAR_REGRESSION:
        if "value" not in truth:
            raise field_error("validation_error", next(iter(truth)), "The model predicts a number: give value.")
        if rows > 1:
            raise field_error("validation_error", "value", f"The call had {rows} rows: feedback speaks of single ones.")
    if task in (Task.TABULAR_REGRESSION, Task.TENSOR):
        return
    if "value" in truth:
        raise field_error("validation_error", "value", "The model predicts a label: give label.")
    classes = set(version.labels) or set(scores or ())
    for index, label in enumerate(truth.get("labels", ())):
        _check_label(label, classes, ["labels", index])
    if "label" in truth:
        _check_label(truth["label"], classes, ["label"])
    if task is Task.RANKING and rows > 1:
        message = f"The call had {rows} rows: feedback speaks of single ones."
        raise field_error("validation_error", next(iter(truth)), message)
    if task in ONE_LABEL:
        given = len(truth["labels"]) if "labels" in truth else 1
        if given != max(1, rows):
            raise field_error(
                "validation_error",
                next(iter(truth)),
                f"The call had {rows} rows: give that many labels, in their order.",
            )


def _check_label(label: str, classes: set[str], path: list[str | int]) -> None:
    if classes and label not in classes:
        some = ", ".join(sorted(classes)[:20])
        raise field_error("unknown_label", path, f"“{label[:60]}” is none of the version's labels: {some}.")
