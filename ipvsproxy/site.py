"""What planning takes from the node and the settings, worked out once: node port addresses, local prefixes, interfaces.

Knows: which addresses carry node ports, which may not be claimed, and what tells a source on this node. Must not know:
Services. Made by the planner whenever node or settings change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from zlib import crc32

from ipvsproxy import sets
from ipvsproxy.config import Config, LocalMode
from ipvsproxy.model import Element, InterfaceAddress, Scheduler
from ipvsproxy.nodeview import TUNNEL_KINDS, NodeView
from kubecore.addresses import family_of
from kubecore.model import Family

_IS_PLAIN = re.compile(r"[0-9A-Za-z_.:@-]+").fullmatch
"""Interface names that mean themselves in nft's language; the kernel allows stranger ones, which are left out."""

FAMILIES: tuple[Family, Family] = (4, 6)
ALL_SCHEDULERS = frozenset(Scheduler) - {Scheduler.OTHER}

Network = IPv4Network | IPv6Network


def collapsed(cidrs: Iterable[str], family: Family) -> tuple[str, ...]:
    """The prefixes of one family with what overlaps or adjoins merged: an interval set refuses overlaps."""
    networks = [ip_network(c) for c in cidrs if family_of(c) == family]
    return tuple(str(n) for n in collapse_addresses(networks))  # type: ignore[type-var]  # one family only


@dataclass(frozen=True)
class Site:
    """One node under one configuration.

    Args:
        taken: ClusterIPs that are also configured on an interface of this node; they get no node ports.
    """

    node: NodeView
    config: Config
    schedulers: frozenset[Scheduler] = ALL_SCHEDULERS
    taken: frozenset[str] = frozenset()

    @cached_property
    def own(self) -> frozenset[str]:
        """Addresses of this node's interfaces."""
        return frozenset(a.address for a in self.node.addresses)

    @cached_property
    def sources(self) -> dict[Family, str]:
        """The address that the host's connections to VIPs leave with: the primary one, if an interface has it.

        A Node object may name an address that is not the machine's (a cloud's public one); the kernel refuses it as a
        route's source, and chooses itself where this is empty.
        """
        return {f: p if (p := self.node.primary_of(f)) in self.own else "" for f in FAMILIES}

    @cached_property
    def unclaimable(self) -> frozenset[str]:
        """Addresses that must not become VIP routes: a node or a gateway would become unreachable from here."""
        return self.own | self.node.gateways | self.node.node_addresses

    @cached_property
    def seed(self) -> int:
        """Makes the order of real servers this node's own."""
        return crc32(self.node.name.encode())

    @cached_property
    def node_ports(self) -> dict[Family, tuple[str, ...]]:
        """Addresses on which node ports are served, by family."""
        return {family: tuple(sorted(self._node_ports(family))) for family in FAMILIES}

    def _node_ports(self, family: Family) -> set[str]:
        setting = self.config.node_port_addresses
        if setting.primary:
            primary = self.node.primary_of(family)
            return {primary} if primary and not ip_address(primary).is_loopback else set()
        usable = {a for a in self.own - self.taken if family_of(a) == family and _is_reachable(a)}
        if not setting.cidrs:
            return usable
        networks = [ip_network(c) for c in setting.cidrs if family_of(c) == family]
        return {a for a in usable if any(ip_address(a) in n for n in networks)}

    def has_detector(self, family: Family) -> bool:
        """Whether `detectLocalMode` can tell a pod of that family; if not, `on_node` falls back on the node's links."""
        local = self.config.detect_local
        match local.mode:
            case LocalMode.CLUSTER_CIDR:
                return any(family_of(c) == family for c in local.cluster_cidrs)
            case LocalMode.NODE_CIDR:
                return any(family_of(c) == family for c in self.node.pod_cidrs)
            case LocalMode.BRIDGE_INTERFACE | LocalMode.INTERFACE_NAME_PREFIX:
                return True

    def pod_prefix(self, address: str) -> str | None:
        """The connected prefix that an endpoint on this node makes known as one of pods; None where others tell."""
        if address in self.own:
            return None
        networks = self.pod_prefixes.get(family_of(address))
        if not networks:
            return None
        ip = ip_address(address)
        return next((str(n) for n in networks if ip in n), None)

    @cached_property
    def elements(self) -> tuple[Element, ...]:
        """Elements that depend on no Service."""
        return tuple(dict.fromkeys(self._elements()))

    def _elements(self) -> Iterator[Element]:
        for family in FAMILIES:
            if self.sources[family]:
                yield sets.source(family, self.sources[family])
            detector = self._detector_prefixes()
            everyone = ("0.0.0.0/0" if family == 4 else "::/0",)
            for cidr in collapsed(detector if self.has_detector(family) else everyone, family):
                yield sets.prefix(sets.CLUSTER, family, cidr)
            for cidr in collapsed(detector if self.has_detector(family) else self.node.pod_cidrs, family):
                yield sets.prefix(sets.ON_NODE, family, cidr)
        for name in sorted(filter(_IS_PLAIN, self._uplinks)):
            yield sets.interface(sets.UPLINK, name)
        links = [link for link in self.node.links if _IS_PLAIN(link.name)]
        for link in links:
            if link.kind in TUNNEL_KINDS:
                yield sets.interface(sets.TUNNEL, link.name)
        if not all(self.has_detector(f) or self._has_pod_cidr(f) for f in FAMILIES):
            addressed = {a.interface for a in self.node.addresses if not ip_address(a.address).is_link_local}
            for link in links:
                if link.kind == "veth" and link.name not in addressed:
                    yield sets.interface(sets.POD_LINK, link.name)

    def _detector_prefixes(self) -> tuple[str, ...]:
        local = self.config.detect_local
        if local.mode is LocalMode.CLUSTER_CIDR:
            return local.cluster_cidrs
        return self.node.pod_cidrs if local.mode is LocalMode.NODE_CIDR else ()

    def _has_pod_cidr(self, family: Family) -> bool:
        return any(family_of(c) == family for c in self.node.pod_cidrs)

    @cached_property
    def _uplinks(self) -> frozenset[str]:
        """Interfaces behind which there are other machines: they carry a node address, are hardware or tunnels."""
        names = {
            a.interface
            for a in self.node.addresses
            if a.address in self.node.primary or a.address in self.node.node_addresses
        }
        names |= {link.name for link in self.node.links if link.kind in TUNNEL_KINDS or not link.kind}
        return frozenset(names - {"", "lo"})

    @cached_property
    def pod_prefixes(self) -> dict[Family, tuple[Network, ...]]:
        """Connected prefixes that may hold pods, the widest of nested ones, where nothing better tells pods."""
        return {
            family: tuple(_widest(a for a in self.node.addresses if self._may_hold_pods(a, family)))
            for family in FAMILIES
            if not self.has_detector(family) and not self._has_pod_cidr(family)
        }

    def _may_hold_pods(self, address: InterfaceAddress, family: Family) -> bool:
        return (
            family_of(address.address) == family
            and address.interface not in self._uplinks
            and address.interface != ""
            and address.prefix_length < (128 if family == 6 else 32)
            and _is_reachable(address.address)
        )


def is_special(address: str) -> bool:
    """Whether a canonical address means something to every host: no Service may have it.

    Unspecified, loopback, link-local, multicast and broadcast, which the API server refuses, too, but not everywhere: a
    virtual server at 127.0.0.1 would take the place of the host's own daemon.
    """
    if ":" in address:
        return address in {"::", "::1"} or address.startswith(("fe8", "fe9", "fea", "feb", "ff"))
    first = int(address.partition(".")[0])
    if first == 127 or 224 <= first < 240:
        return True
    return address in {"0.0.0.0", "255.255.255.255"} or address.startswith("169.254.")


def _is_reachable(address: str) -> bool:
    ip = ip_address(address)
    return not ip.is_loopback and not (ip.version == 6 and ip.is_link_local)


def _widest(addresses: Iterable[InterfaceAddress]) -> Iterator[Network]:
    networks = {ip_network(f"{a.address}/{a.prefix_length}", strict=False) for a in addresses}
    for network in sorted(networks, key=lambda n: (n.prefixlen, n.network_address.packed)):
        if not any(n != network and network.subnet_of(n) for n in networks):  # type: ignore[arg-type]  # one family
            yield network
