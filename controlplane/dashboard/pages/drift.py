"""The drift tab: what moved, how far, since when; and one column large."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import numpy as np

from controlplane.dashboard import charts
from controlplane.dashboard.pages.figures import Window, change_marks
from controlplane.deployments.models import Deployment
from controlplane.monitoring.distributions import Distribution, Pair
from controlplane.monitoring.drift import EARLIER, REFERENCE, Compared, Drift, compared
from controlplane.monitoring.drift_columns import Moved
from controlplane.monitoring.drift_series import series
from controlplane.monitoring.drift_tests import ENOUGH, TESTS, decides, p_limit
from controlplane.predictions.sketch_rollups import Stretch

# Bins of the small drawings and of the large one; categories that are drawn by name.
SMALL, LARGE, NAMED = 24, 40, 12
RANKS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# A picture may be of another age, but most of a table of scores is noise to read.
MOST_SCORES = 20
# Columns on a page, the most moved first.
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What the page is asked for. `column` is shown large; `find` is part of the names of the columns to list, from
    page `number` on, 1 first."""

    window: Window
    baseline: str | None = None
    column: str = ""
    find: str = ""
    number: int = 1

    @classmethod
    def read(cls, query: Mapping[str, str], window: Window) -> "Asked":
        """Anything that makes no sense is left out."""
        baseline, number = query.get("baseline", ""), query.get("page", "")
        return cls(
            window,
            baseline if baseline in (REFERENCE, EARLIER) else None,
            query.get("column", ""),
            query.get("find", "").replace("\0", "").strip()[:200],
            max(1, int(number)) if number.isascii() and number.isdigit() and len(number) < 6 else 1,
        )

    def query(self, **changed: str | int) -> str:
        """The query of an address that asks for this, with `changed` put in."""
        asked = {
            "range": self.window.key,
            "baseline": self.baseline,
            "find": self.find,
            "page": self.number if self.number > 1 else "",
            "column": self.column,
        }
        return "?" + urlencode({name: value for name, value in {**asked, **changed}.items() if value})


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A row of the table. `then` is the area of the baseline, `now` the line of now: SVG paths, 120 × 28."""

    moved: Moved
    url: str
    current: bool
    then: str
    now: str
    why: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The columns of one page: the `first` to the `last` of `matching`, out of `total`. `before` and `after` are the
    addresses of the pages beside it, "" where there are none; `every`: of the list that nothing narrows."""

    rows: list[ColumnRow]
    first: int
    last: int
    matching: int
    total: int
    before: str
    after: str
    every: str


@dataclass(frozen=True, slots=True)
class TestRow:
    name: str
    value: str
    p: str
    limit: str
    verdict: str
    meaning: str


@dataclass(frozen=True, slots=True)
class QuantileRow:
    rank: str
    then: float
    now: float


@dataclass(frozen=True, slots=True)
class ColumnDetail:
    """One column large."""

    name: str
    moved: Moved
    words: str
    tests: list[TestRow]
    quantiles: list[QuantileRow]
    histogram: charts.Figure
    series: charts.Figure
    has_series: bool


@dataclass(frozen=True, slots=True)
class DriftPage:
    sentence: str
    tone: str
    against: str
    prediction_against: str
    choices: list[tuple[str, str, bool]]
    columns: Listing
    scores: list[ColumnRow]
    hidden_scores: int
    detail: ColumnDetail | None
    asked: Asked
    query: str
    close: str
    drift: Drift
    enough: int
    empty: bool


def drift_page(deployment: Deployment, asked: Asked) -> DriftPage:
    """The figures of /api/deployments/{d}/drift/ as rows and charts. Five queries at most."""
    window, column = asked.window, asked.column
    made = compared(deployment, window.interval, asked.baseline)
    found = made.drift
    scores = found["prediction"]["scores"]

    def row(one: Moved, pairs: Mapping[str, Pair]) -> ColumnRow:
        then, now = _small(pairs[one["name"]])
        url = asked.query(column=_key(one)) + "#column"
        return ColumnRow(one, url, _key(one) == column, then, now, _why(one, pairs[one["name"]]))

    sentence, tone = _sentence(found, made)
    return DriftPage(
        sentence=sentence,
        tone=tone,
        against=_against(found),
        prediction_against=_prediction_against(found),
        choices=_choices(found, asked),
        columns=_listing(found["features"], asked, lambda one: row(one, made.pairs)),
        scores=[row(one, made.score_pairs) for one in scores[:MOST_SCORES]],
        hidden_scores=max(0, len(scores) - MOST_SCORES),
        detail=_detail(made, deployment, window, column) if column else None,
        asked=asked,
        query=asked.query(),
        close=asked.query(column=""),
        drift=found,
        enough=ENOUGH,
        empty=not found["features"] and not scores,
    )


def _listing(columns: Sequence[Moved], asked: Asked, row: Callable[[Moved], ColumnRow]) -> Listing:
    """The page of the columns that is asked for, or the last one; only its rows are drawn."""
    matching = [one for one in columns if asked.find.casefold() in one["name"].casefold()]
    number = min(asked.number, max(1, -(-len(matching) // PAGE_SIZE)))
    start = (number - 1) * PAGE_SIZE
    end = min(start + PAGE_SIZE, len(matching))
    return Listing(
        rows=[row(one) for one in matching[start:end]],
        first=start + 1,
        last=end,
        matching=len(matching),
        total=len(columns),
        before=asked.query(page=number - 1 if number > 2 else "") if number > 1 else "",
        after=asked.query(page=number + 1) if end < len(matching) else "",
        every=asked.query(page="", find=""),
    )


def _key(one: Moved) -> str:
    """How the address names a column: a score and a feature may share a name."""
    return f"score:{one['name']}" if one["kind"] == "score" else one["name"]


def _sentence(found: Drift, made: Compared) -> tuple[str, str]:
    columns = found["features"]
    known = [one for one in columns if one["enough"] or one["drifting"]]
    moved = [one for one in columns if one["drifting"]]
    things = "picture statistics" if any(one["kind"] == "picture" for one in columns) else "features"
    prediction = found["prediction"]
    said = " The prediction moved too." if prediction["drifting"] else ""
    if not columns and not prediction["scores"]:
        return "", ""
    if not known:
        short = max((one["needed"] for one in columns), default=0)
        if found["baseline"] is None and columns:
            return f"There is nothing to compare with yet: no reference set, and nothing served before.{said}", ""
        if columns:
            side = "now" if all(one["n"] < ENOUGH for one in columns) else "to compare with"
            return f"Not enough data: {short} more rows {side} are needed, {ENOUGH} on each side.{said}", ""
        return ("The prediction moved.", "warn") if prediction["drifting"] else ("The prediction did not move.", "")
    if moved:
        since = _moment(found["moved_since"], found["until"]) if found["moved_since"] else ""
        most = f"; {moved[0]['name']} most" if len(known) > 1 else ""
        verb = "moved" + (f" since {since}" if since else "")
        return f"{len(moved)} of {len(known)} {things} {verb}{most}.{said}", "warn"
    if prediction["drifting"]:
        return f"None of {len(known)} {things} moved, but the prediction did.", "warn"
    return f"None of {len(known)} {things} moved.", ""


def _moment(text: str, until: str) -> str:
    """14:05, or with its day where that is not today; UTC."""
    at, end = datetime.fromisoformat(text).astimezone(UTC), datetime.fromisoformat(until).astimezone(UTC)
    return f"{at:%H:%M} UTC" if at.date() == end.date() else f"{at:%d %b %H:%M} UTC"


def _against(found: Drift) -> str:
    if found["baseline"] == REFERENCE:
        return f"against the reference set of version {found['reference_version']}"
    return _earlier_words(found["baseline_since"], found["baseline_until"], found["same_hours"])


def _earlier_words(since: str | None, until: str | None, same_hours: bool) -> str:
    if since is None or until is None:
        return "nothing to compare with"
    stretch = f"{_moment(since, until)} to {_moment(until, until)}"
    if same_hours:
        return f"against the same hours of the day before, {stretch}"
    return f"against the stretch before, {stretch}"


def _prediction_against(found: Drift) -> str:
    prediction = found["prediction"]
    since, until = prediction["baseline_since"], prediction["baseline_until"]
    if since is None or until is None:
        return f"version {prediction['version']}: nothing was served before to compare with"
    words = f"{_moment(since, until)} to {_moment(until, until)}"
    return f"of version {prediction['version']}, against its own earlier answers, {words}; a reference set holds none"


def _choices(found: Drift, asked: Asked) -> list[tuple[str, str, bool]]:
    """(words, address, whether it is shown) of the baselines that can be chosen."""
    if not found["has_reference"]:
        return []
    return [
        (words, asked.query(baseline=key, column="", page=""), found["baseline"] == key)
        for key, words in ((REFERENCE, "Reference set"), (EARLIER, "Earlier serving"))
    ]


def _why(one: Moved, pair: Pair) -> str:
    """In a word, why there is no verdict."""
    if one["drifting"]:
        return ""
    if not pair.base.rows:
        return "not in the baseline"
    if not one["enough"]:
        if not pair.comparable and one["needed"] == 0:
            return "numbers and texts cannot be compared"
        return f"not enough data: {one['needed']} more of {ENOUGH} rows needed"
    return ""


def _shares(pair: Pair, bins: int) -> tuple[list[float] | list[str], list[float], list[float]]:
    """(where the bins are, shares then, shares now): equal bins over what nearly all of both holds, or categories."""
    sides = (pair.base, pair.now)
    if any(one.is_numeric for one in sides):
        ends = [one.quantiles((0.005, 0.995)) for one in sides if one.is_numeric]
        low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, bins + 1)
        middles = ((edges[:-1] + edges[1:]) / 2).tolist()
        edges[0], edges[-1] = -np.inf, np.inf
        drawn = [np.diff(one.share_up_to(edges)).tolist() if one.numbers else [0.0] * bins for one in sides]
        return middles, drawn[0], drawn[1]
    counts = {name: pair.base.categories.get(name, 0) / max(1, pair.base.n) for name in pair.base.categories}
    for name, count in pair.now.categories.items():
        counts[name] = max(counts.get(name, 0.0), count / max(1, pair.now.n))
    names = sorted(counts, key=lambda name: (-counts[name], name))[:NAMED]

    def of(one: Distribution) -> list[float]:
        shares = [one.categories.get(name, 0) / max(1, one.n) for name in names]
        return [*shares, max(0.0, 1 - sum(shares)) if one.n else 0.0]

    return [*names, "others"], of(pair.base), of(pair.now)


def _small(pair: Pair) -> tuple[str, str]:
    _, then, now = _shares(pair, SMALL)
    return charts.small_histograms(then, now)


def _detail(made: Compared, deployment: Deployment, window: Window, column: str) -> ColumnDetail | None:
    is_score = column.startswith("score:")
    name = column.removeprefix("score:") if is_score else column
    pairs = made.score_pairs if is_score else made.pairs
    moved = next((one for one in _columns(made.drift, is_score) if one["name"] == name), None)
    if moved is None:
        return None
    pair = pairs[name]
    places, then, now = _shares(pair, LARGE)
    stretches: Sequence[Stretch] = made.score_stretches if is_score else made.stretches
    drawn = series([name], {name: pair.base}, stretches, window.interval, len(pairs))[name]
    return ColumnDetail(
        name=name,
        moved=moved,
        words=_prediction_against(made.drift) if is_score else _against(made.drift),
        tests=_tests(moved, pair, len(pairs)),
        quantiles=[
            QuantileRow(f"{rank:.0%}", then_, now_)
            for rank, then_, now_ in zip(
                RANKS, pair.base.quantiles(RANKS).tolist(), pair.now.quantiles(RANKS).tolist(), strict=True
            )
        ]
        if pair.base.numbers and pair.now.numbers
        else [],
        histogram=charts.histograms(places, then, now),
        series=charts.lines(
            [datetime.fromtimestamp(second, UTC).isoformat() for second in drawn.at],
            [
                charts.Line("PSI", drawn.psi, "--accent"),
                charts.Line("limit", [TESTS[0].limit] * len(drawn.at), "--ink-3", "dot"),
            ],
            unit="",
            frame=charts.Frame(window.since, window.until, change_marks(deployment, window)),
        ),
        has_series=any(value is not None for value in drawn.psi),
    )


def _columns(found: Drift, is_score: bool) -> list[Moved]:
    return found["prediction"]["scores"] if is_score else found["features"]


def _tests(moved: Moved, pair: Pair, columns: int) -> list[TestRow]:
    rows = []
    for test in TESTS:
        result = test.run(pair) if moved["enough"] or (test.key == "missing" and moved["drifting"]) else None
        if result is None:
            continue
        size = f" (V {result.size:.3f})" if result.size is not None else ""
        decided = decides(test, result, columns)
        rows.append(
            TestRow(
                name=test.name,
                value=f"{result.value:.4g}{size}",
                p="–" if result.p is None else "< 0.0001" if result.p < 1e-4 else f"{result.p:.4f}",
                limit="informs" if test.limit is None else f"{test.limit:g} and p < {p_limit(columns):.1g}",
                verdict="moved" if decided else "within" if test.limit is not None else "",
                meaning=test.meaning,
            )
        )
    return rows
