"""What a deployment's studies are for: research, or clinical use, which demands more of every version that answers."""

from collections.abc import Iterable

from django.utils import timezone

from controlplane.audit.services import Actor, record_change
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment, Purpose, RevisionState, SplitRevision
from controlplane.deployments.services.deployments import check_text, current
from controlplane.deployments.settling import routes_change
from controlplane.errors import field_error

APPROVER_LENGTH = 200


def set_purpose(*, actor: Actor, deployment: Deployment, purpose: str, approver: str = "") -> Deployment:
    """Declares what the deployment's studies are for from now on; nothing is written where nothing differs.

    Clinical use needs who approved it, by name, and of every version with a live share, also of a split that is still
    preparing, a threshold for every label and an intended use. Back to research the approval is forgotten.
    Raises DomainError `validation_error`, `bad_text` or `gone`.
    """
    if purpose not in Purpose.values:
        raise field_error("validation_error", "purpose", f"A purpose is one of {', '.join(Purpose.values)}.")
    approver = approver.strip() if purpose == Purpose.CLINICAL else ""
    if purpose == Purpose.CLINICAL and not approver:
        raise field_error("validation_error", "approver", "Name who approved clinical use.")
    if len(approver) > APPROVER_LENGTH:
        raise field_error("validation_error", "approver", f"A name has at most {APPROVER_LENGTH} characters.")
    check_text("approver", approver)
    with routes_change():
        fresh = current(deployment)
        if purpose == Purpose.CLINICAL:
            splits = SplitRevision.objects.filter(
                deployment=fresh, state__in=[RevisionState.PREPARING, RevisionState.ACTIVE]
            )
            live = {int(number) for split in splits for number, points in split.shares.items() if points}
            lacking = lacking_for_clinical(fresh, live)
            if lacking:
                raise field_error("validation_error", "purpose", f"Clinical use is not possible yet: {lacking}")
        if (fresh.purpose, fresh.approver) == (purpose, approver):
            return fresh
        before = {"purpose": fresh.purpose, "approver": fresh.approver}
        fresh.purpose, fresh.approver = purpose, approver
        fresh.approved_at = timezone.now() if purpose == Purpose.CLINICAL else None
        fresh.save(update_fields=["purpose", "approver", "approved_at"])
        record_change(
            actor=actor,
            action="deployment.purpose",
            of=fresh,
            before=before,
            after={"purpose": purpose, "approver": approver},
        )
    return fresh


def refuse_unfit_for_clinical(deployment: Deployment, live: Iterable[int]) -> None:
    """Raises DomainError `unknown_version` where a clinical deployment would answer with a version that lacks what
    clinical use demands. One query for a clinical deployment, none otherwise."""
    if deployment.purpose != Purpose.CLINICAL:
        return
    for number in sorted(live):
        lacking = lacking_for_clinical(deployment, [number])
        if lacking:
            raise field_error("unknown_version", ["shares", str(number)], f"This deployment is clinical: {lacking}")


def lacking_for_clinical(deployment: Deployment, numbers: Iterable[int]) -> str:
    """A sentence that says what the first of these versions lacks for clinical use; "" where none lacks anything.

    Needs a transaction, until whose end nobody takes anything from what these versions state: their rows are locked.
    """
    versions = ModelVersion.objects.filter(model=deployment.model_id, number__in=list(numbers)).order_by("number")
    said = versions.only("number", "labels", "thresholds", "intended_use")
    for version in said.select_for_update(of=("self",)):
        without = [label for label in version.labels if label not in version.thresholds]
        if without or not version.labels:
            of_which = f"“{without[0]}”" if len(without) == 1 else f"{len(without)} labels" if without else "its labels"
            return f"version {version.number} has no threshold for {of_which}."
        if not version.intended_use:
            return f"version {version.number} states no intended use."
    return ""
