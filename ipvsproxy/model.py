"""What the kernel is to hold: virtual servers, real servers, VIP routes and set elements, as immutable values.

Key (identity), configuration (what we set) and counters (what the kernel counts) are three types. Knows nothing of
Kubernetes' rules (planner), of netlink (kernel/) or of time.

Source: linux/ip_vs.h, ipvsadm(8).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from enum import Enum, IntFlag
from typing import NamedTuple

import msgspec

from kubecore.endpoints import EndpointKey
from kubecore.model import Family, ObjectKey, Protocol


class Scheduler(Enum):
    """IPVS schedulers; the value is the kernel's name and the module's suffix (`ip_vs_rr`)."""

    RR = "rr"
    WRR = "wrr"
    LC = "lc"
    WLC = "wlc"
    LBLC = "lblc"
    LBLCR = "lblcr"
    SH = "sh"
    DH = "dh"
    SED = "sed"
    NQ = "nq"
    MH = "mh"
    FO = "fo"
    OVF = "ovf"
    OTHER = "?"
    """Read back only: a scheduler we never set (a foreign virtual server's)."""

    __hash__ = object.__hash__  # as Protocol's


class ForwardMethod(Enum):
    """How IPVS forwards to a real server; the value is IP_VS_CONN_F_FWD_MASK's."""

    MASQUERADE = 0
    LOCAL = 1
    TUNNEL = 2
    DIRECT_ROUTE = 3
    BYPASS = 4

    __hash__ = object.__hash__  # as Protocol's


class ServiceFlag(IntFlag):
    """Flags of a virtual server (IP_VS_SVC_F_*). `persistence_s` implies PERSISTENT; HASHED never leaves the codec."""

    NONE = 0
    ONE_PACKET = 0x04
    """ops: every UDP packet is scheduled anew."""
    SCHED_1 = 0x08
    """sh-fallback, mh-fallback."""
    SCHED_2 = 0x10
    """sh-port, mh-port."""
    SCHED_3 = 0x20
    FOREIGN = 0x80000000
    """Read back only: something is set that we never set (another persistence netmask, a persistence engine)."""


class VirtualServerKey(NamedTuple):
    """Identity of a virtual server: address, protocol and port, or a firewall mark and family."""

    family: Family
    protocol: Protocol | None
    """None with a firewall mark."""
    address: str
    """Canonical; empty with a firewall mark."""
    port: int
    fwmark: int = 0

    def __str__(self) -> str:
        """`10.96.0.1:443/TCP`, `[fd00::1]:443/TCP` or `fwmark 0x2a v6`."""
        if self.fwmark or self.protocol is None:
            return f"fwmark {self.fwmark:#x} v{self.family}"
        host = f"[{self.address}]" if self.family == 6 else self.address
        return f"{host}:{self.port}/{self.protocol.value}"


class VirtualServerConfig(msgspec.Struct, frozen=True, gc=False):
    """What we set on a virtual server. Persistence netmask is always one host (/32, /128)."""

    scheduler: Scheduler = Scheduler.RR
    flags: ServiceFlag = ServiceFlag.NONE
    persistence_s: int = 0
    """0: not persistent."""


RealServerKey = EndpointKey
"""Identity of a real server within its virtual server, of the virtual server's family: its endpoint's own."""


class RealServerConfig(msgspec.Struct, frozen=True, gc=False):
    """What we set on a real server."""

    weight: int = 1
    """0: no new connections, open ones live on."""
    method: ForwardMethod = ForwardMethod.MASQUERADE
    upper_threshold: int = 0
    lower_threshold: int = 0


class RealServerCounters(msgspec.Struct, frozen=True, gc=False):
    """What the kernel counts for a real server now."""

    active: int = 0
    inactive: int = 0
    persistent: int = 0

    @property
    def drained(self) -> bool:
        """No connection left, persistence templates aside."""
        return self.active + self.inactive == 0


class TrafficCounters(msgspec.Struct, frozen=True, gc=False):
    """IPVS_*_ATTR_STATS64, totals since the entry was made."""

    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0


class ActualRealServer(msgspec.Struct, frozen=True, gc=False):
    """A real server as the kernel has it."""

    config: RealServerConfig
    counters: RealServerCounters = RealServerCounters()
    traffic: TrafficCounters = TrafficCounters()


class ActualVirtualServer(msgspec.Struct, frozen=True, gc=False):
    """A virtual server as the kernel has it."""

    config: VirtualServerConfig
    real_servers: MutableMapping[RealServerKey, ActualRealServer]
    traffic: TrafficCounters = TrafficCounters()


class PlannedVirtualServer(msgspec.Struct, frozen=True, gc=False):
    """A virtual server as one Service port wants it."""

    key: VirtualServerKey
    config: VirtualServerConfig
    real_servers: tuple[RealServerKey, ...]
    """Endpoints that are wanted. An endpoint has no weight of its own in Kubernetes, so all are configured alike.

    In the order of adding, which differs from node to node so that not every node's round robin begins at the same one.
    """
    draining: frozenset[RealServerKey] = frozenset()
    """Endpoints that terminate and still serve: not wanted, kept at weight 0 for as long as they are listed here."""
    listed: frozenset[RealServerKey] = frozenset()
    """Other endpoints that exist but are not wanted (not ready, say): they drain without a time limit."""
    protocol: Protocol = Protocol.TCP
    """Transport; the key of a firewall mark does not tell it."""
    fronts: tuple[tuple[str, int], ...] = ()
    """Behind a firewall mark: the addresses and ports whose packets get the mark. Empty otherwise."""
    real_server_config: RealServerConfig = RealServerConfig()
    """Of every real server; its weight is >= 1: nothing with weight 0 is ever added new."""


class Element(NamedTuple):
    """An element of one of our nftables sets or maps (see nftables.py for the sets there are)."""

    set: str
    key: tuple[str, ...]
    """Concatenated key, each part as nft prints it: ("10.96.0.1", "tcp", "443")."""
    value: str = ""
    """Data of a map element as nft prints it (a verdict or a mark); empty in a plain set."""


class HealthCheck(msgspec.Struct, frozen=True, gc=False):
    """A healthCheckNodePort server to run."""

    service: ObjectKey
    port: int
    local_ready: int
    """Distinct addresses of ready local endpoints."""


class Problem(msgspec.Struct, frozen=True, gc=False):
    """Something a person should know about a Service; becomes a Warning event."""

    service: ObjectKey
    reason: str
    """CamelCase, an Event's `reason`."""
    message: str


class Desired(msgspec.Struct, gc=False):
    """All that this node's kernel is to hold. Written by the planner in place, read by diff."""

    virtual_servers: dict[VirtualServerKey, PlannedVirtualServer]
    vips: dict[str, str]
    """Routed address → the node's address that the host's own connections to it leave with ("": the kernel chooses)."""
    elements: dict[Element, None]
    """Elements of our nftables table. A dict keeps order for readable transactions."""


class Delta(msgspec.Struct, gc=False):
    """What of `Desired` may differ from before; in the order in which it is to be programmed."""

    services: dict[ObjectKey, None]
    """Services whose plan, problems or health check may differ."""
    virtual_servers: dict[VirtualServerKey, None]
    vips: dict[str, None]
    elements: dict[Element, None]
    """Elements that came or went."""

    def __bool__(self) -> bool:
        """Whether anything for the kernel is in it."""
        return bool(self.virtual_servers or self.vips or self.elements)


class InterfaceAddress(NamedTuple):
    """An address of this node."""

    interface: str
    """Empty where it is not known (a Node object tells addresses only)."""
    address: str
    """Canonical."""
    prefix_length: int
    """Of the connected prefix; 32 or 128 where unknown."""


class Link(NamedTuple):
    """A network interface of this node."""

    name: str
    kind: str
    """rtnetlink's IFLA_INFO_KIND ("veth", "bridge", "vxlan", ...); empty for hardware and the loopback."""


DEVICE = "kube-ipvs0"
"""The dummy device that VIP routes point to; the name kube-proxy uses, so that what it left is taken over."""
