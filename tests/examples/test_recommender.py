import csv
import re

import numpy as np
import onnxruntime
import pytest

from examples.recommender.generator import COLUMNS, ITEMS, purchase_probability, visits
from examples.recommender.train import FOLDER, hit_rate

pytestmark = pytest.mark.unit

CUTS = (1, 5, 10)
VISITS = 20_000


def scores(number: int, features: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(FOLDER / f"recommender_v{number}.onnx")
    return np.asarray(session.run(None, {"visit": features})[0])


def stated(name: str) -> list[float]:
    """The README's hit rates of a line of its table."""
    line = next(line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith(f"| {name} "))
    return [float(cell) / 100 for cell in re.findall(r"([\d.]+)%", line)]


def test_products_are_bought_as_often_as_their_probability_says() -> None:
    drawn = visits(40_000, np.random.default_rng(11))
    chance = purchase_probability(drawn.features)
    np.testing.assert_allclose(chance.sum(axis=1), 1.0)
    for index in range(len(ITEMS)):
        expected = chance[:, index].mean()
        found = (drawn.bought == index).mean()
        assert abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn.bought)), ITEMS[index]


@pytest.mark.parametrize("number", [1, 2])
def test_a_version_hits_as_often_as_the_readme_says(number: int) -> None:
    drawn = visits(VISITS, np.random.default_rng(12))
    found = scores(number, drawn.features)
    for cut, share in zip(CUTS, stated(f"version {number}"), strict=True):
        # Both figures are estimates from that many visits each.
        allowed = 4 * np.sqrt(2 * share * (1 - share) / VISITS)
        assert abs(hit_rate(found, drawn.bought, cut) - share) < allowed, cut


def test_version_2_ranks_nearly_as_well_as_the_truth() -> None:
    drawn = visits(VISITS, np.random.default_rng(13))
    best = hit_rate(purchase_probability(drawn.features), drawn.bought, 5)
    first, second = (hit_rate(scores(number, drawn.features), drawn.bought, 5) for number in (1, 2))
    assert first < second - 0.05
    assert second > best - 0.02


def test_the_reference_set_is_of_the_generator() -> None:
    with (FOLDER / "reference.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == [*COLUMNS, "target"]
    again = visits(len(rows), np.random.default_rng(4))
    assert [row[-1] for row in rows] == [ITEMS[index] for index in again.bought]
