"""The Grafana dashboards, as tables of panels; `tools.charts` writes them into the charts.

Knows Grafana's dashboard JSON (schema 39). Queries use the variables `$datasource`, `$job` and `$instance`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

_WIDTH = 24
_HEIGHT = 8


class Panel(NamedTuple):
    """One graph, or one number."""

    title: str
    queries: tuple[tuple[str, str], ...]
    """(PromQL, legend). `{}` stands for a selector with the variables' matchers, `{{}, …}` for one with more."""
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 12


class Row(NamedTuple):
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def _quantile(quantile: float, metric: str, by: str = "le") -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{{}}[$__rate_interval])))"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(q, metric), f"p{int(q * 100)}") for q in (0.5, 0.9, 0.99))


def _rate(metric: str, by: str = "", only: str = "") -> str:
    selector = f"{{{{}}, {only}}}" if only else "{}"
    inner = f"rate({metric}{selector}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


WATCH = Row(
    "Watching the API server",
    (
        Panel(
            "Seconds without a sign of life",
            (("max by (resource) (kubecore_watch_staleness_seconds{})", "{{resource}}"),),
            "s",
            "Bookmarks arrive about every minute.",
        ),
        Panel("Events", ((_rate("kubecore_watch_upserts_total", "resource"), "{{resource}}"),), "cps"),
        Panel(
            "Relists and failures",
            (
                (_rate("kubecore_watch_lists_total", "resource"), "lists {{resource}}"),
                (_rate("kubecore_watch_failures_total", "resource"), "failures {{resource}}"),
            ),
            "cps",
        ),
        Panel(
            "Memory",
            (("process_resident_memory_bytes{}", "{{instance}}"),),
            "bytes",
        ),
    ),
)

BOARDS: dict[str, tuple[Row, ...]] = {
    "ipvsproxy": (
        Row(
            "Overview",
            (
                Panel("Nodes", (("count(ipvsproxy_degraded_services{})", ""),), kind="stat", width=4),
                Panel("Degraded Services", (("sum(ipvsproxy_degraded_services{})", ""),), kind="stat", width=4),
                Panel("Virtual servers", (("max(ipvsproxy_virtual_servers{})", ""),), kind="stat", width=4),
                Panel("Real servers", (("max(ipvsproxy_real_servers{})", ""),), kind="stat", width=4),
                Panel("Draining", (("sum(ipvsproxy_draining_real_servers{})", ""),), kind="stat", width=4),
                Panel("VIPs", (("max(ipvsproxy_vips{})", ""),), kind="stat", width=4),
            ),
        ),
        Row(
            "From the change to the kernel",
            (
                Panel(
                    "From an endpoint's change to this node's kernel",
                    _quantiles("kubeproxy_network_programming_duration_seconds"),
                    "s",
                    "The cluster's latency: from the endpoint's change, as the EndpointSlice controller notes it.",
                ),
                Panel(
                    "One pass", _quantiles("kubeproxy_sync_proxy_rules_duration_seconds"), "s", "The proxy's own part."
                ),
                Panel(
                    "Changes",
                    (
                        (_rate("kubeproxy_sync_proxy_rules_endpoint_changes_total"), "endpoints"),
                        (_rate("kubeproxy_sync_proxy_rules_service_changes_total"), "Services"),
                    ),
                    "cps",
                ),
                Panel(
                    "Changes that wait",
                    (
                        ("sum by (instance) (kubeproxy_sync_proxy_rules_endpoint_changes_pending{})", "{{instance}}"),
                        ("sum by (instance) (kubeproxy_sync_proxy_rules_service_changes_pending{})", "{{instance}}"),
                    ),
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "New connections by Service",
                    ((f"topk(10, {_rate('ipvsproxy_virtual_server_connections_total', 'service')})", "{{service}}"),),
                    "cps",
                ),
                Panel(
                    "Open connections by Service",
                    (
                        (
                            "topk(10, sum by (service) (ipvsproxy_virtual_server_active_connections{}))",
                            "{{service}}",
                        ),
                    ),
                ),
                Panel(
                    "Bytes from clients",
                    ((f"topk(10, {_rate('ipvsproxy_virtual_server_in_bytes_total', 'service')})", "{{service}}"),),
                    "Bps",
                ),
                Panel(
                    "Bytes to clients",
                    ((f"topk(10, {_rate('ipvsproxy_virtual_server_out_bytes_total', 'service')})", "{{service}}"),),
                    "Bps",
                ),
            ),
        ),
        Row(
            "Kernel",
            (
                Panel(
                    "Operations",
                    ((_rate("ipvsproxy_operations_total", "operation, outcome"), "{{operation}} {{outcome}}"),),
                    "cps",
                ),
                Panel(
                    "Drift put right",
                    ((_rate("ipvsproxy_drift_repaired_total", "instance"), "{{instance}}"),),
                    "cps",
                    "Operations that put back what somebody else changed.",
                ),
                Panel(
                    "Services without a local endpoint where policy wants one",
                    (
                        (
                            "max by (traffic_policy) (kubeproxy_sync_proxy_rules_no_local_endpoints_total{})",
                            "{{traffic_policy}}",
                        ),
                    ),
                ),
                Panel(
                    "Flows cut",
                    ((_rate("kubeproxy_conntrack_reconciler_deleted_entries_total", "ip_family"), "{{ip_family}}"),),
                    "cps",
                ),
            ),
        ),
        WATCH,
    ),
    "dnsserver": (
        Row(
            "Overview",
            (
                Panel("Queries", ((_rate("coredns_dns_requests_total"), ""),), "reqps", kind="stat", width=6),
                Panel(
                    "SERVFAIL",
                    ((_rate("coredns_dns_responses_total", only='rcode="SERVFAIL"'), ""),),
                    "reqps",
                    kind="stat",
                    width=6,
                ),
                Panel("In flight", (("sum(dnsserver_in_flight_queries{})", ""),), kind="stat", width=6),
                Panel("Workers", (("sum(dnsserver_workers{})", ""),), kind="stat", width=6),
            ),
        ),
        Row(
            "Queries",
            (
                Panel("By type", ((_rate("coredns_dns_requests_total", "type"), "{{type}}"),), "reqps"),
                Panel(
                    "By zone and transport",
                    ((_rate("coredns_dns_requests_total", "zone, proto"), "{{zone}} {{proto}}"),),
                    "reqps",
                ),
                Panel("Replies by code", ((_rate("coredns_dns_responses_total", "rcode"), "{{rcode}}"),), "reqps"),
                Panel("Replies by plugin", ((_rate("coredns_dns_responses_total", "plugin"), "{{plugin}}"),), "reqps"),
                Panel("Time to reply", _quantiles("coredns_dns_request_duration_seconds"), "s"),
                Panel(
                    "Turned away",
                    (
                        (_rate("dnsserver_shed_queries_total"), "too many in flight"),
                        (_rate("dnsserver_tcp_refused_total"), "TCP connections"),
                        (_rate("coredns_forward_max_concurrent_rejects_total"), "max_concurrent"),
                    ),
                    "reqps",
                ),
            ),
        ),
        Row(
            "Cache and upstreams",
            (
                Panel(
                    "Cache",
                    (
                        (_rate("coredns_cache_hits_total", "type"), "hits, {{type}}"),
                        (_rate("coredns_cache_misses_total"), "misses"),
                        (_rate("coredns_cache_served_stale_total"), "stale"),
                    ),
                    "reqps",
                ),
                Panel("Replies kept", (("sum by (type) (coredns_cache_entries{})", "{{type}}"),)),
                Panel(
                    "Time an upstream takes, p99",
                    ((_quantile(0.99, "coredns_proxy_request_duration_seconds", "le, to"), "{{to}}"),),
                    "s",
                ),
                Panel(
                    "Upstreams that fail",
                    (
                        (_rate("coredns_proxy_healthcheck_failures_total", "to"), "{{to}}"),
                        (_rate("coredns_forward_healthcheck_broken_total"), "all dead"),
                    ),
                    "cps",
                ),
            ),
        ),
        Row(
            "The cluster's changes",
            (
                Panel(
                    "From an endpoint's change to the answer",
                    _quantiles("coredns_kubernetes_dns_programming_duration_seconds"),
                    "s",
                ),
                Panel(
                    "Holding the event loop, p99",
                    ((_quantile(0.99, "dnsserver_apply_slice_seconds"), "p99"),),
                    "s",
                ),
            ),
        ),
        WATCH,
    ),
}
_ANY = {"ipvsproxy": "ipvsproxy_degraded_services", "dnsserver": "dnsserver_workers"}
"""A metric that every instance has, for the lists of jobs and instances."""


def text(name: str) -> str:
    """The dashboard's file."""
    return json.dumps(board(name), indent=1) + "\n"


def board(name: str) -> dict[str, Any]:
    """The dashboard."""
    panels: list[dict[str, Any]] = []
    at_x = at_y = 0
    for row in BOARDS[name]:
        at_y += _HEIGHT if at_x else 0
        panels.append(_placed({"type": "row", "title": row.title}, 0, at_y, _WIDTH, 1))
        at_x, at_y = 0, at_y + 1
        for panel in row.panels:
            height = 4 if panel.kind == "stat" else _HEIGHT
            panels.append(_placed(_panel(panel), at_x, at_y, panel.width, height))
            at_x += panel.width
            if at_x >= _WIDTH:
                at_x, at_y = 0, at_y + height
    return {
        "uid": f"kube-ipvs-dns-{name}",
        "title": name,
        "tags": ["kubernetes", "networking"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables(_ANY[name])},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _placed(panel: dict[str, Any], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": x, "y": y, "w": width, "h": height}, **panel}


def _panel(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    matchers = 'job=~"$job", instance=~"$instance"'
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": source,
                "expr": expr.replace("{{}, ", f"{{{matchers}, ").replace("{}", f"{{{matchers}}}"),
                "legendFormat": legend,
            }
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _variables(metric: str) -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    common = {"type": "query", "datasource": source, "multi": True, "includeAll": True, "refresh": 2, "sort": 1}
    job, instance = f"label_values({metric}, job)", f'label_values({metric}{{job=~"$job"}}, instance)'
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {"name": "job", **common, "query": {"query": job, "refId": "job"}, "definition": job},
        {"name": "instance", **common, "query": {"query": instance, "refId": "instance"}, "definition": instance},
    ]
