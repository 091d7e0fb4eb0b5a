"""Changes to the catalog, by use-case. Rooms above import the functions from here."""

from controlplane.catalog.services.registration import archive_model, edit_model, register_model
from controlplane.catalog.services.sweeping import sweep_artifacts
from controlplane.catalog.services.usage import in_use_checks, intended_use_checks
from controlplane.catalog.services.validation import sweep_validations, validate_now, validate_one
from controlplane.catalog.services.versions import (
    Upload,
    add_golden,
    add_reference,
    archive_version,
    edit_version,
    upload_version,
)

__all__ = [
    "Upload",
    "add_golden",
    "add_reference",
    "archive_model",
    "archive_version",
    "edit_model",
    "edit_version",
    "in_use_checks",
    "intended_use_checks",
    "register_model",
    "sweep_artifacts",
    "sweep_validations",
    "upload_version",
    "validate_now",
    "validate_one",
]
