"""Faults on demand: what an API server, or the path to it, does wrong.

A Fault waits for requests it fits and strikes `times` of them. Through HTTP: `POST /_faults` with the same fields as
JSON adds one, `DELETE /_faults` clears all, `GET /_faults` shows what is left.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

What = Literal["status", "cut", "eof", "stall", "slow", "expire_continue", "gone", "error_event", "garbage"]


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One fault."""

    what: What
    """status: answer `code` (with Retry-After if `retry_after_s`). cut: break the connection in the middle of a line
    (or page). eof: end the body in good order. stall: send nothing more, not even bookmarks, for `seconds`. slow: wait
    `seconds` before the body. expire_continue: 410 on a continue token. gone: HTTP 410. error_event: an ERROR event
    with `code`.
    garbage: a line that is no JSON."""
    resource: str = ""
    """Plural; empty: any."""
    verb: str = ""
    """`list`, `watch`, `create` …; empty: any."""
    times: int = 1
    """How many requests it strikes; 0: all until cleared."""
    after: int = 0
    """How many objects go through before it strikes within a stream or page."""
    code: int = 500
    reason: str = ""
    message: str = "injected by the test"
    retry_after_s: int | None = None
    seconds: float = 3600.0


class Faults:
    """The faults that wait."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._cleared = asyncio.Event()
        self.struck = 0
        """How often a fault struck since the start."""

    def add(self, fault: Fault) -> Fault:
        self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all; what stalls continues."""
        self._waiting.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def waiting(self) -> list[Fault]:
        return list(self._waiting)

    def take(self, resource: str, verb: str, *, continued: bool = False) -> Fault | None:
        """The first fault that fits this request, used up by one."""
        for fault in self._waiting:
            if fault.resource not in ("", resource) or fault.verb not in ("", verb):
                continue
            if fault.what == "expire_continue" and not continued:
                continue
            if fault.times:
                fault.times -= 1
                if not fault.times:
                    self._waiting.remove(fault)
            self.struck += 1
            return fault
        return None

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until cleared."""
        cleared = self._cleared
        try:
            async with asyncio.timeout(seconds):
                await cleared.wait()
        except TimeoutError:
            pass
