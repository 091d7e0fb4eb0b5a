"""Celery's side of studies: ids in, nothing out."""

import uuid

from controlplane.celery import app
from controlplane.studies import explaining, mapping


@app.task(name=explaining.TASK, queue=explaining.TASK_QUEUE)  # type: ignore[untyped-decorator]  # Celery carries no types
def explain(picture_id: str) -> None:
    mapping.explain(uuid.UUID(picture_id))
