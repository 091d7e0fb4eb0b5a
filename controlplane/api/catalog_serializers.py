"""Shapes of models and versions in the control API. Meaning is checked by the catalog's services."""

from dataclasses import asdict
from typing import Any

from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from controlplane.catalog.checks import Check, CheckState, checks_of
from controlplane.catalog.models import ModelVersion, RegisteredModel
from inference.contracts import Activation, Task


class ModelSerializer(serializers.ModelSerializer[RegisteredModel]):
    team = serializers.CharField(source="team.name", read_only=True)
    versions = serializers.IntegerField(source="version_count", read_only=True)
    latest_ready = serializers.IntegerField(read_only=True, allow_null=True)
    url = serializers.SerializerMethodField()

    class Meta:
        model = RegisteredModel
        fields = ["name", "team", "description", "versions", "latest_ready", "created_at", "archived_at", "url"]
        read_only_fields = fields

    def get_url(self, model: RegisteredModel) -> str:
        return reverse("model", args=[model.name])


class NewModelSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=300, trim_whitespace=False)
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    team = serializers.CharField(required=False, allow_blank=True, default="")


class ModelChangesSerializer(serializers.Serializer[Any]):
    description = serializers.CharField(allow_blank=True, max_length=2000)


class VersionSerializer(serializers.ModelSerializer[ModelVersion]):
    """A version in a list: everything but its report."""

    model = serializers.CharField(source="model.name", read_only=True)
    sha256 = serializers.CharField(source="uploaded_artifact_id", read_only=True)
    size_bytes = serializers.IntegerField(source="uploaded_artifact.size_bytes", read_only=True)
    reference = serializers.SerializerMethodField()
    golden_sha256 = serializers.CharField(source="golden_artifact_id", read_only=True, allow_null=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, default=None)
    url = serializers.SerializerMethodField()

    class Meta:
        model = ModelVersion
        fields = [
            *("model", "number", "state", "code", "reason", "attempts", "file_name", "sha256", "size_bytes"),
            *("task", "activation", "labels", "thresholds", "columns", "preprocessor", "accepts_non_finite"),
            *("signature", "latency_ms", "memory_bytes", "reference", "golden_sha256"),
            *("source_commit", "source_run_url", "source_data_sha256", "intended_use", "performance", "notes"),
            *("created_at", "created_by", "validated_at", "archived_at", "url"),
        ]
        read_only_fields = fields

    def get_reference(self, version: ModelVersion) -> dict[str, Any] | None:
        if version.reference_artifact_id is None:
            return None
        return {
            "file_name": version.reference_name,
            "sha256": version.reference_artifact_id,
            **(version.reference_summary or {}),
        }

    def get_url(self, version: ModelVersion) -> str:
        return reverse("version", args=[version.model.name, version.number])


class CheckSerializer(serializers.Serializer[Check]):
    """One check of a version's validation, as it stands now."""

    name = serializers.CharField(read_only=True)
    state = serializers.ChoiceField(choices=list(CheckState), read_only=True)
    detail = serializers.CharField(read_only=True)


@extend_schema_field(CheckSerializer(many=True))
class ChecksField(serializers.Field[Any, Any, Any, Any]):
    def to_representation(self, version: ModelVersion) -> list[dict[str, Any]]:
        return [asdict(check) for check in checks_of(version)]


class VersionDetailSerializer(VersionSerializer):
    """A version with its validation report, and the checks of its validation from the moment it was uploaded."""

    report = serializers.JSONField(read_only=True, allow_null=True)
    checks = ChecksField(source="*", read_only=True)

    class Meta(VersionSerializer.Meta):
        fields = [*VersionSerializer.Meta.fields, "report", "checks"]
        read_only_fields = fields


@extend_schema_field(OpenApiTypes.ANY)
class LooseField(serializers.Field[Any, Any, Any, Any]):
    """A value that the service reads: a list or object as JSON, or the text of one in a multipart form."""

    def to_internal_value(self, data: Any) -> Any:
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class DescriptionSerializer(serializers.Serializer[Any]):
    """What is said of a version. Every field is optional: validation reads most of it from the graph."""

    task = serializers.ChoiceField(choices=list(Task), required=False, allow_blank=True)
    activation = serializers.ChoiceField(choices=list(Activation), required=False, allow_blank=True)
    labels = LooseField(required=False, help_text="A list, `a,b`, an id2label object or a Hugging Face config.json.")
    thresholds = LooseField(required=False, help_text="Label to decision threshold, 0 to 1.")
    columns = LooseField(required=False, help_text="Names in the input's order, or {name, nullable, keep} objects.")
    preprocessor = LooseField(required=False, help_text="A Hugging Face preprocessor_config.json.")
    accepts_non_finite = serializers.BooleanField(required=False)
    source_commit = serializers.CharField(required=False, allow_blank=True)
    source_run_url = serializers.CharField(required=False, allow_blank=True)
    source_data_sha256 = serializers.CharField(required=False, allow_blank=True)
    intended_use = LooseField(required=False, help_text="modality, body_part, view, age_range.")
    performance = LooseField(required=False, help_text="What is on record: source, and labels with their figures.")
    notes = serializers.CharField(required=False, allow_blank=True)


class UploadSerializer(DescriptionSerializer):
    """The multipart form of an upload, beside its files."""

    number = serializers.IntegerField(required=False, min_value=1, max_value=1_000_000)


class UploadSchemaSerializer(UploadSerializer):
    """The whole form, as the API's schema shows it."""

    file = serializers.FileField(help_text="An ONNX file, or a zip of an MLflow model folder.")
    golden = serializers.FileField(required=False, help_text="A zip of test_data_set_* folders, or .npz.")
    reference = serializers.FileField(required=False, help_text="CSV, Parquet, NPZ, or a zip of pictures.")


def version_rows() -> Any:
    """Versions with all that their serializer reads: one query."""
    return ModelVersion.objects.select_related("model", "uploaded_artifact", "created_by")


class ReportSerializer(serializers.ModelSerializer[ModelVersion]):
    report = serializers.JSONField(read_only=True, allow_null=True)

    class Meta:
        model = ModelVersion
        fields = ["state", "code", "reason", "attempts", "validated_at", "report"]
        read_only_fields = fields
