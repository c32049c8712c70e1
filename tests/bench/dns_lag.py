"""The DNS server with a clock in its event loop: `python -m tests.bench.dns_lag REPORT run …`.

Measures the processor time between two polls of the sockets: what a query that arrives at the worst moment waits, were
the machine ours alone. On SIGUSR2 writes what was seen since the last report to the file REPORT, as JSON. Processor and
not wall time, so that other processes' work is not mistaken for a stall; blocking calls would not show, and there are
none.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import signal
import sys
import time
from pathlib import Path

from dnsserver.cli import main


class Clocked(selectors.DefaultSelector):
    """Notes the processor time of this thread between the end of a poll and the beginning of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_s: list[float] = []
        self._polled_s = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class."""
        self.seen_s.append(time.thread_time() - self._polled_s)
        found = super().select(timeout)
        self._polled_s = time.thread_time()
        return found

    def report(self, path: Path) -> None:
        """Write the quantiles since the last report, microseconds."""
        seen, self.seen_s = sorted(self.seen_s), []
        figures = {
            "polls": len(seen),
            "over_1ms": sum(s > 0.001 for s in seen),
            "over_5ms": sum(s > 0.005 for s in seen),
        }
        for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999), ("max_us", 1.0)):
            figures[name] = round(seen[int(share * (len(seen) - 1))] * 1e6) if seen else 0
        made = path.with_suffix(".new")
        made.write_text(json.dumps(figures))
        made.replace(path)
        self._polled_s = time.thread_time()  # the report is none of the server's work
        self.seen_s.clear()


class Policy(asyncio.DefaultEventLoopPolicy):
    """Loops with such a selector."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop that reports on SIGUSR2."""
        selector = Clocked()
        loop = asyncio.SelectorEventLoop(selector)
        loop.add_signal_handler(signal.SIGUSR2, selector.report, self._path)
        return loop


if __name__ == "__main__":
    asyncio.set_event_loop_policy(Policy(Path(sys.argv[1])))
    sys.exit(main(sys.argv[2:]))
