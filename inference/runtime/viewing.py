"""Pictures for a person's eyes: a frame at its full depth for the viewer, thumbnails, and what the model saw.

All of it is made in throw-away children by the functions that make the model's input, so that nobody looks at other
pixels than the model did.
"""

from io import BytesIO

import msgspec
import numpy as np
from PIL import Image

from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.budget import begin_picture
from inference.runtime.dicom import is_dicom
from inference.runtime.display import Frame, Window
from inference.runtime.picture_child import call_child, killed_error
from inference.runtime.pictures import read_any, read_any_frame
from inference.runtime.preprocess import Pipeline
from inference.runtime.sandbox import SandboxKilled

MAX_THUMBNAIL = 1024
# The values begin on a multiple of the widest of them, so that a reader needs no copy.
_ALIGNED = 8


class VoiLut(msgspec.Struct, frozen=True):
    """Output for the value `first` and those after it; before and behind it the first and the last. White is
    2 ** `bits` - 1."""

    first: int
    bits: int
    entries: list[int]


class FrameHeader(msgspec.Struct, frozen=True):
    """What precedes the values: how many there are and how they become grey.

    Grey (`channels` 1): the `voi_lut` where there is one, else the first of `windows` (one at least), then `invert`.
    Colour (3): RGB as it is, without windows. `low` and `high` are the least and the largest value. `note` is what the
    reader should know, "" for nothing.
    """

    rows: int
    columns: int
    channels: int
    dtype: str
    invert: bool
    windows: list[Window]
    voi_lut: VoiLut | None
    low: float
    high: float
    note: str


class _ModelView(msgspec.Struct):
    preprocessor: dict[str, object]
    data: bytes


class _Thumbnail(msgspec.Struct):
    side: int
    data: bytes


def display_frame(data: bytes) -> bytes:
    """A picture at its full depth: length of the header (4 bytes, little-endian), the header, the values.

    The header is a FrameHeader as JSON, padded with blanks to end on a multiple of 8 bytes. The values are uint8,
    uint16, int16 or float32 (where a rescale leaves no whole numbers of 16 bits), little-endian, row by row, after the
    modality LUT or rescale and before the window. Blocks; thread-safe. Raises InferenceError with a picture code.
    """
    return _in_child("display_in_child", data, data)


def thumbnail(data: bytes, side: int) -> bytes:
    """The picture as it is first shown, as a PNG that fits into a square of `side` pixels. Blocks; thread-safe.

    Raises InferenceError with a picture code.
    """
    return _in_child("thumbnail_in_child", msgspec.msgpack.encode(_Thumbnail(min(side, MAX_THUMBNAIL), data)), data)


def model_view(data: bytes, version: VersionRoute) -> bytes:
    """What the version's model gets to see of a picture, at the model's size, as a PNG of 8 bits. Blocks; thread-safe.

    Raises InferenceError with a picture code, or `bad_preprocessor` where the version takes tensors.
    """
    if version.preprocessor is None:
        raise InferenceError("bad_preprocessor", "This version has no preprocessor, so it takes tensors, not pictures.")
    return _in_child("model_view_in_child", msgspec.msgpack.encode(_ModelView(version.preprocessor, data)), data)


def split_frame(content: bytes) -> tuple[FrameHeader, np.ndarray]:
    """The header, and the values as [rows, columns] or [rows, columns, 3], of what `display_frame` returned."""
    start = 4 + int.from_bytes(content[:4], "little")
    header = msgspec.json.decode(content[4:start], type=FrameHeader)
    values = np.frombuffer(content, np.dtype(header.dtype).newbyteorder("<"), offset=start)
    shape = (header.rows, header.columns) + ((3,) if header.channels == 3 else ())
    return header, values.reshape(shape)


def display_in_child(data: bytes) -> bytes:
    """The child's side of `display_frame`."""
    begin_picture()
    frame, notes = read_any_frame(data)
    values = frame.values
    if values.dtype == np.int8:
        values = values.astype(np.int16)
    header = msgspec.json.encode(_header(frame, values, notes))
    header += b" " * (-(4 + len(header)) % _ALIGNED)
    return b"".join(
        (
            len(header).to_bytes(4, "little"),
            header,
            np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data,
        )
    )


def thumbnail_in_child(argument: bytes) -> bytes:
    """The child's side of `thumbnail`."""
    asked = msgspec.msgpack.decode(argument, type=_Thumbnail)
    begin_picture()
    image, _, _ = read_any(asked.data)
    image.thumbnail((asked.side, asked.side), Image.Resampling.BOX)
    return _png(image)


def model_view_in_child(argument: bytes) -> bytes:
    """The child's side of `model_view`."""
    asked = msgspec.msgpack.decode(argument, type=_ModelView)
    begin_picture()
    pipeline = Pipeline.from_config(asked.preprocessor)
    image, _, _ = read_any(asked.data)
    return _png(pipeline.picture(pipeline(image)))


def _header(frame: Frame, values: np.ndarray, notes: list[str]) -> FrameHeader:
    lut = frame.voi_lut
    grey = values.ndim == 2
    return FrameHeader(
        rows=values.shape[0],
        columns=values.shape[1],
        channels=1 if grey else 3,
        dtype=values.dtype.name,
        invert=frame.invert,
        windows=list(frame.windows),
        voi_lut=VoiLut(lut.first, lut.bits, lut.entries.tolist()) if grey and lut is not None else None,
        low=float(values.min()),
        high=float(values.max()),
        # The code before the colon is for programs.
        note=" ".join(_sentence(note.partition(": ")[2]) for note in notes),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _in_child(function: str, argument: bytes, data: bytes) -> bytes:
    try:
        return call_child(f"inference.runtime.viewing:{function}", argument)
    except SandboxKilled as killed:
        raise killed_error(killed, dicom=is_dicom(data)) from killed
