"""Answers and rows on the wire as the values of `results`, and back. Raises ServerError for answers of another form."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import httpx

from signalbox_client import tensors
from signalbox_client.errors import FieldError, JobFailed, ServerError, kind_of
from signalbox_client.replies import document_of, rate_limit_of, unexpected, whole
from signalbox_client.results import (
    Deployment,
    Feedback,
    FeedbackRefused,
    FeedbackReport,
    FeedbackTaken,
    JobResult,
    JobState,
    Metadata,
    PicturePrediction,
    RowsPrediction,
    TensorPrediction,
    TensorSpec,
)

# What became of feedback, by HTTP status.
TAKEN = {200: "known", 201: "counted", 202: "pending"}


def _answered(response: httpx.Response, warnings: tuple[str, ...]) -> dict[str, Any]:
    """The fields of `Answered`."""
    headers = response.headers
    return {
        "prediction_id": headers.get("x-prediction-id", ""),
        "version": whole(headers.get("x-model-version")),
        "split_revision": whole(headers.get("x-split-revision")),
        "request_id": headers.get("x-request-id", ""),
        "client_id": headers.get("x-client-id", ""),
        "warnings": warnings,
        "rate_limit": rate_limit_of(headers),
    }


def tensor_prediction(response: httpx.Response) -> TensorPrediction:
    outputs, document = tensors.decode(response)
    parameters = document.get("parameters")
    warning = parameters.get("warnings") if isinstance(parameters, dict) else None
    return TensorPrediction(outputs=outputs, **_answered(response, (str(warning),) if warning else ()))


def rows_prediction(response: httpx.Response) -> RowsPrediction:
    document = document_of(response)
    predictions = document.get("predictions")
    if not isinstance(predictions, list):
        raise unexpected(response, "The answer has no predictions.")
    return RowsPrediction(predictions=predictions, **_answered(response, _warnings(document)))


def picture_prediction(response: httpx.Response) -> PicturePrediction:
    document = document_of(response)
    try:
        (told,) = document["predictions"]
        scores = {str(label): float(score) for label, score in told["scores"].items()}
        label, labels = told["label"], tuple(told.get("labels", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(response, "The answer is not the scores of one picture.") from error
    return PicturePrediction(scores=scores, label=label, labels=labels, **_answered(response, _warnings(document)))


def _warnings(document: Mapping[str, Any]) -> tuple[str, ...]:
    listed = document.get("warnings")
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def metadata(document: Mapping[str, Any]) -> Metadata:
    try:
        return Metadata(
            name=document["name"],
            versions=tuple(map(int, document.get("versions", ()))),
            platform=document.get("platform", ""),
            inputs=tuple(map(_spec, document["inputs"])),
            outputs=tuple(map(_spec, document["outputs"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _form("a model's metadata") from error


def _spec(told: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(told["name"], told["datatype"], tuple(map(int, told["shape"])))


def version_of(document: Mapping[str, Any]) -> int:
    """The version that V1 metadata speaks of."""
    try:
        return int(document["model_spec"]["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise _form("a model's metadata") from error


def deployment(told: Mapping[str, Any]) -> Deployment:
    try:
        split = told["split"] or {}
        return Deployment(
            name=told["name"],
            model=told["model"],
            team=told["team"],
            description=told["description"],
            lane=told["lane"],
            split_revision=split.get("revision"),
            shares={int(number): float(share) for number, share in split.get("shares", {}).items()},
            shadow={int(number): float(share) for number, share in split.get("shadow", {}).items()},
            labels=dict(told["labels"]),
            max_rows=told["max_rows"],
            max_body_bytes=told["max_body_bytes"],
            retired=told["retired_at"] is not None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _form("a list of deployments") from error


def job(response: httpx.Response) -> JobState:
    told = document_of(response)
    try:
        error = told["error"] or {}
        return JobState(
            id=told["id"],
            status=told["status"],
            deployment=told["deployment"],
            version=int(told["version"]),
            client_id=told["client_id"],
            prediction_id=told["prediction_id"],
            progress=float(told["progress"]),
            attempts=int(told["attempts"]),
            warnings=_warnings(told),
            created_at=_moment(told["created_at"]),
            finished_at=_moment(told["finished_at"]) if told["finished_at"] else None,
            result=told["result"],
            error_code=error.get("code", ""),
            error_message=error.get("detail", ""),
            request_id=response.headers.get("x-request-id", ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(response, "The answer does not read like a job.") from error


def _moment(text: str) -> datetime:
    # Python 3.10 reads no Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _form(what: str) -> ServerError:
    return ServerError(f"The answer does not read like {what}.", code="unexpected_answer")


def feedback_row(one: Feedback) -> dict[str, Any]:
    """The row on the wire. Raises ValueError or TypeError for what says nothing, or names no prediction."""
    if not isinstance(one, Feedback):
        raise TypeError("A batch is of Feedback.")
    row: dict[str, Any] = {}
    if one.prediction_id is not None:
        row["prediction_id"] = one.prediction_id
    elif one.deployment and one.client_id:
        row |= {"deployment": one.deployment, "client_id": one.client_id}
    else:
        raise ValueError("Feedback names prediction_id, or deployment and client_id.")
    if one.ungradable:
        if one.truth is not None:
            raise ValueError("What is ungradable has no truth.")
        row["ungradable"] = True
    else:
        row |= _truth(one.truth)
    if one.certainty is not None:
        row["certainty"] = one.certainty
    if one.comment:
        row["comment"] = one.comment
    if one.observed_at is not None:
        if one.observed_at.tzinfo is None:
            raise ValueError("observed_at needs its time zone.")
        row["observed_at"] = one.observed_at.isoformat()
    return row


def _truth(truth: Any) -> dict[str, Any]:
    if isinstance(truth, str):
        return {"label": truth}
    if isinstance(truth, (list, tuple)):
        return {"labels": list(truth)}
    if hasattr(truth, "item"):
        truth = truth.item()
    if isinstance(truth, bool) or not isinstance(truth, (int, float)):
        raise TypeError("A truth is a label (text), a list of labels, or a number; a number that is a class, as text.")
    return {"value": truth}


def joined(report: FeedbackReport, told: Mapping[str, Any], start: int) -> FeedbackReport:
    """The report of a batch with that of its next part, which began at row `start`."""
    try:
        refused = tuple(_refused(result, start) for result in told["results"] if result["status"] >= 400)
        counted, pending = report.counted + told["counted"], report.pending + told["pending"]
    except (KeyError, TypeError) as error:
        raise _form("a report on feedback") from error
    return FeedbackReport(counted, pending, report.refused + refused)


def _refused(result: Mapping[str, Any], start: int) -> FeedbackRefused:
    return FeedbackRefused(
        index=start + result["index"],
        status=result["status"],
        code=result["code"],
        message=result["detail"],
        errors=tuple(FieldError(tuple(each["loc"]), each["msg"]) for each in result["errors"]),
        retryable=result["retryable"],
    )


def taken(told: Mapping[str, Any]) -> FeedbackTaken:
    """What became of the only row of a batch. Raises SignalboxError where it was refused."""
    try:
        (result,) = told["results"]
        if result["status"] < 400:
            return FeedbackTaken(TAKEN.get(result["status"], "counted"), result["prediction_id"])
        refused = _refused(result, 0)
    except (KeyError, TypeError, ValueError) as error:
        raise _form("a report on feedback") from error
    raise kind_of(refused.status)(
        refused.message,
        status=refused.status,
        code=refused.code,
        errors=refused.errors,
        retryable=refused.retryable,
    )


def job_result(state: JobState) -> JobResult:
    """The result of a job that ended. Raises JobFailed where it has none."""
    if state.status != "succeeded" or state.result is None:
        message = state.error_message or f"The job was {state.status}, and nothing of its result is told."
        code = state.error_code or state.status
        raise JobFailed(message, code=code, job_id=state.id, request_id=state.request_id)
    return JobResult(
        job_id=state.id,
        prediction_id=state.prediction_id or "",
        version=state.version,
        scores=state.result.get("scores") or {},
        outputs=state.result.get("outputs") or {},
        warnings=state.warnings,
    )
