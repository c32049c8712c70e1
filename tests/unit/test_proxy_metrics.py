"""Names that kube-proxy's dashboards rely on, and the bounded series per virtual server."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ipvsproxy.metrics import (
    BUILD_LABELS,
    ApiMetrics,
    HealthCollector,
    ProxyMetrics,
    VirtualServerCollector,
    declare_build,
)
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    TrafficCounters,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.api import Exchange
from kubecore.model import Protocol

KUBE_PROXY_NAMES = """
kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="16.384"}
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"}
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}
kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.25"}
kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300.0"}
kubeproxy_sync_proxy_rules_endpoint_changes_pending
kubeproxy_sync_proxy_rules_endpoint_changes_total
kubeproxy_sync_proxy_rules_service_changes_pending
kubeproxy_sync_proxy_rules_service_changes_total
kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}
kubeproxy_proxy_healthz_total{code="200"}
kubeproxy_proxy_livez_total{code="503"}
kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"}
kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"}
kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"}
kubernetes_feature_enabled{name="AllowServiceExternalIPs",stage=""}
""".split()


def test_kube_proxy_names_are_kept() -> None:
    registry = CollectorRegistry()
    metrics = ProxyMetrics(registry, (4, 6))
    metrics.healthz.labels("200").inc()
    metrics.livez.labels("503").inc()
    declare_build(registry, "1.36.2", "linux/x86_64", {"AllowServiceExternalIPs": True})
    text = generate_latest(registry).decode()
    exposed = {line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")}
    assert [name for name in KUBE_PROXY_NAMES if name not in exposed] == []
    (build,) = [line for line in text.splitlines() if line.startswith("kubernetes_build_info{")]
    assert all(f'{label}="' in build for label in BUILD_LABELS)
    assert 'major="1",minor="36",platform="linux/x86_64"} 1.0' in build


def server(connections: int, active: int) -> ActualVirtualServer:
    real = ActualRealServer(RealServerConfig(), RealServerCounters(active=active, inactive=1))
    return ActualVirtualServer(
        VirtualServerConfig(), {RealServerKey("10.244.0.1", 80): real}, TrafficCounters(connections=connections)
    )


@pytest.mark.parametrize(("servers", "limit", "series"), [(3, 10, 3), (3, 3, 3), (50, 10, 11)])
def test_series_per_virtual_server_are_bounded(servers: int, limit: int, series: int) -> None:
    registry = CollectorRegistry()
    both = (Protocol.TCP, Protocol.UDP)
    rows = [
        (VirtualServerKey(4, both[i % 2], f"10.96.0.{i // 2}", 80), f"default/web-{i}", server(i // 2 * 2, active=i))
        for i in range(servers)
    ]
    registry.register(VirtualServerCollector(lambda: rows, limit))
    text = generate_latest(registry).decode()
    lines = [x for x in text.splitlines() if x.startswith("ipvsproxy_virtual_server_connections_total{")]
    assert len(lines) == series
    assert sum(float(x.rsplit(" ", 1)[1]) for x in lines) == sum(i // 2 * 2 for i in range(servers))


def test_a_mark_has_no_address() -> None:
    registry = CollectorRegistry()
    rows = [(VirtualServerKey(6, None, "", 0, 0x2A), "default/web:http", server(1, active=2))]
    registry.register(VirtualServerCollector(lambda: rows, 10))
    text = generate_latest(registry).decode()
    expected = (
        'ipvsproxy_virtual_server_active_connections{address="fwmark:0x2a",protocol="",service="default/web:http"} 2.0'
    )
    assert expected in text


def test_requests_to_the_api_server_have_client_gos_names() -> None:
    registry = CollectorRegistry()
    api = ApiMetrics(registry)
    api.observe(Exchange("GET", "127.0.0.1:6443", 200, 0.0, 0.01))
    api.observe(Exchange("POST", "127.0.0.1:6443", 0, 0.0, 10.0))
    text = generate_latest(registry).decode()
    for line in (
        'rest_client_requests_total{code="200",host="127.0.0.1:6443",method="GET"} 1.0',
        'rest_client_requests_total{code="<error>",host="127.0.0.1:6443",method="POST"} 1.0',
        'rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",le="0.025",verb="GET"} 1.0',
        'rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",le="8.0",verb="POST"} 0.0',
    ):
        assert line in text.splitlines()


def test_probes_as_metrics() -> None:
    registry = CollectorRegistry()
    registry.register(HealthCollector(lambda: {"IPv4": True, "node": False}))
    assert registry.get_sample_value("kubernetes_healthcheck", {"name": "IPv4", "type": "healthz"}) == 1
    assert registry.get_sample_value("kubernetes_healthcheck", {"name": "node", "type": "healthz"}) == 0
