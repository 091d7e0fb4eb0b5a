"""Frames for the viewer, thumbnails and the model's view, each through the throw-away child."""

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

from examples.golden_dicom.make import Golden, cases
from inference.errors import InferenceError
from inference.runtime import picture_child
from inference.runtime.pictures import DecodedPicture, decode_each
from inference.runtime.preprocess import Pipeline
from inference.runtime.viewing import FrameHeader, display_frame, model_view, split_frame, thumbnail
from tests.inference.runtime.picture_files import STORAGE, chest, dicom, encoded, png_claiming, version

GOLDEN = cases()
DATA = Path(__file__).parents[4] / "shared" / "data" / "dicom"
HOSTILE_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def warm_children() -> Iterator[None]:
    thumbnail(encoded(chest()), 8)
    yield
    picture_child.close_children()


def on_screen(header: FrameHeader, values: np.ndarray) -> np.ndarray:
    """What a viewer has to draw, in plain double precision: the header's contract written once more."""
    if header.channels == 3:
        return values
    if header.voi_lut is not None:
        lut = header.voi_lut
        index = np.clip(np.rint(values.astype(np.float64)).astype(int) - lut.first, 0, len(lut.entries) - 1)
        share = np.array(lut.entries)[index] / (2**lut.bits - 1)
    else:
        window = header.windows[0]
        center, width, at = window.center, window.width, values.astype(np.float64)
        if window.function == "SIGMOID":
            share = 1 / (1 + np.exp(np.minimum(700, -4 * (at - center) / width)))
        elif window.function == "LINEAR_EXACT":
            share = (at - center) / width + 0.5
        else:
            share = (at - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
    grey = np.clip(np.rint(share * 255), 0, 255)
    shown: np.ndarray = 255 - grey if header.invert else grey
    return shown


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_a_viewer_that_keeps_to_the_header_shows_the_golden_grey(case: Golden) -> None:
    header, values = split_frame(display_frame(case.file()))
    assert (header.rows, header.columns, header.channels) == (*case.shown.shape, 1)
    assert header.dtype in ("uint8", "uint16", "int16", "float32")
    assert (header.low, header.high) == (values.min(), values.max())
    np.testing.assert_allclose(on_screen(header, values), case.shown, atol=1)


def test_values_are_aligned_little_endian_and_after_the_modality_step() -> None:
    content = display_frame(dicom(chest(), RescaleSlope=2, RescaleIntercept=-100))
    start = 4 + int.from_bytes(content[:4], "little")
    assert start % 8 == 0
    np.testing.assert_array_equal(np.frombuffer(content[start:], "<i2").reshape(64, 64), chest() * 2.0 - 100)


def test_the_header_says_all_windows_and_what_a_reader_should_know() -> None:
    header, _ = split_frame(display_frame(dicom(WindowCenter=[100, 50], WindowWidth=[40, 30], NumberOfFrames=1)))
    assert [(window.center, window.width, window.function) for window in header.windows] == [
        (100, 40, "LINEAR"),
        (50, 30, "LINEAR"),
    ]
    assert header.note == ""
    header, _ = split_frame(display_frame(dicom(chest().astype(np.uint16) * 9, BurnedInAnnotation="YES")))
    assert header.note.startswith("The file says that text is burned into its pixels")
    assert header.note.endswith("99.5th percentile.")


def test_pictures_are_frames_too_at_their_own_depth() -> None:
    deep = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 21
    header, values = split_frame(display_frame(encoded(deep)))
    assert (header.dtype, header.channels) == ("uint16", 1)
    np.testing.assert_array_equal(values, deep)
    np.testing.assert_array_equal(on_screen(header, values), deep >> 8)
    colour = np.stack([chest(), 255 - chest(), chest() // 2], axis=2)
    header, values = split_frame(display_frame(encoded(colour)))
    assert (header.dtype, header.channels, header.windows, header.invert) == ("uint8", 3, [], False)
    np.testing.assert_array_equal(values, colour)


def test_a_turned_picture_is_shown_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    header, _ = split_frame(display_frame(encoded(chest(40, 60), "JPEG", exif=exif)))
    assert (header.rows, header.columns) == (60, 40)


@pytest.mark.parametrize("case", [GOLDEN[0], GOLDEN[-1]], ids=lambda case: case.name)
def test_a_thumbnail_is_the_first_view_made_small(case: Golden) -> None:
    with Image.open(BytesIO(thumbnail(case.file(), 27))) as small:
        assert (small.format, small.mode, max(small.size)) == ("PNG", "L", 27)
        wanted = Image.fromarray(case.shown).resize(small.size, Image.Resampling.BOX)
        np.testing.assert_allclose(np.asarray(small), np.asarray(wanted), atol=24)
        assert abs(float(np.asarray(small).mean()) - float(case.shown.mean())) < 3


def test_a_thumbnail_never_grows() -> None:
    with Image.open(BytesIO(thumbnail(encoded(chest(20, 30)), 500))) as small:
        assert small.size == (30, 20)


@pytest.mark.parametrize(
    "config",
    [
        {"do_grayscale": True, "size": {"height": 8, "width": 8}, "image_mean": [0.485], "image_std": [0.229]},
        {"size": {"height": 12, "width": 10}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"size": {"height": 12, "width": 10}, "do_rescale": False},
        {"size": {"shortest_edge": 16}, "crop_size": 10, "do_flip_channel_order": True},
    ],
)
def test_the_models_view_has_the_pixels_of_its_tensor(config: dict[str, Any]) -> None:
    colour = np.stack([chest(), 255 - chest(), chest() // 2], axis=2)
    content = encoded(colour)
    (picture,) = decode_each([content], version(config))
    assert isinstance(picture, DecodedPicture)
    pipeline = Pipeline.from_config(config)
    with Image.open(BytesIO(model_view(content, version(config)))) as seen:
        assert seen.size == (picture.tensor.shape[2], picture.tensor.shape[1])
        np.testing.assert_array_equal(np.asarray(pipeline.picture(picture.tensor)), np.asarray(seen))


def test_the_models_view_of_a_grey_picture_is_the_picture_made_small() -> None:
    with Image.open(BytesIO(model_view(encoded(chest()), version()))) as seen:
        wanted = Image.fromarray(chest()).resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(wanted))


def test_a_version_that_takes_tensors_has_no_view() -> None:
    with pytest.raises(InferenceError) as refused:
        model_view(encoded(chest()), msgspec.structs.replace(version(), preprocessor=None))
    assert refused.value.code == "bad_preprocessor"


@pytest.mark.parametrize(
    ("config", "size", "box"),
    [
        ({"size": 8}, (60, 40), (0, 0, 60, 40)),
        ({"size": {"shortest_edge": 20}, "crop_size": 10}, (60, 40), (20, 10, 40, 30)),
        ({"size": {"height": 10, "width": 10}, "crop_size": 20}, (40, 80), (-20, -40, 60, 120)),
        (
            {"size": {"height": 10, "width": 10}, "do_pad": True, "pad_size": {"height": 20, "width": 20}},
            (40, 80),
            (0, 0, 80, 160),
        ),
        ({}, (33, 44), (0, 0, 33, 44)),
    ],
)
def test_the_box_says_where_the_tensor_lies_on_the_picture(
    config: dict[str, Any], size: tuple[int, int], box: tuple[float, ...]
) -> None:
    assert Pipeline.from_config(config).box(*size) == box


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (b"", {"not_an_image"}),
        (b"just text", {"not_an_image"}),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>", {"not_an_image"}),
        (b"%PDF-1.7", {"not_an_image"}),
        (b"MZ" + b"\0" * 200, {"not_an_image"}),
        (encoded(chest())[:-40], {"corrupt_image"}),
        (encoded(chest(), "JPEG")[:-300], {"corrupt_image"}),
        (png_claiming(2**31 - 1, 1), {"too_many_pixels", "corrupt_image"}),
        (png_claiming(12_000, 10_000), {"too_many_pixels"}),
        (png_claiming(0, 10), {"corrupt_image"}),
        (encoded(chest(), "GIF"), {"unsupported_image"}),
        (encoded(chest(), "PNG", save_all=True, append_images=[Image.fromarray(255 - chest())]), {"unsupported_image"}),
        (dicom()[132:], {"unsupported_object", "not_an_image"}),
        (dicom(SOPClassUID=STORAGE + "88.11", PixelData=None), {"unsupported_object"}),
        (dicom(PixelData=None), {"pixel_mismatch"}),
        (dicom(Rows=65535, Columns=65535), {"pixel_mismatch"}),
        (dicom(NumberOfFrames=10**9), {"pixel_mismatch"}),
        (
            dicom(syntax="1.2.840.10008.1.2.4.90", PixelData=encapsulate([b"\xff\x4f" * 40])),
            {"unsupported_transfer_syntax"},
        ),
        (dicom(RescaleSlope=1e300, RescaleIntercept=0), {"unsupported_object"}),
    ],
)
def test_a_hostile_file_is_refused_by_its_code_in_every_view(content: bytes, codes: set[str]) -> None:
    started = time.monotonic()
    for view in (display_frame, lambda data: thumbnail(data, 64), lambda data: model_view(data, version())):
        with pytest.raises(InferenceError) as refused:
            view(content)
        assert refused.value.code in codes
        assert refused.value.status in (415, 422)
    assert time.monotonic() - started < HOSTILE_S


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted(DATA.rglob("*.dcm")), ids=lambda path: path.name)
def test_a_real_file_is_framed_as_its_model_sees_it(path: Path) -> None:
    content = path.read_bytes()
    (picture,) = decode_each([content], version({"do_grayscale": True, "do_rescale": False}))
    if isinstance(picture, InferenceError):
        with pytest.raises(InferenceError) as refused:
            display_frame(content)
        assert refused.value.code == picture.code
        return
    header, values = split_frame(display_frame(content))
    shown = on_screen(header, values)
    if header.channels == 3:
        shown = np.asarray(Image.fromarray(values).convert("L"))
    np.testing.assert_allclose(picture.tensor[0], shown, atol=1)
