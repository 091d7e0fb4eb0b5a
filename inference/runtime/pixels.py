"""Caps on pictures, and what can be said of one from its grey pixels: statistics and signs that it is out of scope."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from inference.errors import InferenceError
from inference.runtime.budget import allow_pixels

# A 43 x 36 cm detector at 0.1 mm has 15 million pixels, a mammogram up to 30 million.
MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000

# Modalities whose pictures are projections, as a chest radiograph is: https://dicom.nema.org PS3.3 C.7.3.1.1.1.
RADIOGRAPHS = ("CR", "DX", "DR", "RG", "RF", "XA", "MG", "IO", "PX", "OT", "SC")

_GRID = 64
_SHARP = 256
# Mean spread between the channels, of 255: a tinted radiograph stays below 8, photographs measured 25 and more.
_COLOURFUL = 12.0
# Standard deviation of the grey values, of 255; the flattest of 1,555 real radiographs measured has 11.
_BLANK = 4.0
# How much darker the middle of the chest is than the lung fields. Of 58 NIH and 1,500 PneumoniaMNIST radiographs none
# is darker by 10 with brighter corners; of their inversions 98 % and 96 % are.
_INVERTED = 10.0


class PictureStats(TypedDict):
    """What the prediction log keeps of a picture. Sizes in pixels as shown, grey values of 255, sha256 of the bytes.

    `sharpness`: the standard deviation of the Laplacian of the grey values at 256 pixels a side at most. `tags`:
    modality, body_part, view, sex and age (in decades) of a DICOM file, as far as they are known terms.
    """

    width: int
    height: int
    mean: float
    std: float
    sharpness: float
    tags: dict[str, str]
    sha256: str


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What a DICOM file says of how it was made, and of whom; "" where it does not, as for every PNG and JPEG.

    `age` is DICOM's own: 045Y, 006M.
    """

    modality: str = ""
    body_part: str = ""
    view: str = ""
    sex: str = ""
    age: str = ""


def check_size(width: int, height: int) -> None:
    """Raise `corrupt_image` for an empty picture and `too_many_pixels` above the caps; call it before allocating.

    In a child it also grants the time for decoding.
    """
    if width < 1 or height < 1:
        raise InferenceError("corrupt_image", f"The picture says that it has {width} x {height} pixels.")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise InferenceError(
            "too_many_pixels",
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are accepted, "
            f"and {MAX_SIDE} a side.",
        )
    allow_pixels(width * height)


def looks_cut_off(pixels: np.ndarray) -> bool:
    """Whether a decoded JPEG ends in what the decoder fills in where a scan stops early: exactly 128 to the last cell.

    `pixels` is [rows, columns] or [rows, columns, channels] of 8 bits. libjpeg only warns of it, and Pillow swallows
    the warning. A picture that is mid-grey all over is no sign.
    """
    return bool((pixels[-8:] == 128).all()) and not bool((pixels == 128).all())


def statistics(image: Image.Image, sha256: str, tags: Mapping[str, str] | None = None) -> PictureStats:
    """Size of the picture, mean, standard deviation and sharpness of its grey values (0 to 255)."""
    grey = image.convert("L")
    # From the histogram: no float copy of a large picture.
    counts = np.array(grey.histogram(), np.float64)
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    spread = float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
    return {
        "width": image.width,
        "height": image.height,
        "mean": round(mean, 3),
        "std": round(spread, 3),
        "sharpness": round(_sharpness(grey), 3),
        "tags": dict(tags or {}),
        "sha256": sha256,
    }


def told_of(stats: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What drift looks at in a picture, from its statistics (as far as an old log has them), as columns of one row."""
    known = {
        "brightness": stats.get("mean"),
        "contrast": stats.get("std"),
        "sharpness": stats.get("sharpness"),
    }
    width, height = stats.get("width"), stats.get("height")
    if width and height:
        known |= {"size in pixels": width * height, "aspect ratio": width / height}
    tags = stats.get("tags") or {}
    return {name: [value] for name, value in known.items() if value is not None} | {
        name.replace("_", " "): [value] for name, value in tags.items()
    }


def _sharpness(grey: Image.Image) -> float:
    """The standard deviation of the Laplacian (Pech-Pacheco 2000 takes its square). Of a picture at most 256 a side, so
    that it does not follow the resolution."""
    small = grey.copy()
    small.thumbnail((_SHARP, _SHARP), Image.Resampling.BOX)
    table = np.asarray(small, np.float32)
    if min(table.shape) < 3:
        return 0.0
    around = table[:-2, 1:-1] + table[2:, 1:-1] + table[1:-1, :-2] + table[1:-1, 2:]
    return float((around - 4 * table[1:-1, 1:-1]).std())


def out_of_scope(image: Image.Image, acquisition: Acquisition, config: Mapping[str, Any]) -> list[str]:
    """Sentences that begin with `out_of_scope:`, one per sign that the picture is not what the model was made for.

    Only for models that take grey pictures (`do_grayscale`). `intended_use` in the configuration may list `modality`,
    `body_part` and `view` as DICOM spells them; where it lists no modality, radiographs are taken as meant.
    """
    if not config.get("do_grayscale"):
        return []
    found = _misfits(acquisition, config.get("intended_use") or {})
    small = np.asarray(image.convert("RGB").resize((_GRID, _GRID), Image.Resampling.BOX)).astype(np.float32)
    if float((small.max(axis=2) - small.min(axis=2)).mean()) > _COLOURFUL:
        found.append("the picture is in colour, and the model was made for grey pictures")
    grey = small.mean(axis=2)
    if float(grey.std()) < _BLANK:
        found.append("the picture is blank or nearly so")
    elif _looks_inverted(grey):
        found.append("the picture looks inverted (dark where bone should be bright)")
    return [f"out_of_scope: {sentence}." for sentence in found]


def _misfits(acquisition: Acquisition, intended: Mapping[str, Any]) -> list[str]:
    found = []
    modalities = _listed(intended, "modality") or RADIOGRAPHS
    if acquisition.modality and acquisition.modality not in modalities:
        found.append(f"the file's modality is {acquisition.modality}, and the model was made for {_some(modalities)}")
    parts = _listed(intended, "body_part")
    if parts and acquisition.body_part and acquisition.body_part not in parts:
        found.append(f"the file's body part is {acquisition.body_part}, and the model was made for {_some(parts)}")
    views = _listed(intended, "view")
    if views and acquisition.view and acquisition.view not in views:
        found.append(f"the file's view is {acquisition.view}, and the model was made for {_some(views)}")
    return found


def _listed(intended: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = intended.get(name) or ()
    return tuple(str(item).upper() for item in ([value] if isinstance(value, str) else value))


def _some(values: tuple[str, ...]) -> str:
    return "radiographs" if values == RADIOGRAPHS else ", ".join(values)


def _looks_inverted(grey: np.ndarray) -> bool:
    """Whether a chest-like layout reads as a negative; `grey` is the picture at 64 x 64."""
    middle = float(grey[24:40, 28:36].mean())
    lungs = float(grey[20:36, 12:22].mean() + grey[20:36, 42:52].mean()) / 2
    corners = float(grey[:6, :6].mean() + grey[:6, -6:].mean()) / 2
    return middle < lungs - _INVERTED and corners > float(grey.mean())
