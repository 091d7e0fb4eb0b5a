"""How far what a deployment sees and says has moved: now against a version's reference set, or against earlier serving.

Earlier serving is the same hours of the day before where enough was served then, so that the pattern of a day is no
drift; else the stretch just before. Predictions are always compared with earlier ones of the same version: a reference
set holds none, and a split that moves is no drift. drift_tests.py holds the tests and the rule by which they decide.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

from django.db.models import Q

from controlplane.catalog.models import ModelVersion, ReferenceDigests
from controlplane.deployments.models import Deployment
from controlplane.errors import field_error
from controlplane.monitoring.distributions import Distribution, Pair
from controlplane.monitoring.drift_columns import Moved, Number, by_effect, compare
from controlplane.monitoring.drift_series import moved_since
from controlplane.monitoring.drift_tests import ENOUGH, p_limit
from controlplane.monitoring.intervals import Interval
from controlplane.monitoring.traffic import SHOWN
from controlplane.predictions import sketch_rollups
from controlplane.predictions.sketch_rollups import Stretch
from controlplane.predictions.sketches import FEATURES, PICTURES, SCORES
from inference.runtime import digest as digests
from inference.runtime.digest import Digest

REFERENCE, EARLIER = "reference", "earlier"
DAY = timedelta(days=1)


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
    `baseline_until`, `same_hours` of the day before or the stretch before), or None. Moved most comes first.
    `undigested`: versions that answered and whose reference set, newer than the one compared with, was accepted before
    sets were digested: it is to be added again.
    `moved_since`: the first step since which one of the most moved columns has been drifting."""

    deployment: str
    since: str
    until: str
    baseline: str | None
    has_reference: bool
    undigested: list[int]
    reference_version: int | None
    baseline_since: str | None
    baseline_until: str | None
    same_hours: bool
    n: int
    needed: int
    p_limit: float
    moved_since: str | None
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
    """A drift's figures with what they were made from, for charts: pairs by name, and now's stretches of both."""

    drift: Drift
    pairs: dict[str, Pair]
    score_pairs: dict[str, Pair]
    stretches: list[Stretch]
    score_stretches: list[Stretch]


def read_baseline(text: str | None) -> str | None:
    """The baseline that a request names. Raises DomainError validation_error."""
    if text in (None, "", REFERENCE, EARLIER):
        return text or None
    raise field_error("validation_error", "baseline", "A baseline is reference or earlier.")


def drift(deployment: Deployment, interval: Interval, baseline: str | None = None) -> Drift:
    """Live traffic of an interval against a baseline: `reference` (also None, where there is one) or `earlier`.

    Four queries at most; what they read follows the interval's length and the columns, not the traffic.
    """
    return compared(deployment, interval, baseline).drift


def compared(deployment: Deployment, interval: Interval, baseline: str | None = None) -> Compared:
    """As `drift`, with the distributions."""
    served = sketch_rollups.read(deployment.pk, (FEATURES, PICTURES, SCORES), interval.since, interval.until, SHOWN)
    now = [stretch for stretch in served if stretch.kind != SCORES]
    reference, undigested = _reference(deployment, {stretch.version for stretch in served})
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
    drifting = [one["name"] for one in told if one["drifting"]]
    prediction, score_pairs, main = _prediction([one for one in served if one.kind == SCORES], past)
    return Compared(
        drift={
            "deployment": deployment.name,
            "since": interval.since.isoformat(),
            "until": interval.until.isoformat(),
            "baseline": used,
            "has_reference": reference is not None,
            "undigested": undigested,
            "reference_version": reference.version.number if reference is not None and used == REFERENCE else None,
            "baseline_since": earlier.since.isoformat() if earlier and used else None,
            "baseline_until": earlier.until.isoformat() if earlier and used else None,
            "same_hours": bool(earlier and used and earlier.same_hours),
            "n": max((one["n"] for one in told), default=0),
            "needed": ENOUGH,
            "p_limit": p_limit(len(pairs)),
            "moved_since": moved_since(drifting, base, now, interval, len(pairs)),
            "features": told,
            "prediction": prediction,
        },
        pairs=pairs,
        score_pairs=score_pairs,
        stretches=now,
        score_stretches=main,
    )


def by_name(stretches: Iterable[Stretch]) -> dict[str, list[Digest]]:
    """The digests of each column, over all stretches."""
    found: dict[str, list[Digest]] = {}
    for stretch in stretches:
        for name, one in stretch.columns.items():
            found.setdefault(name, []).append(one)
    return found


def _tell(pairs: Mapping[str, Pair], kinds: Mapping[str, str]) -> list[Moved]:
    return by_effect(compare(name, kinds[name], pair, len(pairs)) for name, pair in pairs.items())


def _pairs(base: Mapping[str, Distribution], now: Sequence[Stretch]) -> dict[str, Pair]:
    nothing = Distribution.of([])
    return {name: Pair(base.get(name, nothing), Distribution.of(parts)) for name, parts in by_name(now).items()}


def _reference(deployment: Deployment, versions: set[int]) -> tuple[ReferenceDigests | None, list[int]]:
    """The digests of the newest of these versions that has any, and the newer ones that have a reference set without
    digests. One query."""
    given = Q(reference_artifact__isnull=False) | Q(reference_digests__isnull=False)
    found = ModelVersion.objects.filter(given, model=deployment.model_id, number__in=versions).order_by("-number")
    undigested: list[int] = []
    for version in found.select_related("reference_digests").only("number", "reference_digests"):
        digested: ReferenceDigests | None = getattr(version, "reference_digests", None)
        if digested is not None:
            return digested, undigested
        undigested.append(version.number)
    return None, undigested


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
    """Without the bucket of which most lies in now: it is counted there."""
    return [stretch for stretch in stretches if stretch.middle < moment]


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
