"""What feedback adds to: confusion counts, score histograms by true label, sums of a regression's errors.

A tally is JSON, merges by adding, and may hold negative counts: a revised feedback is the old one taken away and the
new one added. Keys:

- `n` rows with a truth, `given` predictions with one, `ungradable`;
- `delay` {bin: count} of predictions/histograms.py: from the prediction to its truth;
- `confusion` {true: {predicted: count}} of single labels;
- `logits` {label: {"1": {bin: count}, "0": ...}}: its score where the label was true, and where it was not;
- `labels` {label: [tp, fp, fn, tn]} and `exact` (rows with every label right) of multi-label tasks;
- `regression` [n, Σ e, Σ |e|, Σ e², Σ y, Σ y²] and `moments` [Σ e⁴, Σ e²y, Σ e²y², Σ y³, Σ y⁴] for error e, truth y;
- `ranking` [n, hits in 1, in 5, in 10, Σ NDCG@10, its squares, Σ 1/rank, its squares] and `items` {true item: count};
- `blind`: the same again, of the truths alone that were said before the model's answer was seen.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from controlplane.predictions.histograms import bin_of, score_bin
from inference.contracts import Task

Tally = dict[str, Any]
Truth = Mapping[str, Any]

DEFAULT_THRESHOLD = 0.5
# A multi-class truth adds two histogram counts per label; models with more labels get the confusion counts alone.
SCORED_LABELS = 200
# Cut-offs of the hit rate; NDCG is taken at the last.
CUTS = (1, 5, 10)


def tally_of(
    task: Task,
    truth: Truth,
    scores: Mapping[str, Sequence[Any]] | None,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    ungradable: bool = False,
    blind: bool = False,
    delay: timedelta | None = None,
    sign: int = 1,
) -> Tally:
    """What one feedback adds (`sign` 1) or takes away (-1). `scores` are the prediction's, lists over its rows."""
    tally: Tally = {"n": 0}
    if ungradable:
        tally["ungradable"] = sign
    else:
        _truth(tally, task, truth, dict(scores or {}), labels, thresholds, sign)
    if tally["n"]:
        tally["given"] = sign
        if delay is not None:
            tally["delay"] = {str(bin_of(delay.total_seconds() * 1000)): sign}
    if blind and len(tally) > 1:
        tally["blind"] = {name: value for name, value in tally.items() if name != "delay"}
    return tally


def _truth(
    tally: Tally,
    task: Task,
    truth: Truth,
    table: dict[str, Sequence[Any]],
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    sign: int,
) -> None:
    if "value" in truth:
        _regression(tally, float(truth["value"]), table, sign)
        return
    named = list(truth["labels"]) if "labels" in truth else [truth["label"]]
    if task is Task.IMAGE_MULTILABEL:
        _multilabel(tally, set(named), table, labels, thresholds, sign)
    elif task is Task.RANKING:
        _ranking(tally, set(named), {name: _cell(values, 0) for name, values in table.items()}, sign)
    else:
        for row, true in enumerate(named):
            _class(tally, true, {name: _cell(values, row) for name, values in table.items()}, thresholds, sign)


def predicted_label(row: Mapping[str, float | None], thresholds: Mapping[str, float]) -> str:
    """What the version decided, as inference/runtime/scores.py does; "" where no score reaches its threshold."""
    by_score = sorted((name for name, score in row.items() if score is not None), key=lambda name: -(row[name] or 0.0))
    own = [name for name in by_score if name in thresholds and (row[name] or 0.0) >= thresholds[name]]
    rest = [name for name in by_score if name not in thresholds]
    return next(iter(own + rest), "")


def _cell(values: Sequence[Any], row: int) -> float | None:
    if row >= len(values) or not isinstance(values[row], int | float) or not math.isfinite(values[row]):
        return None
    return float(values[row])


def _bump(tally: Tally, path: Sequence[str], count: int) -> None:
    for name in path[:-1]:
        tally = tally.setdefault(name, {})
    tally[path[-1]] = tally.get(path[-1], 0) + count


def _class(tally: Tally, true: str, row: dict[str, float | None], thresholds: Mapping[str, float], sign: int) -> None:
    if all(score is None for score in row.values()):
        return
    tally["n"] += sign
    _bump(tally, ("confusion", true, predicted_label(row, thresholds)), sign)
    if len(row) <= SCORED_LABELS:
        for name, score in row.items():
            if score is not None:
                _bump(tally, ("logits", name, "1" if name == true else "0", str(score_bin(score))), sign)


def _multilabel(
    tally: Tally,
    trues: set[str],
    table: dict[str, Sequence[Any]],
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    sign: int,
) -> None:
    scored = {name: _cell(table.get(name, ()), 0) for name in labels}
    if all(score is None for score in scored.values()):
        return
    tally["n"] += sign
    wrong = 0
    for name, score in scored.items():
        if score is None:
            continue
        is_true, is_said = name in trues, score >= thresholds.get(name, DEFAULT_THRESHOLD)
        counts = tally.setdefault("labels", {}).setdefault(name, [0, 0, 0, 0])
        counts[(0 if is_said else 2) if is_true else (1 if is_said else 3)] += sign
        wrong += is_true is not is_said
        _bump(tally, ("logits", name, "1" if is_true else "0", str(score_bin(score))), sign)
    if not wrong:
        tally["exact"] = sign


def _ranking(tally: Tally, trues: set[str], row: Mapping[str, float | None], sign: int) -> None:
    """NDCG with relevance 0 or 1 (Järvelin and Kekäläinen 2002); equal scores rank in the answer's order."""
    ranked = sorted((name for name, score in row.items() if score is not None), key=lambda name: -(row[name] or 0.0))
    if not ranked or not trues:
        return
    ranks = [rank for rank, name in enumerate(ranked, 1) if name in trues]
    first = ranks[0] if ranks else math.inf
    most = CUTS[-1]
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= most)
    ndcg = gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(trues), most) + 1))
    tally["n"] += sign
    sums = [1, *(int(first <= cut) for cut in CUTS), ndcg, ndcg * ndcg, 1 / first, 1 / first**2]
    tally["ranking"] = [sign * value for value in sums]
    for name in trues:
        _bump(tally, ("items", name), sign)


def _regression(tally: Tally, truth: float, table: dict[str, Sequence[Any]], sign: int) -> None:
    predicted = next((cell for values in table.values() if (cell := _cell(values, 0)) is not None), None)
    if predicted is None:
        return
    error = predicted - truth
    tally["n"] += sign
    sums = [1.0, error, abs(error), error * error, truth, truth * truth]
    tally["regression"] = [sign * value for value in sums]
    square = error * error
    moments = [square * square, square * truth, square * truth * truth, truth**3, truth**4]
    tally["moments"] = [sign * value for value in moments]


def merge(into: Tally, other: Mapping[str, Any]) -> Tally:
    """Adds `other` to `into`, and returns `into`; counts that come to nothing are left out."""
    for key, value in other.items():
        # Of JSON, so its objects are dicts; asking for a Mapping takes half of the time.
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
            if not into[key]:
                del into[key]
        elif isinstance(value, list):
            mine = into.get(key) or [0] * len(value)
            into[key] = [a + b for a, b in zip(mine, value, strict=True)]
        else:
            into[key] = into.get(key, 0) + value
            if not into[key] and key != "n":
                del into[key]
    return into
