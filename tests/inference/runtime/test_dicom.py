"""DICOM files: rows 43 to 47 of the table of bad inputs, and the grey values that stored values stand for."""

import socket
import struct
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.sequence import Sequence

from inference.errors import InferenceError
from inference.runtime import picture_child
from inference.runtime.dicom import read_dataset, read_picture, stored_pixels
from inference.runtime.pictures import DecodedPicture, decode_each
from tests.inference.runtime.picture_files import (
    STORAGE,
    chest,
    dicom,
    dicom_head,
    encoded,
    version,
)

# Two seconds of work are allowed, twice where a bad picture has a neighbour; the rest is for a busy machine.
HOSTILE_S = 30.0

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
JPIP = "1.2.840.10008.1.2.4.94"
JPIP_DEFLATED = "1.2.840.10008.1.2.4.95"
RLE = "1.2.840.10008.1.2.5"
DATA = Path(__file__).parents[4] / "shared" / "data" / "dicom"


@pytest.fixture(scope="module", autouse=True)
def warm_children() -> Iterator[None]:
    decode_each([dicom()], version())
    yield
    picture_child.close_children()


def refusal(content: bytes) -> InferenceError:
    """The error of a file that must be refused quickly."""
    started = time.monotonic()
    (result,) = decode_each([content], version())
    assert time.monotonic() - started < HOSTILE_S
    assert isinstance(result, InferenceError)
    assert result.status == 422
    return result


def shown(content: bytes) -> np.ndarray:
    return np.asarray(read_picture(content).image)


def test_a_plain_file_is_shown_as_it_is_stored() -> None:
    np.testing.assert_array_equal(shown(dicom()), chest())


# Row 43
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no DICM", dicom()[132:]),
        ("no DICM, data set alone", dicom_head(EXPLICIT)[132:] + b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192"),
        ("DICOMDIR", dicom_head(EXPLICIT, "1.2.840.10008.1.3.10")),
        ("structured report", dicom(SOPClassUID=STORAGE + "88.11", PixelData=None)),
        ("encapsulated PDF", dicom(SOPClassUID=STORAGE + "104.1", PixelData=None)),
        ("RTSTRUCT", dicom(SOPClassUID=STORAGE + "481.3", PixelData=None)),
        ("presentation state", dicom(SOPClassUID=STORAGE + "11.1", PixelData=None)),
        ("a report that smuggles pixels", dicom(SOPClassUID=STORAGE + "88.11")),
        ("float pixels", dicom(BitsAllocated=32)),
        ("unknown photometric", dicom(PhotometricInterpretation="HSV")),
    ],
)
def test_a_file_that_holds_no_supported_picture_is_refused(name: str, content: bytes) -> None:
    assert refusal(content).code == "unsupported_object", name


@pytest.mark.parametrize("start", [b"MZ\x90\x00", b"\x7fELF", b"II*\x00", b"<html><script>"])
def test_the_preamble_is_not_looked_at(start: bytes) -> None:
    whole = dicom()
    np.testing.assert_array_equal(shown(start.ljust(128, b"\xcc") + whole[128:]), chest())


# Row 44
@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("no pixels", {"PixelData": None}),
        ("too short", {"PixelData": b"\0" * 100}),
        ("too long", {"PixelData": b"\0" * 5000}),
        ("no rows", {"Rows": 0}),
        ("rows missing", {"Rows": None}),
        ("65535 squared", {"Rows": 65535, "Columns": 65535}),
        ("a thousand million frames", {"NumberOfFrames": 10**9}),
        ("negative frames", {"NumberOfFrames": -1}),
        ("samples without colours", {"SamplesPerPixel": 3}),
        ("bits stored beyond allocated", {"BitsStored": 12}),
        ("a high bit that is not the last stored one", {"BitsStored": 6, "HighBit": 7}),
    ],
)
def test_pixels_that_do_not_fit_their_header_are_refused(name: str, elements: dict[str, Any]) -> None:
    assert refusal(dicom(**elements)).code == "pixel_mismatch", name


def test_a_compressed_frame_is_held_to_the_header_before_it_is_decoded() -> None:
    jpeg = encoded(chest(), "JPEG")
    sizes = {"Rows": 65535, "Columns": 65535, "PixelData": encapsulate([jpeg])}
    assert refusal(dicom(syntax=JPEG, **sizes)).code == "pixel_mismatch"
    claims = bytearray(encoded(chest(), "JPEG2000", no_jp2=True))
    claims[8:16] = struct.pack(">II", 60_000, 60_000)
    assert refusal(dicom(syntax=JPEG_2000, PixelData=encapsulate([bytes(claims)]))).code == "pixel_mismatch"
    assert refusal(dicom(syntax=RLE, Rows=60_000, Columns=60_000, PixelData=encapsulate([b"\0" * 64]))).code == (
        "pixel_mismatch"
    )
    frames = {"NumberOfFrames": 10**9, "PixelData": encapsulate([jpeg])}
    assert refusal(dicom(syntax=JPEG, **frames)).code == "pixel_mismatch"


def test_a_file_of_many_real_pixels_is_held_to_the_cap() -> None:
    claims = bytearray(encoded(chest(), "JPEG2000", no_jp2=True))
    claims[8:16] = struct.pack(">II", 12_000, 10_000)
    elements = {"Rows": 10_000, "Columns": 12_000, "PixelData": encapsulate([bytes(claims)])}
    assert refusal(dicom(syntax=JPEG_2000, **elements)).code == "too_many_pixels"


# Row 45
def test_a_deflated_bomb_is_not_inflated() -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(b"\0" * 1_000_000) for _ in range(100)) + packer.flush()
    assert refusal(dicom_head(DEFLATED) + bomb).code == "unsupported_transfer_syntax"


def test_a_sequence_that_never_ends_is_refused() -> None:
    never = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    refusal(dicom_head(EXPLICIT) + never)
    refusal(dicom_head(EXPLICIT) + never + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) * 3)


def test_a_sequence_five_thousand_deep_is_refused() -> None:
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    refusal(dicom_head(EXPLICIT) + (level + item) * 5_000 + ends * 5_000)


def test_garbage_instead_of_elements_is_refused() -> None:
    random = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    refusal(dicom_head(EXPLICIT) + random)
    refusal(dicom_head(IMPLICIT) + random)
    refusal(dicom_head(EXPLICIT) + b"\x28\x00\x10\x00??\x02\x00\x40\x00" * 1_000)


def test_a_million_tiny_elements_end_in_a_refusal() -> None:
    tiny = struct.pack("<HH2sH", 0x0009, 0x0010, b"LO", 0) * 1_000_000
    assert "elements" in refusal(dicom_head(EXPLICIT) + tiny).message
    # Inside a sequence nobody counts them: two seconds of work end that.
    never = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    refusal(dicom_head(EXPLICIT) + never + tiny * 3)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.999])
def test_a_truncated_file_is_refused(share: float) -> None:
    whole = dicom()
    refusal(whole[: 140 + int((len(whole) - 140) * share)])


# Row 46
@pytest.mark.parametrize("syntax", [JPEG_LS, JPIP, JPIP_DEFLATED, "1.2.840.10008.1.2.4.70", "1.2.3", DEFLATED])
def test_other_transfer_syntaxes_are_refused(syntax: str) -> None:
    plain = dicom()
    rest = plain[plain.index(b"\x08\x00\x16\x00") :]
    assert refusal(dicom_head(syntax) + rest).code == "unsupported_transfer_syntax"


def test_a_file_that_names_an_address_fetches_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/pixels"
        sent = dicom(syntax=JPIP, PixelData=None, PixelDataProviderURL=url)
        assert refusal(sent).code == "unsupported_transfer_syntax"
        smuggled = dicom(PixelData=None, PixelDataProviderURL=url)
        assert refusal(smuggled).code == "pixel_mismatch"
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(("syntax", "kind"), [(JPEG, "JPEG"), (JPEG_2000, "JPEG2000"), (RLE, "")])
def test_corrupt_compressed_data_is_refused(syntax: str, kind: str) -> None:
    whole = encoded(chest(), kind) if kind == "JPEG" else encoded(chest(), kind, no_jp2=True) if kind else b""
    frames = [whole[: len(whole) // 2], whole[:30] + b"\xff" * 400] if whole else [b"\x01" + b"\0" * 200]
    for frame in frames:
        sent = dicom(syntax=syntax, PixelData=encapsulate([frame]))
        assert refusal(sent).code == "unsupported_transfer_syntax"


@pytest.mark.parametrize(("syntax", "kind"), [(JPEG, "JPEG"), (JPEG_2000, "JPEG2000")])
def test_a_compressed_file_is_read(syntax: str, kind: str) -> None:
    frame = encoded(chest(), kind, **({"no_jp2": True} if kind == "JPEG2000" else {"quality": 95}))
    result = shown(dicom(syntax=syntax, PixelData=encapsulate([frame])))
    np.testing.assert_allclose(result, chest(), atol=12)


# Row 47
def test_burned_in_annotations_are_accepted_with_a_warning() -> None:
    (picture,) = decode_each([dicom(BurnedInAnnotation="YES")], version())
    assert isinstance(picture, DecodedPicture)
    assert [warning.split(":")[0] for warning in picture.warnings] == ["burned_in_annotation"]


def test_monochrome1_is_inverted() -> None:
    np.testing.assert_array_equal(shown(dicom(PhotometricInterpretation="MONOCHROME1")), 255 - chest())


def test_a_missing_window_stretches_the_middle_99_percent() -> None:
    wide = chest().astype(np.uint16) * 10 + 300
    wide[0, 0] = 60_000
    picture = read_picture(dicom(wide))
    assert [warning.split(":")[0] for warning in picture.warnings] == ["no_window"]
    low, high = np.percentile(wide, (0.5, 99.5))
    wanted = np.clip((wide - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(np.asarray(picture.image), wanted, atol=0.6)


def test_padding_is_left_out_of_the_stretch() -> None:
    wide = np.tile(np.arange(1000, 2024, 16).astype(np.int16), (64, 1))
    padded = wide.copy()
    padded[:, :8] = -2000
    result = shown(dicom(padded, PixelPaddingValue=-2000))
    low, high = np.percentile(wide[:, 8:], (0.5, 99.5))
    assert result[5, 30] == round((float(wide[5, 30]) - low) / (high - low) * 255)


def test_signed_pixels_are_signed() -> None:
    signed = (chest().astype(np.int16) - 128) * 8
    result = shown(dicom(signed, WindowCenter=0, WindowWidth=2048))
    assert result[32, 32] > result[0, 0]
    np.testing.assert_allclose(result, (signed + 0.5) / 2047 * 255 + 127.5, atol=0.6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_shows_what_pydicom_makes_of_it(function: str) -> None:
    wide = chest().astype(np.uint16) * 16
    content = dicom(wide, BitsStored=12, HighBit=11, WindowCenter=1500, WindowWidth=1800, VOILUTFunction=function)
    reference = apply_windowing(wide, pydicom.dcmread(BytesIO(content)))
    np.testing.assert_allclose(shown(content), reference / 4095 * 255, atol=0.6)


def test_the_rescale_comes_before_the_window_and_the_first_window_counts() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    content = dicom(
        values, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[100, 900], WindowWidth=[400, 1], RescaleType="HU"
    )
    wanted = np.clip(((values * 2.0 - 1000 - 99.5) / 399 + 0.5) * 255, 0, 255)
    np.testing.assert_allclose(shown(content), wanted, atol=0.6)


def lut(entries: list[int], first: int = 0, bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return item


def test_a_lookup_table_comes_before_the_window() -> None:
    table = lut([entry * 257 for entry in range(255, -1, -1)])
    content = dicom(VOILUTSequence=Sequence([table]), WindowCenter=10, WindowWidth=2)
    np.testing.assert_array_equal(shown(content), 255 - chest())


def test_a_modality_lookup_table_is_applied() -> None:
    table = lut([entry * 2 for entry in range(256)])
    content = dicom(ModalityLUTSequence=Sequence([table]), WindowCenter=256, WindowWidth=512)
    np.testing.assert_allclose(shown(content), chest(), atol=1)


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": 1e300, "RescaleIntercept": 1e300, "WindowCenter": 1, "WindowWidth": 2},
        {"VOILUTSequence": Sequence([lut([1, 2, 3], bits=0)])},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_display_parameters_that_make_no_sense_are_refused(elements: dict[str, Any]) -> None:
    assert refusal(dicom(**elements)).code == "unsupported_object"


def test_a_window_without_width_counts_as_missing() -> None:
    np.testing.assert_array_equal(shown(dicom(WindowCenter=100, WindowWidth=0)), chest())


def test_colour_pixels_stay_in_colour() -> None:
    colour = np.stack([chest(), 255 - chest(), chest() // 2], axis=2)
    np.testing.assert_array_equal(shown(dicom(colour)), colour)
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(shown(dicom(colour, PlanarConfiguration=1, PixelData=planar)), colour)


def test_of_several_frames_the_first_is_read_with_a_warning() -> None:
    frames = chest().tobytes() + (255 - chest()).tobytes()
    picture = read_picture(dicom(NumberOfFrames=2, PixelData=frames))
    np.testing.assert_array_equal(np.asarray(picture.image), chest())
    assert [warning.split(":")[0] for warning in picture.warnings] == ["first_frame_only"]


def shared(name: str) -> bytes:
    path = DATA / name
    if not path.is_file():
        pytest.skip("the shared data is not there")
    return path.read_bytes()


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["chest_cr_mono2_jpeg.dcm", "chest_mono1_false_header.dcm", "chest_nih_dx_mono2_uncompressed.dcm"]
)
def test_the_chest_files_decode_to_the_pixels_that_pydicom_gives(name: str) -> None:
    content = shared(name)
    reference = pydicom.dcmread(BytesIO(content)).pixel_array
    np.testing.assert_array_equal(stored_pixels(read_dataset(content)), reference)
    np.testing.assert_array_equal(shown(content), 255 - reference if "mono1" in name else reference)


@pytest.mark.shared
def test_the_false_monochrome1_header_is_noticed() -> None:
    honest, false = decode_each([shared("chest_cr_mono2_jpeg.dcm"), shared("chest_mono1_false_header.dcm")], version())
    assert isinstance(honest, DecodedPicture)
    assert isinstance(false, DecodedPicture)
    assert honest.warnings == []
    assert [warning for warning in false.warnings if "inverted" in warning]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("693_J2KR.dcm", "CT"),
        ("OBXXXX1A_rle.dcm", "US"),
        ("RG3_J2KI.dcm", "CR"),
        ("mlut_18.dcm", "OT"),
        ("vlut_04.dcm", "OT"),
    ],
)
def test_other_real_files_are_read_and_said_to_be_out_of_scope(name: str, modality: str) -> None:
    content = shared(f"not_chest/{name}")
    reference = pydicom.dcmread(BytesIO(content)).pixel_array
    np.testing.assert_array_equal(stored_pixels(read_dataset(content)), reference)
    (picture,) = decode_each([content], version())
    assert isinstance(picture, DecodedPicture)
    assert picture.stats["std"] > 20
    warned = [warning for warning in picture.warnings if "modality" in warning]
    assert bool(warned) == (modality in ("CT", "US"))


@pytest.mark.shared
def test_lossless_jpeg_is_refused_by_its_name() -> None:
    refused = refusal(shared("not_chest/JPEG-LL.dcm"))
    assert refused.code == "unsupported_transfer_syntax"
    assert "1.2.840.10008.1.2.4.70" in refused.message


@pytest.mark.shared
def test_a_real_voi_lut_shows_what_pydicom_makes_of_it() -> None:
    dataset = pydicom.dcmread(BytesIO(shared("not_chest/vlut_04.dcm")))
    reference = pydicom.pixels.apply_voi(dataset.pixel_array, dataset)
    np.testing.assert_allclose(shown(shared("not_chest/vlut_04.dcm")), reference / 65535 * 255, atol=0.6)


@pytest.mark.shared
def test_a_real_file_cut_anywhere_is_refused_or_whole() -> None:
    content = shared("chest_cr_mono2_jpeg.dcm")
    for share in (0.2, 0.6, 0.99):
        refusal(content[: int(len(content) * share)])
