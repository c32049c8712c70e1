"""Every field of the two configuration documents and every flag, in one table: how it is read and where it goes.

Knows: the languages' words. Must not know: files and lines (configfile), what values look like (configvalues).

Source: kubeproxy.config.k8s.io/v1alpha1 of Kubernetes v1.36.
"""

from __future__ import annotations

from typing import NamedTuple

from ipvsproxy import configvalues as v

KUBE_PROXY = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
OURS = ("ipvsproxy.io/v1alpha1", "IPVSProxyConfiguration")


class Field(NamedTuple):
    """A field, or a flag, of configuration."""

    parse: v.Parser
    target: str
    """Attribute of `Config` it becomes, dotted; empty: checked, and of no effect."""
    flag: str = ""
    help: str = ""
    empty_is_default: bool = True
    """Whether "" (or 0 for a duration) in a file asks for the default, as kube-proxy's own defaulting has it."""


_MAX = 2**31 - 1

KUBE_PROXY_FIELDS: dict[str, Field] = {
    "mode": Field(v.mode, "", "proxy-mode", "accepted for compatibility; only ipvs"),
    "bindAddress": Field(v.address, "bind_address", "bind-address", "picks the node's primary address"),
    "bindAddressHardFail": Field(v.boolean, "bind_hard_fail", "bind-address-hard-fail", "exit if a port is taken"),
    "healthzBindAddress": Field(
        v.bind(10256), "healthz_bind", "healthz-bind-address", 'IP:port of /healthz; "" disables'
    ),
    "metricsBindAddress": Field(
        v.bind(10249), "metrics_bind", "metrics-bind-address", 'IP:port of /metrics; "" disables'
    ),
    "enableProfiling": Field(v.boolean, "profiling", "profiling", "serve /debug/pprof on the metrics port"),
    "hostnameOverride": Field(v.text, "hostname_override", "hostname-override", "this node's name"),
    "clusterCIDR": Field(v.cluster_cidrs, "detect_local.cluster_cidrs", "cluster-cidr", "addresses of all pods"),
    "detectLocalMode": Field(v.local_mode, "detect_local.mode", "detect-local-mode", "what tells pods from outsiders"),
    "detectLocal.bridgeInterface": Field(
        v.interface, "detect_local.bridge_interface", "pod-bridge-interface", "bridge the pods are on"
    ),
    "detectLocal.interfaceNamePrefix": Field(
        v.interface, "detect_local.interface_name_prefix", "pod-interface-name-prefix", "how pods' interfaces begin"
    ),
    "nodePortAddresses": Field(
        v.node_port_addresses, "node_port_addresses", "nodeport-addresses", 'CIDRs, or "primary"'
    ),
    "featureGates": Field(
        v.feature_gates, "feature_gates", "feature-gates", "of effect: AllowServiceExternalIPs=false"
    ),
    "oomScoreAdj": Field(
        v.integer(-1000, 1000), "oom_score_adj", "oom-score-adj", "-1000 to 1000", empty_is_default=False
    ),
    "configSyncPeriod": Field(
        v.positive_duration_s, "config_sync_period_s", "config-sync-period", "accepted; a watch needs no resync"
    ),
    "clientConnection.kubeconfig": Field(v.text, "client.kubeconfig", "kubeconfig", "credentials; default: in-cluster"),
    "clientConnection.qps": Field(
        v.number, "client.qps", "kube-api-qps", "requests a second to the API server; below 0: any"
    ),
    "clientConnection.burst": Field(v.integer(0, _MAX), "client.burst", "kube-api-burst", "requests to it at once"),
    "iptables.masqueradeAll": Field(v.boolean, "masquerade_all", "masquerade-all", "masquerade all to ClusterIPs"),
    "iptables.masqueradeBit": Field(
        v.integer(0, 31), "masquerade_bit", "iptables-masquerade-bit", "bit of the packet mark", empty_is_default=False
    ),
    "ipvs.scheduler": Field(v.scheduler, "ipvs.scheduler", "ipvs-scheduler", "default scheduler (rr)"),
    "ipvs.excludeCIDRs": Field(v.cidrs, "ipvs.exclude_cidrs", "ipvs-exclude-cidrs", "addresses never touched"),
    "ipvs.strictARP": Field(v.boolean, "ipvs.strict_arp", "ipvs-strict-arp", "arp_ignore 1 and arp_announce 2"),
    "ipvs.syncPeriod": Field(v.positive_duration_s, "ipvs.sync_period_s", "ipvs-sync-period", "patience of /healthz"),
    "ipvs.minSyncPeriod": Field(v.duration_s, "ipvs.min_sync_period_s", "ipvs-min-sync-period", "pause between passes"),
    "ipvs.tcpTimeout": Field(v.whole_seconds, "ipvs.tcp_timeout_s", "ipvs-tcp-timeout", "idle connection (900s)"),
    "ipvs.tcpFinTimeout": Field(v.whole_seconds, "ipvs.tcpfin_timeout_s", "ipvs-tcpfin-timeout", "after a FIN (120s)"),
    "ipvs.udpTimeout": Field(v.whole_seconds, "ipvs.udp_timeout_s", "ipvs-udp-timeout", "idle flow (300s)"),
    "conntrack.maxPerCore": Field(
        v.integer(0, _MAX),
        "conntrack.max_per_core",
        "conntrack-max-per-core",
        "0: leave alone",
        empty_is_default=False,
    ),
    "conntrack.min": Field(
        v.integer(0, _MAX), "conntrack.min", "conntrack-min", "least nf_conntrack_max", empty_is_default=False
    ),
    "conntrack.tcpEstablishedTimeout": Field(
        v.whole_seconds,
        "conntrack.tcp_established_timeout_s",
        "conntrack-tcp-timeout-established",
        "0: leave alone",
        empty_is_default=False,
    ),
    "conntrack.tcpCloseWaitTimeout": Field(
        v.whole_seconds,
        "conntrack.tcp_close_wait_timeout_s",
        "conntrack-tcp-timeout-close-wait",
        "0: leave alone",
        empty_is_default=False,
    ),
    "conntrack.tcpBeLiberal": Field(
        v.boolean, "conntrack.tcp_be_liberal", "conntrack-tcp-be-liberal", "accept out-of-window packets"
    ),
    "conntrack.udpTimeout": Field(v.whole_seconds, "conntrack.udp_timeout_s", "conntrack-udp-timeout", "one packet"),
    "conntrack.udpStreamTimeout": Field(
        v.whole_seconds, "conntrack.udp_stream_timeout_s", "conntrack-udp-timeout-stream", "two-way flow"
    ),
}

EXTERNAL_IPS_GATE = "AllowServiceExternalIPs"
"""The one feature gate that means something here: off, `externalIPs` of Services are not served."""

KUBE_PROXY_IGNORED = frozenset(
    {
        "clientConnection.acceptContentTypes",
        "clientConnection.contentType",
        "conntrack.max",
        "iptables.localhostNodePorts",
        "iptables.minSyncPeriod",
        "iptables.syncPeriod",
        "logging",
        "nftables",
        "portRange",
        "resourceContainer",
        "showHiddenMetricsForVersion",
        "udpIdleTimeout",
        "windowsRunAsService",
        "winkernel",
    },
)
"""Fields of kube-proxy that mean nothing here, everything below one, too.

Some are gone from its newer versions, and still in the ConfigMap of a cluster that began with an older one.
"""

OUR_FIELDS: dict[str, Field] = {
    "drain.grace": Field(v.duration_s, "additions.drain_grace_s", empty_is_default=False),
    "drain.pollPeriod": Field(v.positive_duration_s, "additions.drain_poll_s"),
    "auditPeriod": Field(v.duration_s, "additions.audit_interval_s", empty_is_default=False),
    "sourceRangesCoverNodePorts": Field(v.boolean, "additions.source_ranges_cover_node_ports"),
    "allowExternalIPs": Field(v.cidrs, "additions.allow_external_ips"),
    "claimLoadBalancerIPs": Field(v.boolean, "additions.claim_load_balancer_ips"),
    "onePacketUDP": Field(v.boolean, "additions.one_packet_udp"),
    "schedulerFlags": Field(v.scheduler_flags, "ipvs.flags"),
    "metrics.maxVirtualServers": Field(
        v.integer(0, _MAX), "additions.metrics_max_virtual_servers", empty_is_default=False
    ),
    "logLevel": Field(v.log_level, "log_level", "log-level", "debug, info, warning or error"),
}

FLAGS: dict[str, Field] = {
    **{f.flag: f for f in (*KUBE_PROXY_FIELDS.values(), *OUR_FIELDS.values()) if f.flag},
    "master": Field(v.text, "client.server", "master", "URL of the API server, in place of the one found"),
}
"""Flag (without dashes) → what it sets."""

IGNORED_FLAGS = (
    "iptables-localhost-nodeports",
    "iptables-min-sync-period",
    "iptables-sync-period",
    "kube-api-content-type",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
    "logging-format",
    "nftables-min-sync-period",
    "nftables-sync-period",
    "proxy-port-range",
    "show-hidden-metrics-for-version",
    "v",
    "vmodule",
)
"""Flags of kube-proxy that mean nothing here: its command line is accepted, and these are named."""

LANGUAGES = {KUBE_PROXY: (KUBE_PROXY_FIELDS, KUBE_PROXY_IGNORED), OURS: (OUR_FIELDS, frozenset[str]())}
