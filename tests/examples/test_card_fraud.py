import csv

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import roc_auc_score

from examples.card_fraud.generator import COLUMNS, LABELS, fraud_probability, payments
from examples.card_fraud.train import FOLDER

pytestmark = pytest.mark.unit


def test_frauds_are_as_frequent_as_their_probability_says() -> None:
    drawn = payments(40_000, np.random.default_rng(11))
    chance = fraud_probability(drawn.features)
    for low, high in ((0.0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 1.0)):
        within = (chance >= low) & (chance < high)
        expected, found = chance[within].mean(), drawn.labels[within].mean()
        assert abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / within.sum()), (low, high)


def test_version_2_sees_more_than_version_1() -> None:
    drawn = payments(20_000, np.random.default_rng(12))
    areas = []
    for number in (1, 2):
        session = onnxruntime.InferenceSession(FOLDER / f"card_fraud_v{number}.onnx")
        (name,) = (one.name for one in session.get_inputs())
        scores = session.run(None, {name: drawn.features})[-1]
        fraud = [row[1] for row in scores] if isinstance(scores, list) else scores[:, 1]
        areas.append(float(roc_auc_score(drawn.labels, fraud)))
    assert 0.75 < areas[0] < areas[1] < roc_auc_score(drawn.labels, fraud_probability(drawn.features))


def test_the_reference_set_is_of_the_generator() -> None:
    with (FOLDER / "reference.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == [*COLUMNS, "target"]
    again = payments(len(rows), np.random.default_rng(3))
    assert [row[-1] for row in rows] == [LABELS[label] for label in again.labels]
