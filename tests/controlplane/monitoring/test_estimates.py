"""Figures of accuracy from tallies equal what scikit-learn says of the raw truths, and their intervals cover."""

import math
import random
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from controlplane.monitoring.estimates import auroc, f1, mean, share_with_error, wilson
from controlplane.monitoring.scoring import is_worse, no_better, right_of, scored
from controlplane.predictions import tallies
from inference.contracts import Task

pytestmark = pytest.mark.unit

CLASSES = ("bird", "cat", "dog")


def added(tallied: list[tallies.Tally]) -> tallies.Tally:
    total: tallies.Tally = {"n": 0}
    for one in tallied:
        tallies.merge(total, one)
    return total


def three_classes(n: int = 1500) -> tuple[list[str], np.ndarray, tallies.Tally]:
    generator = np.random.default_rng(11)
    trues = generator.choice(CLASSES, n, p=[0.6, 0.3, 0.1]).tolist()
    logits = generator.normal(0, 1, (n, 3)) + 1.3 * np.array([[name == true for name in CLASSES] for true in trues])
    table = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    total = added(
        [
            tallies.tally_of(
                Task.TABULAR_CLASSIFICATION,
                {"label": true},
                {name: [score] for name, score in zip(CLASSES, row.tolist(), strict=True)},
                CLASSES,
                {},
                delay=timedelta(seconds=5),
            )
            for true, row in zip(trues, table, strict=True)
        ]
    )
    return trues, table, total


def test_classification_equals_scikit_learn() -> None:
    trues, table, total = three_classes()
    said = [CLASSES[index] for index in table.argmax(1)]
    found = scored(total)
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    precision, recall, f_one, support = metrics.precision_recall_fscore_support(trues, said, labels=CLASSES)
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(trues, said), abs=1e-6)
    assert values["precision"] == pytest.approx(precision.mean(), abs=1e-6)
    assert values["recall"] == pytest.approx(metrics.balanced_accuracy_score(trues, said), abs=1e-6)
    assert values["f1"] == pytest.approx(metrics.f1_score(trues, said, average="macro"), abs=1e-6)
    matrix = [[found["confusion"].get(true, {}).get(name, 0) for name in CLASSES] for true in CLASSES]
    assert matrix == metrics.confusion_matrix(trues, said, labels=CLASSES).tolist()
    for index, label in enumerate(found["labels"]):
        assert (label["label"], label["n"]) == (CLASSES[index], support[index])
        assert label["precision"]["value"] == pytest.approx(precision[index], abs=1e-6)
        assert label["recall"]["value"] == pytest.approx(recall[index], abs=1e-6)
        assert label["f1"]["value"] == pytest.approx(f_one[index], abs=1e-6)
        exact = metrics.roc_auc_score([true == label["label"] for true in trues], table[:, index])
        assert label["auroc_binning"] is not None
        assert label["auroc_binning"] < 0.01
        assert label["auroc"]["value"] == pytest.approx(exact, abs=label["auroc_binning"] + 1e-6)
    for metric in found["metrics"].values():
        assert metric["low"] < metric["value"] < metric["high"]  # type: ignore[operator]  # no figure is None here


def test_several_labels_a_case_equal_scikit_learn() -> None:
    generator = np.random.default_rng(5)
    n, thresholds = 800, {"bird": 0.4, "cat": 0.6}
    trues = generator.random((n, 3)) < [0.5, 0.2, 0.05]
    table = np.clip(0.35 * trues + generator.normal(0.35, 0.15, (n, 3)), 0, 0.9999)
    total = added(
        [
            tallies.tally_of(
                Task.IMAGE_MULTILABEL,
                {"labels": [name for name, here in zip(CLASSES, row, strict=True) if here]},
                {name: [score] for name, score in zip(CLASSES, scores.tolist(), strict=True)},
                CLASSES,
                thresholds,
            )
            for row, scores in zip(trues, table, strict=True)
        ]
    )
    said = table >= [thresholds.get(name, tallies.DEFAULT_THRESHOLD) for name in CLASSES]
    values = {name: metric["value"] for name, metric in scored(total)["metrics"].items()}
    assert values["accuracy"] == pytest.approx(1 - metrics.hamming_loss(trues, said), abs=1e-6)
    assert values["exact"] == pytest.approx(metrics.accuracy_score(trues, said), abs=1e-6)
    assert values["f1"] == pytest.approx(metrics.f1_score(trues, said, average="macro"), abs=1e-6)
    assert values["precision"] == pytest.approx(metrics.precision_score(trues, said, average="macro"), abs=1e-6)
    assert values["recall"] == pytest.approx(metrics.recall_score(trues, said, average="macro"), abs=1e-6)
    assert values["auroc"] == pytest.approx(metrics.roc_auc_score(trues, table, average="macro"), abs=0.01)
    majority = np.where(trues.mean(0) > 0.5, 1, 0)
    constant = scored(total)["constant"]
    assert constant is not None
    assert constant["metrics"]["accuracy"] == pytest.approx(float((trues == majority).mean()), abs=1e-6)


def regression(truths: np.ndarray, said: np.ndarray) -> tallies.Tally:
    return added(
        [
            tallies.tally_of(Task.TABULAR_REGRESSION, {"value": true}, {"y": [one]}, (), {})
            for true, one in zip(truths.tolist(), said.tolist(), strict=True)
        ]
    )


def test_regression_equals_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    truths = generator.normal(50, 8, 600)
    said = truths + generator.normal(1, 3, 600)
    found = scored(regression(truths, said))
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert values["mae"] == pytest.approx(metrics.mean_absolute_error(truths, said))
    assert values["rmse"] == pytest.approx(metrics.root_mean_squared_error(truths, said))
    assert values["r2"] == pytest.approx(metrics.r2_score(truths, said))
    assert found["constant"] is not None
    assert found["constant"]["metrics"]["rmse"] == pytest.approx(truths.std())


def ranking(rows: list[tuple[dict[str, float], set[str]]]) -> tallies.Tally:
    return added(
        [
            tallies.tally_of(
                Task.RANKING, {"labels": sorted(trues)}, {name: [score] for name, score in row.items()}, (), {}
            )
            for row, trues in rows
        ]
    )


def test_ranking_equals_scikit_learn() -> None:
    generator = random.Random(4)
    items = [f"item-{number}" for number in range(40)]
    rows = []
    for _ in range(300):
        trues = set(generator.sample(items, generator.choice([1, 1, 3, 12])))
        rows.append(({name: generator.random() + 0.3 * (name in trues) for name in items}, trues))
    found = scored(ranking(rows))
    relevant = np.array([[name in trues for name in items] for _, trues in rows], dtype=int)
    table = np.array([[row[name] for name in items] for row, _ in rows])
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert found["headline"] == "ndcg_at_10"
    assert values["ndcg_at_10"] == pytest.approx(metrics.ndcg_score(relevant, table, k=10), abs=1e-6)
    for cut in (1, 5, 10):
        best = np.argsort(-table, axis=1)[:, :cut]
        hits = np.take_along_axis(relevant, best, axis=1).any(axis=1).mean()
        assert values[f"hit_rate_at_{cut}"] == pytest.approx(hits, abs=1e-6)


def test_an_item_outside_the_ranking_is_no_hit() -> None:
    found = scored(ranking([({"a": 0.9, "b": 0.1}, {"z"})]))
    assert {name: metric["value"] for name, metric in found["metrics"].items()} == {
        "hit_rate_at_1": 0.0, "hit_rate_at_5": 0.0, "hit_rate_at_10": 0.0, "ndcg_at_10": 0.0, "mrr": 0.0,
    }  # fmt: skip


def test_blind_truths_are_counted_apart_and_taken_away_again() -> None:
    scores = {"ok": [0.9], "fraud": [0.1]}

    def told(label: str, blind: bool, sign: int = 1) -> tallies.Tally:
        return tallies.tally_of(
            Task.TABULAR_CLASSIFICATION, {"label": label}, scores, ("ok", "fraud"), {}, blind=blind, sign=sign
        )

    total = added([told("ok", False), told("fraud", True), told("ok", True)])
    assert (scored(total)["n"], scored(total["blind"])["n"]) == (3, 2)
    assert right_of(total["blind"]) == (1, 2)
    gone = added([total, told("ok", False, -1), told("fraud", True, -1), told("ok", True, -1)])
    assert scored(gone)["n"] == 0
    assert gone.get("blind", {"n": 0})["n"] == 0


@pytest.mark.parametrize("task", [Task.TABULAR_CLASSIFICATION, Task.IMAGE_MULTILABEL, Task.RANKING])
def test_a_step_that_holds_revisions_without_what_they_revise_still_has_an_answer(task: Task) -> None:
    draw = random.Random(5)
    names = ["a", "b", "c"]
    for _ in range(2_000):
        tally: tallies.Tally = {"n": 0}
        for _ in range(draw.randint(1, 4)):
            scores = {name: [draw.choice((0.1, 0.5, 0.9))] for name in names}
            for sign in draw.sample((1, -1), draw.randint(1, 2)):
                said = draw.sample(names, draw.randint(1, 2) if task is not Task.TABULAR_CLASSIFICATION else 1)
                truth = {"labels": said} if task is not Task.TABULAR_CLASSIFICATION else {"label": said[0]}
                tallies.merge(tally, tallies.tally_of(task, truth, scores, names, {}, sign=sign))
        figures = scored(tally)
        assert not is_worse(figures) or figures["constant"] is not None
        no_better(figures)


def test_nothing_labelled_has_no_figures() -> None:
    assert scored({"n": 0})["headline"] is None
    assert scored({"n": 0, "ungradable": 3})["metrics"] == {}
    assert auroc({"1": {"10": 3}}) == ({"value": None, "low": None, "high": None}, None)


def test_the_area_under_the_curve_counts_ties_half() -> None:
    def area(true: dict[str, int], false: dict[str, int]) -> Any:
        return auroc({"1": true, "0": false})[0]["value"]

    assert area({"90": 10}, {"10": 10}) == 1.0
    assert area({"50": 10}, {"50": 10}) == 0.5
    assert area({"10": 3}, {"90": 1, "5": 1}) == 0.5


def test_intervals_do_not_shrink_to_a_point_at_the_ends() -> None:
    perfect = auroc({"1": {"90": 12}, "0": {"10": 30}})[0]
    assert perfect["value"] == 1.0
    assert perfect["low"] == pytest.approx(wilson(12, 12)["low"], abs=1e-6)
    assert f1(5, 0, 0)["low"] == pytest.approx(wilson(5, 5)["low"], abs=1e-6)
    assert f1(0, 0, 0)["value"] is None
    assert share_with_error(0.5, 0.0, 0)["value"] is None


def covered(draw: Any, truth: float, repeats: int = 300) -> float:
    inside = 0
    for seed in range(repeats):
        metric = draw(np.random.default_rng(seed))
        inside += metric["low"] <= truth <= metric["high"]
    return inside / repeats


def test_intervals_cover_what_they_say() -> None:
    """About 95 of 100; the seeds are fixed, and the bounds some four standard errors of the repeats away."""
    truth_f1 = 2 * 0.12 / (2 * 0.12 + 0.05 + 0.08)

    def draw_f1(generator: np.random.Generator) -> Any:
        tp, fp, fn, _ = generator.multinomial(400, [0.12, 0.05, 0.08, 0.75])
        return f1(int(tp), int(fp), int(fn))

    def draw_auroc(generator: np.random.Generator) -> Any:
        high, low = generator.normal(60, 12, 60), generator.normal(45, 12, 140)
        bins = [
            {str(index): int(count) for index, count in zip(*np.unique(np.clip(side, 0, 99).astype(int),
                                                                       return_counts=True), strict=True)}
            for side in (high, low)
        ]  # fmt: skip
        return auroc({"1": bins[0], "0": bins[1]})[0]

    def draw_r2(generator: np.random.Generator) -> Any:
        truths = generator.normal(20, 4, 150)
        return scored(regression(truths, truths + generator.normal(0, 2, 150)))["metrics"]["r2"]

    # P(a normal of 15/12 sqrt(2) standard deviations is positive).
    truth_auroc = 0.5 * (1 + math.erf(15 / (12 * math.sqrt(2)) / math.sqrt(2)))
    assert 0.90 < covered(draw_f1, truth_f1) < 0.995
    assert 0.90 < covered(draw_auroc, truth_auroc) < 0.995
    assert 0.85 < covered(draw_r2, 0.75, 60) <= 1.0


def test_a_mean_has_its_normal_interval() -> None:
    values = np.arange(10.0)
    found = mean(float(values.sum()), float((values**2).sum()), 10)
    half = 1.959964 * values.std() / math.sqrt(10)
    assert found == {"value": 4.5, "low": pytest.approx(4.5 - half), "high": pytest.approx(4.5 + half)}
