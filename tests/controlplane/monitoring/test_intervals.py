"""Stretches of time: what a request may ask for, and how it is cut."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from controlplane.errors import DomainError
from controlplane.monitoring.intervals import POINTS, Interval, read_interval

pytestmark = pytest.mark.unit


def test_a_day_is_the_default_and_is_cut_into_few_enough_steps() -> None:
    interval = read_interval(None, None)
    assert interval.seconds == pytest.approx(86_400)
    assert len(interval.starts()) <= POINTS + 2


def test_times_are_relative_or_absolute() -> None:
    hour = read_interval("1h", None)
    assert hour.since == pytest.approx(timezone.now() - timedelta(hours=1), abs=timedelta(seconds=5))
    exact = read_interval("2026-03-01T12:00:00Z", "2026-03-01 13:00:00+00:00".replace(" ", "T"))
    assert exact.since == datetime(2026, 3, 1, 12, tzinfo=UTC)
    # As a query string leaves it when the + is not escaped.
    assert read_interval("2026-03-01T12:00:00 00:00", "2026-03-01T13:00:00Z").since == exact.since


@pytest.mark.parametrize(
    ("since", "until"),
    [("x", None), ("1h", "2h"), ("2026-13-01T00:00:00Z", None), ("0001-01-01T00:00:00Z", None), ("99999d", None)],
)
def test_what_cannot_be_is_refused(since: str, until: str | None) -> None:
    with pytest.raises(DomainError) as refused:
        read_interval(since, until)
    assert refused.value.code == "validation_error"


def test_steps_begin_at_multiples_and_cover_the_whole() -> None:
    since = datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC)
    interval = Interval(since, since + timedelta(seconds=30), 10)
    starts = interval.starts()
    assert [start % 10 for start in starts] == [0] * len(starts)
    assert starts[0] <= since.timestamp() < starts[0] + 10
    assert interval.step_of(interval.until) == len(starts) - 1
    assert interval.coarsened(60).step_s == 60
