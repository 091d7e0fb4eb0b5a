"""Shapes of deployments and splits in the control API. They check form alone; services check meaning."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import IO, Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.errors import DomainError, field_error


class ExactJSONParser(BaseParser):
    """JSON as written: decimals stay decimals, a name given twice is refused, NaN goes on to who names the field."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """The document. Raises ParseError, or DomainError `unknown_version`, `duplicate_key` or `too_deep`."""
        try:
            return json.loads(stream.read().decode("utf-8-sig"), parse_float=Decimal, object_pairs_hook=_each_once)
        except RecursionError:
            raise DomainError("too_deep") from None
        except ValueError as error:
            raise ParseError(f"The body is not one well-formed JSON document: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            if name.isdigit():
                raise field_error("unknown_version", name, f"Version {name} is named twice.")
            raise field_error("duplicate_key", name, f"“{name}” is named twice.")
        found[name] = value
    return found


@extend_schema_field({"type": "object", "additionalProperties": {"type": "number"}, "example": {"1": 90, "2": 10}})
class SharesField(serializers.Field[Any, Any, Any, Any]):
    """Per cent by version number, as numbers. What is something else is passed on: the service names it."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # The service also takes text, as forms send it; in JSON a share is a number.
        return {version: None if isinstance(share, str) else share for version, share in data.items()}

    def to_representation(self, value: Any) -> Any:
        return value


class CaptureSerializer(serializers.Serializer[Deployment]):
    """What the prediction log keeps."""

    payload_share = serializers.FloatField(required=False, help_text="0 to 1: share of calls whose payload is kept")
    retention_days = serializers.IntegerField(required=False)
    columns = serializers.DictField(
        child=serializers.CharField(), source="column_policy", required=False, help_text="keep, hash or drop by column"
    )


class RevisionSerializer(serializers.ModelSerializer[SplitRevision]):
    """One split revision, with who, when and why."""

    revision = serializers.IntegerField(source="number", read_only=True)
    shares = serializers.SerializerMethodField()
    shadow = serializers.SerializerMethodField()
    returns_to = serializers.SerializerMethodField(help_text="the revision that a roll-back equals")

    class Meta:
        model = SplitRevision
        fields = (
            "revision",
            "shares",
            "shadow",
            "state",
            "failure",
            "reason",
            "actor",
            "returns_to",
            "created_at",
            "activated_at",
            "ended_at",
        )
        read_only_fields = fields

    def get_shares(self, revision: SplitRevision) -> dict[str, float]:
        return revision.percentages()

    def get_shadow(self, revision: SplitRevision) -> dict[str, float]:
        return revision.as_json()["shadow"]  # type: ignore[no-any-return]  # as_json is a JSON document

    def get_returns_to(self, revision: SplitRevision) -> int | None:
        return revision.returns_to.number if revision.returns_to else None


class SplitSerializer(serializers.Serializer[SplitRevision]):
    """What is asked of a new split. `expected_revision`: the newest revision that the editor was made from."""

    shares = SharesField()
    shadow = SharesField(required=False)
    expected_revision = serializers.IntegerField(required=False, allow_null=True, min_value=0)
    reason = serializers.CharField(required=False, allow_blank=True)

    def to_representation(self, revision: SplitRevision) -> dict[str, Any]:
        return RevisionSerializer(revision).data


class RollbackSerializer(serializers.Serializer[SplitRevision]):
    """Where to return to; the split before the current one where `to` is absent."""

    to = serializers.IntegerField(required=False, allow_null=True, min_value=1)
    expected_revision = serializers.IntegerField(required=False, allow_null=True, min_value=0)
    reason = serializers.CharField(required=False, allow_blank=True)

    def to_representation(self, revision: SplitRevision) -> dict[str, Any]:
        return RevisionSerializer(revision).data


class LabelsSerializer(serializers.Serializer[Deployment]):
    """Version numbers by label; what is not named is taken away."""

    labels = serializers.DictField(child=serializers.IntegerField())


class DeploymentSerializer(serializers.Serializer[Deployment]):
    """A deployment; `split` serves, `preparing` is to follow it. Needs the rows that `with_current` prefetches."""

    name = serializers.CharField()
    model = serializers.CharField(source="model.name")
    team = serializers.CharField(source="team.name", required=False)
    description = serializers.CharField(required=False, allow_blank=True)
    lane = serializers.CharField(required=False)
    capture = CaptureSerializer(source="*", required=False)
    max_rows = serializers.IntegerField(required=False)
    max_body_bytes = serializers.IntegerField(required=False)
    max_batch_rows = serializers.IntegerField(required=False)
    max_wait_ms = serializers.FloatField(required=False)
    cache_ttl_s = serializers.FloatField(required=False)
    cache_bytes = serializers.IntegerField(required=False)
    max_in_flight = serializers.IntegerField(required=False)
    split = serializers.SerializerMethodField()
    preparing = serializers.SerializerMethodField()
    labels = serializers.SerializerMethodField()
    demo = serializers.BooleanField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)
    retired_at = serializers.DateTimeField(read_only=True)

    def get_split(self, deployment: Deployment) -> dict[str, Any] | None:
        return _in_state(deployment, RevisionState.ACTIVE)

    def get_preparing(self, deployment: Deployment) -> dict[str, Any] | None:
        return _in_state(deployment, RevisionState.PREPARING)

    def get_labels(self, deployment: Deployment) -> dict[str, int]:
        return {label.label: label.version.number for label in deployment.version_labels.all()}


def _in_state(deployment: Deployment, state: RevisionState) -> dict[str, Any] | None:
    revision = next((row for row in current_revisions(deployment) if row.state == state), None)
    return RevisionSerializer(revision).data if revision else None


def current_revisions(deployment: Deployment) -> list[SplitRevision]:
    """The revisions that prepare or serve, newest first, as `with_current` fetched them."""
    revisions: list[SplitRevision] = deployment.current_revisions  # type: ignore[attr-defined]  # Prefetch(to_attr=)
    return revisions
