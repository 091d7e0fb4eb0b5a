"""DICOM files to pictures: what is accepted, and how it is read.

Accepted: one file with a `DICM` header, pixel data of 8 or 16 bits, uncompressed, RLE, JPEG Baseline or JPEG 2000. No
other transfer syntax is tried (deflated files can be bombs, JPIP names an address to fetch), so a new codec in the
environment changes nothing. Sizes are compared with the bytes that are there before anything is allocated.

How stored values become grey is inference/runtime/display.py's. Of several frames the first is read, with a warning.
All of it runs in a throw-away child on untrusted files.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom import config as pydicom_config
from pydicom.encaps import generate_fragmented_frames
from pydicom.filereader import read_partial
from pydicom.pixels import apply_color_lut, get_decoder

from inference.errors import InferenceError
from inference.runtime.codestreams import jpeg2000_size, jpeg_size
from inference.runtime.display import Frame, grey_frame
from inference.runtime.pixels import Acquisition, check_size, looks_cut_off

# Values are checked here as far as they matter; a warning per odd date would only cost time.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

Dataset = Any

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
_PLUGINS = {RLE: "pydicom", JPEG_BASELINE: "pillow"} | dict.fromkeys(JPEG_2000, "pylibjpeg")

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Storage classes without pictures: waveforms, presentation states, reports, encapsulated documents, radiotherapy.
_NOT_PICTURES = tuple(_STORAGE + part for part in ("9.", "11.", "88.", "104.", "481.3", "481.5", "481.8", "66"))

_PHOTOMETRIC = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_RCT": 3,
    "YBR_ICT": 3,
}

# The richest real file at hand has 149; each costs the reader some 5 µs.
_MOST_ELEMENTS = 10_000

# What pydicom, Pillow and the codecs raise on bytes that are not what they say; RecursionError is a RuntimeError.
MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class DicomFrame:
    """A file's first frame with its own depth and the windows that it asks for."""

    frame: Frame
    acquisition: Acquisition
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class DicomPicture:
    """A file's first frame as shown: `image` is 8-bit L or RGB."""

    image: Image.Image
    acquisition: Acquisition
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The header's claim about the pixel data, checked for sense but not yet against the bytes."""

    rows: int
    columns: int
    samples: int
    bits: int
    frames: int
    photometric: str

    @property
    def frame_bytes(self) -> int:
        pixels = self.rows * self.columns
        # Two pixels share their colour samples: 4 bytes where 6 would be.
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return pixels * samples * self.bits // 8


def is_dicom(data: bytes) -> bool:
    """Whether the file has the DICOM header; the 128 bytes before it may be anything and are never used."""
    return data[128:132] == b"DICM"


def is_headless_dicom(data: bytes) -> bool:
    """Whether the bytes begin like a DICOM data set whose header is missing."""
    return data[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x02\x00\x00\x00")


def read_picture(data: bytes) -> DicomPicture:
    """First frame of a DICOM file as it is shown; raises InferenceError with one of the picture codes."""
    read = read_frame(data)
    try:
        image = read.frame.image()
    except MALFORMED as error:
        raise _undisplayable() from error
    return DicomPicture(image, read.acquisition, read.warnings)


def read_frame(data: bytes) -> DicomFrame:
    """First frame of a DICOM file before its window; raises InferenceError with one of the picture codes."""
    dataset = read_dataset(data)
    pixels = stored_pixels(dataset)
    notes = file_warnings(dataset)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            frame = _frame(dataset, pixels, notes)
            made = Acquisition(
                modality=_code(dataset, "Modality"),
                body_part=_code(dataset, "BodyPartExamined"),
                view=_code(dataset, "ViewPosition"),
                sex=_code(dataset, "PatientSex"),
                age=_code(dataset, "PatientAge"),
            )
    except MALFORMED as error:
        raise _undisplayable() from error
    return DicomFrame(frame, made, notes)


def _undisplayable() -> InferenceError:
    return InferenceError("unsupported_object", "The DICOM file's display parameters cannot be read.")


def read_dataset(data: bytes) -> Dataset:
    """Parse a file that is accepted; raises `unsupported_object` or `unsupported_transfer_syntax`."""
    if not is_dicom(data):
        raise InferenceError("unsupported_object", "The DICOM file has no header (the letters DICM at byte 128).")
    meta = _file_meta(data)
    if meta.get(0x0002, "") == MEDIA_DIRECTORY:
        raise InferenceError("unsupported_object", "The file is a DICOMDIR, a directory of other files.")
    syntax = meta.get(0x0010, "")
    if syntax not in NATIVE and syntax not in _PLUGINS:
        raise InferenceError(
            "unsupported_transfer_syntax",
            f"The transfer syntax {_standard(syntax)}is not supported; uncompressed, RLE, JPEG Baseline and "
            "JPEG 2000 are.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_partial(BytesIO(data), stop_when=_ElementCap())
            storage = str(dataset.get("SOPClassUID", "") or meta.get(0x0002, ""))
            missing = "PixelData" not in dataset
    except MALFORMED as error:
        raise InferenceError("unsupported_object", "The DICOM file's structure cannot be read.") from error
    if storage.startswith(_NOT_PICTURES):
        raise InferenceError("unsupported_object", "The DICOM file holds a document or a plan, not a picture.")
    if missing:
        raise InferenceError("pixel_mismatch", "The DICOM file has no pixel data.")
    return dataset


def _standard(uid: str) -> str:
    """The UID and a space where it is one of the standard's own; "" for any other: it could name someone."""
    known = uid.startswith("1.2.840.10008.") and len(uid) < 30 and uid.replace(".", "").isdigit()
    return f"{uid} " if known else ""


def stored_pixels(dataset: Dataset) -> np.ndarray:
    """The first frame's stored values, [rows, columns] or [rows, columns, 3] in RGB, as pydicom gives them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = _layout(dataset)
            syntax = str(dataset.file_meta.TransferSyntaxUID)
            pixel_data = dataset.PixelData
    except MALFORMED as error:
        raise InferenceError("pixel_mismatch", "The DICOM file's picture description cannot be read.") from error
    if syntax in NATIVE:
        _check_length(layout, len(pixel_data))
    else:
        _check_encapsulated(layout, syntax, pixel_data)
    check_size(layout.columns, layout.rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels, _ = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=_PLUGINS.get(syntax, ""))
    except MALFORMED as error:
        if syntax in NATIVE:
            raise InferenceError("pixel_mismatch", "The DICOM file's pixel data cannot be read.") from error
        raise InferenceError("unsupported_transfer_syntax", "The DICOM file's compressed data is corrupt.") from error
    if pixels.shape[:2] != (layout.rows, layout.columns):
        raise InferenceError("pixel_mismatch", "The decoded picture does not have the size the DICOM header says.")
    if syntax == JPEG_BASELINE and looks_cut_off(pixels):
        raise InferenceError("unsupported_transfer_syntax", "The DICOM file's compressed data ends too early.")
    return np.asarray(pixels)


def file_warnings(dataset: Dataset) -> list[str]:
    """What a reader should know of the file: text burned into the pixels, further frames that are not looked at."""
    notes = []
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        notes.append(
            "burned_in_annotation: the file says that text is burned into its pixels; it may name the patient."
        )
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        notes.append(f"first_frame_only: the file has {frames} frames; only the first was read.")
    return notes


class _ElementCap:
    """Asked by the reader before each element of the top level; raises at one too many."""

    def __init__(self) -> None:
        self._left = _MOST_ELEMENTS

    def __call__(self, tag: Any, vr: Any, length: int) -> bool:
        self._left -= 1
        if self._left < 0:
            raise InferenceError("unsupported_object", f"The DICOM file has more than {_MOST_ELEMENTS} elements.")
        return False


def _file_meta(data: bytes) -> dict[int, str]:
    """UIDs of the file meta group by element number. Read by hand: pydicom would inflate a deflated file meanwhile."""
    found: dict[int, str] = {}
    at = 132
    while data[at : at + 2] == b"\x02\x00" and at + 12 <= len(data):
        element = int.from_bytes(data[at + 2 : at + 4], "little")
        wide = data[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF", b"UC", b"UR")
        start = at + (12 if wide else 8)
        length = int.from_bytes(data[at + 8 : at + 12] if wide else data[at + 6 : at + 8], "little")
        if data[at + 4 : at + 6] == b"UI" and length <= 64:
            found[element] = data[start : start + length].decode("ascii", "replace").rstrip("\0 ")
        at = start + length
    return found


def _layout(dataset: Dataset) -> _Layout:
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    layout = _Layout(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel", 1)),
        bits=int(dataset.BitsAllocated),
        frames=int(dataset.get("NumberOfFrames", 1) or 1),
        photometric=photometric,
    )
    if photometric not in _PHOTOMETRIC:
        # Not what it says: anything may stand there, a name too, and messages are shown and stored.
        known = ", ".join(_PHOTOMETRIC)
        raise InferenceError("unsupported_object", f"The photometric interpretation is none of {known}.")
    if layout.bits not in (8, 16):
        raise InferenceError("unsupported_object", f"Pictures of {layout.bits} bits a sample are not supported.")
    if layout.rows < 1 or layout.columns < 1 or layout.frames < 1 or layout.samples != _PHOTOMETRIC[photometric]:
        raise InferenceError(
            "pixel_mismatch",
            f"The DICOM header says {layout.rows} rows, {layout.columns} columns, {layout.samples} samples a pixel and "
            f"{layout.frames} frames.",
        )
    if not 1 <= int(dataset.get("BitsStored", layout.bits)) <= layout.bits:
        raise InferenceError("pixel_mismatch", "The DICOM header says more bits stored than allocated.")
    stored = int(dataset.get("BitsStored", layout.bits))
    # PS3.5 8.1.1 has the stored bits at the low end. Elsewhere every value would silently be another one.
    if int(dataset.get("HighBit", stored - 1)) != stored - 1:
        raise InferenceError(
            "pixel_mismatch",
            f"The DICOM header puts {stored} stored bits below bit {int(dataset.HighBit)}; the standard wants the "
            f"highest at bit {stored - 1}.",
        )
    return layout


def _check_length(layout: _Layout, length: int) -> None:
    expected = layout.frame_bytes * layout.frames
    if length not in (expected, expected + expected % 2):
        raise InferenceError(
            "pixel_mismatch", f"The DICOM pixel data has {length} bytes; its header describes {expected}."
        )


def _check_encapsulated(layout: _Layout, syntax: str, pixel_data: bytes) -> None:
    """Compare the compressed frame's own size with the header, so that neither can make a codec allocate at will."""
    if layout.frames > len(pixel_data) // 8:
        raise InferenceError("pixel_mismatch", f"The DICOM header says {layout.frames} frames; there are fewer.")
    try:
        frame = b"".join(next(generate_fragmented_frames(pixel_data, number_of_frames=layout.frames)))
    except (*MALFORMED, StopIteration) as error:
        raise InferenceError("pixel_mismatch", "The DICOM file's compressed frames cannot be found.") from error
    if syntax == RLE:
        # Two bytes stand for 128 at most.
        if layout.frame_bytes > 64 * len(frame):
            raise InferenceError("pixel_mismatch", "The DICOM file's RLE data is too short for the size it says.")
        return
    size = jpeg_size(frame) if syntax == JPEG_BASELINE else jpeg2000_size(frame)
    if size is None:
        raise InferenceError(
            "unsupported_transfer_syntax", "The DICOM file's compressed data is corrupt or incomplete."
        )
    if size != (layout.columns, layout.rows):
        raise InferenceError(
            "pixel_mismatch",
            f"The compressed picture has {size[0]} x {size[1]} pixels; the DICOM header says "
            f"{layout.columns} x {layout.rows}.",
        )


def _frame(dataset: Dataset, pixels: np.ndarray, notes: list[str]) -> Frame:
    if str(dataset.PhotometricInterpretation).strip() == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 2:
        return grey_frame(dataset, pixels, notes)
    eight = pixels if pixels.dtype == np.uint8 else (pixels.astype(np.uint16) >> 8).astype(np.uint8)
    return Frame(eight[..., :3])


def _code(dataset: Dataset, name: str) -> str:
    """A code string, cut to what the standard allows (16 characters), or ""."""
    return str(dataset.get(name, "") or "").strip().upper()[:16]
