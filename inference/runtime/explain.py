"""Where a model looks: occlusion sensitivity, which asks nothing of a model but its scores.

A square of the picture's own mean is laid on one place after the other, and each score's fall is written down (Zeiler
and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, https://arxiv.org/abs/1311.2901). A map
says which places a score rests on. It says nothing of what is there, nor that the score is right.
"""

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from PIL import Image

# Cells a side, the finest first; the square covers two by two of them, so that each cell is under four squares.
GRIDS = (14, 10, 7)
_SPAN = 2
# Runs of one map may take this long altogether.
_BUDGET_S = 20.0
# What a score of float32 may move by where nothing was changed.
_NOISE = 1e-6
# A map is drawn on the scale of its strongest place, but never on a finer one than this share of the score: a score
# that no single place carries shows next to nothing.
_FULL_SCALE = 0.1
_TINT = (255, 140, 0)
_OPAQUE = 200
MAX_SIDE = 512

Predict = Callable[[np.ndarray], np.ndarray]


class HeatMap(msgspec.Struct, frozen=True):
    """A picture's maps, as they are stored: `values` is float32 [labels, grid, grid], row by row, little-endian.

    A value is the share of the label's score (`scores`) that is lost while that place is covered: 0 for nothing, 1 for
    all of it. A place whose covering raises the score has 0.
    """

    labels: list[str]
    scores: list[float]
    grid: int
    values: bytes

    def of(self, label: str) -> np.ndarray:
        """The label's map, [grid, grid]; raises ValueError for a label that it does not have."""
        maps = np.frombuffer(self.values, "<f4").reshape(len(self.labels), self.grid, self.grid)
        one: np.ndarray = maps[self.labels.index(label)]
        return one


def grid_for(cost_s: float, height: int, width: int) -> int:
    """Cells a side of the map of a tensor: the finest whose runs, at `cost_s` each, keep within 20 seconds.

    Never finer than the tensor; the coarsest where none keeps within them.
    """
    fitting = [grid for grid in GRIDS if (grid + _SPAN - 1) ** 2 * cost_s <= _BUDGET_S]
    return min(fitting[0] if fitting else GRIDS[-1], height, width)


def occlusion(tensor: np.ndarray, predict: Predict, *, grid: int, batch: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The maps of one picture, float32 [labels, grid, grid] as in HeatMap, and its scores, float64 [labels].

    `tensor` is float32 [channels, height, width], at least `grid` a side. `predict` takes [n, channels, height, width]
    and returns scores [n, labels], none below 0; it is called (grid + 1)^2 / batch times and once more. What it raises
    passes through.
    """
    _, height, width = tensor.shape
    scores = np.asarray(predict(tensor[np.newaxis]), np.float64)[0]
    fill = tensor.mean(axis=(1, 2), keepdims=True)
    fallen = np.zeros((scores.size, grid, grid))
    covered = np.zeros((grid, grid))
    places = list(_places(grid))
    for at in range(0, len(places), batch):
        group = places[at : at + batch]
        masked = np.repeat(tensor[np.newaxis], len(group), axis=0)
        for picture, (rows, columns) in zip(masked, group, strict=True):
            down = slice(rows.start * height // grid, rows.stop * height // grid)
            across = slice(columns.start * width // grid, columns.stop * width // grid)
            picture[:, down, across] = fill
        for found, (rows, columns) in zip(np.asarray(predict(masked), np.float64), group, strict=True):
            fallen[:, rows, columns] += (scores - found)[:, np.newaxis, np.newaxis]
            covered[rows, columns] += 1
    fall = fallen / covered
    fall[fall < _NOISE] = 0.0
    share = np.divide(fall, scores[:, np.newaxis, np.newaxis], out=np.zeros_like(fall), where=fall > 0)
    return np.clip(share, 0, 1).astype(np.float32), scores


def _places(grid: int) -> Iterator[tuple[slice, slice]]:
    """Every place of the square in cells, those that hang over an edge too: each cell is covered equally often."""
    for row in range(1 - _SPAN, grid):
        for column in range(1 - _SPAN, grid):
            yield (
                slice(max(0, row), min(grid, row + _SPAN)),
                slice(max(0, column), min(grid, column + _SPAN)),
            )


def overlay(heat: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """The map to be laid on a picture: RGBA of the picture's shape, 512 pixels a side at most, clear where it is 0.

    `size` is the picture's (width, height), `box` where the map lies on it (Pipeline.box), both in its pixels; what
    reaches beyond the picture is cut off, and what the model did not see stays clear.
    """
    scale = min(1.0, MAX_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    left, top, right, bottom = (edge * scale for edge in box)
    strength = np.clip(heat / max(float(heat.max()), _FULL_SCALE), 0, 1)
    shown = Image.fromarray((strength * _OPAQUE).astype(np.uint8))
    wide, tall = max(1, round(right - left)), max(1, round(bottom - top))
    alpha = Image.new("L", (width, height))
    alpha.paste(shown.resize((wide, tall), Image.Resampling.BILINEAR), (round(left), round(top)))
    tinted = Image.new("RGB", (width, height), _TINT)
    tinted.putalpha(alpha)
    return tinted
