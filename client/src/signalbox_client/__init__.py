"""Python client of Signalbox: predictions in binary tensors, rows and pictures, feedback, jobs.

from signalbox_client import Client

with Client() as signalbox:  # SIGNALBOX_URL and SIGNALBOX_KEY
    answer = signalbox.predict("card-fraud", array)
    print(answer.output, answer.version)
"""

from signalbox_client.client import AsyncClient, AsyncJob, Client, Job
from signalbox_client.errors import (
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    Forbidden,
    InvalidInput,
    JobFailed,
    NotAuthenticated,
    NotFound,
    Overloaded,
    RateLimit,
    RateLimited,
    ServerError,
    SignalboxError,
)
from signalbox_client.options import CallOptions
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
from signalbox_client.retrying import Deadline, Retrying

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "CallOptions",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Deadline",
    "DeadlineExceeded",
    "Deployment",
    "Feedback",
    "FeedbackRefused",
    "FeedbackReport",
    "FeedbackTaken",
    "FieldError",
    "Forbidden",
    "InvalidInput",
    "Job",
    "JobFailed",
    "JobResult",
    "JobState",
    "Metadata",
    "NotAuthenticated",
    "NotFound",
    "Overloaded",
    "PicturePrediction",
    "RateLimit",
    "RateLimited",
    "Retrying",
    "RowsPrediction",
    "ServerError",
    "SignalboxError",
    "TensorPrediction",
    "TensorSpec",
]
