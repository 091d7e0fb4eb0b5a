"""Counts the calls that the jobs' address refused: in the rollups and, by key, among its use and its failed calls."""

import logging
from collections.abc import Sequence

from django.db import DatabaseError, transaction
from django.utils import timezone

from controlplane.accounts.models import ApiKey
from controlplane.deployments.models import Deployment
from controlplane.predictions.ingest import record_predictions
from inference.contracts import Lane, Outcome, Source, SpoolRecord
from inference.errors import TABLE, Located
from inference.routing import uuid7

logger = logging.getLogger(__name__)


def count_refusal(
    *, key: ApiKey | None, deployment: Deployment | None, code: str, errors: Sequence[Located], request_id: str
) -> None:
    """Counts one refused call. A failure to count is logged: the caller is being refused anyway."""
    names = [part for part in errors[0]["loc"] if isinstance(part, str)] if errors else []
    status = TABLE[code].status
    record = SpoolRecord(
        id=uuid7(),
        at=timezone.now().timestamp(),
        source=Source.TEST if key is not None and key.test else Source.LIVE,
        deployment_id=str(deployment.pk) if deployment is not None else "",
        key_id=str(key.pk) if key is not None else "",
        lane=Lane.JOB,
        outcome=Outcome.of_refusal(status),
        status=status,
        code=code,
        loc=names[-1] if names else "",
        context={"request_id": request_id} if request_id else {},
    )
    try:
        with transaction.atomic():
            record_predictions([record])
    except DatabaseError:
        logger.exception("a refusal was not counted (code %s, request %s)", code, request_id)
