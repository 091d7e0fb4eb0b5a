"""Pictures of studies for a person's eyes. Decrypted in memory, read in throw-away children, never cached."""

import logging
from collections.abc import Callable

from controlplane.catalog.models import ModelVersion
from controlplane.errors import DomainError
from controlplane.jobs.vault import VaultError
from controlplane.studies import sealing
from controlplane.studies.models import StudyPicture
from inference.errors import InferenceError
from inference.runtime import viewing

logger = logging.getLogger(__name__)


def pixels(picture: StudyPicture) -> bytes:
    """The picture at its full depth, in the format of inference.runtime.viewing.display_frame. Blocks.

    Needs `study` joined, as all of this module. Raises DomainError `gone` for an erased study, or a picture code.
    """
    return _made(picture, viewing.display_frame)


def thumbnail(picture: StudyPicture, side: int = 192) -> bytes:
    """The picture as it is first shown, as a PNG of at most `side` pixels. Blocks; raises as `pixels`."""
    return _made(picture, lambda content: viewing.thumbnail(content, side))


def model_view(picture: StudyPicture) -> bytes:
    """What the study's version got to see of the picture, as a PNG of the model's size. Blocks. One query.

    Raises as `pixels`, and DomainError `not_found` for a study that was not sent.
    """
    if picture.study.version_id is None:
        raise DomainError("not_found", "No model has seen the picture yet.")
    version = ModelVersion.objects.select_related("model", "artifact").get(pk=picture.study.version_id).route()
    return _made(picture, lambda content: viewing.model_view(content, version))


def open_file(picture: StudyPicture, name: str) -> bytes:
    """A file of the picture's study. Raises DomainError `gone`, or `internal` where it is lost or was changed."""
    try:
        return sealing.open_file(picture.study, name)
    except VaultError as error:
        logger.error("a file of picture %s cannot be read: %s", picture.pk, error)
        raise DomainError("internal", "The picture's file cannot be read.") from error


def _made(picture: StudyPicture, view: Callable[[bytes], bytes]) -> bytes:
    content = open_file(picture, picture.name)
    try:
        return view(content)
    except InferenceError as error:
        raise DomainError.from_inference(error) from error
