"""Plugins of a few lines: `minimal`, `cancel`, `whoami`, `local`."""

from __future__ import annotations

import asyncio
import ipaddress
import struct

import msgspec

from dnsserver import names, records
from dnsserver.message import RR, Handler, Message, QClass, QType, Query, Rcode
from dnsserver.plugins.base import failure


class Minimal:
    """A Handler: successes without AUTHORITY and ADDITIONAL."""

    def __init__(self, rest: Handler) -> None:
        self._rest = rest

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, stripped; denials and referrals keep what they need."""
        reply = await self._rest(query)
        if reply is None or reply.rcode != Rcode.NOERROR or not reply.answer:
            return reply
        if not reply.authority and not reply.additional:
            return reply
        return msgspec.structs.replace(reply, authority=(), additional=())


class Cancel:
    """A Handler: SERVFAIL after a time."""

    def __init__(self, timeout_s: float, rest: Handler) -> None:
        self._rest = rest
        self._timeout_s = timeout_s

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._rest(query)
        except TimeoutError:
            return failure("no reply within the time set by cancel")


async def whoami(query: Query) -> Message | None:
    """The client's address, port and transport, in ADDITIONAL. The last link of a chain."""
    name = query.question.name
    address = records.address(name, 0, query.client.partition("%")[0])
    service = b"\x04_udp" if query.transport == "udp" else b"\x04_tcp"
    if len(name) + len(service) > names.MAX_NAME_BYTES:
        return Message(additional=(address,), aa=True, cacheable=False)
    port = struct.pack("!HHH", 0, 0, query.client_port) + names.ROOT
    srv = RR(service + name, QType.SRV, QClass.IN, 0, port)
    return Message(additional=(address, srv), aa=True, cacheable=False)


_LOCALHOST = names.from_text("localhost")
_LOCAL_ZONES = tuple(
    names.from_text(zone) for zone in ("localhost", "0.in-addr.arpa", "127.in-addr.arpa", "255.in-addr.arpa")
)
_LOCAL_TTL_S = 86400
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_LOOPBACK_POINTERS = tuple(names.reverse_name(str(address)) for address in _LOOPBACK)


class Local:
    """A Handler: `localhost` and loopback's reverse zones never leave this host (RFC 6303, RFC 6761 §6.3)."""

    def __init__(self, rest: Handler) -> None:
        self._rest = rest

    @staticmethod
    def concerns(lower: bytes) -> bool:
        """Whether it answers for this name."""
        if lower.startswith(_LOCALHOST[:-1]) or lower in _LOOPBACK_POINTERS:
            return True
        return names.longest_suffix(lower, _LOCAL_ZONES) is not None

    async def __call__(self, query: Query) -> Message | None:
        """Loopback's addresses and names."""
        question = query.question
        if question.qclass != QClass.IN or not self.concerns(question.lower):
            return await self._rest(query)
        zone = names.longest_suffix(question.lower, _LOCAL_ZONES)
        answer: tuple[RR, ...] = ()
        if question.qtype in (QType.A, QType.AAAA) and question.lower.startswith(_LOCALHOST[:-1]):
            text = str(_LOOPBACK[question.qtype == QType.AAAA])
            answer = (records.address(question.name, _LOCAL_TTL_S, text),)
        elif question.qtype == QType.PTR and question.lower in _LOOPBACK_POINTERS:
            answer = (records.ptr(question.name, _LOCAL_TTL_S, _LOCALHOST),)
        elif question.qtype == QType.NS and question.lower == zone:
            answer = (records.ns(question.name, _LOCAL_TTL_S, _LOCALHOST),)
        apex = zone or question.name
        soa = records.soa(
            apex,
            _LOCAL_TTL_S,
            1,
            mname=_LOCALHOST,
            rname=names.from_text("root.localhost"),
            minimum_s=_LOCAL_TTL_S,
        )
        if question.qtype == QType.SOA and question.lower == apex:
            answer = (soa,)
        return Message(answer=answer, authority=() if answer else (soa,), aa=True, cacheable=False)
