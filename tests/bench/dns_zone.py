"""What a zone costs by itself: built from a large cluster, and changed one Service at a time."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import msgspec

from dnsserver import names
from dnsserver.config import KubernetesConfig, PodsMode
from dnsserver.zone import Zone
from kubecore.decode import decode_object
from kubecore.model import Listed, Resource, Upsert
from kubecore.snapshot import ClusterState
from tests.bench.dns_load import SERVICES, namespace_objects, service_object, slice_object

_CONFIG = KubernetesConfig(
    zones=(names.from_text("cluster.local"), names.IN_ADDR_ARPA, names.IP6_ARPA),
    pods=PodsMode.INSECURE,
    ttl_s=30,
    fallthrough=(names.IN_ADDR_ARPA, names.IP6_ARPA),
)


def _put(state: ClusterState, resource: Resource, obj: dict[str, Any]) -> None:
    decoded = decode_object(resource, msgspec.json.encode(obj)).object
    assert decoded is not None
    state.apply_event(Upsert(decoded))


def _cluster(services: int) -> ClusterState:
    state = ClusterState()
    for obj in namespace_objects():
        _put(state, Resource.NAMESPACES, obj)
    for i in range(services):
        _put(state, Resource.SERVICES, service_object(i))
        _put(state, Resource.ENDPOINT_SLICES, slice_object(i))
    for resource in Resource:
        state.apply_event(Listed(resource))
    return state


def _change_us(state: ClusterState, zone: Zone, services: int) -> float:
    pick, took = random.Random(1), []
    for turn in range(1, 501):
        _put(state, Resource.ENDPOINT_SLICES, slice_object(pick.randrange(services), turn))
        began = time.perf_counter()
        zone.apply(state, state.take_changes(), float(turn))
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def zone_figures() -> dict[str, float]:
    """Seconds to build, and microseconds of a change in a large and in a small cluster."""
    figures = {}
    for name, services in (("change_small_us", SERVICES // 10), ("change_us", SERVICES)):
        state = _cluster(services)
        changes = state.take_changes()
        began = time.process_time()  # the time it takes where nobody else wants the processor
        zone = Zone(_CONFIG)
        zone.apply(state, changes, 1.0)
        figures["build_s"] = time.process_time() - began
        figures[name] = _change_us(state, zone, services)
    return figures
