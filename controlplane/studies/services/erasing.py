"""Erases studies: the key first, without which every copy of their pictures is noise; then all that was derived."""

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import SYSTEM, Actor
from controlplane.errors import DomainError
from controlplane.jobs.models import Job, JobQuerySet
from controlplane.jobs.services.claiming import forget
from controlplane.predictions.models import Prediction
from controlplane.studies import sealing
from controlplane.studies.models import Study, StudyPicture, StudyState
from controlplane.studies.services.drafts import audit, discard_draft

PURGE_MOST = 100
# A file is written before its row is committed; one without a row for so long has none.
ORPHAN_AFTER = timedelta(hours=1)


def erase_study(*, actor: Actor, study: Study) -> Study:
    """Makes a study unreadable for good: its key, files, reference and comments, its jobs' inputs and results, and
    what the prediction log keeps of them. Its row, who said what of it, and its audit events stay.

    A draft is deleted. A study that is erased already is returned as it is. Raises DomainError `not_found`.
    """
    with transaction.atomic():
        locked = Study.objects.select_for_update().filter(pk=study.pk).first()
        if locked is None:
            raise DomainError("not_found", "There is no such study.")
        if locked.state == StudyState.ERASED:
            return locked
        if locked.state == StudyState.DRAFT:
            discard_draft(actor=actor, study=locked)
            return locked
        pictures = list(locked.pictures.all())
        names = [name for picture in pictures for name in (picture.name, picture.heat_map)]
        jobs = [picture.job_id for picture in pictures if picture.job_id is not None]
        locked.state, locked.wrapped_key = StudyState.ERASED, None
        locked.reference, locked.reference_digest = b"", ""
        locked.save(update_fields=["state", "wrapped_key", "reference", "reference_digest"])
        locked.pictures.update(name="", heat_map="", tags={}, warnings=[], mismatches=[], job=None)
        locked.verdicts.update(comment=b"")
        forget(jobs)
        Prediction.objects.filter(id__in=jobs).update(
            inputs=None, outputs=None, scores=None, pictures=None, warnings=None, context=None
        )
        audit(actor, "study.erase", locked)
        transaction.on_commit(lambda: sealing.remove_files(names))
    return locked


def purge() -> int:
    """Periodic: erases studies whose time has come, drafts among them. Returns how many."""
    due = Study.objects.filter(erase_at__lte=timezone.now()).exclude(state=StudyState.ERASED)
    erased = 0
    for pk in list(due.order_by("erase_at").values_list("pk", flat=True)[:PURGE_MOST]):
        with transaction.atomic():
            # Looked at again: a draft may have been sent meanwhile, and has its retention before it now.
            study = due.select_for_update(skip_locked=True).filter(pk=pk).first()
            if study is not None:
                erase_study(actor=SYSTEM, study=study)
                erased += 1
    return erased


def sweep_files() -> int:
    """Periodic: removes files that no study names: their process died before the row was there. Returns how many."""
    orphans = set(sealing.files_older_than((timezone.now() - ORPHAN_AFTER).timestamp()))
    if not orphans:
        return 0
    for names in StudyPicture.objects.values_list("name", "heat_map").iterator():
        orphans.difference_update(names)
    sealing.remove_files(orphans)
    return len(orphans)


def held_jobs() -> JobQuerySet:
    """Jobs that a study still shows: they outlive the deployment's retention."""
    return Job.objects.filter(study_picture__isnull=False)
