"""`loadbalance`: addresses in random order, every order equally likely; or by weight, which one comes first.

CNAMEs stay in front in their order: some stub resolvers take records as they come (glibc).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from dnsserver.corefile_model import LoadbalanceConfig
from dnsserver.message import RR, Handler, Message, QType, Query, Rcode
from dnsserver.plugins.acl import masks
from dnsserver.plugins.weights import WeightFile

_ADDRESSES = frozenset({int(QType.A), int(QType.AAAA)})
_SHUFFLED = frozenset({int(QType.A), int(QType.AAAA), int(QType.MX)})


class Loadbalance:
    """A Handler and a Service: looks at its file of weights from time to time."""

    def __init__(self, config: LoadbalanceConfig, rest: Handler, rng: random.Random | None = None) -> None:
        self._config = config
        self._rest = rest
        self._rng = rng or random.Random()  # noqa: S311 - for spreading load, nobody gains by guessing it
        self._prefer = masks(config.prefer)
        self._weights = WeightFile(Path(config.weights), config.reload_s) if config.weights else None

    async def start(self) -> None:
        """Read the weights. Raises WeightFileError, an OSError."""
        if self._weights is not None:
            await self._weights.start()

    async def close(self) -> None:
        """Stop looking at them."""
        if self._weights is not None:
            await self._weights.close()

    def concerns(self, qtype: int, answers: int) -> bool:
        """Whether a reply with so many records in ANSWER has an order of its own rather than any."""
        if self._prefer and qtype in (QType.A, QType.AAAA, QType.SRV):
            return True
        return self._weights is not None and answers > 1 and qtype in _ADDRESSES

    async def __call__(self, query: Query) -> Message | None:
        """The reply of the rest of the chain, shuffled."""
        reply = await self._rest(query)
        if reply is None or reply.rcode != Rcode.NOERROR or not reply.answer:
            return reply
        if len(reply.answer) == 1 and len(reply.authority) + len(reply.additional) <= 1:
            return reply
        if self._weights is not None:
            weights = self._weights.table.get(query.question.lower, {})
            return msgspec.structs.replace(reply, answer=self._preferred(self.weighted(reply.answer, weights)))
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
        addresses = list(self._preferred(addresses))
        return (*aliases, *others, *addresses, *exchangers)

    def weighted(self, answer: tuple[RR, ...], weights: Mapping[bytes, int]) -> tuple[RR, ...]:
        """One address, drawn by weight (1 where none is given), before the others; everything else as it was."""
        places = [at for at, rr in enumerate(answer) if rr.type in _ADDRESSES]
        if len(places) < 2:
            return answer
        (drawn,) = self._rng.choices(places, [weights.get(answer[at].rdata, 1) for at in places])
        order = list(answer)
        order.insert(places[0], order.pop(drawn))
        return tuple(order)

    def _preferred(self, section: Sequence[RR]) -> tuple[RR, ...]:
        """Addresses in the preferred networks before others, within the places that addresses have."""
        if not self._prefer:
            return tuple(section)
        ordered = iter(sorted((rr for rr in section if rr.type in _ADDRESSES), key=self._is_ordinary))
        return tuple(next(ordered) if rr.type in _ADDRESSES else rr for rr in section)

    def _is_ordinary(self, rr: RR) -> bool:
        version, number = (4 if rr.type == QType.A else 6), int(ipaddress.ip_address(rr.rdata))
        return not any(version == v and number & mask == base for v, base, mask in self._prefer)
