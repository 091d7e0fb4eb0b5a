"""Every error code of Signalbox, once: what it means, the status both interfaces answer, whether a retry can help.

`docs/errors.md` is made from `TABLE`. Raise `InferenceError(code, sentence)`; the edge looks the status up.
"""

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict


class Located(TypedDict):
    """One place that is wrong: `loc` is the path to it ("instances", 3, "amount"), `msg` how to mend it."""

    loc: list[str | int]
    msg: str


class ErrorBody(TypedDict):
    """The data plane's error body; V1 and V2 clients read `error`."""

    error: str
    code: str
    errors: list[Located]
    retryable: bool
    request_id: str
    job: NotRequired[str]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table."""

    status: int
    meaning: str
    retryable: bool = False


TABLE: dict[str, ErrorKind] = {
    # The call itself
    "empty_body": ErrorKind(400, "The body is empty."),
    "bad_json": ErrorKind(400, "The body is not one well-formed JSON document."),
    "bad_encoding": ErrorKind(400, "The body is not UTF-8."),
    "non_finite": ErrorKind(400, "NaN or an infinity was sent, and the model does not accept them."),
    "too_deep": ErrorKind(400, "The JSON is nested deeper than 64 levels."),
    "duplicate_key": ErrorKind(400, "An object names the same key twice."),
    "bad_header": ErrorKind(400, "A header has a value that cannot be read."),
    "bad_binary": ErrorKind(400, "The binary tensor part does not match the header's lengths."),
    "bad_request": ErrorKind(400, "The request is malformed."),
    "not_authenticated": ErrorKind(401, "No key was sent, or the key is unknown, revoked or expired."),
    "forbidden": ErrorKind(403, "The key or the person lacks the right to do this."),
    "csrf_failed": ErrorKind(403, "The form's token is missing or has expired."),
    "not_found": ErrorKind(404, "There is no such thing, or it belongs to another team."),
    "method_not_allowed": ErrorKind(405, "The address exists, the method is not allowed on it."),
    "body_too_slow": ErrorKind(408, "The body arrived too slowly, or stopped arriving.", retryable=True),
    "gone": ErrorKind(410, "It was archived or retired."),
    "length_required": ErrorKind(411, "The body's length must be declared."),
    "too_large": ErrorKind(413, "The body is larger than the cap."),
    "batch_too_large": ErrorKind(413, "The call has more rows than the deployment accepts."),
    "unsupported_media_type": ErrorKind(415, "The Content-Type or Content-Encoding is not supported."),
    # What was asked of a model
    "invalid_input": ErrorKind(422, "The input does not fit the model's signature."),
    "unknown_feature": ErrorKind(422, "A feature is missing, misspelt or unknown."),
    "wrong_shape": ErrorKind(422, "The input's shape does not fit the model's signature."),
    "wrong_type": ErrorKind(422, "A cell has the wrong type."),
    "out_of_range": ErrorKind(422, "A number does not fit the input's datatype."),
    "bad_text": ErrorKind(422, "A text contains U+0000 or half of a surrogate pair."),
    "model_rejected_input": ErrorKind(422, "The model could not compute with this input."),
    "non_finite_output": ErrorKind(422, "The model answered with NaN or an infinity for this input."),
    "validation_error": ErrorKind(422, "A field of the request is wrong."),
    # Pictures
    "not_an_image": ErrorKind(415, "The file is not a PNG, JPEG or DICOM picture."),
    "corrupt_image": ErrorKind(422, "The picture is damaged or incomplete."),
    "too_many_pixels": ErrorKind(422, "The picture has more pixels than the cap."),
    "unsupported_image": ErrorKind(422, "The picture is of a kind that is not supported (animated or several pages)."),
    "unsupported_object": ErrorKind(422, "The DICOM file holds no supported picture."),
    "unsupported_transfer_syntax": ErrorKind(422, "The DICOM transfer syntax is not supported or its data is corrupt."),
    "pixel_mismatch": ErrorKind(422, "The DICOM pixel data does not have the length its header says."),
    # Routing
    "no_active_version": ErrorKind(503, "The deployment has no active split.", retryable=True),
    "not_ready": ErrorKind(409, "The version is not ready to take traffic.", retryable=True),
    "version_not_ready": ErrorKind(503, "The version is still loading.", retryable=True),
    "model_memory": ErrorKind(503, "The model does not fit into the memory that is left for models.", retryable=True),
    "conflict": ErrorKind(409, "The state has changed, or the request contradicts it."),
    "idempotency_conflict": ErrorKind(409, "This Idempotency-Key was used with another body."),
    "stale_revision": ErrorKind(409, "Someone else changed the split in between."),
    "rate_limited": ErrorKind(429, "The key's rate limit is reached.", retryable=True),
    "quota_exceeded": ErrorKind(429, "The key's quota of calls for today (UTC) is used up.", retryable=True),
    "overloaded": ErrorKind(503, "Too many calls are in progress; nothing was computed.", retryable=True),
    "shutting_down": ErrorKind(503, "The process is stopping; another will answer.", retryable=True),
    "upstream_unavailable": ErrorKind(503, "The control plane does not answer right now.", retryable=True),
    "deadline_exceeded": ErrorKind(504, "The deadline passed before the answer was ready.", retryable=True),
    "storage_full": ErrorKind(507, "There is not enough space to store this.", retryable=True),
    "internal": ErrorKind(500, "Something failed inside; the request id finds it in the log.", retryable=True),
    # Uploads of models
    "not_onnx": ErrorKind(422, "The file is not an ONNX model."),
    "corrupt_model": ErrorKind(422, "The ONNX file is damaged or incomplete."),
    "unsupported_opset": ErrorKind(422, "The model needs a newer opset or IR version than the runtime has."),
    "unsupported_operator": ErrorKind(422, "The model uses an operator or domain that the runtime does not have."),
    "invalid_graph": ErrorKind(422, "The graph is not valid: cyclic, duplicate names or no outputs."),
    "external_data_not_allowed": ErrorKind(422, "The model refers to data outside the file."),
    "unsupported_type": ErrorKind(422, "An input or output has a type that cannot be served."),
    "validation_failed": ErrorKind(422, "Validation ended by memory, time or a crash."),
    "load_failed": ErrorKind(422, "The runtime could not load the model."),
    "bad_golden": ErrorKind(422, "The golden inputs cannot be read or do not fit the model."),
    "golden_mismatch": ErrorKind(422, "The golden inputs do not give the golden outputs."),
    "sample_failed": ErrorKind(422, "The model fails on the sample input."),
    "bad_name": ErrorKind(422, "The name is not allowed."),
    "bad_labels": ErrorKind(422, "The labels do not fit the model."),
    "bad_columns": ErrorKind(422, "The columns do not fit the model."),
    "bad_preprocessor": ErrorKind(422, "The preprocessor configuration cannot be used."),
    "bad_reference": ErrorKind(422, "The reference set does not fit the model."),
    # Splits, jobs, feedback
    "must_total_100": ErrorKind(422, "The live shares must total exactly 100.00 %."),
    "unknown_version": ErrorKind(422, "The split names a version that cannot take traffic."),
    "unknown_label": ErrorKind(422, "The label is not one of the version's labels."),
    "feedback_window_closed": ErrorKind(410, "The prediction is past its retention; feedback is no longer accepted."),
    "cancelled": ErrorKind(409, "The job was cancelled."),
    "attempts_exhausted": ErrorKind(503, "The job failed three times.", retryable=True),
    "worker_lost": ErrorKind(503, "The worker died while it ran this.", retryable=True),
}


@dataclass(slots=True)
class InferenceError(Exception):
    """An expected failure: `code` is a key of TABLE, `message` one sentence for the caller that leaks no path or stack.

    `errors` points at what is wrong; `headers` are sent with the answer (Retry-After, Allow).
    """

    code: str
    message: str = ""
    errors: list[Located] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.message:
            self.message = TABLE[self.code].meaning
        Exception.__init__(self, self.code, self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        return TABLE[self.code].status

    @property
    def retryable(self) -> bool:
        return TABLE[self.code].retryable
