"""Sends a draft to the model: one version for all of its pictures, one job each."""

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import Actor
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.jobs.models import Job, JobStatus
from controlplane.jobs.services.submitting import QUEUED_MOST, Asker, enqueue_private, seal_pictures, version_for
from controlplane.studies import sealing
from controlplane.studies.models import ReadingPolicy, Study, StudyState
from controlplane.studies.services.drafts import audit
from controlplane.studies.suggestion import mismatches


def policy_of(deployment: Deployment) -> ReadingPolicy:
    """How studies of a deployment are read: its row, or the defaults. One query."""
    return ReadingPolicy.objects.filter(deployment=deployment).first() or ReadingPolicy(deployment=deployment)


def send_study(*, actor: Actor, study: Study) -> Study:
    """Sends the draft's pictures; a study that was sent already is left as it is and returned.

    The split's bucket is the study's id, so a study never mixes versions. Raises DomainError `validation_error` (no
    picture, or a version that takes none), `gone`, `no_active_version`, `overloaded`, `storage_full`, `not_found`.
    """
    sealed: dict[str, tuple[str, bytes]] = {}
    used: set[str] = set()
    try:
        if Study.objects.filter(pk=study.pk, state=StudyState.DRAFT).exists():
            # Files are written before the transaction; those that it does not use are removed after it.
            for picture in study.pictures.all():
                sealed[picture.name] = seal_pictures([sealing.open_file(study, picture.name)])
        with transaction.atomic():
            locked = Study.objects.select_for_update().filter(pk=study.pk).first()
            if locked is None:
                raise DomainError("not_found", "There is no such study.")
            if locked.state == StudyState.ERASED:
                raise DomainError("gone", "The study was erased.")
            if locked.state == StudyState.DRAFT:
                sent = _send(actor, locked, Deployment.objects.get(pk=study.deployment_id), sealed)
                used = {sealed[name][0] for name in sent}
    finally:
        for name, _ in sealed.values():
            if name not in used:
                vault.remove(name)
    return Study.objects.select_related("deployment", "team", "version__model", "created_by").get(pk=study.pk)


def _send(actor: Actor, study: Study, deployment: Deployment, sealed: dict[str, tuple[str, bytes]]) -> list[str]:
    """Under the row's lock; the names of the pictures that were sent. One that was added late is sealed here."""
    pictures = list(study.pictures.order_by("position"))
    if not pictures:
        raise DomainError("validation_error", "Add a picture first.")
    route, revision = version_for(deployment, str(study.pk))
    if not route.task.takes_pictures:
        raise DomainError("validation_error", f"The deployment {deployment.name} takes no pictures.")
    if Job.objects.filter(deployment=deployment, status=JobStatus.QUEUED).count() >= QUEUED_MOST:
        raise DomainError("overloaded", f"{QUEUED_MOST} jobs of {deployment.name} are waiting already.")
    version = ModelVersion.objects.get(pk=route.id)
    asker = Asker(user=study.created_by)
    for picture in pictures:
        if picture.name not in sealed:
            sealed[picture.name] = seal_pictures([sealing.open_file(study, picture.name)])
        picture.job = enqueue_private(
            asker=asker,
            deployment=deployment,
            version=route,
            revision=revision,
            sealed=sealed[picture.name],
            rows=1,
            warnings=list(picture.warnings),
            request_id=actor.request_id,
        )
        picture.mismatches = mismatches(picture.tags, version.intended_use)
        picture.save(update_fields=["job", "mismatches"])
    policy = policy_of(deployment)
    now = timezone.now()
    study.version = version
    study.state = StudyState.SENT
    study.purpose, study.approver = deployment.purpose, deployment.approver
    study.read_first = policy.read_first
    study.readers = policy.readers
    study.sent_at = now
    study.erase_at = now + timedelta(days=policy.retention_days)
    copied = ["purpose", "approver", "read_first", "readers"]
    study.save(update_fields=["version", "state", *copied, "sent_at", "erase_at"])
    audit(actor, "study.send", study, after={"version": version.number, "pictures": len(pictures)})
    return [picture.name for picture in pictures]
