"""Builds the documents of the data plane from rows: a handful of queries, however many deployments and keys there are.

Which versions a deployment's route holds: every version that its current split names (also at 0 %), every labelled
version, and the versions of the KEPT_SPLITS splits that served before. The data plane keeps those with a share loaded,
and of the others those used last, while there is room; so a roll-back mostly needs no load, and a version can be pinned
as long as anyone has reason to: it is given 0 % to be tried by pin before it gets traffic.
"""

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import msgspec
from django.db.models import F, Prefetch, Q, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from controlplane.accounts.models import ApiKey
from controlplane.catalog.models import ModelVersion, VersionState
from controlplane.deployments.models import (
    DataplaneDocument,
    Deployment,
    DocumentKind,
    KeyGrant,
    RevisionState,
    SplitRevision,
    VersionLabel,
)
from inference.contracts import (
    BASIS_POINTS,
    Access,
    AccessKey,
    CapturePolicy,
    DeploymentRoute,
    Lane,
    Routes,
    Scope,
    Share,
    Task,
    VersionRoute,
)

logger = logging.getLogger(__name__)

KEPT_SPLITS = 5
# A retired deployment answers 410 for so long, then 404 like any name that never was.
RETIRED_FOR = timedelta(days=30)
# A revoked key answers 401, as an unknown one does: it is listed for a while only so that nobody misses it.
REVOKED_FOR = timedelta(days=30)


def build_access() -> Access:
    """Every key that the data plane may meet, as generation 0. Two queries."""
    keys = (
        ApiKey.objects.filter(Q(revoked_at=None) | Q(revoked_at__gt=timezone.now() - REVOKED_FOR))
        .order_by("created_at", "pk")
        .prefetch_related(Prefetch("grants", KeyGrant.objects.order_by("deployment_id")))
    )
    return Access(generation=0, keys=tuple(_access_key(key) for key in keys))


def _access_key(key: ApiKey) -> AccessKey:
    grants = cast("Iterable[KeyGrant]", key.grants.all())
    return AccessKey(
        id=str(key.pk),
        digest=key.digest,
        team_id=str(key.team_id),
        scopes=tuple(Scope(scope) for scope in key.scopes),
        deployments=None if key.every_deployment else tuple(str(grant.deployment_id) for grant in grants),
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
        revoked=key.revoked_at is not None,
        test=key.test,
        rate_per_minute=key.rate_per_minute,
        quota_per_day=key.quota_per_day,
    )


def build_routes() -> Routes:
    """Every deployment at its newest split, also one that is still preparing, as generation 0. Five queries."""
    deployments = list(
        Deployment.objects.filter(Q(retired_at=None) | Q(retired_at__gt=timezone.now() - RETIRED_FOR))
        .select_related("model")
        .order_by("created_at", "pk")
    )
    rows = _rows_of(deployments)
    return Routes(generation=0, deployments=tuple(_route(deployment, rows) for deployment in deployments))


def active_route(deployment: Deployment) -> DeploymentRoute:
    """The route of one deployment at the split that serves now (none: `live` is empty). Four queries."""
    rows = _rows_of([deployment])
    revisions = [r for r in rows.revisions[deployment.pk] if r.state != RevisionState.PREPARING]
    rows.revisions[deployment.pk] = revisions
    return _route(deployment, rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What routes are made from, by deployment, or by model and number; revisions newest first."""

    revisions: dict[uuid.UUID, list[SplitRevision]]
    labels: dict[uuid.UUID, dict[str, int]]
    versions: dict[uuid.UUID, dict[int, ModelVersion]]
    failing: frozenset[str]


def _rows_of(deployments: Sequence[Deployment]) -> _Rows:
    current = [deployment.pk for deployment in deployments if deployment.retired_at is None]
    revisions: dict[uuid.UUID, list[SplitRevision]] = defaultdict(list)
    for revision in (
        SplitRevision.objects.filter(deployment__in=current)
        .filter(Q(state=RevisionState.PREPARING) | Q(activated_at__isnull=False))
        .annotate(rank=Window(RowNumber(), partition_by=F("deployment_id"), order_by=F("number").desc()))
        .filter(rank__lte=KEPT_SPLITS + 1)
        .order_by("deployment_id", "-number")
    ):
        revisions[revision.deployment_id].append(revision)
    labels: dict[uuid.UUID, dict[str, int]] = defaultdict(dict)
    for label in VersionLabel.objects.filter(deployment__in=current).select_related("version").order_by("label"):
        labels[label.deployment_id][label.label] = label.version.number
    models = {deployment.model_id for deployment in deployments if deployment.pk in revisions}
    numbers = {number for found in revisions.values() for revision in found for number in revision.numbers}
    numbers |= {number for found in labels.values() for number in found.values()}
    versions: dict[uuid.UUID, dict[int, ModelVersion]] = defaultdict(dict)
    for version in (
        ModelVersion.objects.filter(model__in=models, number__in=numbers, state=VersionState.READY)
        .select_related("model", "artifact")
        .defer("report", "notes", "intended_use")
    ):
        versions[version.model_id][version.number] = version
    failing = DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES, state=RevisionState.FAILED)
    return _Rows(
        revisions,
        labels,
        versions,
        frozenset(version_id for found in failing.values_list("failing", flat=True) for version_id in found),
    )


def _route(deployment: Deployment, rows: _Rows) -> DeploymentRoute:
    revisions = rows.revisions.get(deployment.pk, [])
    labels = rows.labels.get(deployment.pk, {})
    ready = rows.versions.get(deployment.model_id, {})
    current = revisions[0] if revisions else None
    needed = (current.numbers if current else set()) | set(labels.values())
    held = {
        number: _version_route(deployment, ready[number])
        for number in sorted(needed.union(*(revision.numbers for revision in revisions)))
        # A version that is kept for convenience alone must not stop a change by failing to load.
        if number in ready and (number in needed or str(ready[number].pk) not in rows.failing)
    }
    live = _shares(current.shares if current else {}, held)
    if sum(share.basis_points for share in live) not in (0, BASIS_POINTS):
        logger.error("%s has a split with a version that is not ready: it is published without a split", deployment)
        live = ()
    return DeploymentRoute(
        id=str(deployment.pk),
        name=deployment.name,
        team_id=str(deployment.team_id),
        model=deployment.model.name,
        revision=current.number if current else 0,
        salt=deployment.salt,
        task=_task(live, held),
        lane=Lane(deployment.lane),
        live=live,
        shadow=_shares(current.shadow if current else {}, held),
        versions=held,
        labels={label: number for label, number in labels.items() if number in held},
        capture=CapturePolicy(
            payload_share=deployment.payload_share,
            retention_days=deployment.retention_days,
            hash_salt=deployment.hash_salt,
        ),
        max_rows=deployment.max_rows,
        max_body_bytes=deployment.max_body_bytes,
        max_batch_rows=deployment.max_batch_rows,
        max_wait_ms=deployment.max_wait_ms,
        cache_ttl_s=deployment.cache_ttl_s,
        cache_bytes=deployment.cache_bytes,
        max_in_flight=deployment.max_in_flight,
        retired=deployment.retired_at is not None,
    )


def _shares(points_of: Mapping[str, int], held: Mapping[int, VersionRoute]) -> tuple[Share, ...]:
    """The shares above 0 % of versions that are held, in the order of numbers."""
    numbers = sorted(int(number) for number, points in points_of.items() if points > 0)
    return tuple(Share(number=n, basis_points=points_of[str(n)]) for n in numbers if n in held)


def _task(live: tuple[Share, ...], held: Mapping[int, VersionRoute]) -> Task:
    """The task of the version with the most traffic; `tensor` while there is none."""
    if live:
        return held[max(live, key=lambda share: share.basis_points).number].task
    return next(iter(held.values())).task if held else Task.TENSOR


def _version_route(deployment: Deployment, version: ModelVersion) -> VersionRoute:
    """The version's route with the deployment's word on which columns the log keeps."""
    route = version.route()
    policy = deployment.column_policy
    if not policy:
        return route
    columns = tuple(
        msgspec.structs.replace(column, keep=policy.get(column.name, column.keep)) for column in route.columns
    )
    return msgspec.structs.replace(route, columns=columns)
