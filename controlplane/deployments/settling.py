"""Brings split revisions in line with what the data plane did with the routes that carried them."""

import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from django.db import connection
from django.utils import timezone

from controlplane.audit.services import SYSTEM, record_change
from controlplane.deployments.models import (
    DataplaneDocument,
    DataplaneProcess,
    DocumentKind,
    RevisionState,
    SplitRevision,
)
from controlplane.deployments.publishing import locked, opened, publish_access, publish_routes
from inference.contracts import Routes
from inference.snapshot import SnapshotRejectedError

logger = logging.getLogger(__name__)

POLL_S = 0.05
# After a failed generation nothing is tried again sooner than this, unless someone changes something.
RETRY_AFTER = timedelta(seconds=60)

# An aggregate over no row is NULL, and a comparison with NULL is not true: no active document, nothing to settle.
UNSETTLED = """
SELECT EXISTS (SELECT 1 FROM dataplane_document WHERE kind = 'routes' AND state = 'failed' AND NOT settled)
    OR EXISTS (SELECT 1 FROM deployments_splitrevision WHERE state = 'preparing' AND generation <=
        (SELECT max(generation) FROM dataplane_document WHERE kind = 'routes' AND state = 'active'))
"""


@contextmanager
def routes_change() -> Iterator[None]:
    """The transaction of every change to deployments: settled before, published after; one at a time.

    What it raises undoes all of it.
    """
    with locked(DocumentKind.ROUTES):
        _settle()
        yield
        publish_routes()


def settle() -> bool:
    """Draws the consequences of what the data plane did; True where there was anything to draw. Else one query.

    Activated: the revisions that the generation carried are active, and those before them superseded. Failed: the
    revisions with the versions that do not load are failed, and the rest is published without them.
    """
    with connection.cursor() as cursor:
        cursor.execute(UNSETTLED)
        (unsettled,) = cursor.fetchone()
    if not unsettled:
        return False
    with locked(DocumentKind.ROUTES):
        if _settle():
            publish_routes()
    return True


def reconcile() -> bool:
    """Publishes what has not been published: after a crash between a change and its publication, or by mere time.

    True where something was. Run now and then by the scheduler.
    """
    access = publish_access()
    settle()
    with locked(DocumentKind.ROUTES):
        newest = DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES).order_by("-generation").first()
        failed_lately = (
            newest is not None
            and newest.state == RevisionState.FAILED
            and newest.created_at > timezone.now() - RETRY_AFTER
        )
        routes = None if failed_lately else publish_routes()
    return access is not None or routes is not None


def wait_until_settled(revision: SplitRevision, timeout_s: float) -> SplitRevision:
    """The revision as it is once it no longer prepares, after `timeout_s` seconds, or at once with no data plane up."""
    deadline = time.monotonic() + timeout_s
    while True:
        settle()
        revision.refresh_from_db()
        if revision.state != RevisionState.PREPARING or time.monotonic() >= deadline:
            return revision
        if not data_plane_is_up():
            return revision
        time.sleep(POLL_S)


def data_plane_is_up() -> bool:
    """Whether any process serves now, by its heartbeat."""
    return DataplaneProcess.objects.live().exists()


def _settle() -> bool:
    """Under the lock: whether something is to be published now, because what kept it from serving was taken out."""
    _activate()
    failed = DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES, state=RevisionState.FAILED, settled=False)
    # Each of them, not only up to the first that had something to take out.
    taken_out = [_fail(document) for document in failed.order_by("generation")]
    return any(taken_out)


def _activate() -> None:
    """Every document since the first that carried a preparing revision carries it too, so one comparison tells."""
    document = (
        DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES, state=RevisionState.ACTIVE)
        .order_by("-generation")
        .only("generation", "activated_at")
        .first()
    )
    if document is None:
        return
    at = document.activated_at or timezone.now()
    due = SplitRevision.objects.filter(state=RevisionState.PREPARING, generation__lte=document.generation)
    deployments = list(due.values_list("deployment_id", flat=True))
    SplitRevision.objects.filter(deployment__in=deployments, state=RevisionState.ACTIVE).update(
        state=RevisionState.SUPERSEDED, ended_at=at
    )
    due.update(state=RevisionState.ACTIVE, activated_at=at)


def _fail(document: DataplaneDocument) -> bool:
    """Fails the revisions whose versions kept the document from activating; False where nothing could be taken out.

    Where the versions at fault are kept for convenience alone, the next document leaves them out and nothing fails.
    Where they serve already, or nobody knows, every change in the document has failed: what serves goes on.
    """
    failures = _failures(document.generation)
    reasons = {version_id: failure.get("reason") or "no reason was given." for version_id, failure in failures.items()}
    pending: dict[uuid.UUID, SplitRevision] = {}
    named: dict[uuid.UUID, set[int]] = defaultdict(set)
    for revision in SplitRevision.objects.filter(
        state__in=[RevisionState.PREPARING, RevisionState.ACTIVE], deployment__retired_at=None
    ).select_related("deployment"):
        named[revision.deployment_id] |= revision.numbers
        if revision.state == RevisionState.PREPARING and (revision.generation or 0) <= document.generation:
            pending[revision.deployment_id] = revision
    blamed: dict[uuid.UUID, list[str]] = defaultdict(list)
    serving: list[str] = []
    spare = False
    for deployment_id, name, number, reason, labelled in _faults(document, reasons):
        if deployment_id in pending and number in pending[deployment_id].numbers:
            blamed[deployment_id].append(f"Version {number} does not load: {reason}")
        elif labelled or number in named[deployment_id]:
            serving.append(f"Version {number} of {name} does not load: {reason}")
        else:
            spare = True
    if not blamed and (serving or not spare):
        why = "Nothing was changed. " + (" ".join(serving) or document.failure or "The data plane gave no reason.")
        blamed.update({deployment_id: [why] for deployment_id in pending})
    for deployment_id, sentences in blamed.items():
        _fail_revision(pending[deployment_id], " ".join(sentences))
    # What does not fit now may fit later, and at 0 % it is loaded when asked: it is no reason to leave a version out.
    document.failing = sorted(id_ for id_, failure in failures.items() if failure.get("code") != "model_memory")
    document.settled = True
    document.save(update_fields=["settled", "failing"])
    logger.warning("routes generation %s failed: %s", document.generation, document.failure or reasons)
    return bool(blamed) or spare


def _failures(generation: int) -> dict[str, Mapping[str, str]]:
    """Code and reason why versions did not load, by version id, as the processes that tried report it."""
    found: dict[str, Mapping[str, str]] = {}
    for process in DataplaneProcess.objects.filter(failed_generation=generation).order_by("started_at"):
        failures: Mapping[str, Mapping[str, str]] = process.failures
        for version_id, failure in failures.items():
            found.setdefault(version_id, failure)
    return found


def _faults(document: DataplaneDocument, reasons: Mapping[str, str]) -> Iterator[tuple[uuid.UUID, str, int, str, bool]]:
    """Per deployment and version at fault: deployment id and name, number, reason, whether a label points at it."""
    if not reasons:
        return
    try:
        routes: Routes = opened(document)
    except SnapshotRejectedError:
        return
    for deployment in routes.deployments:
        for number, version in deployment.versions.items():
            if version.id in reasons:
                labelled = number in deployment.labels.values()
                yield uuid.UUID(deployment.id), deployment.name, number, reasons[version.id], labelled


def _fail_revision(revision: SplitRevision, failure: str) -> None:
    before = revision.as_json()
    revision.state, revision.failure, revision.ended_at = RevisionState.FAILED, failure, timezone.now()
    revision.save(update_fields=["state", "failure", "ended_at"])
    record_change(
        actor=SYSTEM,
        action="split.fail",
        of=revision.deployment,
        before=before,
        after=revision.as_json(),
        reason=failure,
    )
