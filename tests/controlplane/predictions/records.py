"""Records as the front door spools them, for a version of tests/controlplane/deployments/rows.py."""

import time
from datetime import UTC, datetime
from typing import Any

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from inference.contracts import Outcome, Role, Source, SpoolRecord
from inference.routing import Uuid7, uuid7


def now() -> datetime:
    return datetime.now(UTC)


# One generator per millisecond, so that ids of one millisecond are in the order in which they were made.
GENERATORS: dict[int, Uuid7] = {}


def id_at(moment: float) -> str:
    """A UUIDv7 that was made then."""
    return GENERATORS.setdefault(int(moment * 1000), Uuid7(clock=lambda: moment))()


def served(deployment: Deployment, version: ModelVersion, at: float | None = None, **fields: Any) -> SpoolRecord:
    """A served call of one row: features amount and age, scores ok 0.9 and fraud 0.1."""
    at = at if at is not None else time.time()
    values: dict[str, Any] = {
        "id": id_at(at),
        "at": at,
        "source": Source.LIVE,
        "role": Role.LIVE,
        "deployment_id": str(deployment.pk),
        "version_id": str(version.pk),
        "version": version.number,
        "revision": 1,
        "queue_ms": 0.5,
        "compute_ms": 2.0,
        "total_ms": 3.0,
        "inputs": {"amount": [12.5], "age": [30]},
        "outputs": {"y": [[0.9, 0.1]]},
        "features": {"amount": [12.5], "age": [30]},
        "scores": {"ok": [0.9], "fraud": [0.1]},
    }
    return SpoolRecord(**{**values, **fields})


def refused(deployment: Deployment | None = None, **fields: Any) -> SpoolRecord:
    """A call that was refused before a version served it."""
    values: dict[str, Any] = {
        "id": uuid7(),
        "at": time.time(),
        "source": Source.LIVE,
        "deployment_id": str(deployment.pk) if deployment else "",
        "outcome": Outcome.CLIENT_ERROR,
        "status": 422,
        "code": "wrong_type",
        "loc": "instances.0.amount",
    }
    return SpoolRecord(**{**values, **fields})
