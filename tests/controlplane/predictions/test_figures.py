"""The mathematics of rollups: histograms, sketches and tallies merge to what one of them over everything would be."""

import math
import random
from datetime import timedelta

import numpy as np
import pytest

from controlplane.predictions import tallies
from controlplane.predictions.cleaning import clean, clean_json, clean_text
from controlplane.predictions.histograms import LAST_BIN, bin_of, edge_ms, histogram, merge, quantile, score_bin, summed
from controlplane.predictions.rollups import width_for
from controlplane.predictions.sketches import (
    CATEGORIES,
    FEATURES,
    Sketch,
    add_columns,
    merge_bundles,
    new_bundle,
    pack,
    unpack,
)
from inference.contracts import Task

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.99])
def test_a_quantile_is_off_by_at_most_a_bin(p: float) -> None:
    generator = random.Random(1)
    durations = [generator.lognormvariate(1.0, 1.2) for _ in range(20_000)]
    exact = float(np.quantile(durations, p))
    assert quantile(histogram(durations), p) == pytest.approx(exact, rel=0.09)


def test_merged_histograms_are_the_histogram_of_all() -> None:
    left, right = [0.5, 1.0, 3.0], [3.0, 1e9, 0.0]
    as_json = {str(index): count for index, count in histogram(right).items()}
    assert merge(histogram(left), as_json) == histogram(left + right)


def test_histograms_in_a_text_add_up() -> None:
    assert summed('{"3": 2, "10": 1} {} {"10": 4}') == {3: 2, 10: 5}
    assert summed("") == summed("{} {}") == {}


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf, 1e300, 5e-324])
def test_odd_durations_stay_within_the_bins(ms: float) -> None:
    assert 0 <= bin_of(ms) <= LAST_BIN


def test_bins_and_edges_agree() -> None:
    for index in range(1, LAST_BIN):
        assert bin_of(edge_ms(index) * 1.001) == index
    assert quantile({}, 0.5) is None
    assert [score_bin(score) for score in (-1.0, 0.0, 0.999, 1.0, 7.0)] == [0, 0, 338, 399, 399]


def test_sketches_merge_across_processes() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(10, 2, 20_000)
    bundle = new_bundle()
    for part in np.split(values, 40):
        piece = new_bundle()
        add_columns(piece, FEATURES, {"amount": part.tolist(), "shop": ["a", "b"], "gap": [None, math.nan, math.inf]})
        merge_bundles(bundle, unpack(pack(piece)))
    amount, shop, gap = (bundle[FEATURES][name] for name in ("amount", "shop", "gap"))
    assert (amount.n, shop.n, gap.n, gap.missing) == (20_000, 80, 0, 120)
    assert amount.mean == pytest.approx(values.mean(), rel=1e-5)
    assert amount.deviation == pytest.approx(values.std(), rel=1e-4)
    middle = amount.quantiles([0.1, 0.5, 0.9])
    assert middle == pytest.approx(np.quantile(values, [0.1, 0.5, 0.9]), abs=0.2)
    assert shop.categories == {"a": 40, "b": 40}
    assert gap.quantiles([0.5]) is None


def test_categories_beyond_the_cap_are_counted_as_other() -> None:
    sketch = Sketch()
    sketch.add([f"c{n}" for n in range(CATEGORIES + 50)])
    sketch.add(["c0", "new\0one"])
    assert (len(sketch.categories), sketch.other, sketch.n) == (CATEGORIES, 51, CATEGORIES + 52)
    assert sketch.categories["c0"] == 2


def test_numbers_past_float32_are_missing_and_booleans_are_numbers() -> None:
    sketch = Sketch()
    sketch.add([1e300, -1e300, True, False, 2**70, {}, []])
    assert (sketch.n, sketch.missing) == (3, 4)


def test_another_format_is_refused() -> None:
    import msgspec

    with pytest.raises(ValueError, match="format 9"):
        unpack(msgspec.msgpack.encode((9, {})))
    assert pack(new_bundle()) == b""
    assert unpack(b"") == new_bundle()


SCORES = {"ok": [0.9, 0.2], "fraud": [0.1, 0.8]}


def test_a_revision_takes_away_what_the_first_word_added() -> None:
    first = tallies.tally_of(Task.TABULAR_CLASSIFICATION, {"labels": ["ok", "ok"]}, SCORES, ("ok", "fraud"), {})
    assert first["confusion"] == {"ok": {"ok": 1, "fraud": 1}}
    away = tallies.tally_of(Task.TABULAR_CLASSIFICATION, {"labels": ["ok", "ok"]}, SCORES, ("ok", "fraud"), {}, sign=-1)
    assert tallies.merge(first, away) == {"n": 0}


def test_a_multilabel_truth_counts_each_label() -> None:
    labels = ("mass", "edema", "nodule")
    scores = {"mass": [0.7], "edema": [0.6], "nodule": [0.1]}
    tally = tallies.tally_of(Task.IMAGE_MULTILABEL, {"labels": ["mass"]}, scores, labels, {"edema": 0.65})
    assert tally["labels"] == {"mass": [1, 0, 0, 0], "edema": [0, 0, 0, 1], "nodule": [0, 0, 0, 1]}
    assert tally["n"] == 1


def test_the_decision_follows_the_versions_thresholds() -> None:
    assert tallies.predicted_label({"ok": 0.6, "fraud": 0.4}, {}) == "ok"
    assert tallies.predicted_label({"ok": 0.6, "fraud": 0.4}, {"fraud": 0.3}) == "fraud"
    assert tallies.predicted_label({"ok": 0.6, "fraud": 0.4}, {"fraud": 0.9, "ok": 0.9}) == ""


def test_missing_scores_count_nothing() -> None:
    for scores in (None, {}, {"ok": [None], "fraud": [None]}, {"ok": [math.nan]}):
        assert tallies.tally_of(Task.TABULAR_CLASSIFICATION, {"label": "ok"}, scores, (), {}) == {"n": 0}
    assert tallies.tally_of(Task.TABULAR_REGRESSION, {"value": 3}, {"y": [None]}, (), {}) == {"n": 0}


def test_any_text_becomes_one_that_postgresql_takes() -> None:
    assert clean_text("a\0b\ud800c") == "a\ufffdb\ufffdc"
    assert clean_text("\U0001f600") == "\U0001f600"
    assert clean({"\0": ["\0", 1, None]}) == {"\ufffd": ["\ufffd", 1, None]}
    assert clean_json(rb'{"a":"back\\u0000slash"}') == rb'{"a":"back\\u0000slash"}'
    assert clean_json(rb'{"a":"\u0000","n":1}') == '{"a":"\ufffd","n":1}'.encode()
    assert [clean_json(nothing) for nothing in (b"", b"null", b"{}", b"[]")] == [b""] * 4


def test_old_records_are_counted_in_wide_buckets_at_once() -> None:
    ages = (timedelta(days=-1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=2), timedelta(days=60))
    assert [width_for(age) for age in ages] == [10, 10, 60, 3600, 86_400]
