"""Digests that are kept between requests: those used last, within a budget, each deployment's for itself."""

import uuid

import pytest

from controlplane.predictions.kept import Kept
from inference.runtime.digest import Digest

pytestmark = pytest.mark.unit

MINE, OTHER = uuid.uuid4(), uuid.uuid4()


def columns(n: int) -> dict[str, Digest]:
    return {"amount": Digest(n=n, categories={})}


def test_what_was_used_last_is_kept_within_the_budget() -> None:
    kept = Kept(most_bytes=100)
    kept.used({1: (columns(1), 40), 2: (columns(2), 40)}, MINE)
    kept.used({1: (columns(1), 0)}, MINE)
    kept.used({3: (columns(3), 40)}, MINE)
    assert set(kept.of(MINE)) == {1, 3}
    assert kept.of(MINE)[3]["amount"].n == 3


def test_each_deployment_has_its_own() -> None:
    kept = Kept()
    kept.used({1: (columns(1), 10)}, MINE)
    kept.used({2: (columns(2), 10)}, OTHER)
    assert set(kept.of(MINE)) == {1}
    assert kept.of(uuid.uuid4()) == {}


def test_a_row_that_is_too_large_or_was_pushed_out_is_not_kept() -> None:
    kept = Kept(most_bytes=100)
    kept.used({1: (columns(1), 101), 2: (columns(2), 0)}, MINE)
    assert kept.of(MINE) == {}
