"""One column of now against its baseline: every test's figures, and whether they call it drifting."""

import math
from collections.abc import Iterable
from typing import TypedDict

from controlplane.monitoring.distributions import Pair
from controlplane.monitoring.drift_tests import ENOUGH, TESTS, Result, decides

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
