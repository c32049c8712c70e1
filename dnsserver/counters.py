"""Figures of the plugins, under the names dashboards know.

Knows metric names and labels. Must not know plugins. One for each process: a registry takes a name once, while
chains are built anew at each reload.

Source: metrics as CoreDNS names them, plugin by plugin.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WHERE = ("server", "zones", "view")
DURATION_BOUNDS_S = tuple(0.00025 * 2**n for n in range(16))


class Counters:
    """Every metric of a plugin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(name, text, tuple(labels), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(name, text, tuple(labels), registry=registry)

        cache = ("server", "type", "zones", "view")
        self.cache_entries = gauge("coredns_cache_entries", "Replies kept", cache)
        self.cache_hits = counter("coredns_cache_hits", "Replies out of the cache", cache)
        self.cache_misses = counter("coredns_cache_misses", "Queries the cache had no reply to", _WHERE)
        self.cache_requests = counter("coredns_cache_requests", "Queries that reached the cache", _WHERE)
        self.cache_prefetches = counter("coredns_cache_prefetch", "Replies renewed before they expired", _WHERE)
        self.cache_drops = counter("coredns_cache_drops", "Replies not kept: another question's", _WHERE)
        self.cache_stale = counter("coredns_cache_served_stale", "Expired replies that were served", _WHERE)
        self.cache_evictions = counter("coredns_cache_evictions", "Replies that made room", cache)

        self.forward_broken = counter(
            "coredns_forward_healthcheck_broken", "Queries that met only upstreams taken for dead"
        )
        self.forward_rejects = counter(
            "coredns_forward_max_concurrent_rejects", "Queries refused: too many were under way"
        )
        upstream = ("proxy_name", "to")
        self.proxy_duration = Histogram(
            "coredns_proxy_request_duration_seconds",
            "Time an upstream took",
            (*upstream, "rcode"),
            buckets=DURATION_BOUNDS_S,
            registry=registry,
        )
        self.proxy_health_failures = counter(
            "coredns_proxy_healthcheck_failures", "Failed health checks of an upstream", upstream
        )
        protocol = (*upstream, "proto")
        self.proxy_conn_hits = counter("coredns_proxy_conn_cache_hits", "Queries on an open connection", protocol)
        self.proxy_conn_misses = counter("coredns_proxy_conn_cache_misses", "Connections opened", protocol)
        self.forward_coalesced = counter("dnsserver_forward_coalesced", "Queries that shared another's upstream query")
        self.forward_hedges = counter("dnsserver_forward_hedges", "Second upstreams asked before the first replied")
        self.forward_rejected_replies = counter(
            "dnsserver_forward_rejected_replies", "Replies that fit no query sent (RFC 5452)", ("to", "reason")
        )
        self.forward_looped = gauge("dnsserver_forward_looped", "Whether forwarding leads back here", ("zone",))

        self.hosts_entries = gauge("coredns_hosts_entries", "Names and addresses out of hosts files")
        self.hosts_reloaded = gauge("coredns_hosts_reload_timestamp_seconds", "When a hosts file was last read")
        self.autopath_successes = counter("coredns_autopath_success", "Search paths completed here", ("server",))
        self.dns64_translated = counter(
            "coredns_dns64_requests_translated", "AAAA replies made out of A records", ("server",)
        )
        template = ("server", "zone", "view", "class", "type")
        self.template_matches = counter("coredns_template_matches", "Queries a template answered", template)
        section = (*template, "section", "template")
        self.template_failures = counter("coredns_template_template_failures", "Templates that did not expand", section)
        self.template_rr_failures = counter("coredns_template_rr_failures", "Templates that gave no record", section)
        self.acl_blocked = counter(
            "coredns_acl_blocked_requests", "Queries refused by a rule", ("server", "zone", "view")
        )
        self.acl_filtered = counter(
            "coredns_acl_filtered_requests", "Queries emptied by a rule", ("server", "zone", "view")
        )
        self.acl_dropped = counter(
            "coredns_acl_dropped_requests", "Queries dropped by a rule", ("server", "zone", "view")
        )
        self.acl_allowed = counter("coredns_acl_allowed_requests", "Queries allowed", ("server", "view"))
