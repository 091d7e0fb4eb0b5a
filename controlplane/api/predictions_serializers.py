"""Shapes of predictions and feedback: what a query may filter by, and what the schema says of the answers."""

from typing import Any

from rest_framework import serializers

from controlplane.api.access import AFTER_ANSWER
from controlplane.monitoring.intervals import read_moment
from inference.contracts import Outcome, Role, Source


class MomentField(serializers.CharField):
    """An ISO time, or 24h, 7d, 30m before now."""

    def to_internal_value(self, data: Any) -> Any:
        return read_moment(super().to_internal_value(data)[:40], self.field_name or "since")


class PredictionFilterSerializer(serializers.Serializer[Any]):
    deployment = serializers.CharField(required=False, max_length=60)
    since = MomentField(required=False)
    until = MomentField(required=False)
    version = serializers.IntegerField(required=False, min_value=1, max_value=2**31 - 1)
    client_id = serializers.CharField(required=False, max_length=128)
    outcome = serializers.ChoiceField(required=False, choices=[outcome.value for outcome in Outcome])
    role = serializers.ChoiceField(required=False, choices=[role.value for role in Role])
    source = serializers.ChoiceField(required=False, choices=[source.value for source in Source])  # type: ignore[assignment]  # a field of that name
    pinned = serializers.BooleanField(required=False, allow_null=True, default=None)
    count = serializers.BooleanField(required=False, default=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in attrs.items() if value is not None}


class TimingsSerializer(serializers.Serializer[Any]):
    queue = serializers.FloatField()
    compute = serializers.FloatField()
    total = serializers.FloatField()


class FeedbackSerializer(serializers.Serializer[Any]):
    """Exactly one of label, labels and value; none of them where the case is ungradable."""

    label = serializers.CharField(required=False)  # type: ignore[assignment]  # a field of that name
    labels = serializers.ListField(child=serializers.CharField(), required=False)
    value = serializers.FloatField(required=False)
    certainty = serializers.FloatField(required=False, min_value=0, max_value=1)
    ungradable = serializers.BooleanField(required=False)
    comment = serializers.CharField(required=False, max_length=2000)
    observed_at = serializers.DateTimeField(required=False)


class NamedFeedbackSerializer(FeedbackSerializer):
    """Names its prediction by prediction_id, or by deployment and client_id."""

    prediction_id = serializers.UUIDField(required=False)
    deployment = serializers.CharField(required=False)
    client_id = serializers.CharField(required=False, max_length=128)


class BulkFeedbackSerializer(serializers.Serializer[Any]):
    feedback = NamedFeedbackSerializer(many=True)


class BulkFeedbackAnswerSerializer(serializers.Serializer[Any]):
    counted = serializers.IntegerField()
    pending = serializers.IntegerField()
    failed = serializers.IntegerField()
    results = serializers.ListField(child=serializers.DictField())


class PredictionSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    client_id = serializers.CharField()
    deployment = serializers.CharField()
    version = serializers.IntegerField()
    split_revision = serializers.IntegerField()
    pinned = serializers.BooleanField()
    cached = serializers.BooleanField()
    role = serializers.CharField()
    source = serializers.CharField()  # type: ignore[assignment]  # a field of that name
    lane = serializers.CharField()
    at = serializers.DateTimeField()
    rows = serializers.IntegerField()
    status = serializers.IntegerField()
    outcome = serializers.CharField()
    code = serializers.CharField()
    counted = serializers.BooleanField()
    retry_of = serializers.UUIDField(allow_null=True)
    shadow_of = serializers.UUIDField(allow_null=True)
    timings_ms = TimingsSerializer()
    context = serializers.DictField()  # type: ignore[assignment]  # a field of that name
    warnings = serializers.ListField(child=serializers.CharField())
    feedback = FeedbackSerializer(many=True)


class PredictionDetailSerializer(PredictionSerializer):
    payload = serializers.ChoiceField(choices=["shown", "withheld", AFTER_ANSWER])
    inputs = serializers.JSONField(allow_null=True)
    outputs = serializers.JSONField(allow_null=True)
    scores = serializers.JSONField(allow_null=True)
    pictures = serializers.ListField(child=serializers.DictField())
    shadows = serializers.ListField(child=serializers.DictField())
