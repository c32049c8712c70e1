"""`errors`: a line for each query that failed here, alike ones counted together if asked for.

What is told is the text of the reply's extended error: who answers SERVFAIL says why.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dnsserver import names, rrtext
from dnsserver.corefile_model import Consolidation, ErrorsConfig
from dnsserver.message import Handler, Message, Query, Rcode
from dnsserver.plugins.base import Environment


@dataclass(slots=True)
class _Count:
    rule: Consolidation
    seen: int = 0
    timer: asyncio.TimerHandle | None = None


def duration_text(seconds: float) -> str:
    """As Go prints a duration: 50ms, 1.5s, 5m0s, 1h0m0s."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"


class Errors:
    """A Handler and a Service: what was counted is written at the end of each period, and when it closes."""

    def __init__(self, config: ErrorsConfig, rest: Handler, env: Environment) -> None:
        self._rest = rest
        self._write = env.write_line
        self._counts = [_Count(rule) for rule in config.consolidate]

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Write what is still counted."""
        for count in self._counts:
            if count.timer is not None:
                count.timer.cancel()
            self._report(count)

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain."""
        message = await self._rest(query)
        if message is not None and message.rcode == Rcode.SERVFAIL and message.errors:
            self._tell(query, message)
        return message

    def _tell(self, query: Query, message: Message) -> None:
        question = query.question
        text = message.errors[0][1]
        line = (
            f"plugin/errors: {message.rcode} {names.to_text(question.lower)} {rrtext.type_name(question.qtype)}: {text}"
        )
        for count in self._counts:
            if count.rule.pattern.search(text):
                count.seen += 1
                if count.timer is None:
                    loop = asyncio.get_running_loop()
                    count.timer = loop.call_later(count.rule.period_s, self._report, count)
                    if count.rule.show_first:
                        count.seen -= 1
                        self._write(f"[{count.rule.level.upper()}] {line}")
                return
        self._write(f"[ERROR] {line}")

    def _report(self, count: _Count) -> None:
        count.timer = None
        if count.seen:
            rule, seen = count.rule, count.seen
            count.seen = 0
            self._write(
                f"[{rule.level.upper()}] plugin/errors: {seen} errors like '{rule.pattern.pattern}' occurred in last "
                f"{duration_text(rule.period_s)}"
            )
