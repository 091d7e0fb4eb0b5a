"""Reads across deployments."""

from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Purpose, RevisionState, SplitRevision, VersionLabel, in_per_cent


def what_is_clinical(version: ModelVersion) -> str | None:
    """A sentence that names a clinical deployment in which a version has a live share, else None. One query."""
    revisions = SplitRevision.objects.filter(
        deployment__model=version.model_id,
        deployment__retired_at=None,
        deployment__purpose=Purpose.CLINICAL,
        state__in=[RevisionState.PREPARING, RevisionState.ACTIVE],
    ).select_related("deployment")
    for revision in revisions.order_by("deployment__name", "-number"):
        if revision.shares.get(str(version.number)):
            return f"It answers for “{revision.deployment.name}”, which is clinical."
    return None


def what_holds(version: ModelVersion) -> str | None:
    """A sentence that names what a version may not be archived for: a share above 0 %, or a label. Else None."""
    number = str(version.number)
    revisions = SplitRevision.objects.filter(
        deployment__model=version.model_id,
        deployment__retired_at=None,
        state__in=[RevisionState.PREPARING, RevisionState.ACTIVE],
    ).select_related("deployment")
    for revision in revisions.order_by("deployment__name", "-number"):
        for points, of_what in ((revision.shares, "the traffic"), (revision.shadow, "the traffic as a shadow")):
            if points.get(number):
                return f"It has {in_per_cent(points)[number]} % of {of_what} of “{revision.deployment.name}”."
    label = (
        VersionLabel.objects.filter(version=version, deployment__retired_at=None)
        .select_related("deployment")
        .order_by("deployment__name", "label")
        .first()
    )
    return f"The label “{label.label}” of “{label.deployment.name}” points at it." if label else None
