"""`acl`: who may ask what.

Source: RFC 8914 §4.16, §4.18 (Blocked, Filtered).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from dnsserver import names
from dnsserver.corefile_model import AclConfig, AclRule, Network
from dnsserver.message import ExtendedError, Handler, Message, Query, Rcode
from dnsserver.plugins.base import Environment, within

_BLOCKED = Message(
    rcode=Rcode.REFUSED, errors=((int(ExtendedError.BLOCKED), "not allowed for this client"),), cacheable=False
)
_FILTERED = Message(errors=((int(ExtendedError.FILTERED), "filtered for this client"),), cacheable=False)


@lru_cache(maxsize=4096)
def _parsed(client: str) -> tuple[int, int]:
    """Version and number of a client's address; an IPv4 address mapped into IPv6 is the IPv4 address."""
    address = ipaddress.ip_address(client.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.version, int(address)


def covers(networks: Iterable[tuple[int, int, int]], client: str) -> bool:
    """Whether a client's address is within one of the networks, as `masks` gives them."""
    version, number = _parsed(client)
    return any(version == v and number & mask == base for v, base, mask in networks)


def masks(networks: Iterable[Network]) -> tuple[tuple[int, int, int], ...]:
    """Version, first address and mask of each network."""
    return tuple((n.version, int(n.network_address), int(n.netmask)) for n in networks)


class Acl:
    """A Handler: the first rule that matches decides, and what no rule matches is allowed."""

    def __init__(self, configs: Iterable[AclConfig], rest: Handler, env: Environment, server: str) -> None:
        self._rest = rest
        self._configs = [(c.zones, [(rule, masks(rule.networks)) for rule in c.rules]) for c in configs]
        self._counters = env.counters
        self._server = server

    def concerns(self, lower: bytes) -> bool:
        """Whether any rule is for this name's zone."""
        return any(within(lower, zones) for zones, _ in self._configs)

    async def __call__(self, query: Query) -> Message | None:
        """REFUSED where blocked, NOERROR without records where filtered, nothing where dropped."""
        rule, zone = self._rule(query)
        action = rule.action if rule is not None else "allow"
        counters, where = self._counters, (self._server, zone, "")
        if action == "block":
            counters.acl_blocked.labels(*where).inc()
            return _BLOCKED
        if action == "filter":
            counters.acl_filtered.labels(*where).inc()
            return _FILTERED
        if action == "drop":
            counters.acl_dropped.labels(*where).inc()
            return None
        counters.acl_allowed.labels(self._server, "").inc()
        return await self._rest(query)

    def _rule(self, query: Query) -> tuple[AclRule | None, str]:
        question = query.question
        for zones, rules in self._configs:
            zone = names.longest_suffix(question.lower, zones)
            if zone is None:
                continue
            for rule, networks in rules:
                if rule.types is not None and question.qtype not in rule.types:
                    continue
                if not networks or covers(networks, query.client):
                    return rule, names.to_text(zone)
        return None, ""
