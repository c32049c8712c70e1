"""How it went: what failed, when it is tried again, and what health and metrics say of it.

Knows: back-off, whom a failure concerns. Must not know: what an operation is for. Called by the reconciler.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import structlog

from ipvsproxy.applier import describe
from ipvsproxy.dataplane import ChangeElements, DataplaneError
from ipvsproxy.surroundings import Clock, Surroundings
from kubecore import log
from kubecore.backoff import Backoff

_log = structlog.get_logger()
_TOLD = 10
"""Failures of one turn that are logged, each on a line; all of them are in /healthz."""


class Standing:
    """What is out of order, and when to look at it again.

    Args:
        around: health and metrics.
        clock: the `time` module, or a test's.
        rng: jitter of retries.
    """

    def __init__(self, around: Surroundings, clock: Clock, rng: random.Random) -> None:
        self._around = around
        self._clock = clock
        self._backoff = Backoff(rng.uniform, first_s=0.5, cap_s=30.0)
        self.retry_at_s: float | None = None
        """None: nothing failed."""

    async def until_it_works(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step with back-off: a kernel that refuses now may serve in a moment (a module being loaded)."""
        degraded = self._around.health.degraded
        while True:
            try:
                await step()
            except DataplaneError as error:
                degraded["kernel"] = describe(error)
                wait_s = self._backoff.next_s()
                _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
                await asyncio.sleep(wait_s)
            else:
                degraded.pop("kernel", None)
                self._backoff.reset()
                return

    def due(self, now_s: float) -> bool:
        """Whether it is time to try again what failed."""
        return self.retry_at_s is not None and now_s >= self.retry_at_s

    def conclude(self, failures: Sequence[DataplaneError], blame: Callable[[DataplaneError], str]) -> None:
        """Take note of what failed in a turn; `blame` names the Service, or else the part, that it is shown under."""
        around, now_s = self._around, self._clock.monotonic()
        if failures:
            if self.retry_at_s is None or now_s >= self.retry_at_s:
                wait_s = self._backoff.next_s()
                self.retry_at_s = now_s + wait_s
                for error in failures[:_TOLD]:
                    _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
            around.health.degraded |= {blame(error): describe(error) for error in failures}
        elif self.retry_at_s is None or now_s >= self.retry_at_s:
            self.retry_at_s = None
            self._backoff.reset()
            around.health.degraded.clear()
        around.metrics.degraded.set(len(around.health.degraded))
        # A Service that the kernel refuses is shown as degraded; only when our table or routes cannot be written is the
        # node itself out of order, for then every Service is concerned.
        if not any(error.op is None or isinstance(error.op, ChangeElements) for error in failures):
            around.health.updated(self._clock.time())
