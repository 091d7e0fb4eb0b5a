"""Preprocessor configurations: the pixels that transformers makes, and refusals that name the field."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.errors import InferenceError
from inference.runtime.preprocess import Pipeline

pytestmark = pytest.mark.unit

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# What the PIL-backed processors of transformers 5.23.0 gave for `picture()`: shape, sum, sum weighted by cos(index).
# Ours was equal to the last bit; two sums say it without shipping the tensors.
EXPECTED: list[tuple[str, dict[str, Any], tuple[int, int, int], float, float]] = [
    (
        "ViT",
        {"size": {"height": 20, "width": 30}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        (3, 20, 30),
        542.078,
        0.611,
    ),
    ("ViT", {"size": {"shortest_edge": 16, "longest_edge": 20}, **HALF}, (3, 14, 20), 23.192, -16.011),
    ("ViT", {"size": {"max_height": 20, "max_width": 20}, **HALF}, (3, 13, 20), 21.655, 13.635),
    (
        "ViT",
        {"size": {"height": 20, "width": 30}, "do_pad": True, "pad_size": {"height": 24, "width": 32}, **HALF},
        (3, 24, 32),
        47.78,
        42.85,
    ),
    (
        "ViT",
        {"do_resize": False, "do_normalize": False, "rescale_factor": 0.00784313725490196},
        (3, 37, 53),
        6041.514,
        10.722,
    ),
    (
        "CLIP",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 22}, **CLIP},
        (3, 20, 22),
        366.938,
        1.941,
    ),
    ("CLIP", {"size": 15, "crop_size": 26, **CLIP}, (3, 26, 26), -1587.522, -78.618),
    ("DeiT", {"size": 30, "crop_size": 25, **HALF}, (3, 25, 25), 69.808, -10.37),
    ("ConvNext", {"size": {"shortest_edge": 28}, "crop_pct": 0.875, **HALF}, (3, 28, 28), 116.455, 0.993),
    ("ConvNext", {"size": {"shortest_edge": 384}, **HALF}, (3, 384, 384), 11943.717, -3.154),
    (
        "MobileViT",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}, **HALF},
        (3, 18, 18),
        505.443,
        -2.219,
    ),
]


def picture() -> Image.Image:
    y, x, channel = np.mgrid[0:37, 0:53, 0:3]
    return Image.fromarray(((x * x // 9 + y * 5 + channel * 50) % 256).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
@pytest.mark.parametrize(("family", "config", "shape", "total", "weighted"), EXPECTED)
def test_it_makes_the_pixels_that_transformers_makes(
    family: str, config: dict[str, Any], shape: tuple[int, int, int], total: float, weighted: float, suffix: str
) -> None:
    pipeline = Pipeline.from_config({**config, "image_processor_type": f"{family}ImageProcessor{suffix}"})
    tensor = pipeline(picture())
    assert tensor.shape == shape
    assert tensor.dtype == np.float32
    values = tensor.astype(np.float64)
    assert values.sum() == pytest.approx(total, abs=0.002)
    assert (values * np.cos(np.arange(values.size)).reshape(shape)).sum() == pytest.approx(weighted, abs=0.002)


def test_grayscale_is_converted_before_the_resize_and_gives_one_channel() -> None:
    pipeline = Pipeline.from_config(
        {"do_grayscale": True, "size": {"height": 9, "width": 11}, "image_mean": [0.485], "image_std": [0.229]}
    )
    grey = picture().convert("L").resize((11, 9), Image.Resampling.BILINEAR)
    wanted = (np.asarray(grey, np.float64) / 255 - 0.485) / 0.229
    assert pipeline.shape == (1, 9, 11)
    np.testing.assert_allclose(pipeline(picture())[0], wanted, atol=1e-6)


def test_a_grey_picture_becomes_three_equal_channels_without_grayscale() -> None:
    tensor = Pipeline.from_config({"size": 8})(picture().convert("L"))
    assert tensor.shape == (3, 8, 8)
    np.testing.assert_array_equal(tensor[0], tensor[2])


def test_transparency_is_dropped_and_not_blended() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    tensor = Pipeline.from_config({"do_rescale": False})(clear)
    assert tensor[:, 0, 0].tolist() == [10.0, 20.0, 30.0]


def test_an_older_feature_extractor_is_read_the_same_way() -> None:
    old = Pipeline.from_config({"feature_extractor_type": "ViTFeatureExtractor", "size": 12, **HALF})
    assert old == Pipeline.from_config({"image_processor_type": "ViTImageProcessor", "size": 12, **HALF})


def test_a_bare_number_means_the_shortest_edge_where_the_family_says_so() -> None:
    resized = Pipeline.from_config({"image_processor_type": "CLIPImageProcessor", "size": 16, "do_center_crop": False})
    assert resized(picture()).shape == (3, 16, 22)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "image_processor_type"),
        ({"image_processor_type": 7}, "image_processor_type"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "image_processor_type"),
        ({"do_thumbnail": True, "size": 8}, "do_thumbnail"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"do_resize": True}, "size"),
        ({"size": {"height": 0, "width": 8}}, "size"),
        ({"size": {"height": 8}}, "size"),
        ({"size": {"longest_edge": 8}}, "size"),
        ({"size": 1_000_000}, "size"),
        ({"size": True}, "size"),
        ({"size": "224"}, "size"),
        ({"size": 8, "resample": 9}, "resample"),
        ({"size": 8, "resample": "bilinear"}, "resample"),
        ({"do_center_crop": True}, "crop_size"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_std"),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"do_grayscale": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}, "image_mean"),
        ({"do_grayscale": True, "do_convert_rgb": True}, "do_grayscale"),
        ({"do_pad": True}, "pad_size"),
        ({"size_divisor": 32}, "size_divisor"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 8, "width": 8}}, "size"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0},
            "crop_pct",
        ),
    ],
)
def test_it_refuses_a_configuration_and_names_the_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InferenceError) as refused:
        Pipeline.from_config(config)
    assert refused.value.code == "bad_preprocessor"
    assert refused.value.errors[0]["loc"] == ["preprocessor", field]
    assert field in refused.value.message


def test_a_sliver_of_a_picture_does_not_become_a_giant_tensor() -> None:
    pipeline = Pipeline.from_config({"size": {"shortest_edge": 2048}})
    with pytest.raises(InferenceError) as refused:
        pipeline(Image.new("L", (30_000, 1)))
    assert refused.value.code == "too_many_pixels"
