"""Pictures and DICOM files that are none, or strange, as jobs of the whole product: table B rows 37 to 47."""

import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

from tests.controlplane.jobs.conftest import GREY_8, brightness
from tests.e2e.control import Control, control_of
from tests.inference.runtime.picture_files import STORAGE, chest, dicom, dicom_head, encoded, png_chunk, png_claiming
from tests.services import Product

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

NAME = "bad-pictures"
JOBS = f"/api/deployments/{NAME}/jobs/"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_LS, JPEG_2000, JPIP = (f"1.2.840.10008.1.2.4.{end}" for end in (80, 90, 94))
RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True, slots=True)
class Ward:
    """One deployment that tells bright pictures from dark ones, asked through the jobs' address."""

    control: Control

    def post(self, content: bytes, kind: str = "image/png", **headers: str) -> httpx.Response:
        return self.control.client.post(JOBS, content=content, headers={"Content-Type": kind, **headers})

    def jobs(self) -> int:
        """How many jobs there are; fewer than a page's length."""
        return len(self.control.got(JOBS)["results"])

    def ended(self, posted: httpx.Response) -> dict[str, Any]:
        """The job once it has ended, which must be well."""
        assert posted.status_code == 202, posted.text
        job = self.control.got(posted.headers["location"], wait=25)
        while job["status"] in ("queued", "running"):
            job = self.control.got(posted.headers["location"], wait=25)
        assert job["status"] == "succeeded", job
        return job


@pytest.fixture(scope="module")
def ward(product: Product) -> Iterator[Ward]:
    with control_of(product) as control:
        fields = {"labels": "dark,bright", "task": "image-classification", "activation": "softmax"}
        control.upload(NAME, brightness(), preprocessor=json.dumps(GREY_8), **fields)
        assert control.validated(NAME)["state"] == "ready"
        control.deploy(NAME)
        yield Ward(control)


def never_closed() -> bytes:
    return dicom_head(EXPLICIT) + struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)


def deep() -> bytes:
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 2**32 - 1
    )
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return dicom_head(EXPLICIT) + level * 5_000 + ends * 5_000


def deflated_bomb() -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return dicom_head(DEFLATED) + b"".join(packer.compress(b"\0" * 10**6) for _ in range(50)) + packer.flush()


def pages(kind: str) -> bytes:
    frames = [Image.new("L", (16, 16), value) for value in (10, 200)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def compressed(syntax: str, frame: bytes) -> bytes:
    return dicom(chest(), syntax, PixelData=encapsulate([frame]))


REFUSED: dict[str, tuple[Callable[[], bytes], int, set[str]]] = {
    "37 nothing": (lambda: b"", 400, {"empty_body"}),
    "37 text": (lambda: b"this is a chest X-ray", 415, {"not_an_image"}),
    "37 svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 415, {"not_an_image"}),
    "37 pdf": (lambda: b"%PDF-1.7\n1 0 obj\n", 415, {"not_an_image"}),
    "37 polyglot": (lambda: encoded(chest(), "JPEG", comment=b"<html><script>x</script>"), 415, {"not_an_image"}),
    "37 program": (lambda: b"MZ" + b"\0" * 200 + b"PE\0\0", 415, {"not_an_image"}),
    "38 half a jpeg": (lambda: encoded(chest(), "JPEG")[:-300], 422, {"corrupt_image"}),
    "38 half a png": (lambda: encoded(chest())[:-300], 422, {"corrupt_image"}),
    "39 12,000 x 10,000": (lambda: png_claiming(12_000, 10_000), 422, {"too_many_pixels"}),
    "39 a line": (lambda: png_claiming(2**31 - 1, 1), 422, {"too_many_pixels"}),
    "39 no column": (lambda: png_claiming(0, 10), 422, {"corrupt_image"}),
    "40 animated png": (lambda: pages("PNG"), 422, {"unsupported_image"}),
    "40 gif": (lambda: pages("GIF"), 422, {"unsupported_image"}),
    "40 tiff": (lambda: pages("TIFF"), 422, {"unsupported_image"}),
    "43 DICOMDIR": (lambda: dicom_head(EXPLICIT, "1.2.840.10008.1.3.10"), 422, {"unsupported_object"}),
    "43 report": (lambda: dicom(SOPClassUID=STORAGE + "88.11", PixelData=None), 422, {"unsupported_object"}),
    "43 pdf within": (lambda: dicom(SOPClassUID=STORAGE + "104.1", PixelData=None), 422, {"unsupported_object"}),
    "43 RTSTRUCT": (lambda: dicom(SOPClassUID=STORAGE + "481.3", PixelData=None), 422, {"unsupported_object"}),
    "44 no pixels": (lambda: dicom(PixelData=None), 422, {"pixel_mismatch"}),
    "44 too short": (lambda: dicom(PixelData=b"\0" * 100), 422, {"pixel_mismatch"}),
    "44 no rows": (lambda: dicom(Rows=0), 422, {"pixel_mismatch"}),
    "44 65535 squared": (lambda: dicom(Rows=65535, Columns=65535), 422, {"pixel_mismatch"}),
    "44 frames": (lambda: dicom(NumberOfFrames=10**9), 422, {"pixel_mismatch"}),
    "45 deflated bomb": (deflated_bomb, 422, {"unsupported_transfer_syntax"}),
    "45 never closed": (never_closed, 422, {"unsupported_object", "corrupt_image", "pixel_mismatch"}),
    "45 5,000 deep": (deep, 422, {"unsupported_object", "corrupt_image", "pixel_mismatch"}),
    "45 garbage": (
        lambda: dicom_head(EXPLICIT) + b"\x28\x00\x10\x00??\x02\x00\x40\x00" * 1_000,
        422,
        {"unsupported_object", "corrupt_image", "pixel_mismatch"},
    ),
    "46 JPEG-LS": (lambda: compressed(JPEG_LS, bytes(100)), 422, {"unsupported_transfer_syntax"}),
    "46 corrupt JPEG 2000": (
        lambda: compressed(JPEG_2000, encoded(chest(), "JPEG2000", no_jp2=True)[:60]),
        422,
        {"unsupported_transfer_syntax"},
    ),
    "46 corrupt RLE": (lambda: compressed(RLE, b"\1" + b"\0" * 200), 422, {"unsupported_transfer_syntax"}),
}


def assert_refused(answer: httpx.Response, status: int, codes: set[str]) -> None:
    """A problem document with nothing of the inside, and nothing that a browser takes for a page."""
    body = answer.json()
    assert (answer.status_code, body["code"] in codes) == (status, True), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert body["request_id"] == answer.headers["x-request-id"]
    for leaked in ("Traceback", 'File "', "site-packages", "SELECT ", "<svg", "<script"):
        assert leaked not in answer.text


def test_what_is_no_picture_is_refused_at_the_post_and_leaves_no_job(ward: Ward) -> None:
    before = ward.jobs()
    for row, (content, status, codes) in REFUSED.items():
        kind = "application/dicom" if row[:2] >= "43" else "image/png"
        answer = ward.post(content(), kind)
        assert answer.status_code == status, (row, answer.text)
        assert_refused(answer, status, codes)
    assert ward.jobs() == before


def test_a_file_that_names_an_address_fetches_nothing(ward: Ward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/pixels"
        answer = ward.post(dicom(syntax=JPIP, PixelData=None, PixelDataProviderURL=url), "application/dicom")
        assert_refused(answer, 422, {"unsupported_transfer_syntax"})
        with pytest.raises(TimeoutError):
            listener.accept()


def test_two_files_in_one_form_are_refused(ward: Ward) -> None:
    files = [("file", (f"{number}.png", encoded(chest()), "image/png")) for number in range(2)]
    assert_refused(ward.control.client.post(JOBS, files=files), 422, {"validation_error"})


def grey(level: int, dtype: Any = np.uint8) -> np.ndarray:
    """A plate of one grey with a little grain, so that it is not blank."""
    grain = np.arange(32 * 32).reshape(32, 32) % 5
    return (np.full((32, 32), level) + grain).astype(dtype)


def test_strange_pictures_that_can_be_read_are_answered(ward: Ward) -> None:
    """Rows 40, 43 and 47: other modes, a preamble that is not looked at, and grey values as they are meant."""
    bright, dark = grey(230), grey(10)
    upside_down = Image.fromarray(bright)
    exif = upside_down.getexif()
    exif[0x0112], exif[0x010F] = 6, "Jane Doe's camera"
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    plain = dicom(bright, **window)
    palette = Image.fromarray(bright).convert("P")
    sent: dict[str, tuple[bytes, str]] = {
        "40 CMYK": (encoded(Image.fromarray(bright).convert("CMYK"), "JPEG"), "bright"),
        "40 RGBA": (encoded(Image.fromarray(bright).convert("RGBA")), "bright"),
        "40 palette": (encoded(palette), "bright"),
        "40 16 bits": (encoded(Image.fromarray(bright.astype(np.uint16) * 256)), "bright"),
        "40 rotated": (encoded(upside_down, "JPEG", exif=exif), "bright"),
        "40 text chunk": (encoded(dark)[:33] + png_chunk(b"tEXt", b"Name\0Jane Doe") + encoded(dark)[33:], "dark"),
        "43 ELF preamble": (b"\x7fELF".ljust(128, b"\xcc") + plain[128:], "bright"),
        "47 MONOCHROME2": (plain, "bright"),
        "47 MONOCHROME1": (
            dicom(bright, PhotometricInterpretation="MONOCHROME1", **window),
            "dark",
        ),
        "47 signed": (dicom(grey(-900, np.int16), WindowCenter="0", WindowWidth="2000"), "dark"),
    }
    posted = {row: ward.post(content, "application/octet-stream") for row, (content, _) in sent.items()}
    labels = {row: ward.ended(answer)["result"]["label"] for row, answer in posted.items()}
    assert labels == {row: label for row, (_, label) in sent.items()}
    assert "Jane" not in "".join(answer.text for answer in posted.values())


def test_pictures_out_of_scope_and_with_burned_in_text_carry_a_warning(ward: Ward) -> None:
    colourful = np.zeros((64, 64, 3), np.uint8)
    colourful[:32, :, 0], colourful[32:, :, 2] = 255, 255
    sent = {
        "41 colour": encoded(colourful),
        "41 blank": encoded(np.full((64, 64), 128, np.uint8)),
        "47 burned in": dicom(BurnedInAnnotation="YES", PatientName="DOE^JANE", PatientID="4711"),
    }
    posted = {row: ward.post(content, "application/octet-stream") for row, content in sent.items()}
    told = {row: ward.ended(answer) for row, answer in posted.items()}
    for row in ("41 colour", "41 blank"):
        assert any("out_of_scope" in warning for warning in told[row]["warnings"]), told[row]
    assert told["47 burned in"]["warnings"]
    assert not {"DOE", "4711"} & set(json.dumps(told["47 burned in"]).replace("^", '"').split('"'))


def test_a_files_name_is_no_path_and_is_shown_nowhere(ward: Ward) -> None:
    names = ["<svg onload=alert(1)>.png", "../../etc/passwd", "\u202egnp.exe", "Jane Doe 1970.png"]

    def post(name: str) -> httpx.Response:
        return ward.control.client.post(JOBS, files={"file": (name, encoded(grey(230)), "text/html")})

    for name, answer in [(name, post(name)) for name in names]:
        job = ward.ended(answer)
        assert job["result"]["label"] == "bright"
        assert name not in json.dumps(job, ensure_ascii=False)
    # A name of 4 kB does not fit the head of a form's part.
    assert_refused(post("x" * 4_000 + ".png"), 400, {"bad_request"})
