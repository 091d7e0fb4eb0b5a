"""What feedback adds to: confusion counts, score histograms by true label, sums of a regression's errors.

A tally is JSON, merges by adding, and may hold negative counts: a revised feedback is the old one taken away and the
new one added. Keys: `n`, `ungradable`, `confusion` {true: {predicted: count}}, `scores` {label: {"1": {bin: count},
"0": ...}} (its score where the label was true, and where it was not), `labels` {label: [tp, fp, fn, tn]} for
multi-label tasks, `regression` [n, Σ error, Σ |error|, Σ error², Σ truth, Σ truth²].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.predictions.histograms import score_bin
from inference.contracts import Task

Tally = dict[str, Any]
Truth = Mapping[str, Any]

DEFAULT_THRESHOLD = 0.5
# A multi-class truth adds two histogram counts per label; models with more labels get the confusion counts alone.
SCORED_LABELS = 200


def tally_of(
    task: Task,
    truth: Truth,
    scores: Mapping[str, Sequence[Any]] | None,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    ungradable: bool = False,
    sign: int = 1,
) -> Tally:
    """What one feedback adds (`sign` 1) or takes away (-1). `scores` are the prediction's, lists over its rows."""
    if ungradable:
        return {"n": 0, "ungradable": sign}
    tally: Tally = {"n": 0}
    table = dict(scores or {})
    if "value" in truth:
        _regression(tally, float(truth["value"]), table, sign)
    elif task is Task.IMAGE_MULTILABEL:
        _multilabel(tally, set(truth.get("labels", ())) | ({truth["label"]} if "label" in truth else set()), table,
                    labels, thresholds, sign)  # fmt: skip
    else:
        truths = truth["labels"] if "labels" in truth else [truth["label"]]
        for row, true in enumerate(truths):
            _class(tally, true, {name: _cell(values, row) for name, values in table.items()}, thresholds, sign)
    return tally


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
                _bump(tally, ("scores", name, "1" if name == true else "0", str(score_bin(score))), sign)


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
    for name, score in scored.items():
        if score is None:
            continue
        is_true, is_said = name in trues, score >= thresholds.get(name, DEFAULT_THRESHOLD)
        counts = tally.setdefault("labels", {}).setdefault(name, [0, 0, 0, 0])
        counts[(0 if is_said else 2) if is_true else (1 if is_said else 3)] += sign
        _bump(tally, ("scores", name, "1" if is_true else "0", str(score_bin(score))), sign)


def _regression(tally: Tally, truth: float, table: dict[str, Sequence[Any]], sign: int) -> None:
    predicted = next((cell for values in table.values() if (cell := _cell(values, 0)) is not None), None)
    if predicted is None:
        return
    error = predicted - truth
    tally["n"] += sign
    sums = [1.0, error, abs(error), error * error, truth, truth * truth]
    tally["regression"] = [sign * value for value in sums]


def merge(into: Tally, other: Mapping[str, Any]) -> Tally:
    """Adds `other` to `into`, and returns `into`; counts that come to nothing are left out."""
    for key, value in other.items():
        if isinstance(value, Mapping):
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
