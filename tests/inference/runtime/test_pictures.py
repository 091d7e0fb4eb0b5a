"""Pictures that strangers send: rows 37 to 41 of the table of bad inputs, and what odd but honest pictures mean."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin
from pydicom.encaps import encapsulate

from inference.errors import InferenceError
from inference.runtime import picture_child
from inference.runtime.pictures import DecodedPicture, decode_each, decode_pictures, eight_bits, open_picture, read_any
from tests.inference.runtime.picture_files import chest, dicom, encoded, png_chunk, png_claiming, version

# Two seconds of work are allowed, twice where a bad picture has a neighbour; the rest is for a busy machine.
HOSTILE_S = 30.0
COMPRESSED: dict[str, dict[str, Any]] = {"JPEG": {"exif": b"Exif\0\0"}, "JPEG2000": {"no_jp2": True}}


@pytest.fixture(scope="module", autouse=True)
def warm_children() -> Iterator[None]:
    decode_pictures([encoded(chest())], version())
    yield
    picture_child.close_children()


def decoded(picture: bytes, config: dict[str, object] | None = None) -> DecodedPicture:
    (result,) = decode_each([picture], version(config))
    assert isinstance(result, DecodedPicture), result
    return result


def refusal(picture: bytes) -> InferenceError:
    """The error of a picture that must be refused, quickly, and alone: an honest one beside it is read."""
    started = time.monotonic()
    bad, good = decode_each([picture, encoded(chest())], version())
    assert time.monotonic() - started < HOSTILE_S
    assert isinstance(good, DecodedPicture)
    assert isinstance(bad, InferenceError)
    return bad


def laplacian(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.astype(np.float64)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return np.asarray(around - 4 * grey[1:-1, 1:-1])


def test_it_makes_the_tensor_and_the_statistics_of_a_picture() -> None:
    pixels = chest(40, 60)
    sent = encoded(pixels)
    made = decode_pictures([sent, sent], version())
    grey = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR)
    wanted = (np.asarray(grey, np.float32) / 255 - 0.5) / 0.5
    assert made.tensor.shape == (2, 1, 8, 8)
    assert made.tensor.dtype == np.float32
    np.testing.assert_allclose(made.tensor[0, 0], wanted, atol=1e-6)
    assert made.stats[1] == {
        "width": 60,
        "height": 40,
        "mean": pytest.approx(pixels.mean(), abs=0.001),
        "std": pytest.approx(pixels.std(), abs=0.001),
        "sharpness": pytest.approx(laplacian(pixels).std(), abs=0.001),
        "tags": {},
        "sha256": hashlib.sha256(sent).hexdigest(),
    }
    assert made.warnings == [[], []]


# Row 37
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("text", b"this is a chest X-ray"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
        ("pdf", b"%PDF-1.7\n1 0 obj\n"),
        ("html", b"<!doctype html><script>alert(1)</script>"),
        ("html before a jpeg", b"<html><!--" + encoded(chest(), "JPEG") + b"--></html>"),
        ("exe", b"MZ" + b"\0" * 200 + b"PE\0\0"),
        ("elf", b"\x7fELF" + b"\0" * 200),
        ("zip", b"PK\x03\x04" + b"\0" * 200),
        ("half a magic number", b"\x89PNG"),
    ],
)
def test_what_is_no_picture_is_refused(name: str, content: bytes) -> None:
    refused = refusal(content)
    assert (refused.code, refused.status) == ("not_an_image", 415), name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("html in a jpeg comment", encoded(chest(), "JPEG", comment=b"<html><script>alert(1)</script>")),
        ("html behind a jpeg", encoded(chest(), "JPEG") + b"<html><script>alert(1)</script>"),
        ("zip behind a png", encoded(chest()) + b"PK\x03\x04" + b"\0" * 30 + b"PK\x05\x06" + b"\0" * 18),
        ("program behind a png", encoded(chest()) + b"MZ" + b"\0" * 200),
        (
            "pdf in a png's first chunk",
            encoded(chest())[:33] + png_chunk(b"tEXt", b"a\0%PDF-1.7") + encoded(chest())[33:],
        ),
    ],
)
def test_a_picture_that_is_another_document_too_is_refused(name: str, content: bytes) -> None:
    assert refusal(content).code == "not_an_image", name


# Row 38
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_picture_is_refused_and_never_half_grey(kind: str, share: float) -> None:
    whole = encoded(chest(200, 200), kind)
    assert refusal(whole[: int(len(whole) * share)]).code == "corrupt_image"


def test_a_truncated_jpeg_with_its_end_marker_put_back_is_refused() -> None:
    whole = encoded(chest(200, 200), "JPEG")
    assert refusal(whole[: len(whole) // 2] + b"\xff\xd9").code == "corrupt_image"


def test_a_mid_grey_jpeg_is_not_taken_for_a_truncated_one() -> None:
    assert decoded(encoded(np.full((40, 40), 128, np.uint8), "JPEG")).tensor.shape == (1, 8, 8)


@pytest.mark.parametrize("at", [40, 60, -30])
def test_a_png_with_a_flipped_bit_is_refused(at: int) -> None:
    damaged = bytearray(encoded(chest()))
    damaged[at] ^= 0x10
    assert refusal(bytes(damaged)).code == "corrupt_image"


# Row 39
@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (12_000, 10_000, "too_many_pixels"),
        (2**31 - 1, 1, "too_many_pixels"),
        (1, 2**31 - 1, "too_many_pixels"),
        (2**32 - 1, 2**32 - 1, "too_many_pixels"),
        (0, 10, "corrupt_image"),
        (10, 0, "corrupt_image"),
        # Within the caps, but the data is not there.
        (5_000, 5_000, "corrupt_image"),
    ],
)
def test_a_size_is_checked_before_anything_is_allocated(width: int, height: int, code: str) -> None:
    assert refusal(png_claiming(width, height)).code == code


def test_a_jpeg_is_held_to_the_cap_as_well() -> None:
    small = encoded(chest(16, 16), "JPEG")
    frame = small.index(b"\xff\xc0")
    claims = small[: frame + 5] + (10_000).to_bytes(2, "big") + (12_000).to_bytes(2, "big") + small[frame + 9 :]
    assert refusal(claims).code == "too_many_pixels"


def test_a_real_bomb_within_the_header_cap_ends_in_a_refusal() -> None:
    """Seven thousand squared is allowed by the pixel cap; the file is 100 KB of zeros all the same."""
    picture = decoded(encoded(Image.new("1", (7_000, 7_000)), optimize=True))
    assert picture.stats["width"] == 7_000
    assert any("blank" in warning for warning in picture.warnings)


# Row 40
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_pictures_of_several_frames_or_other_formats_are_unsupported(kind: str) -> None:
    frames = [Image.fromarray(chest()), Image.fromarray(255 - chest())]
    sent = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    refused = refusal(sent)
    assert (refused.code, refused.status) == ("unsupported_image", 422)


def test_two_jpegs_in_one_file_are_unsupported() -> None:
    two = encoded(Image.fromarray(chest()), "MPO", save_all=True, append_images=[Image.fromarray(chest())])
    assert refusal(two).code == "unsupported_image"


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image, _, _ = read_any(encoded(cmyk, "JPEG", quality=95))
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((8, 8))  # type: ignore[misc]  # of a picture with three channels
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


def test_a_palette_with_transparency_becomes_its_colours() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    image, _, _ = read_any(encoded(palette, transparency=b"\xff\x00"))
    assert (image.mode, image.getpixel((1, 1))) == ("RGB", (10, 200, 30))


def test_transparency_is_dropped() -> None:
    image, _, _ = read_any(encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0))))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (10, 20, 30))
    grey, _, _ = read_any(encoded(Image.new("LA", (4, 4), (77, 0))))
    assert (grey.mode, grey.getpixel((0, 0))) == ("L", 77)


def test_sixteen_bit_grey_keeps_its_upper_eight() -> None:
    wide = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    image, _, _ = read_any(encoded(wide))
    assert (image.mode, np.asarray(image).tolist()) == ("L", [[0, 0, 1, 128, 255]])


def test_one_bit_becomes_black_and_white() -> None:
    image, _, _ = read_any(encoded(Image.new("1", (4, 4), 1)))
    assert (image.mode, image.getpixel((0, 0))) == ("L", 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied(kind: str) -> None:
    pixels = np.zeros((20, 30), np.uint8)
    pixels[:10] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the bright top becomes the right
    image, _, _ = read_any(encoded(pixels, kind, exif=exif))
    assert image.size == (20, 30)
    assert (image.getpixel((15, 15)), image.getpixel((3, 15))) == (200, 0)


def test_a_damaged_exif_block_costs_nothing_but_the_rotation() -> None:
    sent = encoded(chest(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40)
    assert read_any(sent)[0].size == (64, 64)


def test_nothing_of_the_metadata_is_in_what_comes_back() -> None:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", "DOE^JANE")
    for sent in (encoded(chest(), "JPEG", exif=exif, comment=b"DOE^JANE"), encoded(chest(), pnginfo=notes)):
        picture = decoded(sent)
        assert "DOE" not in repr(picture.stats) + repr(picture.warnings)


# Row 41
def test_a_chest_radiograph_gets_no_warning() -> None:
    assert decoded(encoded(chest())).warnings == []


@pytest.mark.parametrize(
    ("word", "pixels"),
    [
        ("blank", np.full((64, 64), 90, np.uint8)),
        ("inverted", 255 - chest()),
        ("colour", np.stack([chest(), 255 - chest(), chest().T], axis=2)),
    ],
)
def test_a_picture_out_of_scope_is_answered_with_a_warning(word: str, pixels: np.ndarray) -> None:
    warnings = decoded(encoded(pixels)).warnings
    assert [warning.startswith("out_of_scope:") and word in warning for warning in warnings] == [True]


def test_a_computed_tomogram_is_out_of_scope_for_a_model_of_radiographs() -> None:
    (warning,) = decoded(dicom(Modality="CT")).warnings
    assert "CT" in warning


def test_the_intended_use_decides_what_is_out_of_scope() -> None:
    grey = version().preprocessor or {}
    lateral = dicom(Modality="CT", BodyPartExamined="HEAD", ViewPosition="LL")
    assert decoded(lateral, {**grey, "intended_use": {"modality": ["CT"]}}).warnings == []
    narrow = {"modality": ["DX", "CR"], "body_part": ["CHEST"], "view": ["PA", "AP"]}
    assert len(decoded(lateral, {**grey, "intended_use": narrow}).warnings) == 3


def test_a_colour_model_is_not_warned_about_colour() -> None:
    photo = encoded(np.stack([chest(), 255 - chest(), chest().T], axis=2))
    assert decoded(photo, {"size": 8}).warnings == []


# The call
def test_the_first_bad_picture_of_a_call_is_located() -> None:
    with pytest.raises(InferenceError) as refused:
        decode_pictures([encoded(chest()), b"no", b""], version())
    assert refused.value.code == "not_an_image"
    assert refused.value.errors[0]["loc"] == ["instances", 1]


def test_a_version_without_a_preprocessor_takes_no_pictures() -> None:
    with pytest.raises(InferenceError) as refused:
        decode_pictures([encoded(chest())], msgspec.structs.replace(version(), preprocessor=None))
    assert refused.value.code == "bad_preprocessor"


def test_pictures_of_several_sizes_need_a_resize() -> None:
    with pytest.raises(InferenceError) as refused:
        decode_pictures([encoded(chest(20, 20)), encoded(chest(30, 30))], version({"do_grayscale": True}))
    assert refused.value.code == "wrong_shape"


def test_many_pictures_keep_their_order() -> None:
    shades = list(range(0, 250, 10))
    sent = [encoded(np.full((9, 9), shade, np.uint8)) for shade in shades]
    assert [round(entry["mean"]) for entry in decode_pictures(sent, version()).stats] == shades


def test_several_threads_decode_at_once() -> None:
    means: list[float] = []

    def work(shade: int) -> None:
        sent = [encoded(np.full((9, 9), shade, np.uint8))] * 3
        means.extend(entry["mean"] for entry in decode_pictures(sent, version()).stats)

    threads = [threading.Thread(target=work, args=(shade,)) for shade in range(10, 50, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(means) == [10.0] * 3 + [20.0] * 3 + [30.0] * 3 + [40.0] * 3


def test_the_warm_parent_is_replaced_when_it_dies() -> None:
    parents = [
        child
        for child in psutil.Process().children()
        if any("sandbox_parent" in word for word in child.cmdline())
        and any("inference.runtime.viewing" in word for word in child.cmdline())
    ]
    assert parents
    for parent in parents:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
    assert decoded(encoded(chest())).tensor.shape == (1, 8, 8)


IMPORTS = """
import sys
from pathlib import Path
from typing import Any
from inference.errors import InferenceError
from inference.runtime import deidentify, pictures
before = set(sys.modules)
for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    pictures.decode_in_child(pictures.msgspec.msgpack.encode({"preprocessor": {"size": 8}, "pictures": [data]}))
    deidentify.deidentify(data)
print(sorted(set(sys.modules) - before))
"""


def test_a_child_imports_nothing_that_its_parent_has_not(tmp_path: Path) -> None:
    """A child runs as nobody and may be unable to read the folder that the product is installed in."""
    frames = {kind: encoded(chest(), kind, **options) for kind, options in COMPRESSED.items()}
    files = {
        "png": encoded(chest()),
        "jpeg": frames["JPEG"],
        "wide": dicom(chest().astype(np.uint16) * 9),
        "dcm jpeg": dicom(syntax="1.2.840.10008.1.2.4.50", PixelData=encapsulate([frames["JPEG"]])),
        "dcm jpeg 2000": dicom(syntax="1.2.840.10008.1.2.4.90", PixelData=encapsulate([frames["JPEG2000"]])),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    answer = subprocess.run(
        [sys.executable, "-c", IMPORTS, *(str(tmp_path / name) for name in files)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.shared
def test_real_radiographs_of_both_modes_are_read_as_grey() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "xray" / "nih"
    if not folder.is_dir():
        pytest.skip("the shared data is not there")
    found = sorted(folder.glob("*/*.png"))
    seen = set()
    for path in found[:8] + [one for one in found if Image.open(BytesIO(one.read_bytes())).mode == "RGBA"][:2]:
        picture = open_picture(path.read_bytes(), "png")
        seen.add(picture.mode)
        assert np.asarray(eight_bits(picture).convert("L")).std() > 20
    assert seen == {"L", "RGBA"}


def test_the_log_learns_known_terms_and_the_decade_of_an_age_and_nothing_else() -> None:
    named = dicom(Modality="DX", BodyPartExamined="MILLER JOHN", ViewPosition="PA", PatientSex="F", PatientAge="047Y")
    old = dicom(Modality="MILLER", PatientSex="SECRET", PatientAge="101Y")
    assert [stats["tags"] for stats in decode_pictures([named, old], version()).stats] == [
        {"modality": "DX", "view": "PA", "sex": "F", "age": "40 to 49"},
        {"age": "90 and more"},
    ]
