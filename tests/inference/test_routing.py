"""Buckets, splits and ids."""

import threading
from collections import Counter
from itertools import pairwise
from uuid import UUID

import pytest

from inference.contracts import DeploymentRoute, Share, Task
from inference.errors import InferenceError
from inference.routing import Split, Uuid7, bucket, choose, shadows_for

pytestmark = pytest.mark.unit


def deployment(live: dict[int, int], shadow: dict[int, int] | None = None, salt: str = "pepper") -> DeploymentRoute:
    def shares(of: dict[int, int]) -> tuple[Share, ...]:
        return tuple(Share(number=number, basis_points=points) for number, points in of.items())

    return DeploymentRoute(
        id="d1",
        name="fraud",
        team_id="t1",
        model="fraud",
        revision=1,
        salt=salt,
        task=Task.TABULAR_CLASSIFICATION,
        live=shares(live),
        shadow=shares(shadow or {}),
    )


def test_a_bucket_is_the_same_in_every_release() -> None:
    assert [bucket("pepper", key) for key in ("", "a", "user-1", "ü")] == [1862, 9299, 8020, 7774]


def test_buckets_are_even_and_depend_on_the_salt() -> None:
    keys = [f"user-{n}" for n in range(20_000)]
    tenths = Counter(bucket("pepper", key) // 1000 for key in keys)
    assert all(1_800 < tenths[tenth] < 2_200 for tenth in range(10))
    assert sum(bucket("pepper", key) == bucket("salt", key) for key in keys) < 20


def test_shares_are_met_within_the_binomial_band() -> None:
    # 10,000 draws at 10 %: the binomial distribution has 99.9 % of its weight from 903 to 1,100.
    seen = []
    for salt in ("pepper", "salt", "9f86d081", "2c26b46b", "fcde2b2e"):
        split = Split.of(deployment({1: 9_000, 2: 1_000}, salt=salt))
        counts = Counter(split.choose(bucket(split.salt, f"customer-{n}")) for n in range(10_000))
        seen.append(counts[2])
    assert all(903 <= count <= 1_100 for count in seen), seen
    assert len(set(seen)) > 1


def test_every_bucket_at_an_edge_goes_to_the_version_that_the_share_says() -> None:
    route = deployment({1: 9_000, 3: 999, 7: 1})
    assert [choose(route, at) for at in (0, 8_999, 9_000, 9_998, 9_999)] == [1, 1, 3, 3, 7]


def test_moving_the_split_moves_only_the_keys_in_between() -> None:
    before, after = Split.of(deployment({1: 9_000, 2: 1_000})), Split.of(deployment({1: 8_000, 2: 2_000}))
    moved = [at for at in range(10_000) if before.choose(at) != after.choose(at)]
    assert moved == list(range(8_000, 9_000))


@pytest.mark.parametrize("live", [{}, {1: 0}, {1: 9_999}])
def test_a_split_that_is_empty_or_short_has_no_active_version(live: dict[int, int]) -> None:
    with pytest.raises(InferenceError) as caught:
        choose(deployment(live), 17)
    assert caught.value.code == "no_active_version"
    assert caught.value.headers == {"Retry-After": "1"}


def test_shadows_sample_their_share_independently_of_the_live_split() -> None:
    route = deployment({1: 5_000, 2: 5_000}, {3: 2_000})
    keys = [f"user-{n}" for n in range(5_000)]
    copied = [key for key in keys if shadows_for(route, key) == (3,)]
    assert 880 < len(copied) < 1_120
    arms = Counter(choose(route, bucket(route.salt, key)) for key in copied)
    assert min(arms.values()) > 0.4 * len(copied)


def test_ids_are_version_7_of_rfc_9562_and_carry_the_time() -> None:
    made = UUID(Uuid7(lambda: 1_700_000_000.123)())
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == 1_700_000_000_123


def test_ids_only_grow_even_when_the_clock_steps_back() -> None:
    times = iter([5.0] * 500 + [4.0] * 500 + [6.0] * 500)
    make = Uuid7(lambda: next(times))
    ids = [make() for _ in range(1_500)]
    assert all(earlier < later for earlier, later in pairwise(ids))


def test_ids_made_by_several_threads_are_distinct() -> None:
    make = Uuid7(lambda: 1.0)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend(make() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 2_000
