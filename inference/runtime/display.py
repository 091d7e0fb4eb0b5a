"""What a picture's stored values look like on a screen: one account for the model's input and for a person's viewer.

The steps are DICOM's (PS3.3): modality LUT or rescale (C.11.1), then the VOI LUT, else a window (C.11.2) in one of its
three functions, then the inversion (C.7.6.3.1.2, C.11.6). Where a file gives neither, a window is made: 8 bits as they
are, more bits from the 0.5th to the 99.5th percentile. pydicom's own functions for these steps are not used: they
refuse tables of 11 to 15 bits or with a negative first value over unsigned pixels, and take no values past 16 bits.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import msgspec
import numpy as np
from PIL import Image

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Array = np.ndarray[Any, Any]

_SHARES = (0.5, 99.5)
# Beyond any unit that a picture is measured in; what is past it is damage.
_LARGEST = 1e12


class Window(msgspec.Struct, frozen=True):
    """Values around `center` over `width`, in the values' own unit, by one of DICOM's three functions."""

    center: float
    width: float
    function: Function = "LINEAR"

    @classmethod
    def between(cls, low: float, high: float) -> Self:
        """`low` is black and `high` white; where they are one value, that is black."""
        width = high - low if high > low else 1.0
        return cls(low + width / 2, width, "LINEAR_EXACT")

    def grey(self, values: Array) -> Array:
        """0 to 255 as uint8 (PS3.3 C.11.2.1.2.1, C.11.2.1.3.1, C.11.2.1.3.2); ValueError for what is not finite."""
        values = values.astype(np.float32)
        if self.function == "LINEAR" and self.width == 1:
            return np.where(values > self.center - 0.5, np.uint8(255), np.uint8(0))
        with np.errstate(over="ignore"):
            if self.function == "SIGMOID":
                return _bytes(255 / (1 + np.exp(-4 * (values - self.center) / self.width)))
            if self.function == "LINEAR_EXACT":
                return _bytes(((values - self.center) / self.width + 0.5) * 255)
            return _bytes(((values - (self.center - 0.5)) / (self.width - 1) + 0.5) * 255)


# 8 bits as they are; and of 16 bits the upper 8, to the last value.
EIGHT_BITS = Window.between(0, 255)
SIXTEEN_BITS = Window(32767.5, 65280, "LINEAR_EXACT")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A table of `entries` (uint16) of `bits` each; values below `first` get the first, past the end the last."""

    first: int
    bits: int
    entries: Array

    @classmethod
    def read(cls, item: Any, *, little_endian: bool = True) -> "Lookup | None":
        """The table of a modality or VOI LUT item; None where it has no data. Raises ValueError where it is damaged."""
        if item.get("LUTData") is None:
            return None
        count, first, bits = (int(number) for number in item.LUTDescriptor)
        count = count or 65536
        if not 8 <= bits <= 16:
            raise ValueError("a lookup table has entries of 8 to 16 bits")
        data = item.LUTData
        if isinstance(data, bytes):
            one_byte = bits == 8 and len(data) in (count, count + 1)
            entries = np.frombuffer(data, np.uint8 if one_byte else ("<u2" if little_endian else ">u2"))
        else:
            entries = np.atleast_1d(np.asarray(data))
        if not 0 < count <= entries.size or entries[:count].min() < 0 or entries[:count].max() > 0xFFFF:
            raise ValueError("a lookup table has as many entries as it says, of 16 bits at most")
        entries = entries[:count].astype(np.uint16)
        # Some writers state fewer bits than their entries have.
        return cls(first, max(bits, int(entries.max()).bit_length()), entries)

    def apply(self, values: Array) -> Array:
        """uint16, or uint8 for a table of 8 bits; a value between two entries gets that of the nearer."""
        whole = values if values.dtype.kind in "iu" else np.rint(values)
        index = np.clip(whole.astype(np.int64) - self.first, 0, self.entries.size - 1)
        entries = self.entries.astype(np.uint8) if self.bits == 8 else self.entries
        looked_up: Array = entries[index]
        return looked_up

    def grey(self, values: Array) -> Array:
        """0 to 255 as uint8: the table's own range is black to white."""
        return Window.between(0, 2.0**self.bits - 1).grey(self.apply(values))


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture before its window.

    `values`: [rows, columns] after the modality step, or RGB [rows, columns, 3] of uint8, to which nothing else here
    applies. `windows` of a grey picture has one at least, the first counts; a `voi_lut` counts before it.
    """

    values: Array
    windows: tuple[Window, ...] = ()
    voi_lut: Lookup | None = None
    invert: bool = False

    def image(self) -> Image.Image:
        """8-bit L or RGB, as it is first shown. Raises ValueError where the display parameters give no finite grey."""
        if self.values.ndim == 3:
            return Image.fromarray(np.ascontiguousarray(self.values))
        if self.voi_lut is not None:
            grey = self.voi_lut.grey(self.values)
        elif self.values.dtype == np.uint8 and self.windows[0] == EIGHT_BITS:
            grey = self.values
        else:
            grey = self.windows[0].grey(self.values)
        return Image.fromarray(255 - grey if self.invert else grey)


def grey_frame(dataset: Any, pixels: Array, notes: list[str]) -> Frame:
    """A DICOM file's stored grey values as a frame; warnings are appended to `notes`.

    Raises what pydicom raises for damaged elements, and ValueError for display parameters that make no sense.
    """
    little_endian = bool(dataset.file_meta._tsyntax_encoding[1])
    values = _after_modality(dataset, pixels, little_endian)
    luts = dataset.get("VOILUTSequence")
    lut = Lookup.read(luts[0], little_endian=little_endian) if luts else None
    windows = _windows(dataset)
    if not windows:
        windows = (_made_window(dataset, pixels, values),)
        if lut is None and windows[0] != EIGHT_BITS:
            notes.append("no_window: the file gives no window; grey runs from the 0.5th to the 99.5th percentile.")
    return Frame(values, windows, lut, _is_inverted(dataset, notes))


def _after_modality(dataset: Any, pixels: Array, little_endian: bool) -> Array:
    """Values in the unit that the file means (PS3.3 C.11.1); whole numbers stay whole as far as 16 bits hold them."""
    luts = dataset.get("ModalityLUTSequence")
    lut = Lookup.read(luts[0], little_endian=little_endian) if luts else None
    if lut is not None:
        return lut.apply(pixels)
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        return pixels
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    ends = [float(end) * slope + intercept for end in (pixels.min(), pixels.max())]
    if not max(map(abs, ends)) <= _LARGEST:
        raise ValueError("the rescale gives values that mean nothing")
    if slope.is_integer() and intercept.is_integer():
        for dtype in (np.int16, np.uint16):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                return (pixels.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
    values = pixels.astype(np.float64)
    values *= slope
    values += intercept
    return values.astype(np.float32)


def _windows(dataset: Any) -> tuple[Window, ...]:
    """The windows that make sense, in the file's order."""
    function = str(dataset.get("VOILUTFunction", "") or "").strip().upper()
    known: Function = "LINEAR"
    for name in get_args(Function):
        known = name if name == function else known
    smallest = 1.0 if known == "LINEAR" else 1e-9
    pairs = zip(_numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth")), strict=False)
    return tuple(
        Window(center, width, known)
        for center, width in pairs
        if abs(center) <= _LARGEST and smallest <= width <= _LARGEST
    )


def _numbers(value: Any) -> list[float]:
    if value in (None, ""):
        return []
    return [float(one) for one in (value if hasattr(value, "append") else [value])]


def _made_window(dataset: Any, pixels: Array, values: Array) -> Window:
    if values.dtype == np.uint8:
        return EIGHT_BITS
    shown = values
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and bool((pixels != padding).any()):
        shown = values[pixels != padding]
    low, high = np.percentile(shown, _SHARES)
    return Window.between(float(low), float(high))


def _is_inverted(dataset: Any, notes: list[str]) -> bool:
    """Whether the lowest value is white.

    MONOCHROME1 says so, and an INVERSE presentation shape says it once more: of a digital X-ray the standard wants both
    together (PS3.3 C.8.11.1), so they are one inversion and not two. A file in which only one of them says so is shown
    inverted, with a warning.
    """
    first_is_white = str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1"
    shape = str(dataset.get("PresentationLUTShape", "") or "").strip().upper()
    if shape in ("IDENTITY", "INVERSE") and first_is_white != (shape == "INVERSE"):
        name = "MONOCHROME1" if first_is_white else "MONOCHROME2"
        notes.append(f"polarity: the file says both {name} and {shape}, which contradict each other; shown inverted.")
    return first_is_white or shape == "INVERSE"


def _bytes(grey: Array) -> Array:
    if not np.isfinite(grey).all():
        raise ValueError("the display parameters give values that are not finite")
    shown: Array = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return shown
