"""How far what a deployment sees and says has moved: now against a version's reference set, or against earlier serving.

Earlier serving is the same hours of the day before where enough was served then, so that the pattern of a day is no
drift; else the stretch just before. Predictions are always compared with earlier ones of the same version: a reference
set holds none, and a split that moves is no drift. drift_tests.py holds the tests and the rule by which they decide.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

from controlplane.catalog.models import ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.monitoring.distributions import Distribution, Pair
from controlplane.monitoring.drift_tests import ENOUGH, TESTS, Result, decides, p_limit
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import SHOWN
from controlplane.predictions import sketch_rollups
from controlplane.predictions.sketch_rollups import Stretch
from controlplane.predictions.sketches import FEATURES, PICTURES, SCORES
from inference.runtime import digest as digests
from inference.runtime.digest import Digest

REFERENCE, EARLIER = "reference", "earlier"
DAY = timedelta(days=1)
Number = float | None


class Moved(TypedDict):
    """One column. Figures are None where they do not apply, or where one side has fewer than `needed` rows.

    `by` names the tests that call it drifting. `kind`: feature, picture, or score.
    """

    name: str
    kind: str
    drifting: bool
    by: list[str]
    enough: bool
    needed: int
    psi: Number
    js: Number
    wasserstein: Number
    ks: Number
    ks_p: Number
    chi2: Number
    chi2_p: Number
    cramers_v: Number
    n: int
    n_baseline: int
    missing_share: Number
    missing_share_baseline: Number
    mean: Number
    mean_baseline: Number


class Prediction(TypedDict):
    """The predictions of the version that answered most; its most moved score, and all of them."""

    baseline: str | None
    baseline_since: str | None
    baseline_until: str | None
    version: int | None
    drifting: bool
    psi: Number
    js: Number
    wasserstein: Number
    ks: Number
    n: int
    scores: list[Moved]


class Drift(TypedDict):
    """`baseline`: reference (the set of version `reference_version`), earlier (from `baseline_since` to
    `baseline_until`, `same_hours` of the day before or the stretch before), or None. Moved most comes first."""

    deployment: str
    since: str
    until: str
    baseline: str | None
    has_reference: bool
    reference_version: int | None
    baseline_since: str | None
    baseline_until: str | None
    same_hours: bool
    n: int
    needed: int
    p_limit: float
    features: list[Moved]
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Earlier:
    """Stretches to compare with: where they begin and end, and whether they are the same hours of the day before."""

    stretches: list[Stretch]
    since: datetime
    until: datetime
    same_hours: bool

    @property
    def columns(self) -> dict[str, list[Digest]]:
        return by_name(self.stretches)


@dataclass(frozen=True, slots=True)
class Compared:
    """A drift's figures with what they were made from, for charts: pairs by name, and now's stretches."""

    drift: Drift
    pairs: dict[str, Pair]
    score_pairs: dict[str, Pair]
    stretches: list[Stretch]
    score_stretches: list[Stretch]
    base: dict[str, Distribution]


def drift(deployment: Deployment, interval: Interval, baseline: str | None = None) -> Drift:
    """Live traffic of an interval against a baseline: `reference` (also None, where there is one) or `earlier`.

    Five queries at most; what they read follows the interval's length and the columns, not the traffic.
    """
    return compared(deployment, interval, baseline).drift


def compared(deployment: Deployment, interval: Interval, baseline: str | None = None) -> Compared:
    """As `drift`, with the distributions."""
    served = sketch_rollups.read(deployment.pk, (FEATURES, PICTURES, SCORES), interval.since, interval.until, SHOWN)
    now = [stretch for stretch in served if stretch.kind != SCORES]
    reference = _reference(deployment, {stretch.version for stretch in served})
    by_reference = reference is not None and baseline != EARLIER
    past = _Past(deployment, interval, (SCORES,) if by_reference else (FEATURES, PICTURES, SCORES))
    earlier: Earlier | None = None
    if reference is not None and by_reference:
        base = {name: Distribution.of([one]) for name, one in digests.unpack(reference.packed).items()}
        used: str | None = REFERENCE
    else:
        earlier = past.of(lambda stretch: stretch.kind != SCORES)
        base = {name: Distribution.of(parts) for name, parts in earlier.columns.items()}
        used = EARLIER if earlier.stretches else None
    pairs = _pairs(base, now)
    kinds = {name: stretch.kind for stretch in now for name in stretch.columns}
    told = _tell(pairs, {name: "picture" if kinds[name] == PICTURES else "feature" for name in pairs})
    prediction, score_pairs, main = _prediction([one for one in served if one.kind == SCORES], past)
    return Compared(
        drift={
            "deployment": deployment.name,
            "since": interval.since.isoformat(),
            "until": interval.until.isoformat(),
            "baseline": used,
            "has_reference": reference is not None,
            "reference_version": reference.version.number if reference is not None and used == REFERENCE else None,
            "baseline_since": earlier.since.isoformat() if earlier and used else None,
            "baseline_until": earlier.until.isoformat() if earlier and used else None,
            "same_hours": bool(earlier and used and earlier.same_hours),
            "n": max((one["n"] for one in told), default=0),
            "needed": ENOUGH,
            "p_limit": p_limit(len(pairs)),
            "features": told,
            "prediction": prediction,
        },
        pairs=pairs,
        score_pairs=score_pairs,
        stretches=now,
        score_stretches=main,
        base=base,
    )


def by_name(stretches: Iterable[Stretch]) -> dict[str, list[Digest]]:
    """The digests of each column, over all stretches."""
    found: dict[str, list[Digest]] = {}
    for stretch in stretches:
        for name, one in stretch.columns.items():
            found.setdefault(name, []).append(one)
    return found


def compare(name: str, kind: str, pair: Pair, columns: int) -> Moved:
    """One column of now against its baseline, decided as one of that many that are looked at together."""
    base, now = pair.base, pair.now
    results: dict[str, Result] = {}
    enough = min(base.n, now.n) >= ENOUGH and pair.comparable
    if enough:
        results = {test.key: result for test in TESTS if (result := test.run(pair)) is not None}
    elif min(base.rows, now.rows) >= ENOUGH:
        # Everything may be missing now: that is told without a number to compare.
        results = {test.key: result for test in TESTS if test.key == "missing" and (result := test.run(pair))}
    by = [test.key for test in TESTS if test.key in results and decides(test, results[test.key], columns)]

    def value(key: str, part: str = "value") -> Number:
        found = getattr(results[key], part) if key in results else None
        return None if found is None else float(f"{found:.6g}")

    return {
        "name": name,
        "kind": kind,
        "drifting": bool(by),
        "by": by,
        "enough": enough,
        "needed": max(0, ENOUGH - now.n, ENOUGH - base.n),
        "psi": value("psi"),
        "js": value("js"),
        "wasserstein": value("wasserstein"),
        "ks": value("ks"),
        "ks_p": value("ks", "p"),
        "chi2": value("chi2"),
        "chi2_p": value("chi2", "p"),
        "cramers_v": value("chi2", "size"),
        "n": now.n,
        "n_baseline": base.n,
        "missing_share": now.missing_share,
        "missing_share_baseline": base.missing_share,
        "mean": now.mean,
        "mean_baseline": base.mean,
    }


def by_effect(moved: Iterable[Moved]) -> list[Moved]:
    """The most moved first: what drifts, then by PSI. A column that lost its values has no PSI, and moved most."""

    def place(one: Moved) -> tuple[bool, float, str]:
        index = one["psi"]
        return not one["drifting"], -(index if index is not None else math.inf if one["drifting"] else 0.0), one["name"]

    return sorted(moved, key=place)


def _tell(pairs: Mapping[str, Pair], kinds: Mapping[str, str]) -> list[Moved]:
    return by_effect(compare(name, kinds[name], pair, len(pairs)) for name, pair in pairs.items())


def _pairs(base: Mapping[str, Distribution], now: Sequence[Stretch]) -> dict[str, Pair]:
    nothing = Distribution.of([])
    return {name: Pair(base.get(name, nothing), Distribution.of(parts)) for name, parts in by_name(now).items()}


def _reference(deployment: Deployment, versions: set[int]) -> ReferenceDigests | None:
    """The reference set of the newest of these versions that has one. One query."""
    found = ReferenceDigests.objects.filter(version__model_id=deployment.model_id, version__number__in=versions)
    return found.select_related("version").order_by("-version__number").first()


class _Past:
    """What was served before an interval, read when it is asked for: at most two queries, whatever is asked."""

    def __init__(self, deployment: Deployment, interval: Interval, kinds: Sequence[str]) -> None:
        self._deployment_id = deployment.pk
        self._interval = interval
        self._kinds = kinds
        self._read: dict[timedelta, list[Stretch]] = {}

    def of(self, wanted: Callable[[Stretch], bool]) -> Earlier:
        """The same hours of the day before where they have enough rows, else the stretch before."""
        span = self._interval.until - self._interval.since
        if span <= DAY:
            earlier = self._shifted(DAY, wanted, same_hours=True)
            if span == DAY or _rows(earlier.stretches) >= ENOUGH:
                return earlier
        return self._shifted(span, wanted, same_hours=False)

    def _shifted(self, by: timedelta, wanted: Callable[[Stretch], bool], *, same_hours: bool) -> Earlier:
        since, until = self._interval.since - by, self._interval.until - by
        if by not in self._read:
            self._read[by] = _before(
                sketch_rollups.read(self._deployment_id, self._kinds, since, until, SHOWN),
                self._interval.since.timestamp(),
            )
        return Earlier([one for one in self._read[by] if wanted(one)], since, until, same_hours)


def _before(stretches: Iterable[Stretch], moment: float) -> list[Stretch]:
    """Without the bucket that reaches into now: it is counted there."""
    return [stretch for stretch in stretches if stretch.end <= moment]


def _rows(stretches: Iterable[Stretch]) -> int:
    counts = by_name(stretches)
    return max((sum(part.n + part.missing for part in parts) for parts in counts.values()), default=0)


def _prediction(scores: Sequence[Stretch], past: _Past) -> tuple[Prediction, dict[str, Pair], list[Stretch]]:
    versions = {stretch.version for stretch in scores}
    main = max(
        versions, key=lambda number: (_rows(one for one in scores if one.version == number), number), default=None
    )
    mine = [stretch for stretch in scores if stretch.version == main]
    before = past.of(lambda stretch: stretch.kind == SCORES and stretch.version == main) if mine else None
    stretches = before.stretches if before else []
    pairs = _pairs({name: Distribution.of(parts) for name, parts in by_name(stretches).items()}, mine)
    told = _tell(pairs, dict.fromkeys(pairs, "score"))
    first = told[0] if told else None
    known = before if stretches else None
    prediction: Prediction = {
        "baseline": EARLIER if known else None,
        "baseline_since": known.since.isoformat() if known else None,
        "baseline_until": known.until.isoformat() if known else None,
        "version": main,
        "drifting": any(one["drifting"] for one in told),
        "psi": first["psi"] if first else None,
        "js": first["js"] if first else None,
        "wasserstein": first["wasserstein"] if first else None,
        "ks": first["ks"] if first else None,
        "n": first["n"] if first else 0,
        "scores": told,
    }
    return prediction, pairs, mine


def quantile_rows(pair: Pair, ranks: Sequence[float]) -> list[tuple[float, float, float]]:
    """(rank, baseline's quantile, now's); empty for texts."""
    if not pair.is_numeric or not pair.now.is_numeric:
        return []
    return list(zip(ranks, pair.base.quantiles(ranks).tolist(), pair.now.quantiles(ranks).tolist(), strict=True))
