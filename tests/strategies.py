"""Hypothesis strategies for model objects and events: few names and addresses, so that they meet each other."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kubecore.model import (
    RESOURCE_OF,
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    KubeObject,
    LoadBalancerIngress,
    Namespace,
    Node,
    Pod,
    Port,
    Protocol,
    Service,
    ServiceCIDR,
    ServiceImport,
    ServiceType,
    TrafficPolicy,
    Upsert,
)

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Decorator for property tests: the verdict must not depend on how busy the machine is."""

namespaces = st.sampled_from(["default", "kube-system"])
names = st.sampled_from(["web", "db", "dns"])
ipv4 = st.builds("10.{}.0.{}".format, st.integers(0, 3), st.integers(1, 4))
ipv6 = st.builds("fd00::{:x}".format, st.integers(1, 8))
node_names = st.sampled_from(["", "node-a", "node-b"])
zones = st.sampled_from(["", "zone-1", "zone-2"])
protocols = st.sampled_from(Protocol)
port_numbers = st.integers(1, 65535) | st.sampled_from([53, 80, 443])


def labels() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    """Sorted label pairs."""
    pairs = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"]), max_size=2)
    return pairs.map(lambda found: tuple(sorted(found.items())))


def service_ports() -> st.SearchStrategy[tuple[Port, ...]]:
    """Up to three ports with different names and different numbers, as the API server demands."""
    port = st.builds(
        Port,
        name=st.sampled_from(["http", "dns", "metrics"]),
        port=port_numbers,
        protocol=protocols,
        node_port=st.sampled_from([0, 0, 30080, 31000]),
        target_port=st.sampled_from([0, 8080, "http"]),
    )
    return st.lists(port, max_size=3, unique_by=(lambda p: p.name, lambda p: (p.port, p.protocol))).map(tuple)


@st.composite
def services(draw: st.DrawFn) -> Service:
    """A Service the API server would accept."""
    kind = draw(st.sampled_from(ServiceType))
    external_name = kind is ServiceType.EXTERNAL_NAME
    headless = kind is ServiceType.CLUSTER_IP and draw(st.booleans())
    cluster_ips: tuple[str, ...] = ()
    if not external_name and not headless:
        cluster_ips = draw(st.sampled_from([(draw(ipv4),), (draw(ipv6),), (draw(ipv4), draw(ipv6))]))
    return Service(
        namespace=draw(namespaces),
        name=draw(names),
        type=kind,
        cluster_ips=cluster_ips,
        headless=headless,
        ip_families=tuple(6 if ":" in ip else 4 for ip in cluster_ips) or ((4,) if headless else ()),
        ports=draw(service_ports()),
        selector=draw(labels()),
        external_ips=draw(st.lists(ipv4, max_size=1).map(tuple)),
        external_name="www.example.com" if external_name else "",
        ingress=draw(st.lists(st.builds(LoadBalancerIngress, ip=ipv4), max_size=1).map(tuple)),
        source_ranges=draw(st.sampled_from([(), ("192.0.2.0/24",), ("0.0.0.0/0",)])),
        external_policy=draw(st.sampled_from(TrafficPolicy)),
        internal_policy=draw(st.sampled_from(TrafficPolicy)),
        affinity_timeout_s=draw(st.sampled_from([0, 0, 600])),
        publish_not_ready=draw(st.booleans()),
        labels=draw(labels()),
    )


def endpoints(addresses: st.SearchStrategy[str]) -> st.SearchStrategy[Endpoint]:
    """Endpoints of one address, in every condition."""
    return st.builds(
        Endpoint,
        addresses=addresses.map(lambda ip: (ip,)),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        hostname=st.sampled_from(["", "", "web-0"]),
        node_name=node_names,
        zone=zones,
        hint_zones=zones.map(lambda z: (z,) if z else ()),
    )


@st.composite
def endpoint_slices(draw: st.DrawFn) -> EndpointSlice:
    """A slice of some Service, or of none."""
    family = draw(st.sampled_from([4, 6]))
    ports = st.builds(
        EndpointPort,
        name=st.sampled_from([None, "", "http", "dns"]),
        port=st.none() | port_numbers,
        protocol=protocols,
    )
    return EndpointSlice(
        namespace=draw(namespaces),
        name=draw(st.sampled_from(["slice-1", "slice-2", "slice-3"])),
        service=draw(names | st.just("")),
        service_import=draw(st.just("") | names),
        source_cluster=draw(st.sampled_from(["", "east", "west"])),
        family=4 if family == 4 else 6,
        ports=draw(st.lists(ports, max_size=2).map(tuple)),
        endpoints=draw(st.lists(endpoints(ipv4 if family == 4 else ipv6), max_size=4).map(tuple)),
    )


nodes = st.builds(Node, name=st.sampled_from(["node-a", "node-b"]), internal_ips=st.tuples(ipv4), zone=zones)
namespace_objects = st.builds(Namespace, name=namespaces, labels=labels())
pods = st.builds(
    Pod,
    namespace=namespaces,
    name=st.sampled_from(["web-0", "web-1", "db-0"]),
    ips=st.tuples(ipv4) | st.tuples(ipv4, ipv6) | st.just(()),
    phase=st.sampled_from(["Running", "Running", "Succeeded"]),
    deleting=st.booleans(),
    ready=st.booleans(),
    node_name=node_names,
    labels=labels(),
)
service_cidrs = st.builds(ServiceCIDR, name=names, cidrs=st.just(("10.96.0.0/16",)))
service_imports = st.builds(ServiceImport, namespace=namespaces, name=names, headless=st.booleans())


def kube_objects() -> st.SearchStrategy[KubeObject]:
    """Any object."""
    return st.one_of(services(), endpoint_slices(), nodes, namespace_objects, pods, service_cidrs, service_imports)


def changes() -> st.SearchStrategy[Event]:
    """An object appears or changes, or one goes that may never have been there."""
    gone = kube_objects().map(lambda obj: Delete(RESOURCE_OF[type(obj)], obj.key))
    return st.one_of(st.builds(Upsert, object=kube_objects()), gone)
