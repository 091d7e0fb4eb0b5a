"""The prediction log, its rollups, feedback, and the state of the ingester."""

import uuid
from typing import Any

from django.db import models

from controlplane.accounts.models import ApiKey, User
from inference.contracts import Lane, Outcome, Role, Source


class PredictionQuerySet(models.QuerySet["Prediction"]):
    def of_deployments(self, deployment_ids: "models.QuerySet[Any] | list[uuid.UUID]") -> "PredictionQuerySet":
        """Predictions of these deployments only."""
        return self.filter(deployment_id__in=deployment_ids)

    def asked_by(self, key: ApiKey) -> "PredictionQuerySet":
        """Predictions that this key asked for itself."""
        return self.filter(key_id=key.pk)


class Prediction(models.Model):
    """One served call. The table is partitioned by day on `id`, a UUIDv7; migration 0002 makes it with SQL.

    It holds no foreign keys: it is filled by COPY, outlives what it speaks of, and is dropped by the day.
    `inputs` and `outputs` are what the capture policy keeps: {name: list over rows}. `scores` are the labelled outputs,
    kept because feedback is measured against them. `counted` is False for the second of two calls with one
    Idempotency-Key and for test traffic: such rows are in no rollup.
    """

    id = models.UUIDField(primary_key=True)
    at = models.DateTimeField()
    deployment_id = models.UUIDField()
    version_id = models.UUIDField()
    version = models.IntegerField()
    revision = models.IntegerField()
    routes_generation = models.BigIntegerField()
    key_id = models.UUIDField(null=True)
    client_id = models.TextField()
    retry_of = models.UUIDField(null=True)
    shadow_of = models.UUIDField(null=True)
    idempotency_key = models.TextField()
    source = models.CharField(max_length=8, choices=[(source.value, source.value) for source in Source])
    role = models.CharField(max_length=8, choices=[(role.value, role.value) for role in Role])
    lane = models.CharField(max_length=10, choices=[(lane.value, lane.value) for lane in Lane])
    pinned = models.BooleanField()
    cached = models.BooleanField(default=False, db_default=False, help_text="answered with what an earlier call got")
    queue_ms = models.FloatField()
    compute_ms = models.FloatField()
    total_ms = models.FloatField()
    rows = models.IntegerField()
    outcome = models.CharField(max_length=12, choices=[(outcome.value, outcome.value) for outcome in Outcome])
    status = models.SmallIntegerField()
    code = models.TextField()
    loc = models.TextField()
    inputs = models.JSONField(null=True)
    outputs = models.JSONField(null=True)
    scores = models.JSONField(null=True)
    context = models.JSONField(null=True)
    pictures = models.JSONField(null=True)
    warnings = models.JSONField(null=True)
    counted = models.BooleanField()
    digest = models.BigIntegerField(null=True)

    objects = PredictionQuerySet.as_manager()

    class Meta:
        db_table = "prediction"
        ordering = ["-id"]

    def __str__(self) -> str:
        return str(self.id)

    def withhold(self) -> None:
        """Forgets, in memory, all that tells what was asked or answered; the row is then not to be saved."""
        self.inputs = self.outputs = self.scores = self.context = self.pictures = self.warnings = None


class RollupKey(models.Model):
    """What every rollup row is about: who answered, in which role, in which stretch of time.

    Rows are deltas: several rows of one key and bucket add up. They are inserted and, by compaction, replaced by their
    sum; never updated. `version_id` is NULL for refused calls that were never routed; so may be `deployment_id`.
    """

    deployment_id = models.UUIDField(null=True)
    version_id = models.UUIDField(null=True)
    version = models.IntegerField()
    revision = models.IntegerField()
    role = models.CharField(max_length=8)
    source = models.CharField(max_length=8)
    bucket = models.DateTimeField(help_text="start of the bucket, a multiple of `width_s` since 1970")
    width_s = models.IntegerField()

    class Meta:
        abstract = True


class Rollup(RollupKey):
    """Counts and latencies of the calls in one bucket.

    `codes`: calls by error code. `places`: calls by "code|place" of the column or input that was wrong.
    `latency`: {"total" | "queue" | "compute": sparse histogram of predictions/histograms.py}, of served calls in ms;
    "compute" of those alone that were computed.
    """

    calls = models.BigIntegerField()
    rows = models.BigIntegerField()
    cached = models.BigIntegerField(default=0, db_default=0, help_text="calls answered with what an earlier one got")
    failed = models.BigIntegerField(help_text="calls whose outcome is not ok")
    outcomes = models.JSONField()
    codes = models.JSONField()
    places = models.JSONField()
    latency = models.JSONField()

    class Meta:
        db_table = "prediction_rollup"
        indexes = [
            models.Index(fields=["deployment_id", "bucket"], name="rollup_deployment_bucket"),
            models.Index(fields=["width_s", "bucket"], name="rollup_width_bucket"),
        ]

    def __str__(self) -> str:
        return f"{self.deployment_id} version {self.version} at {self.bucket}"


class SketchForm(models.IntegerChoices):
    KLL = 1, "sketches that more may be added to"
    DIGESTS = 2, "digests of a bucket that is over"


class SketchRollup(models.Model):
    """The values of one kind (features, scores, pictures) that one version saw or said in one bucket.

    Rows are deltas like those of `Rollup`. `packed`: by predictions/sketches.py or inference/runtime/digest.py.
    """

    deployment_id = models.UUIDField()
    version_id = models.UUIDField()
    version = models.IntegerField()
    role = models.CharField(max_length=8)
    source = models.CharField(max_length=8)
    kind = models.CharField(max_length=10)
    bucket = models.DateTimeField(help_text="start of the bucket, a multiple of `width_s` since 1970")
    width_s = models.IntegerField()
    form = models.SmallIntegerField(choices=SketchForm)
    packed = models.BinaryField()

    class Meta:
        db_table = "sketch_rollup"
        indexes = [
            models.Index(fields=["deployment_id", "kind", "bucket"], name="sketch_deployment_bucket"),
            models.Index(fields=["width_s", "bucket"], name="sketch_width_bucket"),
            # What compaction looks for: few rows at any time.
            models.Index(fields=["bucket"], condition=models.Q(form=1), name="sketch_open"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.deployment_id} version {self.version} at {self.bucket}"


class FeedbackRollup(RollupKey):
    """What feedback said of the predictions in one bucket (the prediction's time, not the feedback's).

    `tally` is the JSON of predictions/tallies.py. A revised feedback adds a row that takes the old value away.
    """

    n = models.BigIntegerField()
    tally = models.JSONField()

    class Meta:
        db_table = "feedback_rollup"
        indexes = [
            models.Index(fields=["deployment_id", "bucket"], name="feedback_deployment_bucket"),
            models.Index(fields=["width_s", "bucket"], name="feedback_width_bucket"),
        ]

    def __str__(self) -> str:
        return f"{self.deployment_id} version {self.version} at {self.bucket}: {self.n}"


class FeedbackState(models.TextChoices):
    PENDING = "pending", "Waiting for its prediction"
    COUNTED = "counted", "Counted"
    REJECTED = "rejected", "Rejected when its prediction arrived"


class Feedback(models.Model):
    """What really happened, as someone said it. A later word on the same prediction is a new row; the latest counts.

    `truth` is {"label"} | {"labels"} | {"value"} | {} (ungradable). Before the prediction is in the log, the row is
    pending and names it by `prediction_id`, or by `deployment_id` and `client_id`.
    """

    prediction_id = models.UUIDField(null=True)
    deployment_id = models.UUIDField(null=True)
    team_id = models.UUIDField()
    client_id = models.CharField(max_length=128, blank=True)
    number = models.PositiveIntegerField(default=1, help_text="1, then 2 for its first revision")
    latest = models.BooleanField(default=True)
    state = models.CharField(max_length=10, choices=FeedbackState)
    code = models.CharField(max_length=40, blank=True, help_text="why it was rejected")
    truth = models.JSONField()
    certainty = models.FloatField(null=True)
    ungradable = models.BooleanField(default=False)
    # Whether it was said before the model's answer was seen; None where nobody can tell.
    blind = models.BooleanField(null=True)
    comment = models.TextField(blank=True, max_length=2000)
    observed_at = models.DateTimeField(null=True)
    given_at = models.DateTimeField()
    given_by = models.CharField(max_length=200)
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    key = models.ForeignKey(ApiKey, on_delete=models.SET_NULL, null=True, related_name="+")
    # A key without the scope `feedback` speaks of its own predictions only; asked again when a pending row is matched.
    own_only = models.BooleanField(default=False)
    # None: every deployment of the team.
    deployments = models.JSONField(null=True)

    class Meta:
        db_table = "feedback"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["prediction_id"],
                condition=models.Q(latest=True, state="counted"),
                name="feedback_one_latest",
            ),
            models.CheckConstraint(condition=models.Q(state__in=FeedbackState.values), name="feedback_state_known"),
            models.CheckConstraint(
                condition=models.Q(prediction_id__isnull=False) | ~models.Q(client_id=""),
                name="feedback_names_something",
            ),
        ]
        indexes = [
            models.Index(fields=["prediction_id", "-number"], name="feedback_prediction"),
            models.Index(fields=["deployment_id", "-id"], name="feedback_deployment"),
            models.Index(
                fields=["deployment_id", "client_id"],
                condition=models.Q(state="pending", prediction_id__isnull=True),
                name="feedback_pending_client",
            ),
            models.Index(
                fields=["prediction_id"], condition=models.Q(state="pending"), name="feedback_pending_prediction"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.prediction_id or self.client_id}: {self.truth}"


class FailedCall(models.Model):
    """One of the last hundred failed calls of a key; no payload."""

    key_id = models.UUIDField()
    deployment_id = models.UUIDField(null=True)
    at = models.DateTimeField()
    status = models.SmallIntegerField()
    code = models.CharField(max_length=40)
    loc = models.CharField(max_length=200, blank=True)
    request_id = models.CharField(max_length=64)

    class Meta:
        db_table = "failed_call"
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["key_id", "-at", "-id"], name="failed_call_key")]

    def __str__(self) -> str:
        return f"{self.at} {self.status} {self.code}"


class KeyUse(models.Model):
    """How often a key called in an hour."""

    key_id = models.UUIDField()
    hour = models.DateTimeField()
    calls = models.BigIntegerField()
    failed = models.BigIntegerField()

    class Meta:
        db_table = "key_use"
        constraints = [models.UniqueConstraint(fields=["key_id", "hour"], name="key_use_hour")]

    def __str__(self) -> str:
        return f"{self.key_id} {self.hour}: {self.calls}"


class SpoolBookmark(models.Model):
    """How far a spool file has been shipped; written in the transaction that ships."""

    name = models.CharField(max_length=255, primary_key=True)
    offset = models.BigIntegerField()
    updated_at = models.DateTimeField(db_index=True)

    class Meta:
        db_table = "spool_bookmark"

    def __str__(self) -> str:
        return f"{self.name} @ {self.offset}"


class IngesterStatus(models.Model):
    """How an ingester does: one row per host. Counters are since the row was made."""

    host = models.CharField(max_length=255, primary_key=True)
    seen_at = models.DateTimeField()
    lag_s = models.FloatField(help_text="age of the oldest record that is not shipped yet; 0 when all is")
    spool_bytes = models.BigIntegerField()
    shipped = models.BigIntegerField(default=0)
    repeated = models.BigIntegerField(default=0)
    quarantined = models.BigIntegerField(default=0)
    failure = models.TextField(blank=True)

    class Meta:
        db_table = "ingester_status"

    def __str__(self) -> str:
        return f"{self.host}: {self.lag_s:.1f} s behind"
