"""The event loop's thread, and no other, gets short slices of the processor where the system knows them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from inference.server.slices import SLICE_S, shorten, slice_s
from tests.inference.server.publishing import needs_slices

pytestmark = pytest.mark.unit

Result = TypeVar("Result")


def in_a_thread(work: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@needs_slices
def test_a_thread_gets_the_slices_that_it_asked_for() -> None:
    before = slice_s()

    def ask() -> tuple[bool, float]:
        return shorten(), slice_s()

    assert in_a_thread(ask) == (True, SLICE_S)
    assert slice_s() == before


@needs_slices
def test_threads_that_it_starts_are_as_all_others() -> None:
    def ask() -> tuple[bool, float]:
        return shorten(), in_a_thread(slice_s)

    known, theirs = in_a_thread(ask)
    assert known
    assert theirs != SLICE_S


def test_a_machine_whose_calls_have_no_known_number_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert in_a_thread(shorten) is False
    assert slice_s() == 0
