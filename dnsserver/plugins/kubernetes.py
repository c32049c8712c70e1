"""The `kubernetes` link of a chain: the zone's answer, or whoever else has to be asked.

Knows what follows from an Outcome. Must not know the zone's names or sockets.

Source: RFC 1034 §3.6.2 (following aliases).
"""

from __future__ import annotations

import msgspec

from dnsserver.answer import MAX_ALIASES, Fallthrough, NeedsTarget, Outcome, Reply, answer, finish
from dnsserver.message import Handler, Message, Query, Question
from dnsserver.plugins.base import REFUSED
from dnsserver.zone import Zone


class Kubernetes:
    """A Handler: answers for the zone, passes on what is not in it or falls through."""

    def __init__(self, zone: Zone, rest: Handler, ask_self: Handler) -> None:
        """Args: `ask_self`: the whole server, from the choice of the server block on, for targets of aliases."""
        self._zone = zone
        self._rest = rest
        self._ask_self = ask_self

    async def __call__(self, query: Query) -> Message | None:
        """The answer; None only where the rest of the chain says None."""
        return await act(answer(self._zone, query.question), query, self._rest, self._ask_self)


async def act(outcome: Outcome | None, query: Query, rest: Handler, ask_self: Handler) -> Message | None:
    """Do what `outcome` asks for: reply, pass on to `rest`, or look up an alias' target through `ask_self`."""
    match outcome:
        case Reply(message):
            return message
        case Fallthrough(message):
            reply = await rest(query)
            return message if reply is REFUSED else reply  # nobody who comes next knows the name: it is ours to deny
        case NeedsTarget(_, target):
            if query.chased >= MAX_ALIASES:
                return finish(outcome, None)
            asked = query.question
            inner = msgspec.structs.replace(
                query,
                question=Question(target, target.lower(), asked.qtype, asked.qclass),
                chased=query.chased + 1,
            )
            return finish(outcome, await ask_self(inner))
        case None:
            return await rest(query)
