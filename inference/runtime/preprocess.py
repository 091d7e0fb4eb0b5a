"""Pictures to tensors as a Hugging Face `preprocessor_config.json` says, with the meaning of the PIL-backed processors.

Order of steps: channels (`do_grayscale` or RGB), resize, centre crop, flip of the channel order, rescale, normalise,
pad. The rules were read from the image processors of `transformers` 5 (`PilBackend`, `image_transforms`, the ConvNeXt
and MobileViT processors): https://huggingface.co/docs/transformers/main/en/image_processors.

Where the format leaves a gap:

- Without `do_grayscale` a picture always becomes RGB (transformers refuses or mis-shapes a grey picture there).
  Transparency is dropped, not blended, as PIL's `convert` does; both conversions come before the resize.
- `do_grayscale` (our one extension) is PIL's `convert("L")`: one channel out.
- A switch that is null is off, as in files that `transformers` 5 writes. A missing `do_resize`, `do_center_crop` or
  `do_normalize` is on where `size`, `crop_size` or `image_mean` is given; a missing `do_rescale` is on, with 1/255.
- Processors whose steps are others (tiles, patches, other padding) are refused by name instead of being approximated.
"""

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from inference.errors import InferenceError

Size = tuple[int, int]

MAX_SIDE = 8192
# One picture's tensor; a bigger one is a mistake in the configuration (no resize) rather than a model's need.
MAX_TENSOR_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Family:
    """What one processor class means where its configuration is silent. `square`: a bare int is height and width."""

    square: bool = True
    resample: Image.Resampling = Image.Resampling.BILINEAR
    crops_by_share: bool = False
    flips: bool = False
    normalizes: bool = True


_BICUBIC = Image.Resampling.BICUBIC
_FAMILIES = {
    "": _Family(),
    "ImageProcessor": _Family(),
    "BaseImageProcessor": _Family(),
    "ViTImageProcessor": _Family(),
    "DeiTImageProcessor": _Family(resample=_BICUBIC),
    "BeitImageProcessor": _Family(resample=_BICUBIC),
    "SiglipImageProcessor": _Family(resample=_BICUBIC),
    "CLIPImageProcessor": _Family(square=False, resample=_BICUBIC),
    "BitImageProcessor": _Family(square=False, resample=_BICUBIC),
    "ConvNextImageProcessor": _Family(square=False, resample=_BICUBIC, crops_by_share=True),
    "MobileNetV1ImageProcessor": _Family(square=False),
    "MobileNetV2ImageProcessor": _Family(square=False),
    "MobileViTImageProcessor": _Family(square=False, resample=_BICUBIC, flips=True, normalizes=False),
}

_KNOWN_SWITCHES = frozenset(
    {
        "do_convert_rgb",
        "do_grayscale",
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_pad",
        "do_flip_channel_order",
        # Speaks of segmentation maps, which no deployment takes.
        "do_reduce_labels",
    }
)
# Fields that change what is computed, by processors that are not in _FAMILIES.
_FOREIGN_FIELDS = (
    "ensure_multiple_of",
    "keep_aspect_ratio",
    "include_top",
    "rescale_offset",
    "patch_size",
    "max_num_patches",
    "size_divisor",
    "pad_size_divisor",
    "image_grid_pinpoints",
)


def _refuse(field: str, why: str) -> NoReturn:
    raise InferenceError(
        "bad_preprocessor",
        f"The preprocessor's {field} {why}.",
        errors=[{"loc": ["preprocessor", field], "msg": why}],
    )


@dataclass(frozen=True, slots=True)
class _Resize:
    """How the new size follows from the old: exactly one of the forms that `size` has in the configuration."""

    exact: Size | None = None
    shortest: int | None = None
    longest: int | None = None
    within: Size | None = None

    def target(self, height: int, width: int) -> Size:
        """New (height, width). Truncations follow transformers, or pixels would shift by one."""
        if self.exact is not None:
            return self.exact
        if self.within is not None:
            scale = min(self.within[0] / height, self.within[1] / width)
            return max(1, int(height * scale)), max(1, int(width * scale))
        assert self.shortest is not None
        if self.longest is None:
            return _with_shortest(height, width, self.shortest)
        short, wanted = self.shortest, float(self.shortest)
        low, high = min(height, width), max(height, width)
        if high / low * short > self.longest:
            wanted = self.longest * low / high
            short = max(1, round(wanted))
        if low == short:
            return height, width
        if width < height:
            return max(1, int(wanted * height / width)), short
        return short, max(1, int(wanted * width / height))


def _with_shortest(height: int, width: int, shortest: int) -> Size:
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One version's steps. Call it with a picture of 8 bits a channel; it returns float32 [channels, height, width]."""

    channels: int
    resize: _Resize | None
    resample: Image.Resampling
    crop: Size | None
    flips: bool
    scale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: Size | None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Pipeline":
        """Read a `preprocessor_config.json`; raises InferenceError `bad_preprocessor` that names the field."""
        family = _family(config)
        for name, value in config.items():
            if name.startswith("do_") and name not in _KNOWN_SWITCHES and value:
                _refuse(name, "is a step that is not supported")
        for name in _FOREIGN_FIELDS:
            if config.get(name):
                _refuse(name, "changes the steps in a way that is not supported")
        channels = 1 if _switch(config, "do_grayscale", False) else 3
        if channels == 1 and _switch(config, "do_convert_rgb", False):
            _refuse("do_grayscale", "and do_convert_rgb exclude each other")
        resize = None
        crop = None
        if _switch(config, "do_resize", config.get("size") is not None):
            resize = _resize(config.get("size"), family)
        if _switch(config, "do_center_crop", config.get("crop_size") is not None):
            crop = _sides(config.get("crop_size"), "crop_size")
        if family.crops_by_share and resize is not None:
            resize, crop = _crop_by_share(config, resize)
        scale = None
        if _switch(config, "do_rescale", True):
            scale = _number(config.get("rescale_factor", 1 / 255), "rescale_factor")
        mean: tuple[float, ...] = ()
        std: tuple[float, ...] = ()
        if family.normalizes and _switch(config, "do_normalize", config.get("image_mean") is not None):
            mean = _per_channel(config.get("image_mean"), "image_mean", channels)
            std = _per_channel(config.get("image_std"), "image_std", channels)
            if 0.0 in std:
                _refuse("image_std", "must not be 0")
        pad = None
        if _switch(config, "do_pad", False):
            pad = _sides(config.get("pad_size"), "pad_size")
        return cls(
            channels=channels,
            resize=resize,
            resample=_resample(config.get("resample"), family),
            crop=crop,
            flips=channels == 3 and _switch(config, "do_flip_channel_order", family.flips),
            scale=scale,
            mean=mean,
            std=std,
            pad=pad,
        )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """[channels, height, width] of every tensor, or None where it follows the picture."""
        size = self.pad or self.crop or (self.resize.exact if self.resize else None)
        return None if size is None else (self.channels, *size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if self.resize is not None:
            height, width = self.resize.target(image.height, image.width)
            _check_tensor(self.channels, height, width)
            if (width, height) != image.size:
                image = image.resize((width, height), self.resample)
        _check_tensor(self.channels, *(self.crop or (image.height, image.width)))
        pixels = np.asarray(image)
        pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.crop is not None:
            pixels = _center_crop(pixels, *self.crop)
        if self.flips:
            pixels = pixels[::-1]
        if self.scale is None:
            tensor = pixels.astype(np.float32)
        else:
            # In float64 first, as transformers does: the last bit of float32 depends on it.
            tensor = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean:
            shape = (-1, 1, 1)
            mean, std = np.array(self.mean, np.float32).reshape(shape), np.array(self.std, np.float32).reshape(shape)
            tensor = (tensor - mean) / std
        if self.pad is not None:
            tensor = _pad(tensor, *self.pad)
        return np.ascontiguousarray(tensor)

    def picture(self, tensor: np.ndarray) -> Image.Image:
        """What a tensor made here looks like to a person, L or RGB: the steps on its values undone, its size kept."""
        values = tensor.astype(np.float64)
        if self.mean:
            values = values * np.reshape(self.std, (-1, 1, 1)) + np.reshape(self.mean, (-1, 1, 1))
        if self.scale:
            values /= self.scale
        shown = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        if self.flips:
            shown = shown[::-1]
        return Image.fromarray(np.ascontiguousarray(shown[0] if self.channels == 1 else shown.transpose(1, 2, 0)))

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Where its tensor lies on a picture of this size: left, top, right, bottom in the picture's pixels.

        A centre crop lies within the picture; a canvas (crop or pad larger than the picture) reaches beyond it.
        """
        rows, columns = self.resize.target(height, width) if self.resize is not None else (height, width)
        top = left = 0
        tall, wide = rows, columns
        if self.crop is not None:
            tall, wide = self.crop
            top, left = (rows - tall) // 2, (columns - wide) // 2
        if self.pad is not None:
            tall, wide = self.pad
        across, down = width / columns, height / rows
        return left * across, top * down, (left + wide) * across, (top + tall) * down


def _family(config: dict[str, Any]) -> _Family:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    if not isinstance(name, str):
        _refuse("image_processor_type", "must be a text")
    plain = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in _FAMILIES:
        _refuse("image_processor_type", f"names {name[:64]!r}, whose steps are not supported")
    return _FAMILIES[plain]


def _switch(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if value is not None and not isinstance(value, bool):
        _refuse(name, "must be true or false")
    return bool(value)


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(field, "must be a finite number")
    return float(value)


def _side(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        _refuse(field, f"must be whole numbers of pixels from 1 to {MAX_SIDE}")
    return value


def _sides(value: Any, field: str) -> Size:
    """A size that fixes both sides: an int, [height, width] or {"height", "width"}."""
    if isinstance(value, dict) and set(value) >= {"height", "width"}:
        return _side(value["height"], field), _side(value["width"], field)
    if isinstance(value, list | tuple) and len(value) == 2:
        return _side(value[0], field), _side(value[1], field)
    if isinstance(value, int):
        return _side(value, field), _side(value, field)
    _refuse(field, "must give height and width")


def _resize(value: Any, family: _Family) -> _Resize:
    if isinstance(value, dict):
        given = {key: side for key, side in value.items() if side is not None}
        match sorted(given):
            case ["height", "width"]:
                return _Resize(exact=_sides(given, "size"))
            case ["shortest_edge"]:
                return _Resize(shortest=_side(given["shortest_edge"], "size"))
            case ["longest_edge", "shortest_edge"]:
                return _Resize(
                    shortest=_side(given["shortest_edge"], "size"), longest=_side(given["longest_edge"], "size")
                )
            case ["max_height", "max_width"]:
                return _Resize(within=(_side(given["max_height"], "size"), _side(given["max_width"], "size")))
        _refuse("size", "must give height and width, shortest_edge, or max_height and max_width")
    if isinstance(value, int) and not family.square:
        return _Resize(shortest=_side(value, "size"))
    return _Resize(exact=_sides(value, "size"))


def _crop_by_share(config: dict[str, Any], resize: _Resize) -> tuple[_Resize, Size]:
    """ConvNeXt's rule: below 384 resize the shortest edge to size / crop_pct and cut the middle out, else stretch."""
    if resize.shortest is None or resize.longest is not None:
        _refuse("size", "must give shortest_edge for this processor")
    side = resize.shortest
    if side >= 384:
        return _Resize(exact=(side, side)), (side, side)
    share = _number(224 / 256 if config.get("crop_pct") is None else config["crop_pct"], "crop_pct")
    if not 0.1 <= share <= 1:
        _refuse("crop_pct", "must lie between 0.1 and 1")
    return _Resize(shortest=int(side / share)), (side, side)


def _resample(value: Any, family: _Family) -> Image.Resampling:
    if value is None:
        return family.resample
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse("resample", "must be PIL's number of a filter, 0 to 5")
    try:
        return Image.Resampling(value)
    except ValueError:
        _refuse("resample", "must be PIL's number of a filter, 0 to 5")


def _per_channel(value: Any, field: str, channels: int) -> tuple[float, ...]:
    if isinstance(value, list | tuple):
        if len(value) != channels:
            _refuse(field, f"must have {channels} number{'s' if channels > 1 else ''}, one per channel")
        return tuple(_number(item, field) for item in value)
    return (_number(value, field),) * channels


def _check_tensor(channels: int, height: int, width: int) -> None:
    if channels * height * width * 4 > MAX_TENSOR_BYTES:
        raise InferenceError("too_many_pixels", f"The picture would become a tensor of {height} x {width} pixels.")


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut [c, height, width] out of the middle; a smaller picture is laid on black first, as transformers does."""
    _, rows, columns = pixels.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + height, left : left + width]
    canvas = np.zeros((pixels.shape[0], max(height, rows), max(width, columns)), pixels.dtype)
    down, right = -(-(canvas.shape[1] - rows) // 2), -(-(canvas.shape[2] - columns) // 2)
    canvas[:, down : down + rows, right : right + columns] = pixels
    top, left = max(0, top + down), max(0, left + right)
    return canvas[:, top : top + height, left : left + width]


def _pad(tensor: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lay the tensor on zeros, at the top left; raises where it is larger than the canvas."""
    down, right = height - tensor.shape[1], width - tensor.shape[2]
    if down < 0 or right < 0:
        _refuse("pad_size", "is smaller than the resized picture")
    return np.pad(tensor, ((0, 0), (0, down), (0, right)))
