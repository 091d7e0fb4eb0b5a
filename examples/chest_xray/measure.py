"""Chooses the thresholds of the chest X-ray models (paediatric, 28×28) and measures what their card says.

    python -m examples.chest_xray.measure pneumoniamnist.npz

The threshold of a version is the one with the highest sensitivity + specificity (Youden 1950) on the validation split;
the figures are those of the test split at it, which nothing was chosen on. Writes `performance_v*.json` and the
table of `card.md`.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from examples.chest_xray.generator import FOLDER, LABELS, pictures
from inference.runtime.preprocess import Pipeline

VERSIONS = (1, 2)
POSITIVE = LABELS[1]
SOURCE = "PneumoniaMNIST test split (paediatric, 28×28)"
CARD = FOLDER / "card.md"
MARKS = ("<!-- figures -->", "<!-- end of figures -->")
SYNTHETIC = 4_000
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Share:
    """`right` of `n`, with its 95 % Wilson score interval (Wilson 1927)."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        middle = self.value + Z_95**2 / (2 * self.n)
        spread = Z_95 * math.sqrt(self.value * (1 - self.value) / self.n + Z_95**2 / (4 * self.n**2))
        scale = 1 + Z_95**2 / self.n
        return (middle - spread) / scale, (middle + spread) / scale

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, {self.right} of {self.n})"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a version did at its threshold."""

    accuracy: Share
    sensitivity: Share
    specificity: Share


def scores(number: int, pixels: np.ndarray) -> np.ndarray:
    """The version's score of pneumonia, float64 [n], of pictures uint8 [n, 28, 28], as the product computes it."""
    pipeline = Pipeline.from_config(json.loads((FOLDER / "preprocessor_config.json").read_text()))
    batch = np.stack([pipeline(Image.fromarray(one)) for one in pixels])
    session = onnxruntime.InferenceSession(FOLDER / f"chest_xray_v{number}.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pictures": batch})
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(raised[:, 1] / raised.sum(axis=1))


def best_threshold(found: np.ndarray, truth: np.ndarray) -> float:
    """The threshold, in hundredths, with the highest sensitivity + specificity; the lowest of equal ones."""
    candidates = np.arange(1, 100) / 100
    gains = [float((found[truth == 1] >= t).mean() + (found[truth == 0] < t).mean()) for t in candidates]
    return float(candidates[int(np.argmax(gains))])


def measured(found: np.ndarray, truth: np.ndarray, threshold: float) -> Measured:
    """The figures of scores against the truth (1 is pneumonia)."""
    said = found >= threshold
    hits, rejections = int((said & (truth == 1)).sum()), int((~said & (truth == 0)).sum())
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    return Measured(
        Share(hits + rejections, positives + negatives), Share(hits, positives), Share(rejections, negatives)
    )


def performance(threshold: float, found: Measured) -> dict[str, Any]:
    """As a version's `performance` holds it."""
    return {
        "source": SOURCE,
        "labels": {
            POSITIVE: {
                "threshold": threshold,
                "sensitivity": round(found.sensitivity.value, 4),
                "specificity": round(found.specificity.value, 4),
                "positives": found.sensitivity.n,
                "negatives": found.specificity.n,
            }
        },
    }


def on_synthetic(number: int, threshold: float) -> Measured:
    """The figures on pictures of the generator: what the demo's accuracy page should come to."""
    drawn = pictures(SYNTHETIC, np.random.default_rng(4))
    return measured(scores(number, drawn.pixels), drawn.labels, threshold)


def table(rows: list[tuple[int, float, Measured, Measured]]) -> str:
    """The card's figures: (version, threshold, on the test split, on synthetic pictures)."""
    lines = ["| | " + " | ".join(f"version {number}" for number, *_ in rows) + " |", "|---|" + "---|" * len(rows)]
    lines.append("| threshold of the score | " + " | ".join(f"{threshold:.2f}" for _, threshold, *_ in rows) + " |")
    for name in ("accuracy", "sensitivity", "specificity"):
        lines.append(f"| test {name} | " + " | ".join(str(getattr(test, name)) for _, _, test, _ in rows) + " |")
    for name in ("accuracy", "sensitivity", "specificity"):
        cells = " | ".join(str(getattr(synthetic, name)) for *_, synthetic in rows)
        lines.append(f"| {name} on synthetic pictures | {cells} |")
    return "\n".join(lines)


def main(source: Path) -> None:
    with np.load(source, allow_pickle=False) as kept:
        splits = {name: (kept[f"{name}_images"], kept[f"{name}_labels"].ravel()) for name in ("val", "test")}
    rows = []
    for number in VERSIONS:
        threshold = best_threshold(scores(number, splits["val"][0]), splits["val"][1])
        test = measured(scores(number, splits["test"][0]), splits["test"][1], threshold)
        text = json.dumps(performance(threshold, test), indent=2, ensure_ascii=False)
        (FOLDER / f"performance_v{number}.json").write_text(text + "\n")
        rows.append((number, threshold, test, on_synthetic(number, threshold)))
    card = CARD.read_text()
    before, after = card.split(MARKS[0])[0], card.split(MARKS[1])[1]
    CARD.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{after}")
    print(table(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
