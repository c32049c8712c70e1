"""Hypothesis strategies for small clusters, crowded on purpose: few addresses and names, so that Services collide."""

from __future__ import annotations

from hypothesis import strategies as st

from ipvsproxy.model import InterfaceAddress, Link
from ipvsproxy.nodeview import NodeView
from kubecore.model import (
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    Family,
    LoadBalancerIngress,
    ObjectKey,
    Port,
    Protocol,
    Resource,
    Service,
    ServiceType,
    TrafficPolicy,
    Upsert,
)

NODES = ("n1", "n2")
NAMES = ("a", "b", "c")
VIPS: dict[Family, tuple[str, ...]] = {
    4: ("10.96.0.1", "10.96.0.2", "192.0.2.1", "192.168.1.1", "192.168.1.254"),
    6: ("fd00:96::1", "fd00:96::2", "2001:db8::1", "fd00:1::1"),
}
PODS: dict[Family, tuple[str, ...]] = {
    4: ("10.244.1.1", "10.244.1.2", "10.244.2.1", "192.168.1.1"),
    6: ("fd00:244::1", "fd00:244::2", "fd00:245::1", "fd00:1::1"),
}
RANGES = ("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "192.168.1.0/25", "192.168.1.128/25", "fd00::/8", "::/0")

families: st.SearchStrategy[Family] = st.sampled_from((4, 6))


def service_ports() -> st.SearchStrategy[tuple[Port, ...]]:
    return st.lists(
        st.builds(
            Port,
            name=st.sampled_from(("", "web", "dns")),
            port=st.sampled_from((80, 53)),
            protocol=st.sampled_from(Protocol),
            node_port=st.sampled_from((0, 0, 30080, 30053)),
        ),
        max_size=3,
        unique_by=lambda p: (p.port, p.protocol),
    ).map(tuple)


@st.composite
def services(draw: st.DrawFn) -> Service:
    orders: tuple[tuple[Family, ...], ...] = ((4,), (6,), (4, 6), (6, 4))
    kinds = draw(st.sampled_from(orders))
    return Service(
        namespace="ns",
        name=draw(st.sampled_from(NAMES)),
        created_s=draw(st.sampled_from((0.0, 1.0, 2.0))),
        type=draw(st.sampled_from(ServiceType)),
        cluster_ips=tuple(draw(st.sampled_from(VIPS[f])) for f in kinds),
        headless=draw(st.sampled_from((False, False, False, True))),
        ip_families=draw(st.sampled_from((kinds, ()))),
        ports=draw(service_ports()),
        external_ips=draw(addresses(VIPS)),
        ingress=tuple(LoadBalancerIngress(ip=ip, ip_mode_proxy=draw(st.booleans())) for ip in draw(addresses(VIPS))),
        source_ranges=tuple(draw(st.lists(st.sampled_from(RANGES), max_size=2))),
        external_policy=draw(st.sampled_from(TrafficPolicy)),
        internal_policy=draw(st.sampled_from(TrafficPolicy)),
        affinity_timeout_s=draw(st.sampled_from((0, 0, 600))),
        health_check_node_port=draw(st.sampled_from((0, 31000))),
        annotations=draw(
            st.sampled_from(((), (("ipvsproxy.io/scheduler", "mh"),), (("ipvsproxy.io/scheduler", "x"),)))
        ),
        labels=draw(st.sampled_from(((), (("service.kubernetes.io/service-proxy-name", "other"),)))),
    )


def addresses(pool: dict[Family, tuple[str, ...]]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(pool[4] + pool[6]), max_size=2).map(tuple)


def endpoints(family: Family) -> st.SearchStrategy[Endpoint]:
    return st.builds(
        Endpoint,
        addresses=st.sampled_from(PODS[family]).map(lambda a: (a,)),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node_name=st.sampled_from(NODES),
        hint_zones=st.sampled_from(((), ("z1",), ("z2",))),
        hint_nodes=st.sampled_from(((), ("n1",), ("n2",))),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    family = draw(families)
    service = draw(st.sampled_from(NAMES))
    return EndpointSlice(
        namespace="ns",
        name=f"{service}-{draw(st.integers(0, 1))}",
        service=service,
        family=family,
        ports=tuple(
            draw(
                st.lists(
                    st.builds(
                        EndpointPort,
                        name=st.sampled_from(("", "web", "dns", None)),
                        port=st.sampled_from((8080, 5353, None)),
                        protocol=st.sampled_from(Protocol),
                    ),
                    max_size=3,
                )
            )
        ),
        endpoints=tuple(draw(st.lists(endpoints(family), max_size=4))),
        labels=draw(st.sampled_from(((), (("service.kubernetes.io/headless", ""),)))),
    )


def events() -> st.SearchStrategy[Event]:
    gone = st.one_of(
        st.sampled_from(NAMES).map(lambda n: Delete(Resource.SERVICES, ObjectKey("ns", n))),
        st.tuples(st.sampled_from(NAMES), st.integers(0, 1)).map(
            lambda t: Delete(Resource.ENDPOINT_SLICES, ObjectKey("ns", f"{t[0]}-{t[1]}"))
        ),
    )
    return st.one_of(services().map(Upsert), slices().map(Upsert), gone)


def histories(max_size: int = 12) -> st.SearchStrategy[list[Event]]:
    return st.lists(events(), min_size=1, max_size=max_size)


def node_views(name: str = "n1") -> st.SearchStrategy[NodeView]:
    every = (
        InterfaceAddress("eth0", "192.168.1.1", 24),
        InterfaceAddress("eth0", "fd00:1::1", 64),
        InterfaceAddress("cni0", "10.244.1.254", 24),
        InterfaceAddress("cni1", "10.244.0.1", 16),
        InterfaceAddress("lo", "127.0.0.1", 8),
        InterfaceAddress("eth1", "10.96.0.1", 24),
    )
    return st.builds(
        NodeView,
        name=st.just(name),
        addresses=st.sets(st.sampled_from(every)).map(lambda a: tuple(sorted(a))),
        primary=st.sampled_from(((), ("192.168.1.1",), ("192.168.1.1", "fd00:1::1"))),
        pod_cidrs=st.sampled_from(((), ("10.244.1.0/24",), ("10.244.1.0/24", "fd00:244::/64"))),
        zone=st.sampled_from(("", "z1", "z2")),
        links=st.sampled_from(((), (Link("eth0", ""), Link("flannel.1", "vxlan"), Link("veth1", "veth")))),
        gateways=st.sampled_from((frozenset(), frozenset({"192.168.1.254"}))),
        node_addresses=st.sampled_from((frozenset(), frozenset({"192.168.1.1", "192.0.2.1"}))),
    )
