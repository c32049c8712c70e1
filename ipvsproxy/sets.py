"""The sets and maps of our nftables table, the chains a packet is sent to, and elements made of them.

Knows: names and key shapes. Must not know: rule text (nftables) or policy (planner), the two that share it.
"""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache

from ipvsproxy.model import Element, VirtualServerKey
from kubecore.model import Family, Protocol


class Kind(Enum):
    """What becomes of a packet to a virtual server; the value is the chain's name. Their number never grows."""

    CLUSTER_IP = "cluster_ip"
    """Masqueraded if it comes from outside the cluster."""
    EMPTY = "empty"
    """No endpoint anywhere: refused at once."""
    NO_LOCAL = "no_local"
    """internalTrafficPolicy Local, endpoints elsewhere, none here: dropped."""
    EXTERNAL = "external"
    """Masqueraded unless it is the host's own."""
    EXTERNAL_LOCAL = "external_local"
    """Sources on this node get the mark of the cluster-wide set; others reach local endpoints, unmasqueraded."""
    EXTERNAL_NO_LOCAL = "external_no_local"
    """As EXTERNAL_LOCAL; others are dropped, for there is no local endpoint."""
    RANGED_EMPTY = "ranged_empty"
    """loadBalancerSourceRanges first, then EMPTY; the others likewise."""
    RANGED_EXTERNAL = "ranged_external"
    RANGED_EXTERNAL_LOCAL = "ranged_external_local"
    RANGED_EXTERNAL_NO_LOCAL = "ranged_external_no_local"

    def __init__(self, chain: str) -> None:
        self.verdict = f"goto {chain}"
        """What a packet's element says."""


def ranged(kind: Kind) -> Kind:
    """The kind that checks the source ranges first; only EMPTY and external kinds have one."""
    return Kind(f"ranged_{kind.value}")


# Names end in the family where the key holds an address.
SERVICE = "service"  # map: address . protocol . port : goto <kind>
MARK = "mark"  # map: address . protocol . port : fwmark of the cluster-wide set
VIP = "vip"  # set: addresses with a route of ours
RANGE = "range"  # interval set: address . protocol . port . source prefix
HAIRPIN = "hairpin"  # set: endpoint address . the same address
CLUSTER = "cluster"  # interval set: sources the local detector calls local (not masqueraded); all where it is off
ON_NODE = "on_node"  # interval set: sources that are on this node
SOURCE = "source"  # set: the node's primary address; what carries it needs no masquerade
HEALTH_PORT = "health_ports"  # set: healthCheckNodePorts, reachable on VIPs too
UPLINK = "uplinks"  # set: interfaces behind which no pod of this node is
POD_LINK = "pod_links"  # set: interfaces behind which only pods of this node are
TUNNEL = "tunnels"  # set: overlay interfaces

SERVICE_OF: dict[Family, str] = {4: f"{SERVICE}4", 6: f"{SERVICE}6"}
VIP_OF: dict[Family, str] = {4: f"{VIP}4", 6: f"{VIP}6"}

_PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.SCTP: "sctp"}
PROTOCOL_OF = {text: protocol for protocol, text in _PROTOCOLS.items()}


@cache
def _text(port: int) -> str:
    return sys.intern(str(port))


def claim_key(key: VirtualServerKey) -> tuple[str, str, str]:
    """The map key of a virtual server by address: ("10.96.0.1", "tcp", "443")."""
    if key.protocol is None:
        raise ValueError(f"{key} is claimed by its mark, not by an address")
    return (key.address, _PROTOCOLS[key.protocol], _text(key.port))


def service(key: VirtualServerKey, kind: Kind) -> Element:
    """The claim of a virtual server by address, and what happens to its packets."""
    return Element(SERVICE_OF[key.family], claim_key(key), kind.verdict)


def mark(key: VirtualServerKey, fwmark: int) -> Element:
    """The mark that sources on this node get for `key`; also the claim of the virtual server behind that mark."""
    return Element(f"{MARK}{key.family}", claim_key(key), f"{fwmark:#010x}")


def vip(family: Family, address: str) -> Element:
    """A routed address, on which what is no Service is rejected."""
    return Element(VIP_OF[family], (address,))


def source_range(key: VirtualServerKey, prefix: str) -> Element:
    """A prefix whose sources may reach `key`. A host's prefix is written as the address alone, as nft prints it."""
    return Element(f"{RANGE}{key.family}", (*claim_key(key), bare(prefix)))


def hairpin(family: Family, address: str) -> Element:
    """An endpoint on this node: what it sends to itself through a VIP is masqueraded."""
    return Element(f"{HAIRPIN}{family}", (address, address))


def prefix(name: str, family: Family, cidr: str) -> Element:
    """A prefix in CLUSTER or ON_NODE."""
    return Element(f"{name}{family}", (bare(cidr),))


def source(family: Family, address: str) -> Element:
    """The node's own primary address."""
    return Element(f"{SOURCE}{family}", (address,))


def health_port(port: int) -> Element:
    """A healthCheckNodePort."""
    return Element(HEALTH_PORT, (_text(port),))


def interface(name: str, ifname: str) -> Element:
    """An interface in UPLINK, POD_LINK or TUNNEL."""
    return Element(name, (ifname,))


def bare(cidr: str) -> str:
    """`cidr`, without its length where it is a single host."""
    host, _, length = cidr.partition("/")
    return host if length == ("128" if ":" in host else "32") else cidr
