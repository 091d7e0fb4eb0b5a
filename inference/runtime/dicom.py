"""DICOM files to pictures: what is accepted, and what the stored values look like on a screen.

Accepted: one file with a `DICM` header, pixel data of 8 or 16 bits, uncompressed, RLE, JPEG Baseline or JPEG 2000. No
other transfer syntax is tried (deflated files can be bombs, JPIP names an address to fetch), so a new codec in the
environment changes nothing. Sizes are compared with the bytes that are there before anything is allocated.

From stored values to grey (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2): modality LUT or rescale, then the VOI LUT, else the
first window, else unsigned 8-bit values as they are, else the 0.5th to 99.5th percentile; MONOCHROME1 is inverted
last. Of several frames the first is read, with a warning. All of it runs in a throw-away child on untrusted files.
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
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder

from inference.errors import InferenceError
from inference.runtime.codestreams import jpeg2000_size, jpeg_size
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
    dataset = read_dataset(data)
    pixels = stored_pixels(dataset)
    notes = file_warnings(dataset)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            image = _shown(dataset, pixels, notes)
            made = Acquisition(
                modality=_code(dataset, "Modality"),
                body_part=_code(dataset, "BodyPartExamined"),
                view=_code(dataset, "ViewPosition"),
            )
    except MALFORMED as error:
        raise InferenceError("unsupported_object", "The DICOM file's display parameters cannot be read.") from error
    return DicomPicture(image, made, notes)


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
            f"The transfer syntax {syntax or '(none)'} is not supported; uncompressed, RLE, JPEG Baseline and "
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
        raise InferenceError("unsupported_object", f"The photometric interpretation {photometric[:16]!r} is unknown.")
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


def _shown(dataset: Dataset, pixels: np.ndarray, notes: list[str]) -> Image.Image:
    photometric = str(dataset.PhotometricInterpretation).strip()
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        eight = pixels if pixels.dtype == np.uint8 else (pixels.astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(eight[..., :3]))
    grey = _grey(dataset, pixels, notes)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(grey)


def _grey(dataset: Dataset, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Stored values to 0..255, before the inversion of MONOCHROME1."""
    values = apply_modality_lut(pixels, dataset)
    luts = dataset.get("VOILUTSequence")
    if luts and luts[0].get("LUTData") is not None:
        bits = int(luts[0].LUTDescriptor[2])
        if not 8 <= bits <= 16:
            raise ValueError("a VOI LUT has entries of 8 to 16 bits")
        return _stretched(np.asarray(apply_voi(values.astype(pixels.dtype, copy=False), dataset)), 0, 2.0**bits - 1)
    window = _window(dataset)
    if window is not None:
        return _windowed(np.asarray(values, np.float32), *window)
    if values.dtype == np.uint8:
        return np.asarray(values)
    notes.append("no_window: the file gives no window; grey runs from the 0.5th to the 99.5th percentile.")
    shown = values
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and bool((pixels != padding).any()):
        shown = values[pixels != padding]
    low, high = np.percentile(shown, (0.5, 99.5))
    return _stretched(values, float(low), float(high))


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first window, or None where there is none that makes sense."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        return None
    centre = float(centre[0] if isinstance(centre, list) or hasattr(centre, "append") else centre)
    width = float(width[0] if isinstance(width, list) or hasattr(width, "append") else width)
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").strip().upper()
    smallest = 1.0 if function == "LINEAR" else 1e-9
    if not (np.isfinite(centre) and np.isfinite(width)) or width < smallest:
        return None
    return centre, width, function


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The three functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255."""
    if function == "SIGMOID":
        return _bytes(255 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return _bytes(((values - centre) / width + 0.5) * 255)
    if width == 1:
        return np.where(values > centre - 0.5, np.uint8(255), np.uint8(0))
    return _bytes(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    return _bytes((values.astype(np.float32) - low) * (255 / (high - low)))


def _bytes(grey: np.ndarray) -> np.ndarray:
    if not np.isfinite(grey).all():
        raise ValueError("the display parameters give values that are not finite")
    shown: np.ndarray = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return shown


def _code(dataset: Dataset, name: str) -> str:
    """A code string, cut to what the standard allows (16 characters), or ""."""
    return str(dataset.get(name, "") or "").strip().upper()[:16]
