"""De-identification: nothing that names a patient is left in the bytes, and the pixels stay what they were."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from inference.errors import InferenceError
from inference.runtime import picture_child
from inference.runtime.deidentify import deidentify, deidentify_in_sandbox
from inference.runtime.dicom import read_picture
from tests.inference.runtime.picture_files import chest, dicom, encoded

pytestmark = pytest.mark.unit

SECRET = b"DOE^JANE"
DATA = Path(__file__).parents[4] / "shared" / "data" / "dicom"


@pytest.fixture(scope="module", autouse=True)
def stop_children() -> Iterator[None]:
    yield
    picture_child.close_children()


def named_patient() -> bytes:
    """A file whose every corner names the patient."""
    secret = SECRET.decode()
    request = Dataset()
    request.RequestedProcedureDescription = secret
    request.ScheduledProcedureStepDescription = secret
    private = Dataset()
    private.add_new(0x00091001, "LO", secret)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [entry * 257 for entry in range(256)]
    table["LUTData"].VR = "US"
    table.LUTExplanation = secret
    whole = dicom(
        PatientName=secret,
        PatientID=secret,
        PatientBirthDate="19400131",
        PatientAge="086Y",
        PatientSex="F",
        PatientComments=secret,
        AccessionNumber=secret,
        InstitutionName=secret,
        ReferringPhysicianName=secret,
        OperatorsName=secret,
        StudyDate="20260102",
        StudyDescription=secret,
        SeriesDescription=secret,
        ProtocolName=secret,
        DeviceSerialNumber=secret,
        # Codes and numbers where a name would fit as well.
        BodyPartExamined=secret,
        ViewPosition=secret,
        Laterality=secret,
        PixelSpacing=["0.1", "0.1"],
        RequestAttributesSequence=Sequence([request]),
        VOILUTSequence=Sequence([table]),
    )
    dataset = pydicom.dcmread(BytesIO(whole))
    block = dataset.private_block(0x0009, secret, create=True)
    block.add_new(0x01, "LO", secret)
    block.add_new(0x02, "SQ", [private])
    dataset.add_new(0x60003000, "OW", SECRET * 20)
    dataset.add_new(0xFFFCFFFC, "OB", SECRET * 20)
    out = BytesIO()
    dataset.save_as(out)
    return SECRET.ljust(128, b"\0") + out.getvalue()[128:]


def test_nothing_of_the_patient_is_left_in_a_dicom_file() -> None:
    sent = named_patient()
    assert sent.count(SECRET) > 20
    clean = deidentify(sent, salt=b"salt")
    for trace in (SECRET, b"DOE", b"JANE", b"1940", b"2026", b"1.2.3"):
        assert trace not in clean.data
    assert (clean.media_type, clean.data[:128]) == ("application/dicom", b"\0" * 128)
    dataset = pydicom.dcmread(BytesIO(clean.data))
    assert not [element for element in dataset if element.tag.is_private]
    assert clean.removed >= 25


def test_what_is_needed_to_show_and_judge_stays() -> None:
    sent = dicom(
        chest().astype(np.uint16) * 16,
        Modality="DX",
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        PatientSex="F",
        PatientAge="062Y",
        BitsStored=12,
        HighBit=11,
        WindowCenter=1500,
        WindowWidth=1800,
        RescaleSlope=1,
        RescaleIntercept=-10,
        PixelSpacing=["0.15", "0.15"],
        PhotometricInterpretation="MONOCHROME1",
    )
    clean = deidentify(sent)
    dataset = pydicom.dcmread(BytesIO(clean.data))
    kept = {
        name: str(dataset[name].value)
        for name in ("Modality", "BodyPartExamined", "ViewPosition", "PatientSex", "PatientAge", "PixelSpacing")
    }
    assert kept == {
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientSex": "F",
        "PatientAge": "062Y",
        "PixelSpacing": "[0.15, 0.15]",
    }
    assert (dataset.PatientName, dataset.PatientID, dataset.StudyDate) == ("", "", "")
    assert dataset.PatientIdentityRemoved == "YES"
    np.testing.assert_array_equal(dataset.pixel_array, chest().astype(np.uint16) * 16)
    np.testing.assert_array_equal(np.asarray(read_picture(clean.data).image), np.asarray(read_picture(sent).image))


@pytest.mark.parametrize(
    ("age", "kept"),
    [
        ("089Y", "089Y"),
        ("090Y", "090Y"),
        ("103Y", "090Y"),
        ("999M", "999M"),
        ("062", "062Y"),
        ("006W", "006W"),
        ("DOE", ""),
        ("", ""),
    ],
)
def test_ages_above_89_become_one_class(age: str, kept: str) -> None:
    sent = dicom()
    dataset = pydicom.dcmread(BytesIO(sent))
    with pydicom.config.disable_value_validation():
        dataset.PatientAge = age
        out = BytesIO()
        dataset.save_as(out)
    clean = pydicom.dcmread(BytesIO(deidentify(out.getvalue()).data))
    assert str(clean.get("PatientAge", "")) == kept


def test_uids_are_hashed_under_the_salt() -> None:
    def uids(salt: bytes) -> tuple[str, str]:
        dataset = pydicom.dcmread(BytesIO(deidentify(dicom(), salt=salt).data))
        return dataset.StudyInstanceUID, dataset.SOPInstanceUID

    assert uids(b"one") == uids(b"one")
    assert uids(b"one") != uids(b"two")
    assert uids(b"") != uids(b"")
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids(b"one"))


def test_text_hidden_in_a_compressed_stream_is_gone() -> None:
    frame = encoded(chest(), "JPEG", comment=SECRET, quality=95) + SECRET
    # The name behind the end marker makes it no JPEG; without it the comment inside is what must go.
    with pytest.raises(InferenceError):
        deidentify(dicom(syntax="1.2.840.10008.1.2.4.50", PixelData=encapsulate([frame])))
    honest = dicom(syntax="1.2.840.10008.1.2.4.50", PixelData=encapsulate([frame[: -len(SECRET)]]))
    assert SECRET in honest
    clean = deidentify(honest)
    assert SECRET not in clean.data
    np.testing.assert_array_equal(
        pydicom.dcmread(BytesIO(clean.data)).pixel_array, pydicom.dcmread(BytesIO(honest)).pixel_array
    )


def test_only_the_first_frame_stays_and_that_is_said() -> None:
    clean = deidentify(dicom(NumberOfFrames=2, PixelData=chest().tobytes() * 2))
    assert pydicom.dcmread(BytesIO(clean.data)).pixel_array.shape == (64, 64)
    assert [warning.split(":")[0] for warning in clean.warnings] == ["first_frame_only"]


def test_burned_in_text_is_warned_of_and_the_mark_stays() -> None:
    clean = deidentify(dicom(BurnedInAnnotation="YES"))
    assert [warning.split(":")[0] for warning in clean.warnings] == ["burned_in_annotation"]
    assert pydicom.dcmread(BytesIO(clean.data)).BurnedInAnnotation == "YES"


def test_a_program_before_the_header_is_zeroed() -> None:
    whole = dicom()
    assert deidentify(b"MZ".ljust(128, b"\xcc") + whole[128:]).data[:128] == b"\0" * 128


def test_a_palette_is_kept() -> None:
    tables: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tables[f"{colour}PaletteColorLookupTableData"] = bytes(range(256))
    sent = dicom(PhotometricInterpretation="PALETTE COLOR", **tables)
    np.testing.assert_array_equal(
        np.asarray(read_picture(deidentify(sent).data).image), np.asarray(read_picture(sent).image)
    )


def with_metadata(kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[2] = (48.0, 12.0, 30.0)
    picture = Image.fromarray(chest(64, 48))
    if kind == "PNG":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Patient", SECRET.decode())
        notes.add_itxt("Note", SECRET.decode(), zip=False)
        return encoded(picture, kind, exif=exif, pnginfo=notes, icc_profile=SECRET * 10, dpi=(72, 72))
    return encoded(picture, kind, exif=exif, comment=SECRET, icc_profile=SECRET * 10, quality=90)


def test_a_png_keeps_its_pixels_and_loses_its_metadata() -> None:
    sent = with_metadata("PNG")
    clean = deidentify(sent)
    assert SECRET in sent
    assert SECRET not in clean.data
    assert clean.media_type == "image/png"
    assert clean.removed >= 4
    picture = Image.open(BytesIO(clean.data))
    assert (picture.info, dict(picture.getexif())) == ({}, {})
    np.testing.assert_array_equal(np.asarray(picture), chest(64, 48))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_stays_the_same_picture(mode: str) -> None:
    wide = Image.fromarray(chest().astype(np.uint16) * 200)
    picture = wide if mode == "I;16" else Image.fromarray(chest()).convert(mode)
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    clean = Image.open(BytesIO(deidentify(encoded(picture, **options)).data))
    assert clean.mode == mode
    shown, expected = (image if mode == "I;16" else image.convert("RGBA") for image in (clean, picture))
    if mode == "P":
        shown, expected = shown.convert("RGB"), expected.convert("RGB")
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_keeps_its_compressed_data_and_loses_its_metadata(mode: str, options: dict[str, bool]) -> None:
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    picture = Image.fromarray(np.stack([chest()] * 3, axis=2)).convert(mode)
    sent = encoded(picture, "JPEG", exif=exif, comment=SECRET, icc_profile=SECRET * 10, **options)
    clean = deidentify(sent + b"\0" * 64)
    assert SECRET not in clean.data
    assert clean.media_type == "image/jpeg"
    assert len(clean.data) < len(sent)
    before, after = Image.open(BytesIO(sent)), Image.open(BytesIO(clean.data))
    assert before.mode == after.mode == mode
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert "icc_profile" not in after.info
    assert "comment" not in after.info


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_stored_upright(kind: str, orientation: int) -> None:
    sent = with_metadata(kind, orientation)
    clean = deidentify(sent)
    assert (clean.media_type, SECRET in clean.data) == ("image/png", False)
    upright = Image.open(BytesIO(clean.data))
    assert upright.size == ((64, 48) if orientation >= 5 else (48, 64))
    steps = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    wanted = Image.open(BytesIO(sent)).transpose(steps[orientation])
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(wanted))


def test_a_jpeg_that_hides_text_between_its_scans_becomes_a_png() -> None:
    sent = encoded(chest(), "JPEG", progressive=True)
    scan = sent.rindex(b"\xff\xda")
    hidden = sent[:scan] + b"\xff\xfe" + (2 + len(SECRET)).to_bytes(2, "big") + SECRET + sent[scan:]
    clean = deidentify(hidden)
    assert (clean.media_type, SECRET in clean.data) == ("image/png", False)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(clean.data))), np.asarray(Image.open(BytesIO(sent))))


def test_a_thumbnail_in_a_jpeg_is_dropped() -> None:
    sent = encoded(chest(), "JPEG")
    assert sent[2:4] == b"\xff\xe0"
    thumbnail = b"JFIF\0\x01\x01\0\0\x01\0\x01\x02\x02" + b"\x07SECRETPIXEL"
    content = sent[:2] + b"\xff\xe0" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail + sent[20:]
    clean = deidentify(content)
    assert b"SECRETPIXEL" not in clean.data
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(clean.data))), np.asarray(Image.open(BytesIO(sent))))


def test_the_sandboxed_form_gives_the_same() -> None:
    sent = named_patient()
    assert deidentify_in_sandbox(sent, salt=b"salt") == deidentify(sent, salt=b"salt")


@pytest.mark.parametrize(("content", "code"), [(b"", "not_an_image"), (dicom(Rows=3), "pixel_mismatch")])
def test_what_cannot_be_read_is_refused_and_never_passed_on(content: bytes, code: str) -> None:
    with pytest.raises(InferenceError) as refused:
        deidentify_in_sandbox(content)
    assert refused.value.code == code


def test_de_identifying_twice_changes_nothing_but_the_uids() -> None:
    once = deidentify(named_patient(), salt=b"salt")
    twice = deidentify(once.data, salt=b"salt")
    first, second = (pydicom.dcmread(BytesIO(file.data)) for file in (once, twice))
    assert {element.keyword for element in first} == {element.keyword for element in second}
    np.testing.assert_array_equal(first.pixel_array, second.pixel_array)


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "chest_cr_mono2_jpeg.dcm",
        "chest_mono1_false_header.dcm",
        "chest_nih_dx_mono2_uncompressed.dcm",
        "not_chest/693_J2KR.dcm",
        "not_chest/OBXXXX1A_rle.dcm",
        "not_chest/RG3_J2KI.dcm",
        "not_chest/mlut_18.dcm",
        "not_chest/vlut_04.dcm",
    ],
)
def test_real_files_stay_the_same_picture_without_their_patient(name: str) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip("the shared data is not there")
    content = path.read_bytes()
    clean = deidentify_in_sandbox(content)
    before, after = pydicom.dcmread(BytesIO(content)), pydicom.dcmread(BytesIO(clean.data))
    for element in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "InstitutionName", "StudyDate"):
        value = str(before.get(element, ""))
        assert len(value) < 5 or value.encode() not in clean.data
    np.testing.assert_array_equal(after.pixel_array, before.pixel_array)
    np.testing.assert_array_equal(np.asarray(read_picture(clean.data).image), np.asarray(read_picture(content).image))
