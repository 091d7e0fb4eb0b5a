"""The shapes that both wings share: what is published to the data plane, what it spools, what validation reports.

Standard library and msgspec only. Shapes are given in the Open Inference Protocol's words: a shape is a tuple of
ints, -1 for a dimension that the caller chooses; a datatype is one of `Datatype`.
"""

from enum import StrEnum
from typing import Any, Literal

import msgspec

BASIS_POINTS = 10_000
SCHEMA_VERSION = 1

# Defaults of a deployment. More rows in a run gain little on a CPU and delay the first caller.
MAX_BATCH_ROWS = 64
MAX_WAIT_MS = 5.0
CACHE_BYTES = 16 * 1024 * 1024
# Calls of one deployment in progress in one serving process: a quarter of what the process lets in.
MAX_IN_FLIGHT = 128


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every published shape: immutable, named fields, unknown fields ignored so that old readers live on."""


class Datatype(StrEnum):
    """Open Inference Protocol V2 datatypes, https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


class Task(StrEnum):
    TABULAR_CLASSIFICATION = "tabular-classification"
    TABULAR_REGRESSION = "tabular-regression"
    IMAGE_CLASSIFICATION = "image-classification"
    IMAGE_MULTILABEL = "image-multilabel"
    RANKING = "ranking"
    TENSOR = "tensor"

    @property
    def takes_pictures(self) -> bool:
        return self in (Task.IMAGE_CLASSIFICATION, Task.IMAGE_MULTILABEL)


class Activation(StrEnum):
    """What is still to be applied to the graph's score output before it reads as scores."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Lane(StrEnum):
    AUTO = "auto"
    INLINE = "inline"
    EXECUTOR = "executor"
    JOB = "job"


class Role(StrEnum):
    LIVE = "live"
    SHADOW = "shadow"


class Source(StrEnum):
    """Where a logged prediction came from; only LIVE and SHADOW enter rollups that guards and experiments read."""

    LIVE = "live"
    SHADOW = "shadow"
    TEST = "test"
    DEMO = "demo"


class Scope(StrEnum):
    PREDICT = "predict"
    PIN = "pin"
    FEEDBACK = "feedback"
    READ = "read"
    UPLOAD = "upload"
    DEPLOY = "deploy"
    ADMIN = "admin"


class Column(Frozen, frozen=True, kw_only=True):
    """One named feature: position in the model's input, and whether null or NaN is allowed as a missing value."""

    name: str
    nullable: bool = False
    # What the prediction log keeps of it: a payload policy, see CapturePolicy.
    keep: Literal["keep", "hash", "drop"] = "keep"


class TensorSpec(Frozen, frozen=True, kw_only=True):
    """One input or output of a graph: `shape` has -1 for dynamic dimensions, `dims` their names in the file or ""."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    dims: tuple[str, ...] = ()


class Signature(Frozen, frozen=True, kw_only=True):
    """What a model takes and gives.

    `batched`: the first dimension of every input and output is dynamic, so rows of several callers may share a run.
    `score_output`: index of the output that activation, labels and thresholds speak of (probabilities or logits).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    score_output: int = 0


class VersionRoute(Frozen, frozen=True, kw_only=True):
    """A ready model version as the data plane and the workers need it."""

    id: str
    model: str
    number: int
    artifact_sha256: str
    artifact_bytes: int
    signature: Signature
    task: Task
    activation: Activation = Activation.NONE
    labels: tuple[str, ...] = ()
    thresholds: dict[str, float] = {}
    columns: tuple[Column, ...] = ()
    preprocessor: dict[str, Any] | None = None
    # Median seconds of a one-row run as measured at validation; the lane `auto` starts from it and measures again.
    cost_s: float = 0.0
    # Bytes that the loaded model takes, as measured at validation; None where that was not measured.
    memory_bytes: int | None = None
    # The model accepts NaN and infinities (declared by its owner); otherwise they are refused.
    accepts_non_finite: bool = False


class CapturePolicy(Frozen, frozen=True, kw_only=True):
    """What of a prediction is written to the log. Rollups always count everything.

    `payload_share`: share (0..1) of predictions whose payload is kept. `hash_salt`: hex, for hashed columns.
    """

    payload_share: float = 1.0
    retention_days: int = 30
    hash_salt: str = ""


class Share(Frozen, frozen=True, kw_only=True):
    """A version's part of the traffic in basis points; live shares of a deployment total 10,000."""

    number: int
    basis_points: int


class DeploymentRoute(Frozen, frozen=True, kw_only=True):
    """One deployment at one split revision. `live` is ordered by version number; `versions` is keyed by number."""

    id: str
    name: str
    team_id: str
    model: str
    revision: int
    salt: str
    task: Task
    lane: Lane = Lane.AUTO
    live: tuple[Share, ...] = ()
    shadow: tuple[Share, ...] = ()
    # Every ready version of the deployment's model that has a share, a label, or may be pinned.
    versions: dict[int, VersionRoute] = {}
    labels: dict[str, int] = {}
    capture: CapturePolicy = CapturePolicy()
    max_rows: int = 4096
    max_body_bytes: int = 64 * 1024 * 1024
    # Of runs that calls share in the executor lane: rows at most (1: no sharing), and for how long a call is held back
    # for others while it could run (0: it shares with what waits already). See `inference.pacing`.
    max_batch_rows: int = MAX_BATCH_ROWS
    max_wait_ms: float = MAX_WAIT_MS
    # Seconds for which an answer may be given again to the same input (0: it never is), and bytes of answers that a
    # process keeps. See `inference.server.cache`.
    cache_ttl_s: float = 0.0
    cache_bytes: int = CACHE_BYTES
    # Calls in progress at most in one serving process, waiting and running; a call that is answered at once is none.
    max_in_flight: int = MAX_IN_FLIGHT
    # Set for a deployment that was retired: calls are answered 410.
    retired: bool = False


class Routes(Frozen, frozen=True, kw_only=True):
    """The routes document: published in two phases (prepared by every live process, then activated)."""

    generation: int
    deployments: tuple[DeploymentRoute, ...] = ()
    schema: int = SCHEMA_VERSION


class AccessKey(Frozen, frozen=True, kw_only=True):
    """An API key as the data plane knows it: `digest` is the hex sha256 of the whole key. Times are Unix seconds.

    `deployments`: ids the key may call; None means every deployment of its team.
    `rate_per_minute`, `quota_per_day` (a day of UTC): None means no limit.
    """

    id: str
    digest: str
    team_id: str
    scopes: tuple[Scope, ...]
    deployments: tuple[str, ...] | None = None
    expires_at: float | None = None
    revoked: bool = False
    test: bool = False
    rate_per_minute: int | None = None
    quota_per_day: int | None = None


class Access(Frozen, frozen=True, kw_only=True):
    """The access document: applied at once by every process. Revoked and expired keys stay listed for a while."""

    generation: int
    keys: tuple[AccessKey, ...] = ()
    schema: int = SCHEMA_VERSION


class Outcome(StrEnum):
    OK = "ok"
    CLIENT_ERROR = "client_error"
    SERVER_ERROR = "server_error"
    SHED = "shed"
    TIMEOUT = "timeout"

    @classmethod
    def of_refusal(cls, status: int) -> "Outcome":
        """What a call was that an error of this status refused before anything was computed."""
        if status in (429, 503):
            return cls.SHED
        if status == 504:
            return cls.TIMEOUT
        return cls.SERVER_ERROR if status >= 500 else cls.CLIENT_ERROR


class SpoolFacts(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"schema": "v"}):
    """What a line of the spool says of a call, but for its payload: a prediction, or a call that was refused (then `id`
    is its request id and `code` is set). Times: `at` Unix seconds of arrival; `*_ms` milliseconds.
    """

    id: str
    at: float
    source: Source
    deployment_id: str = ""
    version_id: str = ""
    version: int = 0
    key_id: str = ""
    client_id: str = ""
    retry_of: str = ""
    shadow_of: str = ""
    idempotency_key: str = ""
    routes_generation: int = 0
    revision: int = 0
    pinned: bool = False
    role: Role = Role.LIVE
    lane: Lane = Lane.INLINE
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    total_ms: float = 0.0
    rows: int = 1
    outcome: Outcome = Outcome.OK
    status: int = 200
    code: str = ""
    # Where a refusal points: the column or input that was wrong.
    loc: str = ""
    context: dict[str, str] = {}
    # Per picture: width, height, mean, std, sha256 of the stored bytes; never the picture.
    pictures: list[dict[str, Any]] = []
    warnings: list[str] = []
    # The answer had been computed for an earlier call.
    cached: bool = False
    schema: int = SCHEMA_VERSION


class Packed(msgspec.Struct, array_like=True):
    """A call's tensors as they lie in memory (base64 in the line); what they are, `inference.packing` says."""

    layout: msgspec.Raw
    input: bytes
    outputs: list[bytes]


class SpoolRecord(SpoolFacts, kw_only=True, omit_defaults=True):
    """One line of the spool, as it is written: with `packed` or else with the fields that are made from it.

    Rows of one call share one record: `inputs` is {column or tensor name: list over rows}, `outputs` the same by name;
    both are absent where the policy keeps none.
    """

    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    # Always present for served predictions, whatever the policy keeps: what the rollups' sketches are made from.
    # Numbers per column over rows (None for missing), for scores the labelled outputs.
    features: dict[str, list[Any]] | None = None
    scores: dict[str, list[Any]] | None = None
    packed: Packed | None = None


class SpoolLine(SpoolFacts, kw_only=True, omit_defaults=True):
    """One line of the spool, as the ingester reads it: payloads stay the JSON they are, b"" where there is none."""

    inputs: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()
    features: msgspec.Raw = msgspec.Raw()
    scores: msgspec.Raw = msgspec.Raw()
    packed: Packed | None = None


class ReportCheck(Frozen, frozen=True, kw_only=True):
    """One line of a validation report: ok True, False, or None where it did not apply."""

    name: str
    ok: bool | None
    detail: str = ""


class ValidationRequest(Frozen, frozen=True, kw_only=True):
    """What the throw-away child is asked to check. Files are given by path; nothing of them is trusted."""

    model_path: str
    task: Task | None = None
    activation: Activation | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    preprocessor: dict[str, Any] | None = None
    # A folder with test_data_set_*/{input,output}_*.pb, a zip of such, or an .npz with arrays by input and output name.
    golden_path: str | None = None
    # Where the child may write the cut model, when a ZipMap tail was removed.
    rewritten_path: str | None = None


class ValidationReport(Frozen, frozen=True, kw_only=True):
    """What validation found. `ok` False means rejected, with `code` from the error table and `reason` for people.

    `latency_ms` is the median of a one-row run, `memory_bytes` the growth of resident memory by load and first run.
    """

    ok: bool
    code: str = ""
    reason: str = ""
    checks: tuple[ReportCheck, ...] = ()
    warnings: tuple[str, ...] = ()
    signature: Signature | None = None
    task: Task | None = None
    activation: Activation | None = None
    opset: dict[str, int] = {}
    ir_version: int = 0
    producer: str = ""
    operators: dict[str, int] = {}
    parameters: int = 0
    model_bytes: int = 0
    latency_ms: float | None = None
    memory_bytes: int | None = None
    zipmap_cut: bool = False
    # The labels that the file itself carried (ZipMap's keys), when none were given.
    labels: tuple[str, ...] = ()
    golden_sets: int = 0
    golden_max_error: float | None = None
    isolated: bool = False
    runtime: str = ""
