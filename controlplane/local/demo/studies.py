"""A few studies of the demo's doctor: synthetic pictures, some read already, one of an adult, as a mistake to see."""

import io
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from controlplane.accounts.models import User
from controlplane.audit.services import Actor
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.studies.models import Answer, Study
from controlplane.studies.services.drafts import add_picture, open_draft
from controlplane.studies.services.sending import send_study
from controlplane.studies.services.verdicts import give_verdict, open_study, show_suggestion
from controlplane.studies.suggestion import suggestion
from examples.chest_xray import generator

SEED = 6


@dataclass(frozen=True, slots=True)
class Planned:
    """`age`: DICOM's age string; "" sends a PNG, which says nothing of its making. `read`: the doctor has answered."""

    reference: str
    age: str
    read: bool


PLANNED = (
    Planned("SYNTHETIC-01", "004Y", True),
    Planned("SYNTHETIC-02", "002Y", True),
    Planned("SYNTHETIC-03", "", True),
    Planned("SYNTHETIC-04", "003Y", False),
    Planned("SYNTHETIC-05", "", False),
    Planned("SYNTHETIC-06 (an adult)", "054Y", False),
)


def send_studies(doctor: User, deployment: Deployment) -> list[tuple[Study, str, Planned]]:
    """Sends the planned studies; returns each with its truth. Nothing where the doctor has any study already."""
    if Study.objects.filter(created_by=doctor).exists():
        return []
    drawn = generator.pictures(len(PLANNED), np.random.default_rng(SEED))
    sent = []
    for planned, pixels, label in zip(PLANNED, drawn.pixels, drawn.labels, strict=True):
        study = open_draft(actor=acting(doctor), user=doctor, deployment=deployment, reference=planned.reference)
        content = dicom(pixels, planned.age) if planned.age else generator.png(pixels)
        add_picture(actor=acting(doctor), study=study, content=content)
        sent.append((send_study(actor=acting(doctor), study=study), generator.LABELS[label], planned))
    return sent


def read_studies(doctor: User, sent: list[tuple[Study, str, Planned]]) -> int:
    """Answers, with the truth, those planned as read whose suggestion is there by now; returns how many."""
    read = 0
    for study, truth, planned in sent:
        if not planned.read or suggestion(study).state != "ready":
            continue
        open_study(actor=acting(doctor), study=study, user=doctor)
        shown = show_suggestion(actor=acting(doctor), study=study, user=doctor)
        agrees = shown is not None and list(shown.above) == [truth]
        try:
            give_verdict(
                actor=acting(doctor),
                study=study,
                user=doctor,
                answer=Answer.AGREE if agrees else Answer.CORRECT,
                labels=() if agrees else (truth,),
                expected_number=0,
            )
        except DomainError as error:
            # The doctor may have been quicker.
            if error.code != "conflict":
                raise
        else:
            read += 1
    return read


def acting(doctor: User) -> Actor:
    return Actor(f"user:{doctor.username}", str(doctor.pk), doctor.pk)


def dicom(pixels: np.ndarray, age: str) -> bytes:
    """One picture (uint8 [28, 28]) as a DX object, MONOCHROME2, chest, view AP, of a made-up patient of this age."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    made = FileDataset(stream, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.PatientName, made.PatientID, made.PatientAge = "Synthetic^Picture", "SYNTHETIC", age
    made.Modality, made.BodyPartExamined, made.ViewPosition = "DX", "CHEST", "AP"
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = pixels.tobytes()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
