"""The accuracy tab: how right each version was, what that rests on, and what a constant answer would have got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.dashboard import charts
from controlplane.dashboard.pages.figures import Window, change_marks
from controlplane.deployments.models import Deployment
from controlplane.monitoring.accuracy import ENOUGH, VersionAccuracy, accuracy
from controlplane.monitoring.estimates import Metric
from controlplane.monitoring.scoring import Constant, LabelScore, Scored, no_better
from controlplane.studies.queries import has_several_views
from inference.contracts import Role

# How a figure is written: per cent, an index of one with three decimals, or a number in the target's own unit.
SHARE, INDEX, NUMBER = "share", "index", "number"
# (key, words, what it says, how it is written)
METRICS: tuple[tuple[str, str, str, str], ...] = (
    (
        "accuracy",
        "Accuracy",
        "labelled predictions that were right; of several labels a case, the share that was",
        SHARE,
    ),
    ("exact", "All right", "cases with every label right", SHARE),
    ("precision", "Precision", "of the cases said to be a label, those that were; mean over labels", SHARE),
    ("recall", "Recall", "of the cases of a label, those that were found; mean over labels", SHARE),
    ("f1", "F1", "harmonic mean of precision and recall; mean over labels", INDEX),
    ("auroc", "AUROC", "chance that a case of a label scores above one of another; mean over labels", INDEX),
    ("mae", "MAE", "mean absolute error", NUMBER),
    ("rmse", "RMSE", "root of the mean squared error", NUMBER),
    ("bias", "Bias", "mean error", NUMBER),
    ("r2", "R²", "share of the variance that is explained", INDEX),
    ("hit_rate_at_1", "Hit rate at 1", "the first item was right", SHARE),
    ("hit_rate_at_5", "Hit rate at 5", "a right item was among the first five", SHARE),
    ("hit_rate_at_10", "Hit rate at 10", "a right item was among the first ten", SHARE),
    ("ndcg_at_10", "NDCG at 10", "right items weighted by how far up they stood", INDEX),
    ("mrr", "MRR", "mean of one over the rank of the first right item", INDEX),
)
# More labels than this make a table that nobody reads: the pairs most often confused are listed instead.
MATRIX = 12
PAIRS = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure and its interval in words; `words` is an en dash where it is not known."""

    name: str
    words: str
    interval: str
    meaning: str


@dataclass(frozen=True, slots=True)
class ScoreRow:
    number: int
    is_shadow: bool
    n: int
    coverage: Metric
    labelled: int
    predictions: int
    delay_ms: float | None
    delay_p90_ms: float | None
    ungradable: int
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class MatrixCell:
    count: int
    share: float
    right: bool


@dataclass(frozen=True, slots=True)
class LabelRow:
    label: str
    n: int
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class VersionDetail:
    """One version's labels and confusion counts; `matrix` rows are true labels, or `pairs` where there are many."""

    number: int
    n: int
    columns: list[str]
    matrix: list[tuple[str, list[MatrixCell]]]
    pairs: list[tuple[str, str, int]]
    labels: list[LabelRow]
    binning: float | None


@dataclass(frozen=True, slots=True)
class AccuracyPage:
    sentence: str
    tone: str
    columns: list[tuple[str, str]]
    rows: list[ScoreRow]
    constant: list[Cell] | None
    constant_answer: str | None
    blind: list[ScoreRow]
    details: list[VersionDetail]
    series: charts.Figure
    series_name: str
    enough: int
    empty: bool
    several_views: bool


def accuracy_page(deployment: Deployment, window: Window) -> AccuracyPage:
    """The figures of /api/deployments/{d}/accuracy/ as rows and a chart. Four queries."""
    found = accuracy(deployment.pk, deployment.name, window.interval)
    known = [version for version in found["versions"] if version["n"] > 0]
    live = [version for version in known if version["role"] == Role.LIVE]
    keys = [key for key, *_ in METRICS if any(key in version["metrics"] for version in known)]
    sentence, tone = _sentence(live)
    best = max(live or known, key=lambda version: version["n"], default=None)
    headline = best["headline"] if best else None
    constant = best["constant"] if best else None
    return AccuracyPage(
        sentence=sentence,
        tone=tone,
        columns=[(words, meaning) for key, words, meaning, _ in METRICS if key in keys],
        rows=[_row(version, version, keys) for version in known],
        constant=_constant_cells(constant, keys) if constant else None,
        constant_answer=constant["answer"] if constant else None,
        blind=[_row(version, version["blind"], keys) for version in known if version["blind"] is not None],
        details=[_detail(version) for version in live if version["labels"]],
        series=_series(found["at"], live, window, deployment),
        series_name=next((words for key, words, *_ in METRICS if key == headline), ""),
        enough=ENOUGH,
        empty=not known,
        several_views=bool(known) and has_several_views(deployment),
    )


def metric_words(key: str, metric: Metric) -> Cell:
    """A figure as people read it, with its interval: `97.6 %`, `97.1 – 98.0`."""
    name, meaning, form = next((words, text, form) for k, words, text, form in METRICS if k == key)
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return Cell(name, "–", "", meaning)

    def written(figure: float) -> str:
        if form == SHARE:
            return f"{figure * 100:.1f}"
        return f"{figure:.3f}" if form == INDEX else f"{figure:.4g}"

    words = written(value) + (" %" if form == SHARE else "")
    if low is None or high is None:
        return Cell(name, words, "", meaning)
    return Cell(name, words, f"{written(low)} – {written(high)}", meaning)


def with_half_width(key: str, metric: Metric) -> str:
    """A figure with half the width of its interval, as one line has room for: `97.6 ± 0.3 %`."""
    form = next(form for k, _, _, form in METRICS if k == key)
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None or low is None or high is None:
        return metric_words(key, metric).words
    half = (high - low) / 2
    if form == SHARE:
        return f"{value * 100:.1f} ± {half * 100:.1f} %"
    return f"{value:.3f} ± {half:.3f}" if form == INDEX else f"{value:.4g} ± {half:.2g}"


def _row(version: VersionAccuracy, figures: Scored, keys: Sequence[str]) -> ScoreRow:
    return ScoreRow(
        number=version["version"],
        is_shadow=version["role"] == Role.SHADOW,
        n=figures["n"],
        coverage=version["coverage"],
        labelled=version["labelled"],
        predictions=version["predictions"],
        delay_ms=version["delay_ms"]["median"],
        delay_p90_ms=version["delay_ms"]["p90"],
        ungradable=version["ungradable"],
        cells=[_cell(key, figures["metrics"].get(key)) for key in keys],
    )


def _cell(key: str, metric: Metric | None) -> Cell:
    return metric_words(key, metric or {"value": None, "low": None, "high": None})


def _constant_cells(constant: Constant, keys: Sequence[str]) -> list[Cell]:
    return [_cell(key, {"value": constant["metrics"].get(key), "low": None, "high": None}) for key in keys]


def _sentence(live: Sequence[VersionAccuracy]) -> tuple[str, str]:
    """What the tab says first, and its tone: a warning where a version does no better than a constant answer."""
    told = [version for version in live if version["headline"] is not None]
    if not told:
        return "", ""
    parts = []
    for version in sorted(told, key=lambda one: -one["n"])[:3]:
        key = version["headline"] or ""
        cell = metric_words(key, version["metrics"][key])
        interval = f" ({cell.interval})" if cell.interval else ""
        parts.append(f"version {version['version']} {cell.words}{interval} over {version['n']:,} labels")
    name = next(words for k, words, *_ in METRICS if k == told[0]["headline"])
    poor = [version for version in told if no_better(version)]
    ending = ""
    if poor:
        numbers = " and ".join(str(version["version"]) for version in poor)
        subject = f"Versions {numbers} are" if len(poor) > 1 else f"Version {numbers} is"
        ending = f" {subject} not shown to be better than a constant answer."
    return f"{name}: {'; '.join(parts)}.{ending}", "warn" if poor else ""


def _series(
    at: Sequence[int], live: Sequence[VersionAccuracy], window: Window, deployment: Deployment
) -> charts.Figure:
    shares = {key for key, _, _, form in METRICS if form == SHARE}

    def scaled(version: VersionAccuracy, side: str) -> list[float | None]:
        factor = 100 if version["headline"] in shares else 1
        values = [metric[side] for metric in version["series"]]  # type: ignore[literal-required]  # one of a Metric's keys
        return [None if value is None else value * factor for value in values]

    unit = "%" if any(version["headline"] in shares for version in live) else ""
    figure = charts.bands(
        [datetime.fromtimestamp(second, UTC).isoformat() for second in at],
        [
            charts.Band(
                f"version {version['version']}",
                scaled(version, "value"),
                scaled(version, "low"),
                scaled(version, "high"),
                charts.version_colour(version["version"]),
                [f"{n:,} labels" for n in version["series_n"]],
            )
            for version in live
            if version["series"]
        ],
        unit=unit,
        frame=charts.Frame(window.since, window.until, change_marks(deployment, window)),
    )
    # A share near 100 % would lie flat under the top of an axis that starts at nought.
    figure["layout"]["yaxis"]["rangemode"] = "normal"
    return figure


def _detail(version: VersionAccuracy) -> VersionDetail:
    confusion = version["confusion"]
    said = {name for row in confusion.values() for name in row}
    columns = sorted(set(confusion) | {name for name in said if name}) + ([""] if "" in said else [])
    pairs = sorted(
        (
            (true, name, count)
            for true, row in confusion.items()
            for name, count in row.items()
            if true != name and count
        ),
        key=lambda pair: -pair[2],
    )
    labels = sorted(version["labels"], key=lambda label: -label["n"])
    binning = [label["auroc_binning"] for label in labels if label["auroc_binning"] is not None]
    return VersionDetail(
        number=version["version"],
        n=version["n"],
        columns=columns if len(columns) <= MATRIX else [],
        matrix=[_matrix_row(true, confusion.get(true, {}), columns) for true in columns if true]
        if confusion and len(columns) <= MATRIX
        else [],
        pairs=pairs[:PAIRS] if len(columns) > MATRIX else [],
        labels=[_label_row(label) for label in labels],
        binning=max(binning, default=None),
    )


def _matrix_row(true: str, row: Mapping[str, int], columns: Sequence[str]) -> tuple[str, list[MatrixCell]]:
    total = sum(row.values())
    return true, [
        MatrixCell(row.get(name, 0), row.get(name, 0) / total if total > 0 else 0.0, name == true) for name in columns
    ]


def _label_row(label: LabelScore) -> LabelRow:
    cells = [_cell(key, label[key]) for key in ("precision", "recall")]
    specificity = metric_words("recall", label["specificity"])
    cells.append(Cell("Specificity", specificity.words, specificity.interval, "of the other cases, those left alone"))
    cells += [_cell("f1", label["f1"]), _cell("auroc", label["auroc"])]
    return LabelRow(label["label"], label["n"], cells)
