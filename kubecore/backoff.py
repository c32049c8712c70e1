"""How long to wait before trying again: exponential, jittered, capped.

Knows: the arithmetic. Must not know: clocks, sleeping or what failed. Randomness comes in as a function, so that a
test (and pure code) decides it. Called by the watch sessions and by everything else that retries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Uniform = Callable[[float, float], float]
"""A draw between two bounds, such as `random.uniform`."""


@dataclass(slots=True)
class Backoff:
    """The waits of one thing that keeps failing: the n-th lies in [d, 2d), where d = first_s doubled n times.

    The spread is wide on purpose: when an API server comes back, thousands of nodes have been counting since the same
    moment.
    """

    uniform: Uniform
    first_s: float = 0.8
    """Shortest possible wait; client-go's reflector begins with the same."""
    cap_s: float = 30.0
    """No wait is longer, jitter included."""
    failures: int = 0
    """Waits handed out since the last reset."""

    def next_s(self) -> float:
        """The seconds to wait now; the following wait is about twice as long."""
        # The exponent is bounded so that years of failures do not overflow a float.
        low = min(self.first_s * 2.0 ** min(self.failures, 32), self.cap_s / 2)
        self.failures += 1
        return self.uniform(low, 2 * low)

    def reset(self) -> None:
        """Begin anew: what failed has worked."""
        self.failures = 0
