"""Requests within a rate, and not too many at a time."""

from __future__ import annotations

import asyncio

import pytest

from kubecore.throttle import Limits, Throttle


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("limits", "waits"),
    [
        (Limits(), [0.0] * 6),
        (Limits(qps=-1, burst=1), [0.0] * 6),
        (Limits(qps=2, burst=1), [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (Limits(qps=2, burst=3), [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]),
        (Limits(qps=0.5, burst=1), [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        (Limits(qps=5), [0.0] * 6),
        (Limits(burst=1), [0.0] * 6),
    ],
)
async def test_requests_one_after_the_other(limits: Limits, waits: list[float]) -> None:
    clock = Clock()
    throttle = Throttle(limits, clock=clock, sleep=clock.sleep)
    waited = []
    for _ in waits:
        async with throttle.admit() as seconds:
            waited.append(round(seconds, 6))
    assert waited == waits


async def test_a_rest_allows_a_burst_again_but_no_larger_one() -> None:
    clock = Clock()
    throttle = Throttle(Limits(qps=1, burst=2), clock=clock, sleep=clock.sleep)
    waited = []
    for rest_s in (0.0, 0.0, 0.0, 1000.0, 0.0, 0.0):
        clock.now_s += rest_s
        async with throttle.admit() as seconds:
            waited.append(seconds)
    assert waited == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


async def test_so_many_at_a_time() -> None:
    throttle = Throttle(Limits(max_inflight=2))
    under_way, most = 0, 0

    async def request() -> None:
        nonlocal under_way, most
        async with throttle.admit():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(request() for _ in range(10)))
    assert most == 2
