"""`loadbalance`: addresses in random order, every order equally likely.

CNAMEs stay in front in their order: some stub resolvers take records as they come (glibc).
"""

from __future__ import annotations

import ipaddress
import random

import msgspec

from dnsserver.corefile_model import LoadbalanceConfig
from dnsserver.message import RR, Handler, Message, QType, Query, Rcode
from dnsserver.plugins.acl import masks

_SHUFFLED = frozenset({int(QType.A), int(QType.AAAA), int(QType.MX)})


class Loadbalance:
    """A Handler."""

    def __init__(self, config: LoadbalanceConfig, rest: Handler, rng: random.Random | None = None) -> None:
        self._rest = rest
        self._rng = rng or random.Random()  # noqa: S311 - for spreading load, nobody gains by guessing it
        self._prefer = masks(config.prefer)

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, shuffled."""
        reply = await self._rest(query)
        if reply is None or reply.rcode != Rcode.NOERROR or not reply.answer:
            return reply
        if len(reply.answer) == 1 and len(reply.authority) + len(reply.additional) <= 1:
            return reply
        return msgspec.structs.replace(
            reply,
            answer=self.ordered(reply.answer),
            authority=self.ordered(reply.authority),
            additional=self.ordered(reply.additional),
        )

    def ordered(self, section: tuple[RR, ...]) -> tuple[RR, ...]:
        """CNAMEs, other records, addresses shuffled, mail exchangers shuffled."""
        if len(section) < 2 or not any(rr.type in _SHUFFLED for rr in section):
            return section
        aliases: list[RR] = []
        others: list[RR] = []
        addresses: list[RR] = []
        exchangers: list[RR] = []
        for rr in section:
            match rr.type:
                case QType.CNAME:
                    aliases.append(rr)
                case QType.A | QType.AAAA:
                    addresses.append(rr)
                case QType.MX:
                    exchangers.append(rr)
                case _:
                    others.append(rr)
        self._rng.shuffle(addresses)
        self._rng.shuffle(exchangers)
        if self._prefer:
            addresses.sort(key=self._is_ordinary)
        return (*aliases, *others, *addresses, *exchangers)

    def _is_ordinary(self, rr: RR) -> bool:
        version, number = (4 if rr.type == QType.A else 6), int(ipaddress.ip_address(rr.rdata))
        return not any(version == v and number & mask == base for v, base, mask in self._prefer)
