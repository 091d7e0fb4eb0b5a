"""What calls answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy.typing as npt

from signalbox_client.errors import FieldError, RateLimit


@dataclass(frozen=True)
class Answered:
    """What every prediction tells of itself.

    prediction_id: keep it to say later what was true. version: the number of the version that answered.
    split_revision: the split that chose it. request_id: finds the call in the server's log. client_id: yours, "" where
    none was sent. warnings: sentences. rate_limit: what the key has left, None where it has no limit.
    """

    prediction_id: str
    version: int
    split_revision: int
    request_id: str
    client_id: str
    warnings: tuple[str, ...]
    rate_limit: RateLimit | None


@dataclass(frozen=True)
class TensorPrediction(Answered):
    """Outputs by name. Arrays of numbers are read-only views of the answer: `.copy()` what you want to change."""

    outputs: Mapping[str, npt.NDArray[Any]]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.outputs[name]

    @property
    def output(self) -> npt.NDArray[Any]:
        """The only output. Raises ValueError where there are several."""
        if len(self.outputs) != 1:
            raise ValueError(f"There are {len(self.outputs)} outputs: {', '.join(self.outputs)}.")
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class RowsPrediction(Answered):
    """One answer a row, in order: its value, a dict by output name where there are several, or scores and label."""

    predictions: Sequence[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.predictions)

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, index: int) -> Any:
        return self.predictions[index]


@dataclass(frozen=True)
class PicturePrediction(Answered):
    """A score by label. label: None where nothing is above its threshold. labels: of multi-label tasks, those at or
    above their threshold, highest first. A score is not a probability unless the model was calibrated.
    """

    scores: Mapping[str, float]
    label: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: `shape` has -1 for sizes that the caller chooses, `datatype` is of the protocol (FP32)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """What a deployment takes and gives; of a split, as the version with most of the traffic has it."""

    name: str
    versions: tuple[int, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Deployment:
    """A deployment. shares, shadow: per cent by version number, of the active split (empty without one)."""

    name: str
    model: str
    team: str
    description: str
    lane: str
    split_revision: int | None
    shares: Mapping[int, float]
    shadow: Mapping[int, float]
    labels: Mapping[str, int]
    max_rows: int
    max_body_bytes: int
    retired: bool


@dataclass(frozen=True)
class Feedback:
    """What really happened. Names the prediction by its id, or by deployment and your own client id (its latest).

    truth: a text is a label, several are labels (one a row of the call, or those of a multi-label case), a number is a
    regression's value. A class whose name is a number is given as text. certainty: 0 to 1. ungradable: nobody can
    tell; then without truth. observed_at: with its time zone.
    """

    truth: str | Sequence[str] | float | None = None
    prediction_id: str | None = None
    deployment: str | None = None
    client_id: str | None = None
    certainty: float | None = None
    ungradable: bool = False
    comment: str = ""
    observed_at: datetime | None = None


@dataclass(frozen=True)
class FeedbackTaken:
    """status: `counted`, `known` (the same was said before) or `pending` (the log does not have the prediction yet)."""

    status: str
    prediction_id: str | None


@dataclass(frozen=True)
class FeedbackRefused:
    """One row of a batch that was refused. index: its place in the batch. status: of HTTP, had it come alone."""

    index: int
    status: int
    code: str
    message: str
    errors: tuple[FieldError, ...]
    retryable: bool


@dataclass(frozen=True)
class FeedbackReport:
    """Of a batch: how many were counted or known, how many wait for their prediction, and each that was refused."""

    counted: int
    pending: int
    refused: tuple[FeedbackRefused, ...]


@dataclass(frozen=True)
class JobResult:
    """scores: by label, empty where the task has none. outputs: nested lists by output name, as JSON gives them."""

    job_id: str
    prediction_id: str
    version: int
    scores: Mapping[str, float]
    outputs: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class JobState:
    """A job as it was when asked. status: queued, running, succeeded, failed or cancelled. progress: 0 to 1."""

    id: str
    status: str
    deployment: str
    version: int
    client_id: str
    prediction_id: str | None
    progress: float
    attempts: int
    warnings: tuple[str, ...]
    created_at: datetime
    finished_at: datetime | None
    result: Mapping[str, Any] | None
    error_code: str
    error_message: str
    request_id: str = field(default="", compare=False)

    @property
    def is_final(self) -> bool:
        return self.status not in ("queued", "running")
