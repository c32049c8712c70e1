"""Specification sections 3 and 4: which endpoints a virtual server gets, and where policy Local leads."""

from __future__ import annotations

import pytest

from kubecore.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Protocol,
    ServiceType,
    TrafficPolicy,
)
from tests.builders import endpoint_slice, service
from tests.proxy import elements, expect, planned, real_servers, reasons, shown, view

LOCAL = TrafficPolicy.LOCAL
WEB = "-t 10.96.0.1:80"


def reached(text: str, *, node: object = None, **fields: object) -> str:
    """Endpoints the ClusterIP leads to on node n1 in zone z1, last octets only."""
    web = service("web", "10.96.0.1", **fields)  # type: ignore[arg-type]
    lines = shown(planned(web, endpoint_slice("web", text)))
    return " ".join(sorted(r.rpartition(".")[2].removesuffix(":80") for r in real_servers(lines, WEB)))


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ("10.0.0.1 10.0.0.2", "1 2"),
        ("10.0.0.1 10.0.0.2!", "1"),
        ("10.0.0.1 10.0.0.2~", "1"),  # terminating ones only where nothing is ready
        ("10.0.0.1~ 10.0.0.2~ 10.0.0.3!", "1 2"),
        ("10.0.0.1! 10.0.0.2!", ""),
        ("10.0.0.1@n2 10.0.0.2@n1", "1 2"),
    ],
)
def test_conditions(endpoints: str, expected: str) -> None:
    assert reached(endpoints) == expected


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ("10.0.0.1@n1 10.0.0.2@n2", "1"),
        ("10.0.0.1@n1! 10.0.0.2@n2", ""),
        ("10.0.0.1~@n1 10.0.0.2@n2", "1"),  # the fallback is each node's own
        ("10.0.0.1~@n1 10.0.0.2@n1", "2"),
        ("10.0.0.1@n2 10.0.0.2@n2", ""),
    ],
)
def test_internal_policy_local(endpoints: str, expected: str) -> None:
    endpoints = endpoints.replace("@n1!", "!@n1")
    assert reached(endpoints, internal_policy=LOCAL) == expected


def hinted(*hints: str) -> EndpointSlice:
    """Endpoints 10.0.0.1, .2, …, each with hints: "z1", "z1,z2", "node:n1", "z1+node:n1", "", "!z1" (not ready)."""
    endpoints = []
    for i, text in enumerate(hints, 1):
        zones, _, nodes = text.removeprefix("!").partition("+")
        if zones.startswith("node:"):
            zones, nodes = "", zones
        endpoints.append(
            Endpoint(
                addresses=(f"10.0.0.{i}",),
                ready=not text.startswith("!"),
                hint_zones=tuple(filter(None, zones.split(","))),
                hint_nodes=tuple(filter(None, nodes.removeprefix("node:").split(","))),
            ),
        )
    return EndpointSlice("default", "web-x", "web", 4, (EndpointPort("", 80),), tuple(endpoints))


@pytest.mark.parametrize(
    ("hints", "zone", "expected"),
    [
        (("z1", "z2"), "z1", "1"),
        (("z1,z2", "z2"), "z1", "1"),
        (("z1", "z2"), "z3", "1 2"),  # none for this zone: all
        (("z1", ""), "z1", "1 2"),  # one without a hint: none are followed
        (("z1", "!"), "z1", "1"),  # what is not ready has no say
        (("z1", "z2"), "", "1 2"),  # a node without a zone
        (("node:n1", "node:n2"), "z1", "1"),
        (("node:n1", "node:n2", ""), "z1", "1 2 3"),
        (("z2+node:n1", "z1+node:n2"), "z1", "1"),  # nodes before zones
        (("z2+node:n3", "z1+node:n2"), "z1", "2"),
    ],
)
def test_topology_hints(hints: tuple[str, ...], zone: str, expected: str) -> None:
    node = view("eth0=192.168.1.1/24")
    node = type(node)(**{f: getattr(node, f) for f in node.__struct_fields__} | {"zone": zone})
    lines = shown(planned(service("web", "10.96.0.1"), hinted(*hints), node=node))
    assert " ".join(sorted(r[7:-3] for r in real_servers(lines, WEB))) == expected


def test_hints_do_not_bind_policy_local() -> None:
    slice_ = hinted("z2", "z1")
    local = EndpointSlice(
        "default",
        "web-x",
        "web",
        4,
        slice_.ports,
        tuple(Endpoint(e.addresses, node_name="n1", hint_zones=e.hint_zones) for e in slice_.endpoints),
    )
    lines = shown(planned(service("web", "10.96.0.1", internal_policy=LOCAL), local))
    assert real_servers(lines, WEB) == {"10.0.0.1:80", "10.0.0.2:80"}


@pytest.mark.parametrize(
    ("service_port", "slice_port", "matches"),
    [
        ("web:80", "web:8080", True),
        ("web:80", "dns:8080", False),
        ("web:80", ":8080", False),
        ("80", ":8080", True),
        ("80", "?:8080", False),  # a null name matches nothing
        ("web:80/UDP", "web:8080/TCP", False),
        ("web:80>9999", "web:8080", True),  # targetPort is the controller's to resolve
    ],
)
def test_ports_match_by_name_and_protocol(service_port: str, slice_port: str, *, matches: bool) -> None:
    plan = planned(service("web", "10.96.0.1", service_port), endpoint_slice("web", "10.0.0.1", slice_port))
    assert (len(shown(plan)) == 2) is matches


def test_all_ports_means_no_port() -> None:
    piece = EndpointSlice(
        "default", "web-x", "web", 4, (EndpointPort("", None, Protocol.TCP),), (Endpoint(("10.0.0.1",)),)
    )
    assert shown(planned(service("web", "10.96.0.1"), piece)) == ["-A -t 10.96.0.1:80 -s rr"]


def test_slices_are_merged_and_target_ports_may_differ() -> None:
    plan = planned(
        service("web", "10.96.0.1"),
        endpoint_slice("web", "10.0.0.1 10.0.0.2~", "8080", suffix="a"),
        endpoint_slice("web", "10.0.0.2 10.0.0.3", "8080", suffix="b"),
        endpoint_slice("web", "10.0.0.4", "9090", suffix="c"),
    )
    assert real_servers(shown(plan), WEB) == {"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:9090"}


def test_round_robin_begins_elsewhere_on_each_node() -> None:
    web = service("web", "10.96.0.1"), endpoint_slice("web", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4")
    firsts = set()
    for i in range(20):
        node = view("eth0=192.168.1.1/24")
        node = type(node)(**{f: getattr(node, f) for f in node.__struct_fields__} | {"name": f"n{i}"})
        (server,) = planned(*web, node=node).desired.virtual_servers.values()
        firsts.add(server.real_servers[0].address)
    assert len(firsts) > 2


# -- section 4: policy Local from outside

BALANCER = service(
    "web",
    "10.96.0.1",
    "80@30080",
    type=ServiceType.LOAD_BALANCER,
    external_policy=LOCAL,
    ingress=(LoadBalancerIngress(ip="203.0.113.1"),),
    health_check_node_port=31000,
)


def test_external_local_has_two_backend_sets() -> None:
    """Outside clients reach this node's endpoint; the mark that sources on this node get leads to all."""
    plan = planned(BALANCER, endpoint_slice("web", "10.0.0.1@n1 10.0.0.2@n2"))
    assert shown(plan) == expect("""
        -A -t 10.96.0.1:80 -s rr
        -a -t 10.96.0.1:80 -r 10.0.0.1:80 -m -w 1
        -a -t 10.96.0.1:80 -r 10.0.0.2:80 -m -w 1
        -A -t 192.168.1.1:30080 -s rr
        -a -t 192.168.1.1:30080 -r 10.0.0.1:80 -m -w 1
        -A -t 203.0.113.1:80 -s rr
        -a -t 203.0.113.1:80 -r 10.0.0.1:80 -m -w 1
        -A -f default/web:80/TCP -s rr
        -a -f default/web:80/TCP -r 10.0.0.1:80 -m -w 1
        -a -f default/web:80/TCP -r 10.0.0.2:80 -m -w 1
    """)
    assert elements(plan, "service4") == {
        "service4 10.96.0.1 . tcp . 80 : goto cluster_ip",
        "service4 203.0.113.1 . tcp . 80 : goto external_local",
        "service4 192.168.1.1 . tcp . 30080 : goto external_local",
    }
    marks = {e.key: int(e.value, 16) for e in plan.desired.elements if e.set == "mark4"}
    assert set(marks) == {("203.0.113.1", "tcp", "80"), ("192.168.1.1", "tcp", "30080")}
    assert set(marks.values()) == {k.fwmark for k in plan.desired.virtual_servers if k.protocol is None}


def test_external_local_without_a_local_endpoint_drops_and_never_leaks() -> None:
    plan = planned(BALANCER, endpoint_slice("web", "10.0.0.2@n2"))
    lines = shown(plan)
    assert real_servers(lines, "-t 203.0.113.1:80") == set()
    assert real_servers(lines, "-t 192.168.1.1:30080") == set()
    assert real_servers(lines, "-f default/web:80/TCP") == {"10.0.0.2:80"}
    assert real_servers(lines, WEB) == {"10.0.0.2:80"}
    assert elements(plan, "service4") == {
        "service4 10.96.0.1 . tcp . 80 : goto cluster_ip",
        "service4 203.0.113.1 . tcp . 80 : goto external_no_local",
        "service4 192.168.1.1 . tcp . 30080 : goto external_no_local",
    }
    assert plan.plans[BALANCER.key].no_local_external == (4,)


def test_external_local_without_any_endpoint_refuses() -> None:
    plan = planned(BALANCER, endpoint_slice("web", "10.0.0.2!@n2"))
    assert not any(line.startswith("-a") for line in shown(plan))
    assert "service4 203.0.113.1 . tcp . 80 : goto empty" in elements(plan, "service4")
    assert not plan.plans[BALANCER.key].no_local_external


@pytest.mark.parametrize(
    ("endpoints", "kind", "servers"),
    [
        ("10.0.0.1@n1 10.0.0.2@n2", "cluster_ip", {"10.0.0.1:80"}),
        ("10.0.0.2@n2", "no_local", set()),
        ("10.0.0.2!@n2", "empty", set()),  # nowhere an endpoint: refused rather than dropped
    ],
)
def test_internal_local_never_leaks_even_with_external_access(endpoints: str, kind: str, servers: set[str]) -> None:
    """kube-proxy sends ClusterIP traffic to remote endpoints as soon as the Service has a node port."""
    web = service("web", "10.96.0.1", "80@30080", type=ServiceType.NODE_PORT, internal_policy=LOCAL)
    plan = planned(web, endpoint_slice("web", endpoints))
    assert real_servers(shown(plan), WEB) == servers
    assert f"service4 10.96.0.1 . tcp . 80 : goto {kind}" in elements(plan, "service4")
    assert plan.plans[web.key].no_local_internal == ((4,) if kind == "no_local" else ())


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({"type": ServiceType.CLUSTER_IP, "external_ips": ("203.0.113.1",)}, True),
        ({"type": ServiceType.NODE_PORT, "external_ips": ("203.0.113.1",)}, True),
        ({"type": ServiceType.CLUSTER_IP, "ingress": (LoadBalancerIngress(ip="203.0.113.1"),)}, False),
    ],
)
def test_where_external_policy_local_counts(fields: dict[str, object], *, local: bool) -> None:
    web = service("web", "10.96.0.1", external_policy=LOCAL, **fields)  # type: ignore[arg-type]
    plan = planned(web, endpoint_slice("web", "10.0.0.1@n1 10.0.0.2@n2"))
    expected = {"10.0.0.1:80"} if local else {"10.0.0.1:80", "10.0.0.2:80"}
    assert real_servers(shown(plan), "-t 203.0.113.1:80") == expected


@pytest.mark.parametrize(
    ("endpoints", "local"),
    [
        ("10.0.0.1@n1 10.0.0.2@n1 10.0.0.3@n2", 2),
        ("10.0.0.1~@n1 10.0.0.3@n2", 0),  # what terminates does not count
        ("10.0.0.1!@n1", 0),
    ],
)
def test_health_check_counts_ready_local_endpoints(endpoints: str, local: int) -> None:
    plan = planned(BALANCER, endpoint_slice("web", endpoints))
    check = plan.health_check(BALANCER.key)
    assert check is not None
    assert (check.port, check.local_ready) == (31000, local)
    assert "health_ports 31000" in elements(plan, "health_ports")


def test_health_check_counts_a_pod_once_over_ports_and_families() -> None:
    web = service(
        "web",
        "10.96.0.1 fd00:96::1",
        "a:80,b:81",
        type=ServiceType.LOAD_BALANCER,
        external_policy=LOCAL,
        health_check_node_port=31000,
    )
    plan = planned(
        web,
        endpoint_slice("web", "10.0.0.1@n1", "a:80,b:81", suffix="4"),
        endpoint_slice("web", "fd00::1@n1", "a:80,b:81", suffix="6"),
    )
    check = plan.health_check(web.key)
    assert check is not None
    assert check.local_ready == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"type": ServiceType.NODE_PORT, "external_policy": LOCAL},
        {"type": ServiceType.LOAD_BALANCER, "external_policy": TrafficPolicy.CLUSTER},
    ],
)
def test_no_health_check_server_for_others(fields: dict[str, object]) -> None:
    web = service("web", "10.96.0.1", health_check_node_port=31000, **fields)  # type: ignore[arg-type]
    assert planned(web).health_check(web.key) is None


def test_a_load_balancer_that_can_ask_no_node_is_reported() -> None:
    web = service("web", "10.96.0.1", type=ServiceType.LOAD_BALANCER, external_policy=LOCAL)
    plan = planned(web)
    assert plan.health_check(web.key) is None
    assert reasons(plan) == [("default/web", "NoHealthCheckNodePort")]
