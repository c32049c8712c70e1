"""Waits grow twofold to a cap, spread over [d, 2d), and start anew when something worked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kubecore.backoff import Backoff


def test_waits_double_up_to_the_cap() -> None:
    shortest, longest = Backoff(lambda low, high: low), Backoff(lambda low, high: high)
    assert [shortest.next_s() for _ in range(8)] == [0.8, 1.6, 3.2, 6.4, 12.8, 15, 15, 15]
    assert [longest.next_s() for _ in range(8)] == [1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]


def test_success_begins_anew() -> None:
    backoff = Backoff(lambda low, high: low)
    backoff.next_s()
    backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == 0.8


@given(st.integers(0, 5000), st.floats(0, 1))
def test_no_wait_is_negative_or_beyond_the_cap_however_long_it_fails(failures: int, draw: float) -> None:
    backoff = Backoff(lambda low, high: low + draw * (high - low), failures=failures)
    assert 0.8 <= backoff.next_s() <= 30
