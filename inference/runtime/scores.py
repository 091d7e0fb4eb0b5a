"""From a graph's output to scores by label: the version's activation, its labels and its thresholds."""

from typing import Any, TypedDict

import numpy as np

from inference.contracts import Activation, Task, VersionRoute

DEFAULT_THRESHOLD = 0.5


class _Scored(TypedDict):
    scores: dict[str, float]
    # None: nothing is above its threshold.
    label: str | None


class Labelled(_Scored, total=False):
    """One row's answer. `labels`, of multi-label tasks alone, are those at or above their threshold, highest first."""

    labels: list[str]


def scores_of(
    version: VersionRoute, outputs: dict[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The version's score output as float64 [rows, labels] after its activation.

    One score under two labels is that of the second; the first gets the rest. For a regression the values, [rows, 1].
    None where the task has no scores (tensor), the output was not asked for, or it is not of numbers.
    """
    if version.task is Task.TENSOR:
        return None
    signature = version.signature
    array = outputs.get(signature.outputs[signature.score_output].name)
    if array is None or array.dtype.kind not in "fiub":
        return None
    values = array.astype(np.float64)
    if values.ndim < 2:
        values = values.reshape((-1, 1) if signature.batched else (1, -1))
    elif values.ndim > 2:
        values = values.reshape(values.shape[0], -1)
    # Infinities give NaN here; whether that is refused is the caller's policy.
    with np.errstate(invalid="ignore", over="ignore"):
        if version.activation is Activation.SOFTMAX:
            values = _softmax(values)
        elif version.activation is Activation.SIGMOID:
            values = _sigmoid(values)
    if values.shape[1] == 1 and len(version.labels) == 2:
        values = np.hstack((1.0 - values, values))
    return values


def labelled(version: VersionRoute, outputs: dict[str, np.ndarray[Any, Any]]) -> list[Labelled]:
    """One answer per row: every label's score, and what the version decides. Labels without a name are "0", "1", ...

    Empty where the version has no scores. A multi-label version names the labels at or above their threshold (0.5 where
    it has none). Any other names one: the highest that reaches a threshold of its own, else the highest without one.
    """
    scores = scores_of(version, outputs)
    if scores is None:
        return []
    labels = version.labels or tuple(str(index) for index in range(scores.shape[1]))
    return [_decide(version, dict(zip(labels, map(float, row), strict=False))) for row in scores]


def _decide(version: VersionRoute, scores: dict[str, float]) -> Labelled:
    by_score = sorted(scores, key=lambda label: -scores[label])
    thresholds = version.thresholds
    if version.task is Task.IMAGE_MULTILABEL:
        above = [label for label in by_score if scores[label] >= thresholds.get(label, DEFAULT_THRESHOLD)]
        return {"scores": scores, "label": above[0] if above else None, "labels": above}
    own = [label for label in by_score if label in thresholds and scores[label] >= thresholds[label]]
    rest = [label for label in by_score if label not in thresholds and scores[label] == scores[label]]
    return {"scores": scores, "label": next(iter(own + rest), None)}


def _softmax(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    total: np.ndarray[Any, np.dtype[np.float64]] = raised / raised.sum(axis=1, keepdims=True)
    return total


def _sigmoid(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """By the exponential of -|x|, which never overflows."""
    small = np.exp(-np.abs(values))
    result: np.ndarray[Any, np.dtype[np.float64]] = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return result
