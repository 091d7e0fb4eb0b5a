"""Celery's side of validation: ids in, nothing out."""

import uuid

from controlplane.catalog.services.validation import validate_one
from controlplane.celery import app


@app.task(name="catalog.validate_version", queue="validation", time_limit=180, soft_time_limit=150)  # type: ignore[untyped-decorator]  # Celery carries no types
def validate_version(version_id: str) -> None:
    validate_one(uuid.UUID(version_id))
