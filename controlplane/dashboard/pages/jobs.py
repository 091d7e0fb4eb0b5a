"""What the pages of jobs show."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Min, QuerySet

from controlplane.accounts.models import User
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job, JobStatus

PAGE_SIZE = 50
TONES = {
    JobStatus.QUEUED: "busy",
    JobStatus.RUNNING: "busy",
    JobStatus.SUCCEEDED: "good",
    JobStatus.FAILED: "bad",
    JobStatus.CANCELLED: "",
}


@dataclass(frozen=True, slots=True)
class JobSearch:
    status: str
    before: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class JobRow:
    job: Job
    tone: str


@dataclass(frozen=True, slots=True)
class JobsPage:
    rows: list[JobRow]
    search: JobSearch
    statuses: list[str]
    waiting: int
    running: int
    oldest_s: float | None
    older: uuid.UUID | None


def visible_jobs(user: User) -> "QuerySet[Job]":
    """Jobs of the deployments that the person may see."""
    return Job.objects.filter(deployment__in=Deployment.objects.for_user(user)).select_related("deployment", "version")


def read_job_search(query: Mapping[str, str]) -> JobSearch:
    status = query.get("status", "")
    try:
        before = uuid.UUID(query.get("before", ""))
    except ValueError:
        before = None
    return JobSearch(status if status in JobStatus.values else "", before)


def jobs_page(user: User, search: JobSearch, now: datetime) -> JobsPage:
    """Two queries: the page, and how many wait since when."""
    mine = visible_jobs(user)
    counts = {
        row["status"]: row
        for row in mine.order_by()
        .filter(status__in=[JobStatus.QUEUED, JobStatus.RUNNING])
        .values("status")
        .annotate(count=Count("pk"), oldest=Min("created_at"))
    }
    found = mine.filter(status=search.status) if search.status else mine
    if search.before is not None:
        found = found.filter(pk__lt=search.before)
    # Results are payload, shown on a job's own page alone.
    rows = list(found.defer("result").order_by("-id")[: PAGE_SIZE + 1])
    queued = counts.get(JobStatus.QUEUED)
    running = counts.get(JobStatus.RUNNING)
    return JobsPage(
        rows=[JobRow(job, TONES[JobStatus(job.status)]) for job in rows[:PAGE_SIZE]],
        search=search,
        statuses=list(JobStatus.values),
        waiting=queued["count"] if queued else 0,
        running=running["count"] if running else 0,
        oldest_s=(now - queued["oldest"]).total_seconds() if queued else None,
        older=rows[PAGE_SIZE - 1].pk if len(rows) > PAGE_SIZE else None,
    )
