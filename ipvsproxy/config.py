"""The proxy's settings as one immutable value, with the defaults of kube-proxy v1.36 in IPVS mode.

Knows: what each setting means, its unit and why its default. Must not know: files, flags (configfile, cli).
Names follow `kubeproxy.config.k8s.io/v1alpha1`; what is ours alone is in `Additions`.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from ipvsproxy.model import Scheduler, ServiceFlag


class LocalMode(Enum):
    """`detectLocalMode`: what tells a source inside the cluster from one outside."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class DetectLocal(msgspec.Struct, frozen=True, kw_only=True):
    """`detectLocalMode`, `clusterCIDR` and `detectLocal`."""

    mode: LocalMode = LocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[str, ...] = ()
    """At most one a family; a family without one has no detector."""
    bridge_interface: str = ""
    interface_name_prefix: str = ""


class NodePortAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """`nodePortAddresses`. Neither field set: every address of the node."""

    primary: bool = False
    """Only the node's primary address of each family."""
    cidrs: tuple[str, ...] = ()
    """Addresses within; a family without a CIDR gets no node ports."""


class Ipvs(msgspec.Struct, frozen=True, kw_only=True):
    """`ipvs`."""

    scheduler: Scheduler = Scheduler.RR
    flags: ServiceFlag = ServiceFlag.NONE
    sync_period_s: float = 30.0
    """Accepted for health: an update waiting for twice as long makes the proxy unhealthy."""
    min_sync_period_s: float = 0.0
    """At least this long between two passes; changes in between are coalesced."""
    exclude_cidrs: tuple[str, ...] = ()
    """Virtual servers at these addresses are not taken over from kube-proxy; foreign ones are never touched anyway."""
    strict_arp: bool = False
    tcp_timeout_s: int = 0
    """0: the kernel's default (900 s), set explicitly. Source: linux/ip_vs.h IPVS_CMD_ATTR_TIMEOUT_TCP."""
    tcpfin_timeout_s: int = 0
    """0: 120 s."""
    udp_timeout_s: int = 0
    """0: 300 s."""


class Conntrack(msgspec.Struct, frozen=True, kw_only=True):
    """`conntrack`. None: leave the kernel's value alone."""

    max_per_core: int = 32768
    """0: leave nf_conntrack_max alone."""
    min: int = 131072
    tcp_established_timeout_s: int | None = 86400
    tcp_close_wait_timeout_s: int | None = 3600
    tcp_be_liberal: bool = False
    udp_timeout_s: int | None = None
    udp_stream_timeout_s: int | None = None


class ClientConnection(msgspec.Struct, frozen=True, kw_only=True):
    """`clientConnection`."""

    kubeconfig: str = ""
    """Empty: in-cluster credentials."""
    server: str = ""
    """URL or host:port of the API server, in place of the one found; a flag only, as in kube-proxy."""
    qps: float = 5.0
    """Below 0: no limit."""
    burst: int = 10


class Bind(msgspec.Struct, frozen=True):
    """A listening address."""

    host: str
    port: int

    def __str__(self) -> str:
        """`0.0.0.0:10256` or `[::]:10256`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """Our own document, `ipvsproxy.io/v1alpha1 IPVSProxyConfiguration`."""

    drain_grace_s: float = 300.0
    """How long an endpoint that left its EndpointSlices may keep its connections.

    A deleted pod's connections are dead; a changed selector's are not, so a blue-green switch is given five minutes.
    """
    drain_poll_s: float = 5.0
    """How often open connections of draining real servers are counted."""
    audit_interval_s: float | None = None
    """How often the kernel is compared with what it should hold. 0: only at start and after failures.

    None: every ipvs.syncPeriod, as kube-proxy does, but less often where that would take more than 0.08 % of a core.
    """
    source_ranges_cover_node_ports: bool = False
    """Whether loadBalancerSourceRanges guard node ports too; off, as in kube-proxy, for balancers that SNAT."""
    allow_external_ips: tuple[str, ...] | None = None
    """Prefixes that `externalIPs` must be in; None: any (CVE-2020-8554), an empty list: none."""
    claim_load_balancer_ips: bool = True
    """Whether load balancer ingress IPs (of ipMode VIP) become virtual servers here."""
    one_packet_udp: bool = False
    """One-packet scheduling for UDP: every datagram is balanced anew."""
    metrics_max_virtual_servers: int = 1000
    """Virtual servers with metrics of their own; beyond, they are summed up."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    hostname_override: str = ""
    """Empty: NODE_NAME, else the hostname; lower-cased."""
    ipvs: Ipvs = Ipvs()
    masquerade_all: bool = False
    masquerade_bit: int = 14
    """Bit of the packet mark that asks for masquerade, 0 to 31."""
    detect_local: DetectLocal = DetectLocal()
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    bind_address: str = "0.0.0.0"
    healthz_bind: Bind | None = Bind("0.0.0.0", 10256)
    """None: no server."""
    metrics_bind: Bind | None = Bind("127.0.0.1", 10249)
    bind_hard_fail: bool = False
    profiling: bool = False
    conntrack: Conntrack = Conntrack()
    client: ClientConnection = ClientConnection()
    config_sync_period_s: float = 900.0
    oom_score_adj: int | None = -999
    log_level: str = "info"
    additions: Additions = Additions()
