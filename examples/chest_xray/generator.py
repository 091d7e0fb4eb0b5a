"""Synthetic chest X-rays, paediatric, 28×28: what the demo sends instead of real pictures, with their known class.

A class's pictures are modelled as one Gaussian: the mean of the training pictures and their strongest principal
components, each drawn with its own deviation. `synthetic_pictures.npz` holds means and components alone, so that no
patient's picture is in the repository or comes out of it.
"""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent
LABELS = ("normal", "pneumonia")
SIDE = 28
# The share of pneumonia among the pictures that are drawn; the training set's own (90 %) is an artefact of its making.
PREVALENCE = 0.35
# Grey levels (of 255) that full drift takes away, as an under-exposing detector would: darker, with equal contrast.
DARKENING = 45.0
MODEL_FILE = FOLDER / "synthetic_pictures.npz"


@dataclass(frozen=True, slots=True)
class Pictures:
    """`pixels`: uint8 [n, 28, 28]. `labels`: int64 [n], the class that each was drawn from, 1 is pneumonia."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class ClassModel:
    """One class. `mean`: float32 [784]. `components`: float32 [k, 784], each scaled by its standard deviation."""

    mean: np.ndarray
    components: np.ndarray


def fit(pixels: np.ndarray, rank: int) -> ClassModel:
    """The Gaussian of pictures (uint8 [n, 28, 28]) along their `rank` strongest axes; what is left is dropped."""
    table = pixels.reshape(len(pixels), -1).astype(np.float64)
    mean = table.mean(axis=0)
    _, singular, axes = np.linalg.svd(table - mean, full_matrices=False)
    scaled = axes[:rank] * (singular[:rank] / np.sqrt(len(table) - 1))[:, None]
    return ClassModel(mean.astype(np.float32), scaled.astype(np.float32))


def save(models: tuple[ClassModel, ...], file: Path = MODEL_FILE) -> None:
    """Writes the classes' models in half precision."""
    arrays: dict[str, Any] = {}
    for label, model in zip(LABELS, models, strict=True):
        arrays[f"{label}_mean"] = model.mean.astype(np.float16)
        arrays[f"{label}_components"] = model.components.astype(np.float16)
    np.savez_compressed(file, **arrays)


@cache
def class_models() -> tuple[ClassModel, ...]:
    """The models of `synthetic_pictures.npz`, in the order of LABELS."""
    with np.load(MODEL_FILE, allow_pickle=False) as kept:
        return tuple(
            ClassModel(kept[f"{label}_mean"].astype(np.float32), kept[f"{label}_components"].astype(np.float32))
            for label in LABELS
        )


def pictures(n: int, rng: np.random.Generator, drift: float = 0.0) -> Pictures:
    """`n` synthetic pictures and their class. `drift` from 0 (as in training) to 1 darkens them."""
    labels = (rng.random(n) < PREVALENCE).astype(np.int64)
    table = np.empty((n, SIDE * SIDE), np.float32)
    for index, model in enumerate(class_models()):
        mine = labels == index
        drawn = rng.standard_normal((int(mine.sum()), len(model.components)), dtype=np.float32) @ model.components
        table[mine] = model.mean + drawn
    pixels = np.clip(np.rint(table - DARKENING * drift), 0, 255).astype(np.uint8)
    return Pictures(pixels.reshape(n, SIDE, SIDE), labels)


def png(pixels: np.ndarray) -> bytes:
    """One picture (uint8 [28, 28]) as a grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
