"""How many requests a client may send: a rate with bursts, and how many may wait for their answers at a time.

Knows time and asyncio. Must not know requests. Held by the API client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

DEFAULT_BURST = 10
"""Where only a rate is given: client-go's."""


@dataclass(frozen=True, slots=True)
class Limits:
    """0, or less: no limit."""

    qps: float = 0.0
    """Requests a second, on average."""
    burst: int = 0
    """Requests that may be sent at once after a rest. 0: DEFAULT_BURST."""
    max_inflight: int = 0
    """Requests whose answer has not begun. A watch whose answer has begun does not count: it lasts for ever."""


class Throttle:
    """Lets requests pass in the order they come: a token bucket, then a bounded number at a time."""

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval_s = 1 / limits.qps if limits.qps > 0 else 0.0
        self._burst_s = self._interval_s * ((limits.burst or DEFAULT_BURST) - 1)
        self._slots = asyncio.Semaphore(limits.max_inflight) if limits.max_inflight else None
        self._clock = clock
        self._sleep = sleep
        self._next_s = float("-inf")
        """When the request after those already admitted would be due if all came evenly."""

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[float]:
        """Wait for a turn, and hold it; yields the seconds waited."""
        began_s = self._clock()
        if self._interval_s:
            due_s = max(self._next_s, began_s - self._burst_s)
            self._next_s = due_s + self._interval_s
            if due_s > began_s:
                await self._sleep(due_s - began_s)
        async with self._slots or contextlib.nullcontext():
            yield self._clock() - began_s
