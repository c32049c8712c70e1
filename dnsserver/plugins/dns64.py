"""`dns64`: AAAA records made out of A records, for clients without IPv4.

Source: RFC 6147; RFC 6052 §2.2 (where in an IPv6 address the IPv4 address stands).
"""

from __future__ import annotations

import ipaddress

import msgspec

from dnsserver.corefile_model import Dns64Config
from dnsserver.message import RR, Handler, Message, QClass, QType, Query, Rcode
from dnsserver.plugins.base import Environment

TTL_S = 600
"""Bound where the denial of AAAA records has no SOA (RFC 6147 §5.1.7)."""
_MAPPED = bytes(10) + b"\xff\xff"
"""::ffff:0:0/96: no address a client could reach; such records count as none (RFC 6147 §5.1.4)."""


class Dns64:
    """A Handler."""

    def __init__(self, config: Dns64Config, rest: Handler, env: Environment, server: str) -> None:
        self._config = config
        self._rest = rest
        self._translated = env.counters.dns64_translated.labels(server)

    async def __call__(self, query: Query) -> Message | None:
        """Real AAAA records where there are some, else translated ones. NXDOMAIN stays: the name has no A either."""
        question = query.question
        reply = await self._rest(query)
        if question.qtype != QType.AAAA or question.qclass != QClass.IN or reply is None:
            return reply
        if not self._config.allow_ipv4 and ":" not in query.client:
            return reply
        if query.cd and query.edns is not None and query.edns.do:
            return reply  # the client validates: made-up records would fail (RFC 6147 §5.5)
        if reply.rcode == Rcode.NXDOMAIN:
            return reply
        if any(_is_mapped(rr) for rr in reply.answer):
            reply = msgspec.structs.replace(reply, answer=tuple(rr for rr in reply.answer if not _is_mapped(rr)))
        has_aaaa = any(rr.type == QType.AAAA for rr in reply.answer)
        if reply.rcode == Rcode.NOERROR and has_aaaa and not self._config.translate_all:
            return reply
        asked = question._replace(qtype=int(QType.A))
        addresses = await self._rest(msgspec.structs.replace(query, question=asked))
        if addresses is None or addresses.rcode != Rcode.NOERROR:
            return reply
        bound_s = next((rr.ttl for rr in reply.authority if rr.type == QType.SOA), TTL_S)
        answer = tuple(self._translate(rr, bound_s) for rr in addresses.answer)
        if not any(rr.type == QType.AAAA for rr in answer):
            return reply
        self._translated.inc()
        return msgspec.structs.replace(addresses, answer=answer, ad=False, cacheable=False)

    def _translate(self, rr: RR, bound_s: int) -> RR:
        if rr.type != QType.A:
            return rr
        return RR(rr.name, QType.AAAA, rr.rclass, min(rr.ttl, bound_s), embed(self._config.prefix, rr.rdata))


def _is_mapped(rr: RR) -> bool:
    return rr.type == QType.AAAA and rr.rdata.startswith(_MAPPED)


def embed(prefix: ipaddress.IPv6Network, address: bytes) -> bytes:
    """The IPv6 address under `prefix` (/32, /40, /48, /56, /64 or /96) that stands for a packed IPv4 address.

    Byte 8 (bits 64 to 71) stays zero, so the IPv4 address may be split around it.
    """
    head = prefix.network_address.packed[: prefix.prefixlen // 8]
    if prefix.prefixlen == 96:
        return head + address
    before = 8 - len(head)
    return (head + address[:before] + b"\0" + address[before:]).ljust(16, b"\0")
