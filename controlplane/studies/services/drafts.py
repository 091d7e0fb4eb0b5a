"""A study before it is sent: made, given pictures, discarded. Identifiers are gone before anything is stored."""

import hashlib
import hmac
import logging
import uuid
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from controlplane.accounts.models import Right, User
from controlplane.audit.services import Actor, record
from controlplane.deployments.documents import active_route
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.deployments import check_text
from controlplane.errors import DomainError, field_error
from controlplane.studies import sealing
from controlplane.studies.models import Study, StudyPicture, StudyState, new_id
from inference.errors import InferenceError
from inference.runtime.deidentify import Box, deidentify_in_sandbox

logger = logging.getLogger(__name__)

PICTURES_MOST = 12
REFERENCE_LENGTH = 100
BLACKOUTS_MOST = 50
DRAFT_KEPT = timedelta(days=7)


def open_draft(
    *, actor: Actor, user: User, deployment: Deployment, reference: str, identity: uuid.UUID | None = None
) -> Study:
    """Makes an empty draft, which is its maker's alone and is erased after seven days.

    `identity` is an id that the form drew in advance, so that a double click makes one study: where the person's study
    of that id is there already, that is it (`conflict` where it is another's).
    Raises DomainError `not_found` (no right to make studies in the deployment's team), `gone` (retired), `bad_text`,
    `validation_error` (no reference, a long one, or a deployment that takes no pictures).
    """
    if not user.has_right(Right.STUDY, deployment.team_id):
        raise DomainError("not_found", "There is no such deployment.")
    if deployment.retired_at is not None:
        raise DomainError("gone", f"The deployment {deployment.name} was retired.")
    reference = reference.strip()
    if not reference or len(reference) > REFERENCE_LENGTH:
        message = f"Type a case reference of at most {REFERENCE_LENGTH} characters."
        raise field_error("validation_error", "reference", message)
    check_text("reference", reference)
    route = active_route(deployment)
    if route.versions and not route.task.takes_pictures:
        raise field_error("validation_error", "deployment", f"The deployment {deployment.name} takes no pictures.")
    now = timezone.now()
    _, wrapped = sealing.new_study_key()
    study = Study(
        id=identity or new_id(),
        team_id=deployment.team_id,
        deployment=deployment,
        wrapped_key=wrapped,
        reference_digest=sealing.reference_digest(deployment.team_id, reference),
        purpose=deployment.purpose,
        created_by=user,
        created_at=now,
        erase_at=now + DRAFT_KEPT,
    )
    study.reference = sealing.seal_text(study, reference)
    try:
        with transaction.atomic():
            study.save(force_insert=True)
            audit(actor, "study.create", study)
    except IntegrityError:
        same = Study.objects.filter(pk=study.pk, created_by=user).first()
        if same is None:
            raise DomainError("conflict", "The form was used already. Reload the page.") from None
        return same
    return study


def add_picture(
    *, actor: Actor, study: Study, content: bytes, blackouts: Sequence[tuple[int, int, int, int]] = ()
) -> StudyPicture:
    """Adds a picture to a draft, without identifiers and with the boxes blacked out; blocks while a child reads it.

    `blackouts`: (x, y, width, height) in pixels of the upright picture, or of a DICOM file's stored frame. A picture
    that the study has already is that one. What the file was called never comes in here.
    Raises DomainError `conflict` (no draft any more), `too_large`, `validation_error` (boxes, too many pictures), a
    picture code, `storage_full`.
    """
    _require_draft(study)
    boxes = [_box(box, index) for index, box in enumerate(blackouts)]
    if len(boxes) > BLACKOUTS_MOST:
        raise field_error("validation_error", "blackouts", f"At most {BLACKOUTS_MOST} boxes can be blacked out.")
    if not content:
        raise field_error("not_an_image", "picture", "The file is empty.")
    most: int = settings.SIGNALBOX_MAX_PICTURE_BYTES
    if len(content) > most:
        raise field_error("too_large", "picture", f"The file is larger than {most // 1024**2} MB.")
    try:
        clean = deidentify_in_sandbox(content, salt=_salt(study), blackouts=boxes)
    except InferenceError as error:
        raise field_error(error.code, "picture", error.message) from error
    digest = sealing.picture_digest(study, clean.data)
    same = study.pictures.filter(digest=digest).first()
    if same is not None:
        return same
    name = sealing.seal_file(study, clean.data)
    kept = False
    try:
        with transaction.atomic():
            locked = lock_draft(study)
            same = locked.pictures.filter(digest=digest).first()
            if same is not None:
                return same
            if locked.pictures.count() >= PICTURES_MOST:
                message = f"A study has at most {PICTURES_MOST} pictures."
                raise field_error("validation_error", "picture", message)
            last = locked.pictures.aggregate(last=Max("position"))["last"]
            picture = StudyPicture.objects.create(
                study=locked,
                position=(last or 0) + 1,
                name=name,
                media_type=clean.media_type,
                digest=digest,
                size_bytes=len(clean.data),
                width=clean.width,
                height=clean.height,
                tags=clean.tags,
                warnings=clean.warnings,
                added_at=timezone.now(),
            )
            audit(actor, "study.add_picture", study, after={"picture": str(picture.pk), "removed": clean.removed})
            kept = True
        return picture
    finally:
        if not kept:
            sealing.remove_files([name])


def remove_picture(*, actor: Actor, study: Study, picture: StudyPicture) -> None:
    """Takes a picture out of a draft, and its file off the disk. Raises DomainError `conflict`."""
    with transaction.atomic():
        locked = lock_draft(study)
        found = locked.pictures.filter(pk=picture.pk).first()
        if found is None:
            return
        name = found.name
        found.delete()
        audit(actor, "study.remove_picture", study, after={"picture": str(picture.pk)})
        transaction.on_commit(lambda: sealing.remove_files([name]))


def discard_draft(*, actor: Actor, study: Study) -> None:
    """Deletes a draft with its key and its files. Raises DomainError `conflict` for what was sent."""
    with transaction.atomic():
        locked = lock_draft(study)
        names = [name for pair in locked.pictures.values_list("name", "heat_map") for name in pair]
        audit(actor, "study.discard", study)
        locked.delete()
        transaction.on_commit(lambda: sealing.remove_files(names))


def audit(actor: Actor, action: str, study: Study, *, after: dict[str, object] | None = None) -> None:
    """An event about a study. It names neither the case nor anything that was said of it."""
    record(
        actor=actor,
        action=action,
        target_type="study",
        target_id=study.pk,
        target_label="study",
        team_id=study.team_id,
        after=after,
    )


def lock_draft(study: Study) -> Study:
    """The draft's row, locked. Raises DomainError `conflict` where it is none any more."""
    locked = Study.objects.select_for_update().filter(pk=study.pk).first()
    if locked is None:
        raise DomainError("not_found", "There is no such study.")
    _require_draft(locked)
    return locked


def _require_draft(study: Study) -> None:
    if study.state != StudyState.DRAFT:
        raise DomainError("conflict", "The study was sent already: its pictures cannot be changed.")


def _box(box: Sequence[int], index: int) -> Box:
    sound = len(box) == 4 and all(isinstance(side, int) and not isinstance(side, bool) for side in box)
    if not sound or min(box[0], box[1]) < 0 or min(box[2], box[3]) < 1 or max(box) > 1_000_000:
        message = "A box is x, y, width and height in whole pixels, within the picture."
        raise field_error("validation_error", ["blackouts", index], message)
    return box[0], box[1], box[2], box[3]


def _salt(study: Study) -> bytes:
    """Makes a study's files belong together; once its key is gone, nobody can tie them to the patient's UIDs."""
    return hmac.new(sealing.open_key(study), b"uids", hashlib.sha256).digest()
