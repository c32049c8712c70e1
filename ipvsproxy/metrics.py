"""Metrics of the proxy: kube-proxy's names, so that dashboards and alerts keep working, and our own per virtual server.

Source: service-proxy specification (kube-proxy v1.36 `pkg/proxy/metrics`), names and buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipvsproxy.ipvsadm import host_port
from ipvsproxy.model import ActualVirtualServer, VirtualServerKey
from kubecore.api import Exchange
from kubecore.model import Family

SYNC_BUCKETS = tuple(0.001 * 2**n for n in range(15))
REST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
BUILD_LABELS = (
    *("major", "minor", "git_version", "git_commit", "git_tree_state"),
    *("build_date", "go_version", "compiler", "platform"),
)
"""Of kubernetes_build_info; what there is no word for here is empty."""
PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class ProxyMetrics:
    """The metrics the reconciler sets. `families` get their series at once, so that a zero can be seen."""

    def __init__(self, registry: CollectorRegistry, families: tuple[Family, ...]) -> None:
        def names(name: str) -> str:
            return f"kubeproxy_{name}"

        family = ["ip_family"]
        self._families = tuple(f"IPv{f}" for f in families)
        self.sync_duration = Histogram(
            names("sync_proxy_rules_duration_seconds"),
            "From taking changes to the kernel having them",
            family,
            buckets=SYNC_BUCKETS,
            registry=registry,
        )
        self.last_sync = Gauge(
            names("sync_proxy_rules_last_timestamp_seconds"), "Last successful pass", family, registry=registry
        )
        self.last_queued = Gauge(
            names("sync_proxy_rules_last_queued_timestamp_seconds"), "Last change queued", family, registry=registry
        )
        self.programming = Histogram(
            names("network_programming_duration_seconds"),
            "From an endpoint's change (endpoints.kubernetes.io/last-change-trigger-time) to the kernel having it",
            family,
            buckets=PROGRAMMING_BUCKETS,
            registry=registry,
        )
        self.endpoint_changes_pending = Gauge(
            names("sync_proxy_rules_endpoint_changes_pending"),
            "Endpoint changes not yet in the kernel",
            registry=registry,
        )
        self.endpoint_changes = Counter(
            names("sync_proxy_rules_endpoint_changes"), "Endpoint changes taken in", registry=registry
        )
        self.service_changes_pending = Gauge(
            names("sync_proxy_rules_service_changes_pending"),
            "Service changes not yet in the kernel",
            registry=registry,
        )
        self.service_changes = Counter(
            names("sync_proxy_rules_service_changes"), "Service changes taken in", registry=registry
        )
        self.no_local_endpoints = Gauge(
            names("sync_proxy_rules_no_local_endpoints_total"),
            "Services with a Local policy, endpoints elsewhere and none on this node",
            [*family, "traffic_policy"],
            registry=registry,
        )
        self.healthz = Counter(
            "proxy_healthz", "Probes of /healthz", ["code"], namespace="kubeproxy", registry=registry
        )
        self.livez = Counter("proxy_livez", "Probes of /livez", ["code"], namespace="kubeproxy", registry=registry)
        self.flow_cut_duration = Histogram(
            names("conntrack_reconciler_sync_duration_seconds"),
            "Cutting flows of endpoints that are gone",
            family,
            buckets=SYNC_BUCKETS,
            registry=registry,
        )
        self.flows_cut = Counter(names("conntrack_reconciler_deleted_entries"), "Flows cut", family, registry=registry)
        self.table_failures = Counter(
            names("sync_proxy_rules_iptables_restore_failures"),
            "Failed changes of the nftables table, which is here what iptables is to kube-proxy",
            family,
            registry=registry,
        )
        self.operations = Counter(
            "ipvsproxy_operations", "Kernel operations by kind and outcome", ["operation", "outcome"], registry=registry
        )
        self.degraded = Gauge(
            "ipvsproxy_degraded_services", "Services with an operation that failed and is retried", registry=registry
        )
        self.draining = Gauge(
            "ipvsproxy_draining_real_servers", "Real servers at weight 0 that still have connections", registry=registry
        )
        self.audits = Counter(
            "ipvsproxy_audits", "Comparisons with the kernel, by what they found", ["result"], registry=registry
        )
        self.drift_repaired = Counter(
            "ipvsproxy_drift_repaired", "Operations that put back what somebody else changed", registry=registry
        )
        for label in self._families:
            for metric in (
                self.sync_duration,
                self.last_sync,
                self.last_queued,
                self.programming,
                self.flow_cut_duration,
                self.flows_cut,
                self.table_failures,
            ):
                metric.labels(label)
            for policy in ("internal", "external"):
                self.no_local_endpoints.labels(label, policy)

    def synced(self, seconds: float, now_s: float, *, done: bool) -> None:
        """One pass is over, and in the kernel if `done`. Families are programmed together, so each gets the same."""
        for label in self._families:
            self.sync_duration.labels(label).observe(seconds)
            if done:
                self.last_sync.labels(label).set(now_s)

    def queued(self, now_s: float, services: int, slices: int) -> None:
        """So many changes of Services and of EndpointSlices arrived; they are pending until `in_step`."""
        for label in self._families:
            self.last_queued.labels(label).set(now_s)
        self.service_changes.inc(services)
        self.service_changes_pending.inc(services)
        self.endpoint_changes.inc(slices)
        self.endpoint_changes_pending.inc(slices)

    def in_step(self) -> None:
        """The kernel has all that arrived."""
        self.service_changes_pending.set(0)
        self.endpoint_changes_pending.set(0)

    def cut(self, family: Family, flows: int, seconds: float) -> None:
        """Flows of endpoints that are gone were deleted from connection tracking."""
        self.flows_cut.labels(f"IPv{family}").inc(flows)
        self.flow_cut_duration.labels(f"IPv{family}").observe(seconds)

    def table_failed(self, times: int) -> None:
        """Changes of our table failed; it holds both families."""
        for label in self._families:
            self.table_failures.labels(label).inc(times)


def declare_build(registry: CollectorRegistry, version: str, platform: str, gates: Mapping[str, bool]) -> None:
    """What runs and which feature gates are on, under the names of Kubernetes' component-base.

    Args:
        registry: where they are exported.
        version: `0.1.0`.
        platform: `linux/x86_64`.
        gates: those that mean something here.
    """
    major, minor = version.split(".")[:2]
    known = {"major": major, "minor": minor, "git_version": f"v{version}", "platform": platform}
    labels = {**dict.fromkeys(BUILD_LABELS, ""), **known}
    Gauge("kubernetes_build_info", "What runs", BUILD_LABELS, registry=registry).labels(**labels).set(1)
    enabled = Gauge("kubernetes_feature_enabled", "1: this feature gate is on", ["name", "stage"], registry=registry)
    for name, is_on in gates.items():
        enabled.labels(name, "").set(int(is_on))


class ApiMetrics:
    """Requests to the API server, under client-go's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests",
            "Requests to the API server; code is <error> where there was no answer",
            ["code", "method", "host"],
            registry=registry,
        )
        self._waited, self._took = (
            Histogram(f"rest_client_{name}", text, ["verb", "host"], buckets=REST_BUCKETS, registry=registry)
            for name, text in (
                ("rate_limiter_duration_seconds", "Time a request waited for its turn (clientConnection.qps, burst)"),
                ("request_duration_seconds", "Time from a request to the beginning of its answer"),
            )
        )

    def observe(self, exchange: Exchange) -> None:
        """Count one request."""
        self._requests.labels(str(exchange.status or "<error>"), exchange.method, exchange.host).inc()
        self._waited.labels(exchange.method, exchange.host).observe(exchange.waited_s)
        self._took.labels(exchange.method, exchange.host).observe(exchange.took_s)


class HealthCollector(Collector):
    """The probes as metrics, for /metrics/slis (KEP-3466).

    Args:
        read: outcome of each probe by name.
    """

    def __init__(self, read: Callable[[], dict[str, bool]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing: made at scrape time."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """1 for what is well."""
        gauge = GaugeMetricFamily(
            "kubernetes_healthcheck", "1: this probe is well (only at /metrics/slis)", labels=["name", "type"]
        )
        for name, good in self._read().items():
            gauge.add_metric([name, "healthz"], int(good))
        yield gauge


class TableCollector(Collector):
    """How much of ours is in the kernel, counted at scrape time: counting at every change would cost O(all).

    Args:
        read: virtual servers, real servers and VIPs by family.
    """

    def __init__(self, read: Callable[[], dict[Family, tuple[int, int, int]]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Names only."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """Three gauges a family."""
        families = self._families()
        for family, counts in self._read().items():
            for metric, count in zip(families, counts, strict=True):
                metric.add_metric([f"IPv{family}"], count)
        yield from families

    @staticmethod
    def _families() -> list[GaugeMetricFamily]:
        labels = ["ip_family"]
        return [
            GaugeMetricFamily("ipvsproxy_virtual_servers", "Virtual servers of ours in the kernel", labels=labels),
            GaugeMetricFamily("ipvsproxy_real_servers", "Real servers of ours in the kernel", labels=labels),
            GaugeMetricFamily("ipvsproxy_vips", "Addresses routed to this node's IPVS", labels=labels),
        ]


class VirtualServerCollector(Collector):
    """Counters of each virtual server, read from the kernel at scrape time.

    Args:
        read: the kernel's virtual servers with the names of their Services (`namespace/name:port`).
        limit: at most this many virtual servers get series of their own, those with most connections first; the
            rest is summed in one series whose `service` is `other`, so that cardinality stays bounded.
    """

    def __init__(
        self, read: Callable[[], Iterable[tuple[VirtualServerKey, str, ActualVirtualServer]]], limit: int
    ) -> None:
        self._read = read
        self._limit = limit

    def describe(self) -> Iterator[Metric]:
        """Names only, so that registering reads nothing."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """Series for the busiest virtual servers and one for the others."""
        families = self._families()
        rows = sorted(self._read(), key=lambda row: (-row[2].traffic.connections, str(row[0])))
        other = [0] * len(families)
        for rank, (key, service, actual) in enumerate(rows):
            values = self._values(actual)
            if rank >= self._limit:
                other = [a + b for a, b in zip(other, values, strict=True)]
                continue
            if key.protocol is None:
                labels = [service, f"fwmark:{key.fwmark:#x}", ""]
            else:
                labels = [service, host_port(key.address, key.port), key.protocol.value]
            for family, value in zip(families, values, strict=True):
                family.add_metric(labels, value)
        if len(rows) > self._limit:
            for family, value in zip(families, other, strict=True):
                family.add_metric(["other", "", ""], value)
        yield from families

    @staticmethod
    def _values(actual: ActualVirtualServer) -> list[int]:
        traffic, reals = actual.traffic, actual.real_servers.values()
        return [
            traffic.connections,
            traffic.in_bytes,
            traffic.out_bytes,
            traffic.in_packets,
            traffic.out_packets,
            sum(r.counters.active for r in reals),
            sum(r.counters.inactive for r in reals),
            len(actual.real_servers),
        ]

    @staticmethod
    def _families() -> list[CounterMetricFamily | GaugeMetricFamily]:
        labels = ["service", "address", "protocol"]
        return [
            CounterMetricFamily("ipvsproxy_virtual_server_connections", "Connections scheduled", labels=labels),
            CounterMetricFamily("ipvsproxy_virtual_server_in_bytes", "Bytes from clients", labels=labels),
            CounterMetricFamily("ipvsproxy_virtual_server_out_bytes", "Bytes to clients", labels=labels),
            CounterMetricFamily("ipvsproxy_virtual_server_in_packets", "Packets from clients", labels=labels),
            CounterMetricFamily("ipvsproxy_virtual_server_out_packets", "Packets to clients", labels=labels),
            GaugeMetricFamily("ipvsproxy_virtual_server_active_connections", "Open connections", labels=labels),
            GaugeMetricFamily("ipvsproxy_virtual_server_inactive_connections", "Closing connections", labels=labels),
            GaugeMetricFamily("ipvsproxy_virtual_server_real_servers", "Real servers", labels=labels),
        ]
