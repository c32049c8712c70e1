"""What changes of the cluster do to latency: p99 in windows that take turns, and how long the event loop was held.

The machine may be shared. So calm and changing windows alternate (calm, changing, changing, calm, …), every one has its
own p99, and their medians are compared: what another process does to a few windows does not count, what changes do to
each of theirs does. How long the event loop is held is measured in processor time, inside a server of its own.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RATE, CHANGES = 5000, 100
WINDOW_S, SETTLE_S = 1.0, 0.3

Figures = dict[str, Any]


def waited_s(pids: list[int]) -> float:
    """Seconds these processes were ready to run and did not."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


def latency(ask: Callable[..., Figures], pids: list[int], churn: Callable[[int], None], rounds: int) -> Figures:
    """p99 at `RATE` queries a second, calm and with `CHANGES` a second: medians over windows, four each a round."""
    calm: list[Figures] = []
    changing: list[Figures] = []
    for _ in range(2 * rounds):
        for rate, into in ((0, calm), (CHANGES, changing), (CHANGES, changing), (0, calm)):
            churn(rate)
            time.sleep(SETTLE_S)
            before = waited_s(pids)
            into.append(ask(seconds=WINDOW_S, rate=RATE))
            into[-1]["waited_s"] = waited_s(pids) - before
    churn(0)
    p99 = {name: [w["p99_us"] for w in windows] for name, windows in (("calm", calm), ("changing", changing))}
    return {
        "calm_p99_us": statistics.median(p99["calm"]),
        "changing_p99_us": statistics.median(p99["changing"]),
        "ratio": statistics.median(p99["changing"]) / max(statistics.median(p99["calm"]), 1),
        "calm_p50_us": statistics.median(w["p50_us"] for w in calm),
        "changing_p50_us": statistics.median(w["p50_us"] for w in changing),
        "windows_p99_us": p99,
        "waited_share": sum(w["waited_s"] for w in calm + changing) / (len(calm + changing) * WINDOW_S),
        "lost": sum(w["lost"] for w in calm + changing),
    }


def held(
    ask: Callable[..., Figures],
    pid: int,
    path: Path,
    churn: Callable[[int], None],
    relist: Callable[[], None],
    seconds: float,
) -> dict[str, Figures]:
    """How long the event loop of a `dns_lag` server was held while calm, changing, and listing everything anew."""

    def report() -> Figures:
        path.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        for _ in range(500):
            if path.exists():
                found: Figures = json.loads(path.read_text())
                return found
            time.sleep(0.01)
        raise TimeoutError("the server does not report")

    found = {}
    ask(seconds=5.0, rate=RATE)
    for name, begin in (("calm", partial(churn, 0)), ("changing", partial(churn, CHANGES)), ("relist", relist)):
        if name == "relist":
            churn(0)
        time.sleep(SETTLE_S)
        report()
        begin()
        ask(seconds=seconds, rate=RATE)
        found[name] = report()
    return found
