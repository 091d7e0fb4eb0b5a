"""Labels by which a V1 URL names a version: `stable`, `canary`."""

import re
from collections.abc import Mapping

from controlplane.audit.services import Actor, record_change
from controlplane.catalog.models import ModelVersion, VersionState
from controlplane.deployments.models import Deployment, VersionLabel
from controlplane.deployments.publishing import active_routes
from controlplane.deployments.services.deployments import current
from controlplane.deployments.services.splits import lock_versions, refusal
from controlplane.deployments.settling import routes_change
from controlplane.errors import field_error

LABEL = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
MAX_LABELS = 32


def set_label(*, actor: Actor, deployment: Deployment, label: str, version: int | None) -> dict[str, int]:
    """Points one label at a version, or takes it away with None; returns all labels. Raises as set_labels does."""
    with routes_change():
        deployment = current(deployment)
        labels = labels_of(deployment)
        if version is None:
            labels.pop(label, None)
        else:
            labels[label] = version
        return _set(actor, deployment, labels)


def set_labels(*, actor: Actor, deployment: Deployment, labels: Mapping[str, int]) -> dict[str, int]:
    """Makes these the deployment's labels (label -> version number) and publishes them; returns them.

    As in TensorFlow Serving, a label moves only to a version that is loaded, so that a call by label never waits for
    one. Raises DomainError `unknown_version`, `not_ready` (not loaded everywhere), `validation_error` or `gone`.
    """
    with routes_change():
        return _set(actor, current(deployment), labels)


def labels_of(deployment: Deployment) -> dict[str, int]:
    """Version numbers by label."""
    rows = VersionLabel.objects.filter(deployment=deployment).select_related("version").only("label", "version__number")
    return {row.label: row.version.number for row in rows}


def _set(actor: Actor, deployment: Deployment, labels: Mapping[str, int]) -> dict[str, int]:
    before = labels_of(deployment)
    if not isinstance(labels, Mapping) or len(labels) > MAX_LABELS:
        raise field_error("validation_error", "labels", f"Give at most {MAX_LABELS} labels: label to version number.")
    for label, number in labels.items():
        if not isinstance(label, str) or LABEL.fullmatch(label) is None:
            message = "A label has 1 to 40 characters of a–z, 0–9, ., - and _, and begins with a letter."
            raise field_error("validation_error", ["labels", str(label)[:40]], message)
        if isinstance(number, bool) or not isinstance(number, int):
            raise field_error("validation_error", ["labels", label], "A label points at a version number.")
    moved = {label: number for label, number in labels.items() if before.get(label) != number}
    versions = _check(deployment, moved) if moved else {}
    for label, number in moved.items():
        VersionLabel.objects.update_or_create(
            deployment=deployment, label=label, defaults={"version": versions[number]}
        )
    gone = before.keys() - labels.keys()
    if gone:
        VersionLabel.objects.filter(deployment=deployment, label__in=gone).delete()
    after = dict(sorted(labels.items()))
    if moved or gone:
        record_change(
            actor=actor,
            action="labels.set",
            of=deployment,
            before=before,
            after=after,
        )
    return after


def _check(deployment: Deployment, moved: Mapping[str, int]) -> dict[int, ModelVersion]:
    """The versions that labels move to, by number. Raises DomainError for one that is unknown or not loaded."""
    found = lock_versions(deployment.model, moved.values())
    routes = active_routes()
    held = {
        number
        for route in (routes.deployments if routes else ())
        if route.id == str(deployment.pk)
        for number in route.versions
    }
    for label, number in moved.items():
        version = found.get(number)
        name = f"Version {number} of {deployment.model.name}"
        message = refusal(version, name)
        if message is not None:
            pending = version is not None and version.state in (VersionState.UPLOADED, VersionState.VALIDATING)
            raise field_error("not_ready" if pending else "unknown_version", ["labels", label], message)
        if number not in held:
            message = f"{name} is not served yet: give it a share first, 0 % is enough."
            raise field_error("not_ready", ["labels", label], message)
    return found
