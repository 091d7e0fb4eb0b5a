"""The demo's three deployments: what is registered for each, and where its calls and their truth come from."""

import io
import json
import zipfile
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.card_fraud import generator as payments
from examples.chest_xray import generator as xrays
from examples.recommender import generator as visits
from inference.contracts import Task
from inference.runtime.pixels import statistics
from inference.runtime.preprocess import Pipeline

EXAMPLES = Path(payments.__file__).parents[1]
REFERENCE_PICTURES = 600
MINUTE_S, HOUR_S = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Calls:
    """Made-up calls of one row each. `tensor`: what the graph takes, the first axis are the calls. `truths`: what was
    true of each. `instance(i)`: call i as an instance of V1. `pictures`: statistics of each, for pictures."""

    tensor: npt.NDArray[Any]
    truths: list[str]
    instance: Callable[[int], Any]
    pictures: list[dict[str, Any]] = field(default_factory=list)


Draw = Callable[[int, np.random.Generator, float], Calls]


@dataclass(frozen=True, slots=True)
class Case:
    """One deployment of the demo, whose model has the same name.

    `files`: the versions' ONNX files. `said`: of each version, as catalog.descriptions.describe reads it. `draw(n, rng,
    drift)`: calls; drift from 0 to 1. `reference(folder)`: the reference set's file, which may be made in the folder.
    """

    name: str
    description: str
    files: tuple[Path, ...]
    said: tuple[Mapping[str, Any], ...]
    split: str
    draw: Draw
    reference: Callable[[Path], Path]
    # Back-filled calls, the share of them whose truth became known, and how long that took (the median).
    history: int
    known: float
    truth_after_s: float
    # Its part of the demo's traffic.
    weight: float
    # What goes wrong with a few calls in a thousand: a code of the error table, and the place it names.
    mistakes: tuple[tuple[str, str], ...]
    # Median milliseconds of a call around its computing.
    around_ms: float
    # Sent along with each call, and logged.
    context: Mapping[str, str] = field(default_factory=dict)


@cache
def cases() -> tuple[Case, ...]:
    """All of them; reads a few small files the first time."""
    return (_card_fraud(), _recommender(), _chest_xray())


def named(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


def _card_fraud() -> Case:
    folder = EXAMPLES / "card_fraud"
    said = {"task": Task.TABULAR_CLASSIFICATION, "labels": list(payments.LABELS), "columns": list(payments.COLUMNS)}
    return Case(
        name="card-fraud",
        description="Is this card payment a fraud? Made-up payments.",
        files=(folder / "card_fraud_v1.onnx", folder / "card_fraud_v2.onnx"),
        said=({**said, "notes": "Logistic regression."}, {**said, "notes": "Gradient boosting, 120 trees."}),
        split="1=90,2=10",
        draw=_draw_payments,
        reference=lambda _: folder / "reference.csv",
        history=12_000,
        known=0.4,
        truth_after_s=3 * HOUR_S,
        weight=0.65,
        mistakes=(("unknown_feature", "amount"), ("wrong_type", "merchant_risk"), ("bad_json", "")),
        around_ms=0.35,
    )


def _draw_payments(n: int, rng: np.random.Generator, drift: float) -> Calls:
    drawn = payments.payments(n, rng, drift)
    return _rows(payments.COLUMNS, drawn.features, [payments.LABELS[label] for label in drawn.labels])


def _recommender() -> Case:
    folder = EXAMPLES / "recommender"
    said = {"task": Task.RANKING, "labels": list(visits.ITEMS), "columns": list(visits.COLUMNS)}
    return Case(
        name="recommender",
        description="Which product will this visitor buy? Made-up visits to a made-up shop.",
        files=(folder / "recommender_v1.onnx", folder / "recommender_v2.onnx"),
        said=({**said, "notes": "Factorisation of rank 2."}, {**said, "notes": "Factorisation of rank 7."}),
        split="1=50,2=50",
        draw=_draw_visits,
        reference=lambda _: folder / "reference.csv",
        history=5_000,
        # Half of the visitors buy nothing, and then there is no truth.
        known=0.5,
        truth_after_s=20 * MINUTE_S,
        weight=0.25,
        mistakes=(("unknown_feature", "views_toys"), ("wrong_type", "basket_eur")),
        around_ms=0.3,
    )


def _draw_visits(n: int, rng: np.random.Generator, drift: float) -> Calls:
    drawn = visits.visits(n, rng, drift)
    return _rows(visits.COLUMNS, drawn.features, [visits.ITEMS[index] for index in drawn.bought])


def _rows(columns: Sequence[str], features: npt.NDArray[Any], truths: list[str]) -> Calls:
    """Calls of a table's rows, each an object of its named columns."""
    return Calls(features, truths, lambda i: dict(zip(columns, features[i].tolist(), strict=True)))


def _chest_xray() -> Case:
    folder = EXAMPLES / "chest_xray"
    said = []
    for number in (1, 2):
        performance = json.loads((folder / f"performance_v{number}.json").read_text())
        said.append(
            {
                # One label with a threshold: `pneumonia` where its score reaches it, else `normal`, which has none.
                "task": Task.IMAGE_CLASSIFICATION,
                "labels": list(xrays.LABELS),
                "thresholds": {label: one["threshold"] for label, one in performance["labels"].items()},
                "preprocessor": _preprocessor(),
                "intended_use": {
                    "modality": "CR, DX",
                    "body_part": "CHEST",
                    "view": "AP",
                    "age_range": "1-5 years",
                },
                "performance": performance,
                "notes": _summary(folder / "card.md", number),
            }
        )
    return Case(
        name="chest-xray",
        description=(
            "Chest X-ray, paediatric, 28×28: a demonstration, not for diagnosis. "
            "The demo's pictures are synthetic: drawn from a statistical model, of nobody."
        ),
        files=(folder / "chest_xray_v1.onnx", folder / "chest_xray_v2.onnx"),
        said=tuple(said),
        split="1=20,2=80",
        draw=_draw_pictures,
        reference=_picture_reference,
        history=2_000,
        known=0.7,
        truth_after_s=2 * HOUR_S,
        weight=0.1,
        mistakes=(("corrupt_image", "instances"), ("not_an_image", "instances")),
        around_ms=24.0,
        context={"picture": "synthetic"},
    )


def _summary(card: Path, number: int) -> str:
    """A version's test figures as its card has them, in a sentence."""
    rows = [line.split("|") for line in card.read_text().splitlines() if line.startswith("| test ")]
    figures = "; ".join(f"{row[1].removeprefix(' test').strip()} {row[1 + number].strip()}" for row in rows)
    return (
        "Chest X-ray, paediatric, 28×28; a demonstration, not for diagnosis. On the test split of PneumoniaMNIST, "
        f"with 95 % intervals: {figures}. The model card is examples/chest_xray/card.md."
    )


@cache
def _preprocessor() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((EXAMPLES / "chest_xray" / "preprocessor_config.json").read_text())
    return config


def _draw_pictures(n: int, rng: np.random.Generator, drift: float) -> Calls:
    drawn = xrays.pictures(n, rng, drift)
    pipeline = Pipeline.from_config(_preprocessor())
    files = [xrays.png(pixels) for pixels in drawn.pixels]
    images = [Image.fromarray(pixels) for pixels in drawn.pixels]
    return Calls(
        tensor=np.stack([pipeline(image) for image in images]),
        truths=[xrays.LABELS[label] for label in drawn.labels],
        instance=lambda i: {"b64": b64encode(files[i]).decode()},
        pictures=[dict(statistics(image, sha256(file).hexdigest())) for image, file in zip(images, files, strict=True)],
    )


def _picture_reference(folder: Path) -> Path:
    """A zip of synthetic pictures with `labels.csv`, the same each time."""
    drawn = xrays.pictures(REFERENCE_PICTURES, np.random.default_rng(5))
    path = folder / "synthetic_pictures.zip"
    listing = io.StringIO()
    listing.write("file,label\n")
    with zipfile.ZipFile(path, "w") as archive:
        for index, (pixels, label) in enumerate(zip(drawn.pixels, drawn.labels, strict=True)):
            name = f"synthetic-{index:04d}.png"
            archive.writestr(name, xrays.png(pixels))
            listing.write(f"{name},{xrays.LABELS[label]}\n")
        archive.writestr("labels.csv", listing.getvalue())
    return path
