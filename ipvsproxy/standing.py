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
        self._is_retried = False
        """Whether this turn tries again what failed."""
        self._concerns_all = False
        """Whether something failed, and was not done since, that every Service needs."""

    async def until_it_works(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step with back-off: a kernel that refuses now may serve in a moment (a module being loaded)."""
        degraded = self._around.health.degraded
        while True:
            try:
                await step()
            except DataplaneError as error:
                degraded["kernel"] = describe(error)
                self._around.health.queued(self._clock.time())
                wait_s = self._backoff.next_s()
                _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
                await asyncio.sleep(wait_s)
            else:
                if degraded.pop("kernel", None) and not self._concerns_all:
                    self._around.health.updated(self._clock.time())
                self._backoff.reset()
                return

    def begin_retry(self, now_s: float) -> bool:
        """Whether this turn tries again what failed, for it is time."""
        self._is_retried = self.retry_at_s is not None and now_s >= self.retry_at_s
        return self._is_retried

    def conclude(self, failures: Sequence[DataplaneError], blame: Callable[[DataplaneError], str]) -> None:
        """Take note of what failed in a turn; `blame` names the Service, or else the part, that it is shown under."""
        around = self._around
        is_settled = self.retry_at_s is None or self._is_retried
        self._is_retried = False
        if is_settled:  # everything has been tried
            around.health.degraded.clear()
        if failures:
            if is_settled:
                wait_s = self._backoff.next_s()
                self.retry_at_s = self._clock.monotonic() + wait_s
                for error in failures[:_TOLD]:
                    _log.warning(log.RECONCILE_FAILED, error=describe(error), retry_s=round(wait_s, 1))
            around.health.degraded |= {blame(error): describe(error) for error in failures}
        elif is_settled:
            self.retry_at_s = None
            self._backoff.reset()
        around.metrics.degraded.set(len(around.health.degraded))
        # A Service that the kernel refuses is shown as degraded; only when our table or routes cannot be written is the
        # node itself out of order, for then every Service is concerned; and it stays so until that is done.
        concerns_all = any(error.op is None or isinstance(error.op, ChangeElements) for error in failures)
        self._concerns_all = concerns_all or (self._concerns_all and not is_settled)
        if not self._concerns_all:
            around.health.updated(self._clock.time())
