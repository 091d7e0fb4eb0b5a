"""Take what identifies a patient out of a picture file before it is stored, queued or logged; both planes use this.

DICOM: a new file is written from a list of what may stay, so an element nobody thought of is gone (the idea of PS3.15
annex E turned round; stricter than its Basic Profile). What stays describes the pixels and how to show them, the
modality, body part, view and laterality where they are known terms, sex and age. Ages above 89 years become 90, the sum
class of the HIPAA safe harbour. UIDs become hashes under a salt, so that the files of one study still belong together
for who knows the salt; dates, names, free text, private elements, overlays and everything else go. The first frame is
decoded and stored uncompressed: compressed streams and the slack behind them can carry text too.

PNG and JPEG: pixels stay as they are, metadata goes. A JPEG keeps its compressed data bit for bit unless it must be
turned upright; then, and where its structure hides something between scans, it becomes a PNG.

Text that is burned into the pixels stays, unless the sender names the boxes that hold it: those are blacked out before
the file is written. A warning says where the file admits to such text.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from inference.errors import InferenceError
from inference.runtime.budget import begin_picture
from inference.runtime.codestreams import bare_jpeg
from inference.runtime.dicom import MALFORMED, file_warnings, is_dicom, read_dataset, stored_pixels
from inference.runtime.display import Lookup
from inference.runtime.picture_child import call_child, killed_error
from inference.runtime.pictures import Kind, open_picture, sniff
from inference.runtime.sandbox import SandboxKilled
from inference.runtime.terms import TERMS, known_age

_ORIENTATION = 0x0112

# Numbers and codes that describe the pixels and how to show them. The size follows from the pixels themselves.
_TECHNICAL = (
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "PixelIntensityRelationshipSign",
    "WindowCenter",
    "WindowWidth",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "LossyImageCompressionRatio",
)
_PALETTE = tuple(
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
)
_LUTS = ("ModalityLUTSequence", "VOILUTSequence")

_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# The standard wants these to be there, if need be without a value.
_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber", "StudyID")
_EMPTY_TOO = ("ReferringPhysicianName", "SeriesNumber", "InstanceNumber")
# Of what stays, what says how the picture was made, and of whom: the names under which `Deidentified.tags` has it.
_TAGS = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "sex": "PatientSex",
    "age": "PatientAge",
}
_STANDARD_UID = re.compile(r"1\.2\.840\.10008\.[0-9.]{1,48}")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


# x, y, width and height in pixels of the picture as it is stored, from its upper left corner (upright for a JPEG).
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Deidentified:
    """`data` may be stored; `removed` counts the elements or metadata fields that were dropped or replaced.

    `width` and `height` are of the stored picture. `tags` (of a DICOM file alone): modality, body_part, view, sex and
    age, as far as they stayed.
    """

    data: bytes
    media_type: str
    removed: int
    warnings: list[str]
    width: int = 0
    height: int = 0
    tags: dict[str, str] = field(default_factory=dict)


class _Request(msgspec.Struct):
    salt: bytes
    data: bytes
    blackouts: list[Box] = []


def deidentify_in_sandbox(data: bytes, *, salt: bytes = b"", blackouts: Sequence[Box] = ()) -> Deidentified:
    """`deidentify` in a throw-away child: the form for everything that comes from outside. Blocks; thread-safe."""
    try:
        argument = msgspec.msgpack.encode(_Request(salt, data, list(blackouts)))
        output = call_child("inference.runtime.deidentify:deidentify_in_child", argument)
    except SandboxKilled as killed:
        raise killed_error(killed, dicom=is_dicom(data)) from killed
    return msgspec.msgpack.decode(output, type=Deidentified)


def deidentify_in_child(argument: bytes) -> bytes:
    """The child's side of `deidentify_in_sandbox`: MessagePack in and out."""
    request = msgspec.msgpack.decode(argument, type=_Request)
    begin_picture()
    return msgspec.msgpack.encode(deidentify(request.data, salt=request.salt, blackouts=request.blackouts))


def deidentify(data: bytes, *, salt: bytes = b"", blackouts: Sequence[Box] = ()) -> Deidentified:
    """The same picture without what identifies a patient; raises InferenceError with one of the picture codes.

    `salt` (kept secret) makes one UID the same hash each time; without it every call's hashes differ. What lies in the
    boxes `blackouts` becomes black. The result is whole and readable: what cannot be decoded is refused.
    """
    kind = sniff(data)
    if kind == "dicom":
        return _dicom(data, salt or os.urandom(16), blackouts)
    return _picture(data, kind, blackouts)


def _picture(data: bytes, kind: Kind, blackouts: Sequence[Box]) -> Deidentified:
    upright = open_picture(data, kind)
    with Image.open(BytesIO(data)) as original:
        fields = set(original.info) - {"transparency", "jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe"}
        exif = _exif(original)
        turned = exif.get(_ORIENTATION, 1) in range(2, 9)
    removed = len(fields - {"exif", "adobe_transform", "gamma", "srgb", "dpi", "progressive"}) + len(exif)
    width, height = upright.size
    if kind == "jpeg" and not turned and not blackouts:
        bare = bare_jpeg(data)
        if bare is not None and _same_pixels(bare, upright):
            return Deidentified(bare, "image/jpeg", removed, [], width, height)
    return Deidentified(_png(_blackened(upright, blackouts)), "image/png", removed, [], width, height)


def _blackened(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    if not boxes:
        return picture
    if picture.mode not in ("1", "L", "LA", "RGB", "RGBA", "I;16"):
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    black: Any = {"LA": (0, 255), "RGB": (0, 0, 0), "RGBA": (0, 0, 0, 255)}.get(picture.mode, 0)
    for x, y, width, height in boxes:
        picture.paste(black, (x, y, x + width, y + height))
    return picture


def _exif(image: Image.Image) -> dict[int, Any]:
    try:
        return dict(image.getexif())
    except (*MALFORMED, SyntaxError):
        return {}


def _same_pixels(data: bytes, picture: Image.Image) -> bool:
    try:
        again = open_picture(data, "jpeg")
    except InferenceError:
        return False
    return again.mode == picture.mode and again.size == picture.size and again.tobytes() == picture.tobytes()


def _png(picture: Image.Image) -> bytes:
    """Encode pixels alone. PNG has no CMYK, so that becomes RGB; every other mode that can come in stays."""
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture = picture.convert("RGB")
    # Colour profile, text and time all come from `info`; a palette's transparency belongs to the pixels.
    picture.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    out = BytesIO()
    picture.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _dicom(data: bytes, salt: bytes, blackouts: Sequence[Box]) -> Deidentified:
    source = read_dataset(data)
    photometric = str(source.get("PhotometricInterpretation", "")).strip()
    pixels = _without_boxes(stored_pixels(source), blackouts, photometric)
    warnings = file_warnings(source)
    try:
        kept = _kept(source, salt, hashlib.sha256(data).hexdigest())
        removed = _count(source) - sum(1 for element in kept if element.keyword not in _UIDS)
        _add_pixels(kept, pixels, photometric)
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = "Signalbox allow-list"
        for name in (*_EMPTY, *_EMPTY_TOO):
            setattr(kept, name, "" if "Number" not in name or name == "AccessionNumber" else None)
        out = BytesIO()
        # The writer makes a preamble of zeros.
        dcmwrite(out, kept, enforce_file_format=True)
    except MALFORMED as error:
        raise InferenceError("unsupported_object", "The DICOM file's description of its picture is damaged.") from error
    tags = {name: str(kept[keyword].value) for name, keyword in _TAGS.items() if keyword in kept}
    height, width = pixels.shape[:2]
    return Deidentified(out.getvalue(), "application/dicom", max(0, removed), warnings, width, height, tags)


def _without_boxes(pixels: np.ndarray, boxes: Sequence[Box], photometric: str) -> np.ndarray:
    """The stored values with the boxes at the darkest that the frame has, so that no window is moved by them."""
    if not boxes:
        return pixels
    pixels = pixels.copy()
    darkest = pixels.max() if photometric == "MONOCHROME1" else 0 if pixels.ndim == 3 else pixels.min()
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = darkest
    return pixels


def _kept(source: Any, salt: bytes, fingerprint: str) -> Any:
    """A new data set with what may stay of `source`, all but the pixels. `fingerprint` stands for UIDs that it lacks,
    so that the same file becomes the same file again."""
    kept = Dataset()
    for name in _TECHNICAL:
        value = source.get(name)
        if value not in (None, ""):
            setattr(kept, name, _numbers(value))
    for name, terms in TERMS.items():
        term = str(source.get(name, "") or "").strip().upper()
        if term in terms:
            setattr(kept, name, term)
    for name in _PALETTE:
        if source.get(name) is not None:
            setattr(kept, name, source[name].value)
            kept[name].VR = source[name].VR
    little_endian = bool(source.file_meta._tsyntax_encoding[1])
    for name in _LUTS:
        lookup = Lookup.read(source[name].value[0], little_endian=little_endian) if source.get(name) else None
        if lookup is not None:
            setattr(kept, name, [_lut(lookup)])
    age = known_age(str(source.get("PatientAge", "") or ""))
    if age:
        kept.PatientAge = age
    for name in _UIDS:
        kept.__setattr__(name, _hashed(str(source.get(name, "") or "") or fingerprint + name, salt))
    storage = str(source.get("SOPClassUID", ""))
    kept.SOPClassUID = storage if _STANDARD_UID.fullmatch(storage) else _SECONDARY_CAPTURE
    kept.file_meta = FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kept.file_meta.MediaStorageSOPClassUID = kept.SOPClassUID
    kept.file_meta.MediaStorageSOPInstanceUID = kept.SOPInstanceUID
    return kept


def _numbers(value: Any) -> Any:
    """The numbers of an element again as numbers, so that no text passes through a field meant for them."""
    if isinstance(value, str | int | float):
        return f"{float(value):.10g}" if not isinstance(value, int) else value
    return [_numbers(item) for item in value]


def _lut(lookup: Lookup) -> Any:
    """The numbers of a lookup table and nothing else, little-endian."""
    item = Dataset()
    first = lookup.first
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [lookup.entries.size % 65536, first, lookup.bits])
    item.add_new("LUTData", "OW", lookup.entries.astype("<u2").tobytes())
    return item


def _hashed(uid: str, salt: bytes) -> str:
    """A UID under 2.25 (X.667: any 128-bit number) that only who knows the salt can tie to the first one."""
    digest = hmac.new(salt, uid.encode(), hashlib.sha256).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _add_pixels(kept: Any, pixels: np.ndarray, photometric: str) -> None:
    colour = pixels.ndim == 3
    kept.Rows, kept.Columns = pixels.shape[:2]
    kept.SamplesPerPixel = 3 if colour else 1
    if colour:
        kept.PlanarConfiguration = 0
    # The decoder has turned every YBR form into RGB.
    kept.PhotometricInterpretation = "RGB" if colour else photometric
    bits = pixels.dtype.itemsize * 8
    kept.BitsAllocated = bits
    kept.BitsStored = min(int(kept.get("BitsStored", bits)), bits)
    kept.HighBit = kept.BitsStored - 1
    kept.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    values = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    kept.PixelData = values + b"\0" * (len(values) % 2)
    kept["PixelData"].VR = "OB" if bits == 8 else "OW"


def _count(dataset: Any) -> int:
    """Elements at every depth but the pixels and group lengths."""
    total = 0
    stack = [dataset]
    while stack:
        for element in stack.pop():
            total += 1
            if element.VR == "SQ":
                stack.extend(element.value)
    return total
