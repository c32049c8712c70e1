"""`any`: the short reply to questions for everything.

Source: RFC 8482 §4.2.
"""

from __future__ import annotations

from dnsserver.message import RR, Handler, Message, QClass, QType, Query

TTL_S = 8482
_HINFO = b"\x0dANY obsoleted\x0cSee RFC 8482"


class Any:
    """A Handler."""

    def __init__(self, rest: Handler) -> None:
        self._rest = rest

    async def __call__(self, query: Query) -> Message | None:
        """An HINFO record for type ANY."""
        question = query.question
        if question.qtype != QType.ANY or question.qclass != QClass.IN:
            return await self._rest(query)
        return Message(answer=(RR(question.name, QType.HINFO, QClass.IN, TTL_S, _HINFO),), cacheable=False)
