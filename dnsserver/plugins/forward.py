"""`forward`: the forwarder in a chain of plugins.

Knows which names are forwarded, and when the next `forward` of the block is asked instead.
"""

from __future__ import annotations

from dnsserver.cache import recased
from dnsserver.corefile_model import ForwardConfig
from dnsserver.forwarder import Forwarder, Refusal
from dnsserver.message import ExtendedError, Handler, Message, QClass, Query, Rcode
from dnsserver.plugins.base import REFUSED, Environment, notes, within


class Forward:
    """A Handler and a Service."""

    def __init__(self, config: ForwardConfig, rest: Handler, env: Environment) -> None:
        self._config = config
        self._rest = rest
        self.forwarder = Forwarder(config, env.counters, env.rng)

    async def start(self) -> None:
        """Find the upstreams."""
        await self.forwarder.start()

    async def close(self) -> None:
        """Close their sockets."""
        await self.forwarder.close()

    def concerns(self, lower: bytes) -> bool:
        """Whether a name is forwarded here."""
        return within(lower, (self._config.zone,)) and not within(lower, self._config.exclude)

    async def __call__(self, query: Query) -> Message | None:
        """The upstreams' reply, or the next plugin's for other names."""
        question = query.question
        if not self.concerns(question.lower):
            return await self._rest(query)
        if question.qclass != QClass.IN:
            return REFUSED  # CH and others describe this server, never an upstream
        reply = await self.forwarder.ask(query, _note_upstream)
        if isinstance(reply, Refusal):
            return _refusal(reply)
        if self._passes_over(reply):
            return await self._rest(query)
        return recased(reply, question.lower, question.name)

    def _passes_over(self, reply: Message) -> bool:
        """Whether the next `forward` of the block, if there is one, shall be asked."""
        if not isinstance(self._rest, Forward):
            return False
        if reply.rcode in self._config.next_rcodes:
            return True
        return self._config.next_on_nodata and reply.rcode == Rcode.NOERROR and not reply.answer


def _note_upstream(server: str) -> None:
    noted = notes.get()
    if noted is not None:
        noted["forward/upstream"] = server


def _refusal(refusal: Refusal) -> Message:
    if refusal.rcode == Rcode.SERVFAIL:
        # For the cache: a source out of reach is asked again after `servfail`, not by every query (RFC 9520 §3.2).
        errors = ((int(ExtendedError.NETWORK_ERROR), refusal.text),)
        return Message(rcode=Rcode.SERVFAIL, ra=True, errors=errors)
    return Message(rcode=refusal.rcode, ra=True, errors=((int(ExtendedError.OTHER), refusal.text),), cacheable=False)
