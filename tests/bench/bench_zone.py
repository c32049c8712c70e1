"""What the zone costs: 10,000 Services with 100,000 endpoints built, one Service changed, a question answered.

Run `python -m tests.bench.bench_zone`; exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from dnsserver.answer import prepare
from dnsserver.config import KubernetesConfig
from dnsserver.encode import encode_query
from dnsserver.message import Question
from dnsserver.names import from_text, zones_of
from dnsserver.wire import accept
from dnsserver.zone import Zone
from kubecore.model import Endpoint, EndpointPort, EndpointSlice, Listed, Namespace, Port, Resource, Service, Upsert
from kubecore.snapshot import ClusterState

SERVICES, ENDPOINTS_EACH, NAMESPACES = 10_000, 10, 50
LIMITS = {"build_s": 3.0, "change_ms": 1.0, "rss_mb": 250.0}


def _slice(number: int, first: int) -> EndpointSlice:
    endpoints = tuple(
        Endpoint(addresses=(f"10.{first + (i >> 16)}.{i >> 8 & 255}.{i & 255}",), node_name="n")
        for i in range(number * ENDPOINTS_EACH, (number + 1) * ENDPOINTS_EACH)
    )
    name, namespace = f"svc{number}", f"ns{number % NAMESPACES}"
    return EndpointSlice(namespace, f"{name}-x", name, 4, (EndpointPort("http", 8080),), endpoints)


def cluster() -> ClusterState:
    """The cluster to be served."""
    state = ClusterState()
    for number in range(SERVICES):
        address = f"10.96.{number >> 8}.{number & 255}"
        made = Service(f"ns{number % NAMESPACES}", f"svc{number}", cluster_ips=(address,), ports=(Port("http", 80),))
        state.apply_event(Upsert(made))
        state.apply_event(Upsert(_slice(number, 128)))
    for number in range(NAMESPACES):
        state.apply_event(Upsert(Namespace(f"ns{number}")))
    for kind in Resource:
        state.apply_event(Listed(kind))
    state.take_changes()
    return state


def _asked(text: str) -> Question:
    name = from_text(text)
    return Question(name, name.lower(), 1)


def _each_us(work: Callable[[int], object], times: int = 20_000) -> float:
    began_s = time.perf_counter()
    for i in range(times):
        work(i)
    return (time.perf_counter() - began_s) / times * 1e6


def main() -> int:
    """Measure and print; 1 if a limit is exceeded."""
    state = cluster()
    zones = zones_of("cluster.local") + zones_of("in-addr.arpa") + zones_of("ip6.arpa")
    began_s = time.perf_counter()
    zone = Zone(KubernetesConfig(zones=zones), ["10.1.1.1"])
    zone.load(state, time.time())
    build_s = time.perf_counter() - began_s

    changes_ms = []
    for step in range(500):
        state.apply_event(Upsert(_slice(step * 7, 192)))
        changes = state.take_changes()
        began_s = time.perf_counter()
        zone.apply(state, changes, time.time())
        changes_ms.append((time.perf_counter() - began_s) * 1000)
    changes_ms.sort()

    there = [_asked(f"svc{i}.ns{i % NAMESPACES}.svc.cluster.local") for i in range(2000)]
    absent = [_asked(f"gone{i}.ns1.svc.cluster.local") for i in range(2000)]
    datagram = encode_query(there[0], 1, udp_size_bytes=1232)
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {
        "build_s": build_s,
        "change_ms": changes_ms[len(changes_ms) // 2],
        "change_ms_p99": changes_ms[len(changes_ms) * 99 // 100],
        "prepare_us": _each_us(lambda i: prepare(zone, there[i % 2000])),
        "prepare_absent_us": _each_us(lambda i: prepare(zone, absent[i % 2000])),
        "accept_us": _each_us(lambda _: accept(datagram, "udp", "192.0.2.1")),
        "rss_mb": rss_mb,
    }
    for name, figure in figures.items():
        limit = LIMITS.get(name)
        print(f"{name:20} {figure:10.3f}" + (f"   limit {limit:g}" if limit else ""))
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
