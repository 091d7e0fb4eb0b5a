"""What the page of the installation shows."""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db.models import Sum

from controlplane.catalog.models import Artifact
from controlplane.deployments.models import DataplaneDocument, DataplaneProcess, RevisionState
from controlplane.predictions.models import IngesterStatus

DOCUMENTS = 10
# An ingester reports each second or so; one that is silent for longer is behind by that much.
SILENT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessRow:
    process: DataplaneProcess
    live: bool
    versions: int


@dataclass(frozen=True, slots=True)
class IngesterRow:
    """`behind_s`: what it said itself, or for how long it has said nothing."""

    status: IngesterStatus
    behind_s: float


@dataclass(frozen=True, slots=True)
class SystemPage:
    processes: list[ProcessRow]
    ingesters: list[IngesterRow]
    documents: list[DataplaneDocument]
    artifact_bytes: int
    free_bytes: int
    version: str


def system_page(now: datetime) -> SystemPage:
    """Four queries and one look at the disk."""
    live = set(DataplaneProcess.objects.live().values_list("pk", flat=True))
    processes = DataplaneProcess.objects.order_by("-heartbeat_at")[:50]
    home = Path(settings.SIGNALBOX_HOME)
    return SystemPage(
        processes=[ProcessRow(process, process.pk in live, len(process.loaded)) for process in processes],
        ingesters=[
            IngesterRow(status, max(status.lag_s, silent if silent > SILENT_S else 0.0))
            for status in IngesterStatus.objects.order_by("host")
            if (silent := (now - status.seen_at).total_seconds()) >= 0
        ],
        documents=list(
            DataplaneDocument.objects.exclude(state=RevisionState.SUPERSEDED)
            .defer("body")
            .order_by("-created_at")[:DOCUMENTS]
        ),
        artifact_bytes=Artifact.objects.aggregate(total=Sum("size_bytes"))["total"] or 0,
        free_bytes=shutil.disk_usage(home if home.exists() else home.parent).free,
        version=settings.VERSION,
    )
