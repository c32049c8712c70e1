"""One server block at work, and which of several a question belongs to.

Knows: zones and the chain that answers for them, and for which questions the chain can be skipped because none of its
plugins would do anything but pass them on. Must not know sockets. The server makes Sites out of a configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dnsserver import names
from dnsserver.answer import prepare
from dnsserver.corefile_model import EVERYWHERE, ServerBlock
from dnsserver.hotpath import Lasting
from dnsserver.message import Handler, Prepared, QType, Question
from dnsserver.zone import Zone

_NEVER_FAST = frozenset({QType.DS, QType.ANY, QType.AXFR, QType.IXFR, QType.OPT, QType.HINFO})
"""HINFO is what the loop plugin probes with."""


class FastCache(Protocol):
    """A cache that hands out what it holds without waiting."""

    def prepared(self, question: Question, *, do: bool, cd: bool) -> Prepared | None:
        """The cached reply as of this second; None: ask the chain."""
        ...


class FastReply(NamedTuple):
    """A reply without the chain."""

    prepared: Prepared
    lasting: Lasting
    tag: bytes
    plugin: str


@dataclass(slots=True)
class Site:
    """A running server block."""

    block: ServerBlock
    handler: Handler
    zone: Zone | None = None
    """What its `kubernetes` directive serves."""
    cache: FastCache | None = None
    watched: tuple[bytes, ...] = ()
    """Zones in which a plugin of the chain has to see every query."""
    max_udp_bytes: int = 65535

    def __post_init__(self) -> None:
        self.watched = watched_zones(self.block)
        if self.block.bufsize is not None:
            self.max_udp_bytes = self.block.bufsize

    def fast(self, lower: bytes, qtype: int, *, do: bool, cd: bool) -> FastReply | None:
        """The reply the chain would give to this question of class IN, whoever asks; None: only the chain can tell."""
        if qtype in _NEVER_FAST or names.longest_suffix(lower, self.watched) is not None:
            return None
        question = Question(lower, lower, qtype)
        zone = self.zone
        if zone is not None and zone.cut(lower) is not None:
            prepared = prepare(zone, question)
            if prepared is not None:
                # Every denial shows the SOA, and so the serial, which moves with any change.
                lasting = Lasting.UNTIL_SERIAL if prepared.counts[2:4] != b"\0\0" else Lasting.UNTIL_CHANGED
                return FastReply(prepared, lasting, zone.tag(lower), "kubernetes")
            # What falls through may be cached like any other foreign name; before the first lists nothing is.
            if not zone.synced or zone.config.fallthrough is None:
                return None
        if self.cache is not None:
            prepared = self.cache.prepared(question, do=do, cd=cd)
            if prepared is not None:
                return FastReply(prepared, Lasting.UNTIL_SECOND, lower, "cache")
        return None


def watched_zones(block: ServerBlock) -> tuple[bytes, ...]:
    """The zones in which some plugin in front of `kubernetes` and `cache` may do more than pass a query on."""
    everywhere = (
        block.rewrites
        or block.minimal
        or block.local
        or block.dns64
        or (block.loadbalance is not None and block.loadbalance.prefer)
    )
    if everywhere:
        return EVERYWHERE
    zones: list[bytes] = []
    for part in (*block.logs, *block.acls, *block.templates, block.hosts, block.autopath, block.external):
        if part is not None:
            zones += part.zones
    return tuple(dict.fromkeys(zones))


class Place(NamedTuple):
    """Where a name is answered: the Site, and its zone as the metrics name it."""

    site: Site
    zone_text: str


class Router:
    """The Sites that share an address and port, by zone."""

    def __init__(self, sites: Iterable[tuple[bytes, Site]]) -> None:
        """`sites`: zones in lower case; of equal zones the first counts."""
        self._places: dict[bytes, Place] = {}
        for zone, site in sites:
            self._places.setdefault(zone, Place(site, names.to_text(zone)))

    @property
    def places(self) -> Mapping[bytes, Place]:
        """All of them, by zone."""
        return self._places

    def find(self, lower: bytes, qtype: int) -> Place | None:
        """The Site of the longest zone `lower` is in; None: nobody answers for it.

        DS records belong to the parent: their question goes to the parent's zone where that is served too (RFC 4035
        §3.1.4.1).
        """
        places = self._places
        at = 0
        while lower[at:] not in places:
            if not lower[at]:
                return None
            at += 1 + lower[at]
        if qtype == QType.DS and at == 0 and lower[0]:
            above = self.find(lower[1 + lower[0] :], 0)
            if above is not None:
                return above
        return places[lower[at:]]
