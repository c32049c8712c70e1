"""Figures of the DNS server under the names dashboards know (`coredns_*`), and our own (`dnsserver_*`).

Knows: which labels and buckets each metric has, and how counts from the hot path become histograms. Must not know
sockets or plugins. Whoever counts asks for a `Cell` once and adds to it; everything else is worked out when somebody
scrapes.

With several workers each process has its own figures: `Snapshot` carries them to the one that serves /metrics.

Source: metrics as CoreDNS names them (its `metrics`, `health`, `reload` and `kubernetes` plugins).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from dnsserver.hotpath import DURATION_BOUNDS_S, HotPath
from dnsserver.kept import Cell, Lasting
from dnsserver.message import Rcode

if TYPE_CHECKING:
    from kubecore.api import Exchange

SIZE_BOUNDS = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000)
PROGRAMMING_BOUNDS_S = tuple(0.001 * 2**n for n in range(20))
_CELLS = 20_000
"""Beyond it new cells take sizes to the bucket only, so that nobody can make the figures grow without bound."""
DROPPED_ZONE = "dropped"
"""The zone label of queries answered before any server block was chosen."""

_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR", 43: "DS",
    46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY",
}  # fmt: skip
_RCODES = {int(code): code.name for code in Rcode}


class Traffic(NamedTuple):
    """What the metrics tell apart about a query and its reply."""

    server: str
    """`dns://:53`."""
    zone: str
    proto: str
    family: int
    """1: IPv4, 2: IPv6, as in the `family` label."""
    type: int
    rcode: int
    do: bool
    plugin: str
    """Which plugin made the reply."""
    asked_bytes: int
    replied_bytes: int
    hot: Lasting | None
    """None: it went through the chain, and its duration was observed."""


class TrafficFigures(Collector):
    """Queries and replies: cells to count in, families to show."""

    def __init__(self) -> None:
        self._cells: dict[Traffic, Cell] = {}
        self._hot: list[tuple[tuple[str, str, int], HotPath, list[int], list[float]]] = []
        self._folded: dict[tuple[tuple[str, str, int], str], int] = defaultdict(int)
        # (server, zone) -> replies by bucket, and the sum of seconds
        self._durations: dict[tuple[str, str], list[int]] = {}
        self._duration_sums_s: dict[tuple[str, str], float] = defaultdict(float)
        self.shown: frozenset[str] | None = None
        """Servers (labels) with the `prometheus` plugin; None: all."""

    def cell(self, traffic: Traffic) -> Cell:
        """The counter for queries just like this."""
        found = self._cells.get(traffic)
        if found is None:
            if len(self._cells) >= _CELLS:
                traffic = traffic._replace(
                    asked_bytes=_bound_above(traffic.asked_bytes), replied_bytes=_bound_above(traffic.replied_bytes)
                )
                if (found := self._cells.get(traffic)) is not None:
                    return found
            found = self._cells[traffic] = Cell(traffic.hot or Lasting.UNTIL_CHANGED)
        return found

    def observe(self, traffic: Traffic, took_s: float) -> None:
        """Count one reply of the chain."""
        self.cell(traffic).hits += 1
        key = (traffic.server, traffic.zone)
        self._buckets(key)[bisect_left(DURATION_BOUNDS_S, took_s)] += 1
        self._duration_sums_s[key] += took_s

    def watch_hot(self, server: str, proto: str, family: int, hot: HotPath) -> None:
        """Take the durations of a hot path in, which counts in cells of this server, protocol and family."""
        self._hot.append(((server, proto, family), hot, [0] * len(hot.durations), [0.0]))

    def unwatch_hot(self, hot: HotPath) -> None:
        """Take in what a hot path counted last; it is gone."""
        self._fold()
        self._hot = [entry for entry in self._hot if entry[1] is not hot]

    def _buckets(self, key: tuple[str, str]) -> list[int]:
        found = self._durations.get(key)
        if found is None:
            found = self._durations[key] = [0] * (len(DURATION_BOUNDS_S) + 1)
        return found

    def _fold(self) -> None:
        """Share the durations of each hot path out to the zones it answered for since the last time.

        A hot path knows how long batches took, not for which zone: the shares are proportional, the counts exact.
        """
        answered: dict[tuple[str, str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for traffic, cell in self._cells.items():
            if traffic.hot is not None:
                answered[traffic.server, traffic.proto, traffic.family][traffic.zone] += cell.hits
        fresh: dict[tuple[str, str, int], dict[str, int]] = {}
        for where, zones in answered.items():
            fresh[where] = {}
            for zone, hits in zones.items():
                new = hits - self._folded[where, zone]
                if new:
                    fresh[where][zone] = new
                    self._folded[where, zone] = hits
        totals: dict[tuple[str, str, int], list[int]] = {}
        sums: dict[tuple[str, str, int], float] = defaultdict(float)
        for where, hot, seen, seen_s in self._hot:
            total = totals.setdefault(where, [0] * len(seen))
            for i, count in enumerate(hot.durations):
                total[i] += count - seen[i]
                seen[i] = count
            sums[where] += hot.duration_sum_s - seen_s[0]
            seen_s[0] = hot.duration_sum_s
        for where, zones in fresh.items():
            self._share(where[0], zones, totals.get(where), sums[where])

    def _share(self, server: str, zones: dict[str, int], left: list[int] | None, sum_s: float) -> None:
        total = rest = sum(zones.values())
        source = left or []
        for zone, hits in sorted(zones.items()):
            buckets = self._buckets((server, zone))
            self._duration_sums_s[server, zone] += sum_s * hits / total
            owed = hits
            for i, available in enumerate(source):
                take = min(owed, available * hits // rest)
                buckets[i] += take
                source[i] -= take
                owed -= take
            for i, available in enumerate(source):
                take = min(owed, available)
                buckets[i] += take
                source[i] -= take
                owed -= take
            buckets[0] += owed  # replies of a batch that is still being counted
            rest -= hits

    def collect(self) -> Iterator[Metric]:
        """All families; folds first."""
        self._fold()
        requests: dict[tuple[str, ...], int] = defaultdict(int)
        responses: dict[tuple[str, ...], int] = defaultdict(int)
        wanting_dnssec: dict[tuple[str, ...], int] = defaultdict(int)
        sizes: tuple[dict[tuple[str, ...], list[int]], ...] = ({}, {})
        for t, cell in list(self._cells.items()):
            if not cell.hits or (self.shown is not None and t.server not in self.shown):
                continue
            requests[t.server, t.zone, "", t.proto, str(t.family), _TYPES.get(t.type, "other")] += cell.hits
            responses[t.server, t.zone, "", rcode_text(t.rcode), t.plugin] += cell.hits
            if t.do:
                wanting_dnssec[t.server, t.zone, ""] += cell.hits
            for histogram, size in zip(sizes, (t.asked_bytes, t.replied_bytes), strict=True):
                row = histogram.setdefault((t.server, t.zone, "", t.proto), [0] * (len(SIZE_BOUNDS) + 2))
                row[bisect_left(SIZE_BOUNDS, size)] += cell.hits
                row[-1] += size * cell.hits
        where = ["server", "zone", "view"]
        yield _counter("coredns_dns_requests", "Queries", [*where, "proto", "family", "type"], requests)
        yield _counter("coredns_dns_responses", "Replies", [*where, "rcode", "plugin"], responses)
        yield _counter("coredns_dns_do_requests", "Queries with the DO bit", where, wanting_dnssec)
        for name, text, rows in zip(
            ("coredns_dns_request_size_bytes", "coredns_dns_response_size_bytes"),
            ("Size of queries", "Size of replies"),
            sizes,
            strict=True,
        ):
            family = HistogramMetricFamily(name, text, labels=[*where, "proto"])
            for labels, row in sorted(rows.items()):
                family.add_metric(labels, _cumulative(SIZE_BOUNDS, row[:-1]), row[-1])
            yield family
        family = HistogramMetricFamily("coredns_dns_request_duration_seconds", "Time to reply", labels=where)
        for (server, zone), buckets in sorted(self._durations.items()):
            if self.shown is None or server in self.shown:
                family.add_metric(
                    [server, zone, ""], _cumulative(DURATION_BOUNDS_S, buckets), self._duration_sums_s[server, zone]
                )
        yield family


def rcode_text(rcode: int) -> str:
    """A response code as dig spells it; a number where it has no name here."""
    return _RCODES.get(rcode, str(rcode))


def _bound_above(size: int) -> int:
    i = bisect_left(SIZE_BOUNDS, size)
    return SIZE_BOUNDS[i] if i < len(SIZE_BOUNDS) else 65535


def _counter(name: str, text: str, labels: list[str], rows: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in sorted(rows.items()):
        family.add_metric(values, count)
    return family


def _cumulative(bounds: Iterable[float], counts: list[int]) -> list[tuple[str, float]]:
    total, rows = 0, []
    for bound, count in zip(bounds, counts, strict=False):
        total += count
        rows.append((str(float(bound)), float(total)))
    return [*rows, ("+Inf", float(total + counts[-1]))]


class ServerMetrics:
    """Everything that is not traffic. One for each process, on its own registry."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(name, text, tuple(labels), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(name, text, tuple(labels), registry=registry)

        self.registry = registry
        self.traffic = TrafficFigures()
        registry.register(self.traffic)
        self.panics = counter("coredns_panics", "Replies that failed by a fault of the server")
        self.plugin_enabled = gauge("coredns_plugin_enabled", "Plugins in use", ["server", "zone", "view", "name"])
        build = gauge("coredns_build_info", "What runs", ["version", "revision", "goversion"])
        build.labels(version, "", "").set(1)
        self.health_duration = Histogram(
            "coredns_health_request_duration_seconds",
            "Time of the server's request to its own health endpoint",
            buckets=DURATION_BOUNDS_S[:11],
            registry=registry,
        )
        self.health_failures = counter("coredns_health_request_failures", "Such requests that failed")
        self.reload_failed = counter("coredns_reload_failed", "Configurations that were rejected on reload")
        self.reload_version = gauge(
            "coredns_reload_version_info", "Digest of the configuration in use", ["hash", "value"]
        )
        self.programming = Histogram(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "From an endpoint's change to the answer that has it",
            ["service_kind"],
            buckets=PROGRAMMING_BOUNDS_S,
            registry=registry,
        )

        def rest(name: str, text: str) -> Histogram:
            return Histogram(f"coredns_kubernetes_rest_client_{name}", text, ["verb", "host"], registry=registry)

        self.api_duration = rest(
            "request_duration_seconds", "Time from a request to the API server to the beginning of its answer"
        )
        self.api_waits = rest(
            "rate_limiter_duration_seconds",
            "Time such a request waited for its turn (apiserver_qps, apiserver_max_inflight)",
        )
        self.api_requests = counter(
            "coredns_kubernetes_rest_client_requests",
            "Requests to the API server; code is <error> where there was no answer",
            ["code", "method", "host"],
        )
        self.shed = counter("dnsserver_shed_queries", "Queries turned away because too many were in flight", ["server"])
        self.in_flight = gauge("dnsserver_in_flight_queries", "Queries in the chain of plugins now")
        self.hot_entries = gauge("dnsserver_hot_replies", "Replies kept ready by the hot path")
        self.dropped_sends = counter("dnsserver_unsent_replies", "Replies the kernel would not take", ["server"])
        self.tcp_connections = gauge("dnsserver_tcp_connections", "Open TCP connections", ["server"])
        self.tcp_refused = counter("dnsserver_tcp_refused", "TCP connections refused by a limit", ["server"])
        self.changes = counter("dnsserver_applied_changes", "Services looked at again because the cluster changed")
        self.slice_duration = Histogram(
            "dnsserver_apply_slice_seconds",
            "Longest stretches the event loop is held by a change of the cluster",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
            registry=registry,
        )
        self.workers = gauge("dnsserver_workers", "Worker processes that serve")
        self.worker_restarts = counter("dnsserver_worker_restarts", "Workers that died and were replaced")

    def observe_exchange(self, exchange: Exchange) -> None:
        """Count one request to the API server."""
        method, host = exchange.method, exchange.host
        self.api_duration.labels(method, host).observe(exchange.took_s)
        self.api_waits.labels(method, host).observe(exchange.waited_s)
        self.api_requests.labels(str(exchange.status) if exchange.status else "<error>", method, host).inc()


# -- several processes

_SUMMED_GAUGES = frozenset(
    {
        "coredns_cache_entries",
        "dnsserver_in_flight_queries",
        "dnsserver_hot_replies",
        "dnsserver_tcp_connections",
    }
)
"""Gauges that add up over workers; of the others (digests, time stamps, sizes of the same zone) the largest counts."""


class FamilySnapshot(msgspec.Struct, array_like=True):
    """One metric family of one process."""

    name: str
    text: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


def snapshot(registry: CollectorRegistry) -> list[FamilySnapshot]:
    """All figures of this process, ready for a message."""
    return [
        FamilySnapshot(f.name, f.documentation, f.type, [(s.name, s.labels, s.value) for s in f.samples])
        for f in registry.collect()
    ]


class MergedFigures(Collector):
    """The figures of several processes as one."""

    def __init__(self) -> None:
        self._parts: dict[Any, list[FamilySnapshot]] = {}
        self._buried: dict[str, FamilySnapshot] = {}

    def update(self, who: Any, families: list[FamilySnapshot]) -> None:
        """What `who` counts now."""
        self._parts[who] = families

    def bury(self, who: Any) -> None:
        """`who` is gone; what it counted stays counted, what it measured does not."""
        for family in self._parts.pop(who, []):
            if family.type in {"counter", "histogram"}:
                known = self._buried.get(family.name)
                self._buried[family.name] = _merge([known, family]) if known else family

    def collect(self) -> Iterator[Metric]:
        """Each family once."""
        together: dict[str, list[FamilySnapshot]] = defaultdict(list)
        for family in [f for part in self._parts.values() for f in part] + list(self._buried.values()):
            together[family.name].append(family)
        for name, families in together.items():
            merged = _merge(families)
            metric = Metric(name, merged.text, merged.type)
            metric.samples = [Sample(s, labels, value) for s, labels, value in merged.samples]
            yield metric


def _merge(families: list[FamilySnapshot]) -> FamilySnapshot:
    """Counters and histograms add up; gauges as `_SUMMED_GAUGES` says. A `_created` time is the earliest."""
    first = families[0]
    largest = first.type not in {"counter", "histogram"} and first.name not in _SUMMED_GAUGES
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families:
        for name, labels, value in family.samples:
            key = (name, tuple(labels.items()))
            known = values.get(key)
            if known is None:
                values[key] = value
            elif name.endswith("_created"):
                values[key] = min(known, value)
            else:
                values[key] = max(known, value) if largest else known + value
    samples = [(name, dict(labels), value) for (name, labels), value in values.items()]
    return FamilySnapshot(first.name, first.text, first.type, samples)
