"""What stored values look like: against the golden set, against pydicom, and on tables that pydicom does not take."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from examples.golden_dicom.make import Golden, cases, write
from inference.errors import InferenceError
from inference.runtime.deidentify import deidentify
from inference.runtime.dicom import read_frame, read_picture
from inference.runtime.display import EIGHT_BITS, SIXTEEN_BITS, Lookup, Window
from inference.runtime.pictures import eight_bits, read_any_frame
from tests.inference.runtime.picture_files import chest, dicom, encoded

pytestmark = pytest.mark.unit

GOLDEN = cases()
# pydicom 3.0 counts a VOI table's entries in their own dtype, so past 255 it wraps in a table of 8 bits; of modality
# tables it reads those of 8 and 16 bits.
NOT_PYDICOM = {"voi_lut_8_bits_12", "modality_lut_signed_12"}


def pydicom_grey(content: bytes) -> np.ndarray:
    """0 to 255 (float) by pydicom's own functions, for files with a window or a VOI LUT."""
    dataset = pydicom.dcmread(BytesIO(content))
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if "VOILUTSequence" in dataset:
        values = values.astype(np.int64)
    values = apply_voi_lut(values, dataset)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        if "ModalityLUTSequence" in dataset:
            low, high = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        elif "RescaleSlope" in dataset:
            slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
            low, high = low * slope + intercept, high * slope + intercept
    grey = (values.astype(np.float64) - low) / (high - low) * 255
    white_first = dataset.PhotometricInterpretation == "MONOCHROME1"
    inverted = white_first or dataset.get("PresentationLUTShape") == "INVERSE"
    shown: np.ndarray = 255 - grey if inverted else grey
    return shown


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_a_golden_file_is_shown_as_its_formula_says(case: Golden) -> None:
    np.testing.assert_array_equal(np.asarray(read_picture(case.file()).image), case.shown)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_a_golden_file_looks_the_same_without_its_identifiers(case: Golden) -> None:
    clean = deidentify(case.file()).data
    np.testing.assert_array_equal(np.asarray(read_picture(clean).image), case.shown)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in GOLDEN
        if ("Window" in str(case.elements) or "VOILUT" in str(case.elements)) and case.name not in NOT_PYDICOM
    ],
    ids=lambda case: case.name,
)
def test_a_golden_file_is_shown_as_pydicom_shows_it(case: Golden) -> None:
    np.testing.assert_allclose(case.shown, pydicom_grey(case.file()), atol=0.5001)


def test_the_golden_set_is_written_with_the_grey_that_is_wanted(tmp_path: Path) -> None:
    names = write(tmp_path)
    assert len(names) == len(set(names)) == len(GOLDEN)
    assert (
        {path.stem for path in tmp_path.glob("*.dcm")} == {path.stem for path in tmp_path.glob("*.png")} == set(names)
    )
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in tmp_path.glob("*.dcm")}
    assert len(uids) == len(names)


def test_all_windows_that_make_sense_are_kept_in_their_order() -> None:
    content = dicom(chest(), WindowCenter=[100, 50, 70], WindowWidth=[40, 0, 20])
    assert read_frame(content).frame.windows == (Window(100, 40), Window(70, 20))


def test_an_unknown_function_counts_as_linear() -> None:
    assert read_frame(dicom(WindowCenter=10, WindowWidth=20, VOILUTFunction="CUBIC")).frame.windows == (Window(10, 20),)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        (1, 0, "uint8"),
        (1, -1024, "int16"),
        (2, 0, "int16"),
        (200, 0, "uint16"),
        (300, 0, "float32"),
        (0.5, 0, "float32"),
        (-300, 0, "float32"),
    ],
)
def test_rescaled_values_stay_whole_as_far_as_16_bits_hold_them(slope: float, intercept: float, dtype: str) -> None:
    values = read_frame(dicom(chest(), RescaleSlope=slope, RescaleIntercept=intercept)).frame.values
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, chest() * float(slope) + intercept)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "warned"),
    [
        ("MONOCHROME1", None, True, False),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME1", "IDENTITY", True, True),
        ("MONOCHROME2", None, False, False),
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME2", "IDENTITY", False, False),
    ],
)
def test_one_sign_of_inversion_is_enough_and_two_are_not_two(
    photometric: str, shape: str | None, inverted: bool, warned: bool
) -> None:
    elements = {"PhotometricInterpretation": photometric} | ({"PresentationLUTShape": shape} if shape else {})
    read = read_frame(dicom(chest(), **elements))
    assert read.frame.invert == inverted
    assert any(warning.startswith("polarity:") for warning in read.warnings) == warned


def table(entries: Any, *, count: int, first: int = 0, bits: int = 8, vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    item.add_new("LUTData", vr, entries)
    return item


def test_a_table_of_single_bytes_is_read() -> None:
    lookup = Lookup.read(table(bytes([5, 6, 7, 0]), count=3))
    assert lookup is not None
    np.testing.assert_array_equal(lookup.apply(np.array([-1, 0, 2, 9])), [5, 5, 7, 7])


def test_a_big_endian_table_is_read_and_stored_the_other_way_round() -> None:
    lookup = Lookup.read(table(b"\x01\x00\x02\x00", count=2, bits=16), little_endian=False)
    assert lookup is not None
    assert lookup.entries.tolist() == [256, 512]


def test_entries_past_the_bits_stated_widen_the_table() -> None:
    lookup = Lookup.read(table([0, 4095], count=2, bits=8, vr="US"))
    assert lookup is not None
    assert (lookup.bits, lookup.grey(np.array([0, 1])).tolist()) == (12, [0, 255])


@pytest.mark.parametrize(
    "item",
    [
        table([1, 2], count=3, vr="US"),
        table([1, 2], count=2, bits=7, vr="US"),
        table([1, 2], count=2, bits=17, vr="US"),
    ],
)
def test_a_damaged_table_is_refused(item: Dataset) -> None:
    with pytest.raises(ValueError, match="lookup table"):
        Lookup.read(item)
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        content = dicom(**{name: Sequence([item])})
        for reading in (read_frame, read_picture, deidentify):
            with pytest.raises(InferenceError) as refused:
                reading(content)
            assert refused.value.code == "unsupported_object"


def test_a_table_without_data_counts_as_none() -> None:
    content = dicom(VOILUTSequence=Sequence([table(b"", count=0, bits=16)]))
    for readable in (content, deidentify(content).data):
        np.testing.assert_array_equal(np.asarray(read_picture(readable).image), chest())


def test_a_rescale_past_all_units_is_refused() -> None:
    with pytest.raises(InferenceError, match="display parameters"):
        read_frame(dicom(RescaleSlope=1e300, RescaleIntercept=0))


def test_padding_is_still_known_without_identifiers() -> None:
    padded = np.tile(np.arange(1000, 2024, 16).astype(np.int16), (64, 1))
    padded[:, :8] = -2000
    content = dicom(padded, PixelPaddingValue=-2000)
    clean = read_picture(deidentify(content).data)
    np.testing.assert_array_equal(np.asarray(clean.image), np.asarray(read_picture(content).image))


def test_the_windows_of_pictures_without_any_are_what_the_model_gets() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    frame, notes = read_any_frame(encoded(every))
    assert (frame.values.dtype, frame.windows, notes) == (np.uint16, (SIXTEEN_BITS,), [])
    np.testing.assert_array_equal(np.asarray(frame.image()), every >> 8)
    grey, _ = read_any_frame(encoded(chest()))
    assert grey.windows == (EIGHT_BITS,)
    np.testing.assert_array_equal(EIGHT_BITS.grey(chest()), chest())


def test_colour_is_left_alone() -> None:
    colour = np.stack([chest(), 255 - chest(), chest() // 2], axis=2)
    frame, _ = read_any_frame(encoded(colour))
    np.testing.assert_array_equal(frame.values, colour)
    np.testing.assert_array_equal(np.asarray(eight_bits(frame.image())), colour)


DATA = Path(__file__).parents[4] / "shared" / "data" / "dicom"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["not_chest/vlut_04.dcm", "not_chest/mlut_18.dcm", "not_chest/RG3_J2KI.dcm"])
def test_a_real_file_is_shown_as_pydicom_shows_it(name: str) -> None:
    if not (DATA / name).is_file():
        pytest.skip("the shared data is not there")
    content = (DATA / name).read_bytes()
    dataset = pydicom.dcmread(BytesIO(content))
    frame = read_frame(content).frame
    np.testing.assert_array_equal(frame.values, apply_modality_lut(dataset.pixel_array, dataset))
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        np.testing.assert_allclose(np.asarray(frame.image()), pydicom_grey(content), atol=0.5001)
