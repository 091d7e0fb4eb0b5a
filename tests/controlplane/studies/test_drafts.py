"""A draft: its pictures come in without identifiers, once each, blacked out, within the caps."""

import threading
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from django.db import connection
from django.utils import timezone
from PIL import Image

from controlplane.accounts.models import User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.studies import sealing
from controlplane.studies.models import Study, StudyPicture
from controlplane.studies.queries import reference_of
from controlplane.studies.services import drafts
from controlplane.studies.services.drafts import add_picture, discard_draft, open_draft, remove_picture
from controlplane.studies.services.erasing import purge, sweep_files
from inference.runtime.dicom import read_picture
from tests.controlplane.studies.conftest import REFERENCE, as_actor, draft, picture
from tests.inference.runtime.picture_files import chest, dicom, encoded, png_claiming

pytestmark = pytest.mark.django_db

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


def files(home: Path) -> list[Path]:
    return [path for path in (home / "pictures" / "studies").rglob("*") if path.is_file()]


def test_a_picture_is_kept_encrypted_and_the_reference_too(home: Path, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture())

    kept = study.pictures.get()
    assert (kept.position, kept.media_type, kept.width, kept.height) == (1, "image/png", 64, 64)
    (file,) = files(home)
    assert file.name == kept.name
    assert b"PNG" not in file.read_bytes()
    assert np.array_equal(np.asarray(Image.open(BytesIO(sealing.open_file(study, kept.name)))), chest())
    stored = Study.objects.get(pk=study.pk)
    assert REFERENCE.encode() not in bytes(stored.reference)
    assert reference_of(stored) == REFERENCE
    assert [event.action for event in AuditEvent.objects.order_by("id")][-2:] == ["study.create", "study.add_picture"]


def test_the_same_picture_is_added_once(home: Path, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture())
    twice = [add_picture(actor=as_actor(doctor), study=study, content=content) for content in (picture(), picture(9))]

    assert twice[0].pk == study.pictures.get(position=1).pk
    assert study.pictures.count() == len(files(home)) == 2
    without_uids = dicom(StudyInstanceUID=None, SeriesInstanceUID=None)
    same = {add_picture(actor=as_actor(doctor), study=study, content=without_uids).pk for _ in range(2)}
    assert len(same) == 1


@pytest.mark.django_db(transaction=True)
def test_a_picture_sent_twice_at_once_is_added_once(home: Path, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray)
    added: list[object] = []

    def add() -> None:
        added.append(add_picture(actor=as_actor(doctor), study=study, content=picture()).pk)
        connection.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(added) == 4
    assert len(set(added)) == StudyPicture.objects.count() == len(files(home)) == 1


def test_boxes_are_black_before_anything_is_stored(doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray)
    box = (5, 40, 20, 10)
    inside = np.s_[40:50, 5:25]
    upright = chest()
    turned = Image.fromarray(np.rot90(upright, 1))
    exif = turned.getexif()
    exif[0x0112] = 6
    bright = chest().astype(np.uint16) * 16 + 7
    for content in (
        encoded(upright),
        encoded(turned, "JPEG", exif=exif, quality=95),
        encoded(np.stack([upright] * 3, axis=2)),
        dicom(bright, BitsStored=12, HighBit=11),
        dicom(bright, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"),
    ):
        kept = add_picture(actor=as_actor(doctor), study=study, content=content, blackouts=[box])
        stored = sealing.open_file(study, kept.name)
        if kept.media_type == "application/dicom":
            values = pydicom.dcmread(BytesIO(stored)).pixel_array
            shown = np.asarray(read_picture(stored).image)
            assert shown[inside].max() == shown.min()
        else:
            values = shown = np.asarray(Image.open(BytesIO(stored)))
            assert shown[inside].max() == 0
        assert np.ptp(values[inside]) == 0
        outside = np.ones(values.shape, bool)
        outside[inside] = False
        assert np.ptp(values[outside]) > 100


def test_boxes_that_are_none_are_refused(doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray)
    for box in ((-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5), (0.5, 0, 5, 5), (0, 0, 2**40, 5)):
        with pytest.raises(DomainError) as refused:
            add_picture(actor=as_actor(doctor), study=study, content=picture(), blackouts=[box])  # type: ignore[list-item]  # a box of the wrong form, on purpose
        assert (refused.value.code, refused.value.errors[0]["loc"]) == ("validation_error", ["blackouts", 0])
    assert not study.pictures.exists()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "not_an_image", "empty"),
        (b"hello", "not_an_image", ""),
        (HEIC, "unsupported_image", "HEIC"),
        (png_claiming(12_000, 10_000), "too_many_pixels", "12000 x 10000"),
        (encoded(chest())[:400], "corrupt_image", ""),
        (dicom(PixelData=b"\0" * 10), "pixel_mismatch", ""),
    ],
)
def test_what_is_no_picture_leaves_nothing(
    content: bytes, code: str, words: str, home: Path, doctor: User, xray: Deployment
) -> None:
    study = draft(doctor, xray)
    with pytest.raises(DomainError) as refused:
        add_picture(actor=as_actor(doctor), study=study, content=content)
    assert refused.value.code == code
    assert words in refused.value.message
    assert not study.pictures.exists()
    assert files(home) == []


def test_a_study_has_a_cap_on_pictures_and_a_file_one_on_bytes(
    doctor: User, xray: Deployment, monkeypatch: pytest.MonkeyPatch, settings: object
) -> None:
    monkeypatch.setattr(drafts, "PICTURES_MOST", 2)
    study = draft(doctor, xray, picture(), picture(5))
    with pytest.raises(DomainError, match="at most 2 pictures"):
        add_picture(actor=as_actor(doctor), study=study, content=picture(10))
    settings.SIGNALBOX_MAX_PICTURE_BYTES = 100  # type: ignore[attr-defined]  # a setting of ours
    with pytest.raises(DomainError) as refused:
        add_picture(actor=as_actor(doctor), study=study, content=picture(10))
    assert refused.value.code == "too_large"
    assert study.pictures.count() == 2


def test_a_header_that_lies_about_monochrome1_is_taken_at_its_word(doctor: User, xray: Deployment) -> None:
    """The pixels say MONOCHROME2; tags, stored values and what is shown stay consistent with the header."""
    study = draft(doctor, xray)
    lying = dicom(chest(), PhotometricInterpretation="MONOCHROME1", ViewPosition="PA", PatientAge="034Y")
    kept = add_picture(actor=as_actor(doctor), study=study, content=lying)

    stored = sealing.open_file(study, kept.name)
    file = pydicom.dcmread(BytesIO(stored))
    assert file.PhotometricInterpretation == "MONOCHROME1"
    assert np.array_equal(file.pixel_array, chest())
    assert np.array_equal(np.asarray(read_picture(stored).image), 255 - chest())
    assert kept.tags == {"modality": "DX", "view": "PA", "age": "034Y"}


def test_a_file_without_a_row_is_swept_and_one_with_a_row_stays(
    home: Path, doctor: User, xray: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a process that was killed between writing the file and its row."""
    study = draft(doctor, xray, picture())
    orphan = sealing.seal_file(study, b"half-way")
    assert sweep_files() == 0
    monkeypatch.setattr("controlplane.studies.services.erasing.ORPHAN_AFTER", timedelta(seconds=-5))

    assert sweep_files() == 1

    assert [file.name for file in files(home)] == [study.pictures.get().name]
    assert orphan != study.pictures.get().name


def test_a_draft_without_a_reference_or_right_is_refused(
    doctor: User, foreign_doctor: User, colleague: User, xray: Deployment
) -> None:
    for user, reference, code in (
        (doctor, "  ", "validation_error"),
        (doctor, "x" * 101, "validation_error"),
        (doctor, "a\0b", "bad_text"),
        (foreign_doctor, "A", "not_found"),
        (colleague, "A", "not_found"),
    ):
        with pytest.raises(DomainError) as refused:
            open_draft(actor=as_actor(user), user=user, deployment=xray, reference=reference)
        assert refused.value.code == code
    assert not Study.objects.exists()


def test_pictures_are_removed_and_drafts_discarded_or_purged(
    home: Path, doctor: User, xray: Deployment, django_capture_on_commit_callbacks: object
) -> None:
    study, other = draft(doctor, xray, picture(), picture(5)), draft(doctor, xray, picture())
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]  # a fixture typed as object
        remove_picture(actor=as_actor(doctor), study=study, picture=study.pictures.first())  # type: ignore[arg-type]  # there is one
        discard_draft(actor=as_actor(doctor), study=other)
    assert len(files(home)) == 1
    assert purge() == 0
    Study.objects.update(erase_at=timezone.now() - timedelta(seconds=1))
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]  # a fixture typed as object
        assert purge() == 1
    assert files(home) == []
    assert not Study.objects.exists()
