"""Removes files that no row knows: what an upload left when its process died or its transaction failed."""

import logging
import time

from django.db import connection, transaction

from controlplane.catalog.models import Artifact
from controlplane.catalog.storage import stored_before, sweep_drafts

logger = logging.getLogger(__name__)

# An upload keeps its file first and its row a moment later; an hour is longer than any of them takes.
SETTLED_S = 3600
# An advisory lock: uploads share it while they check that a file is there and write its row; the sweep holds it alone.
STORE_LOCK = 0x51677801


def hold_store() -> None:
    """Inside a transaction: no file is swept until it ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [STORE_LOCK])


def sweep_artifacts(now: float | None = None) -> int:
    """Removes abandoned drafts, and files of the store that no row names; returns how many. Call it each hour."""
    removed = sweep_drafts(now)
    for path in stored_before((time.time() if now is None else now) - SETTLED_S):
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [STORE_LOCK])
            if not Artifact.objects.filter(sha256=path.name).exists():
                path.unlink(missing_ok=True)
                removed += 1
                logger.info("orphaned file removed: %s", path.name)
    return removed
