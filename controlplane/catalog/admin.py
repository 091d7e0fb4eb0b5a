"""Registered models and versions in the site admin's tables: to read."""

from django.contrib import admin

from controlplane.audit.admin import ReadOnlyAdmin
from controlplane.catalog.models import ModelVersion, RegisteredModel


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ReadOnlyAdmin):
    list_display = ["name", "team", "created_at", "archived_at"]
    list_filter = ["team"]
    search_fields = ["name"]


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    list_display = ["model", "number", "state", "task", "code", "created_at"]
    list_filter = ["state", "task", "code"]
    search_fields = ["model__name"]
