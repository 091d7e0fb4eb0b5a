"""Celery's side of jobs: an id in, nothing out. The message says that there is work; the rows say which."""

from controlplane.celery import app
from controlplane.jobs.running import run_batch


@app.task(name="jobs.run_heavy", queue="heavy")  # type: ignore[untyped-decorator]  # Celery carries no types
def run_heavy(job_id: str) -> None:
    run_batch(job_id)
