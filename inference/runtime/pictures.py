"""Pictures that strangers send: what is accepted, and how a version's tensor is made of them.

Accepted are PNG, JPEG and DICOM, told by their bytes alone, never by a name or a Content-Type. What a picture means is
fixed here once, for every lane: EXIF orientation is applied; transparency is dropped; palette and CMYK become RGB; grey
of 16 bits keeps its upper 8; colour profiles are ignored. A picture that is damaged anywhere is refused, so no half of
it is ever guessed. Decoding happens in throw-away children with caps on pixels, memory and time.
"""

import functools
import hashlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.ma  # NumPy loads it at first use, and a child may find no file to open
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin

from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.budget import begin_picture
from inference.runtime.codestreams import jpeg_end, png_end, png_size
from inference.runtime.dicom import MALFORMED, is_dicom, is_headless_dicom, read_frame, read_picture
from inference.runtime.display import EIGHT_BITS, SIXTEEN_BITS, Frame
from inference.runtime.picture_child import CHILDREN, call_child, killed_error
from inference.runtime.pixels import Acquisition, PictureStats, check_size, looks_cut_off, out_of_scope, statistics
from inference.runtime.preprocess import Pipeline
from inference.runtime.sandbox import SandboxKilled
from inference.runtime.terms import known_tags

Kind = Literal["png", "jpeg", "dicom"]

FORMATS = (PngImagePlugin.PngImageFile.format, JpegImagePlugin.JpegImageFile.format)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Pictures all the same, so the sender is told that and not that it is none.
_OTHER_PICTURES = (b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"RIFF", b"\0\0\0\x0cjP  ")
# The brands of ISO 23008-12, Annex B: what phones save as .heic.
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
# What a browser or a reader could take the file for instead. Sniffers look at the first kilobyte.
_MARKUP = (b"<html", b"<!doctype", b"<script", b"<body", b"<iframe", b"<svg", b"%pdf-")
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
_SNIFFED = 1024

# Pictures that share a child: a fork costs some 13 ms, and one bad picture makes the others wait for a second try.
_TOGETHER = 8
_TOGETHER_BYTES = 32 * 1024 * 1024

# The two settings of Pillow that would let damage or size pass; ours are check_size and the checks of _open.
ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = None
# Pillow imports its formats at the first picture otherwise; in a child that may be too late.
Image.preinit()


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """One picture ready for the model: `tensor` is float32 [channels, height, width]."""

    tensor: np.ndarray
    stats: PictureStats
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class DecodedPictures:
    """Several, in the order sent: `tensor` is float32 [n, channels, height, width]; lists have one entry a picture."""

    tensor: np.ndarray
    stats: list[PictureStats]
    warnings: list[list[str]]


class _Request(msgspec.Struct):
    preprocessor: dict[str, Any]
    pictures: list[bytes]


class _Answer(msgspec.Struct, omit_defaults=True):
    shape: tuple[int, ...] = ()
    tensor: bytes = b""
    stats: PictureStats | None = None
    warnings: list[str] = []
    code: str = ""
    message: str = ""


def decode_pictures(pictures: Sequence[bytes], version: VersionRoute) -> DecodedPictures:
    """Read pictures as `version` wants them. Blocks (call it from a worker thread), thread-safe.

    Raises InferenceError with a picture code for the first that cannot be read, located at ["instances", index];
    `bad_preprocessor` where the version has none or it cannot be used; `wrong_shape` where sizes differ and the version
    does not resize.
    """
    decoded = []
    for index, picture in enumerate(decode_each(pictures, version)):
        if isinstance(picture, InferenceError):
            picture.errors.append({"loc": ["instances", index], "msg": picture.message})
            raise picture
        decoded.append(picture)
    shapes = {picture.tensor.shape for picture in decoded}
    if len(shapes) > 1:
        raise InferenceError(
            "wrong_shape", "The pictures of one call must have one size, as this version resizes none."
        )
    return DecodedPictures(
        tensor=np.stack([picture.tensor for picture in decoded]),
        stats=[picture.stats for picture in decoded],
        warnings=[picture.warnings for picture in decoded],
    )


def decode_each(pictures: Sequence[bytes], version: VersionRoute) -> list[DecodedPicture | InferenceError]:
    """As `decode_pictures`, but each picture fails alone: its place in the list then holds the error."""
    if version.preprocessor is None:
        raise InferenceError("bad_preprocessor", "This version has no preprocessor, so it takes tensors, not pictures.")
    Pipeline.from_config(version.preprocessor)
    groups = list(_groups(pictures))
    decode = functools.partial(_decode_group, config=version.preprocessor)
    if len(groups) <= 1:
        return [one for group in groups for one in decode(group)]
    with ThreadPoolExecutor(min(CHILDREN, len(groups))) as threads:
        return list(itertools.chain.from_iterable(threads.map(decode, groups)))


def sniff(data: bytes) -> Kind:
    """What the bytes are; raises `not_an_image`, `unsupported_image` or, for DICOM without a header, its code."""
    if is_dicom(data) and not data.startswith((_PNG, _JPEG)):
        return "dicom"
    kind: Kind
    if data.startswith(_PNG):
        kind = "png"
    elif data.startswith(_JPEG):
        kind = "jpeg"
    elif is_headless_dicom(data):
        raise InferenceError("unsupported_object", "The DICOM file has no header (the letters DICM at byte 128).")
    elif data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        raise InferenceError(
            "unsupported_image",
            "This is a HEIC picture, which is not accepted: set the camera to “most compatible”, or export it as JPEG.",
        )
    elif data.startswith(_OTHER_PICTURES):
        raise InferenceError("unsupported_image", "Only PNG, JPEG and DICOM pictures are accepted.")
    else:
        raise InferenceError("not_an_image")
    head = data[:_SNIFFED].lower()
    if any(mark in head for mark in _MARKUP):
        raise InferenceError("not_an_image", "The file is a picture and a document at once.")
    return kind


def open_picture(data: bytes, kind: Kind) -> Image.Image:
    """A whole PNG or JPEG, upright, in the mode its file has; raises InferenceError with one of the picture codes."""
    end = _whole(data, kind)
    _check_rest(data[end:])
    # Pillow warns of metadata that is odd, which is no matter here: none of it is kept.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _upright(_loaded(data, kind))


def _loaded(data: bytes, kind: Kind) -> Image.Image:
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise InferenceError("unsupported_image", "The picture is animated or has several pages.")
        image.load()
        if kind == "jpeg" and image.mode in ("L", "RGB") and looks_cut_off(np.asarray(image)):
            raise InferenceError("corrupt_image", "The picture's data ends before its last rows.")
    except (*MALFORMED, SyntaxError) as error:
        raise InferenceError("corrupt_image") from error
    return image


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block is an error in one of several ways; the pixels are none the worse for it.
    try:
        return ImageOps.exif_transpose(image)
    except (*MALFORMED, SyntaxError):
        return image


def eight_bits(image: Image.Image) -> Image.Image:
    """The same picture as L or RGB, 8 bits a channel, by the rules at the top of this module."""
    if image.mode.startswith("I"):
        return _frame_of(image).image()
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _frame_of(image: Image.Image) -> Frame:
    """A PNG's or JPEG's values; grey of 16 bits keeps them."""
    if image.mode.startswith("I"):
        return Frame(np.asarray(image).astype(np.uint16), (SIXTEEN_BITS,))
    shown = eight_bits(image)
    return Frame(np.asarray(shown), (EIGHT_BITS,) if shown.mode == "L" else ())


def read_any(data: bytes) -> tuple[Image.Image, Acquisition, list[str]]:
    """Picture (8-bit L or RGB), what is known of its making, warnings. Only for the child: `data` is not trusted."""
    kind = sniff(data)
    if kind == "dicom":
        shown = read_picture(data)
        return shown.image, shown.acquisition, shown.warnings
    return eight_bits(open_picture(data, kind)), Acquisition(), []


def read_any_frame(data: bytes) -> tuple[Frame, list[str]]:
    """Picture at its own depth, and warnings. Only for the child: `data` is not trusted."""
    kind = sniff(data)
    if kind == "dicom":
        read = read_frame(data)
        return read.frame, read.warnings
    return _frame_of(open_picture(data, kind)), []


def decode_in_child(argument: bytes) -> bytes:
    """The child's side of `decode_each`: MessagePack in and out."""
    request = msgspec.msgpack.decode(argument, type=_Request)
    pipeline = Pipeline.from_config(request.preprocessor)
    return msgspec.msgpack.encode([_decode_one(data, pipeline, request.preprocessor) for data in request.pictures])


def _decode_one(data: bytes, pipeline: Pipeline, config: dict[str, Any]) -> _Answer:
    begin_picture()
    try:
        image, acquisition, notes = read_any(data)
        tensor = pipeline(image)
    except InferenceError as error:
        return _Answer(code=error.code, message=error.message)
    return _Answer(
        shape=tensor.shape,
        tensor=tensor.tobytes(),
        stats=statistics(image, hashlib.sha256(data).hexdigest(), known_tags(acquisition)),
        warnings=notes + out_of_scope(image, acquisition, config),
    )


def _decode_group(pictures: list[bytes], config: dict[str, Any]) -> list[DecodedPicture | InferenceError]:
    argument = msgspec.msgpack.encode(_Request(config, pictures))
    try:
        output = call_child("inference.runtime.pictures:decode_in_child", argument, pictures=len(pictures))
    except SandboxKilled as killed:
        if len(pictures) == 1:
            return [killed_error(killed, dicom=is_dicom(pictures[0]))]
        # Only the one that did it shall pay.
        return [one for picture in pictures for one in _decode_group([picture], config)]
    return [_decoded(answer) for answer in msgspec.msgpack.decode(output, type=list[_Answer])]


def _decoded(answer: _Answer) -> DecodedPicture | InferenceError:
    if answer.stats is None:
        return InferenceError(answer.code, answer.message)
    tensor = np.frombuffer(answer.tensor, np.float32).reshape(answer.shape)
    return DecodedPicture(tensor, answer.stats, answer.warnings)


def _groups(pictures: Sequence[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(pictures)
    for first in remaining:
        group = [first]
        held = len(first)
        while held < _TOGETHER_BYTES and len(group) < _TOGETHER:
            more = list(itertools.islice(remaining, 1))
            if not more:
                break
            group += more
            held += len(more[0])
        yield group


def _whole(data: bytes, kind: Kind) -> int:
    """Offset of the picture's end; raises where it is cut off, damaged or beyond the caps."""
    if kind == "png":
        size = png_size(data)
        if size is not None:
            check_size(*size)
        end = png_end(data)
    else:
        end = jpeg_end(data)
    if end is None:
        raise InferenceError("corrupt_image")
    return end


def _check_rest(rest: bytes) -> None:
    """Raise `not_an_image` where another document hangs behind the picture."""
    low = rest.lower()
    hidden = any(mark in low for mark in _MARKUP) or any(mark in rest for mark in _ARCHIVE)
    if hidden or rest.lstrip(b"\0\r\n ").startswith((b"MZ", b"\x7fELF", b"#!")):
        raise InferenceError("not_an_image", "The file is a picture with another document behind it.")
