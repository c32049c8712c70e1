"""This node as the planner sees it: addresses, links, gateways, zone.

Knows: how the Node object and the kernel's addresses make one picture. Must not know: Services, netlink. Built by the
reconciler (from the kernel) and by `plan` (from the Node object and the command line).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from ipvsproxy.model import DEVICE, InterfaceAddress, Link
from kubecore.addresses import family_of
from kubecore.model import Family, Node

TUNNEL_KINDS = frozenset(
    {"vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "wireguard", "tun", "xfrm"},
)


class NodeView(msgspec.Struct, frozen=True):
    """What planning needs to know of this node. Equal views give equal plans."""

    name: str
    addresses: tuple[InterfaceAddress, ...] = ()
    """Of every interface but kube-ipvs0, sorted."""
    primary: tuple[str, ...] = ()
    """The node's primary address, at most one a family."""
    pod_cidrs: tuple[str, ...] = ()
    zone: str = ""
    links: tuple[Link, ...] = ()
    gateways: frozenset[str] = frozenset()
    """On-link gateways of this node's routes."""
    node_addresses: frozenset[str] = frozenset()
    """InternalIPs and ExternalIPs of every Node known, this one's included."""
    families: tuple[Family, ...] = (4, 6)
    """Address families it has; of another one nothing is served here."""

    def primary_of(self, family: Family) -> str:
        """The primary address of that family; empty if there is none."""
        return next((a for a in self.primary if family_of(a) == family), "")


def node_view(
    name: str,
    node: Node | None,
    *,
    addresses: Iterable[InterfaceAddress] = (),
    links: Iterable[Link] = (),
    gateways: Iterable[str] = (),
    nodes: Iterable[Node] = (),
    bind_address: str = "",
    families: tuple[Family, ...] = (4, 6),
) -> NodeView:
    """The node's picture from its object (None: not known yet), the kernel's addresses and every Node.

    Args:
        name: this node's name.
        node: this node's object.
        addresses: as the kernel has them; kube-ipvs0's are left out, an unspecified family is taken from the object.
        links: the kernel's interfaces.
        gateways: canonical addresses of on-link gateways.
        nodes: every Node of the cluster, as far as watched.
        bind_address: `bindAddress`; a specified one is the primary address of its family.
        families: address families of the kernel.
    """
    kernel = {a for a in addresses if a.interface != DEVICE}
    own = (*node.internal_ips, *node.external_ips) if node else ()
    known = {a.address for a in kernel}
    for address in own if not kernel else ():
        if address not in known:
            kernel.add(InterfaceAddress("", address, 128 if ":" in address else 32))
    primary: dict[Family, str] = {}
    for address in own:
        primary.setdefault(family_of(address), address)
    if bind_address and not ip_address(bind_address).is_unspecified:
        primary[family_of(bind_address)] = bind_address
    everyone = {a for n in nodes for a in (*n.internal_ips, *n.external_ips)} | set(own)
    return NodeView(
        name=name,
        addresses=tuple(sorted(kernel)),
        primary=tuple(primary[f] for f in sorted(primary)),
        pod_cidrs=node.pod_cidrs if node else (),
        zone=node.zone if node else "",
        links=tuple(sorted(link for link in links if link.name != DEVICE)),
        gateways=frozenset(gateways),
        node_addresses=frozenset(everyone),
        families=families,
    )
