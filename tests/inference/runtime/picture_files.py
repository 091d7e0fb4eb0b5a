"""Picture files for tests, made byte by byte where a library would refuse to make them."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from inference.contracts import Datatype, Signature, Task, TensorSpec, VersionRoute

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURE = STORAGE + "7"
GREY_8 = {
    "do_grayscale": True,
    "size": {"height": 8, "width": 8},
    "image_mean": [0.5],
    "image_std": [0.5],
}


def version(preprocessor: dict[str, Any] | None = None, **fields: Any) -> VersionRoute:
    """A version whose model takes grey pictures of 8 x 8."""
    image = TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 1, 8, 8))
    scores = TensorSpec(name="scores", datatype=Datatype.FP32, shape=(-1, 3))
    given: dict[str, Any] = {
        "id": "v1",
        "model": "chest",
        "number": 1,
        "artifact_sha256": "",
        "artifact_bytes": 0,
        "signature": Signature(inputs=(image,), outputs=(scores,)),
        "task": Task.IMAGE_CLASSIFICATION,
        "preprocessor": GREY_8 if preprocessor is None else preprocessor,
    }
    return VersionRoute(**(given | fields))


def chest(height: int = 64, width: int = 64) -> np.ndarray:
    """Something laid out like a chest radiograph: black corners, bright middle, darker lungs; uint8."""
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    body = 220 * np.exp(-(((x - 0.5) / 0.42) ** 4) - ((y - 0.55) / 0.5) ** 4)
    lungs = np.exp(-(((x - 0.27) / 0.12) ** 2) - ((y - 0.45) / 0.2) ** 2)
    lungs += np.exp(-(((x - 0.73) / 0.12) ** 2) - ((y - 0.45) / 0.2) ** 2)
    grain = 6 * np.sin(40 * x) * np.cos(31 * y)
    shown: np.ndarray = np.clip(body - 130 * lungs + grain + 8, 0, 255).astype(np.uint8)
    return shown


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says this size over next to no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 64)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def dicom(pixels: np.ndarray | None = None, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A whole DICOM file of `pixels`; `elements` by keyword are set last, those given as None are left out."""
    pixels = chest() if pixels is None else pixels
    dataset = Dataset()
    dataset.SOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.5"
    dataset.Modality = "DX"
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = BytesIO()
    if syntax != ExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
        if isinstance(elements.get("PixelData"), bytes):
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def dicom_head(syntax: str, storage: str = SECONDARY_CAPTURE) -> bytes:
    """Preamble, DICM and the file meta group, so that any bytes may follow as the data set."""
    elements = b""
    for element, uid in ((0x0002, storage), (0x0003, "1.2.3.4"), (0x0010, syntax)):
        value = uid.encode() + b"\0" * (len(uid) % 2)
        elements += struct.pack("<HH2sH", 0x0002, element, b"UI", len(value)) + value
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements))
    return b"\0" * 128 + b"DICM" + length + elements
