"""Specification sections 5, 9, 11 and 12: what is put into our nftables sets."""

from __future__ import annotations

import pytest

from ipvsproxy.config import Additions, Config, DetectLocal, LocalMode
from kubecore.model import LoadBalancerIngress, Node, ServiceType, TrafficPolicy
from tests.builders import endpoint_slice, service
from tests.proxy import elements, planned, view

LINKS = "eth0: lo: cni0:bridge veth1:veth veth2:veth flannel.1:vxlan"
ADDRESSES = ("eth0=192.168.1.1/24", "cni0=10.244.1.254/24", "veth2=10.9.9.1/24", "flannel.1=10.244.1.0/32")


def balancer(*ranges: str, **fields: object) -> object:
    return service(
        "web",
        "10.96.0.1 fd00:96::1",
        "80@30080",
        type=ServiceType.LOAD_BALANCER,
        ingress=(LoadBalancerIngress(ip="203.0.113.1"), LoadBalancerIngress(ip="2001:db8::1")),
        external_ips=("198.51.100.1",),
        source_ranges=ranges,
        **fields,
    )


BACKENDS = (endpoint_slice("web", "10.0.0.1@n2"), endpoint_slice("web", "fd00:244::1@n2", suffix="v6"))


def test_a_service_without_endpoints_is_refused_at_every_address() -> None:
    plan = planned(balancer("10.0.0.0/8"))  # type: ignore[arg-type]
    assert elements(plan, "service4", "service6") == {
        "service4 10.96.0.1 . tcp . 80 : goto empty",
        "service4 203.0.113.1 . tcp . 80 : goto ranged_empty",
        "service4 198.51.100.1 . tcp . 80 : goto empty",
        "service4 192.168.1.1 . tcp . 30080 : goto empty",
        "service6 fd00:96::1 . tcp . 80 : goto empty",
        "service6 2001:db8::1 . tcp . 80 : goto empty",
        "service6 fd00:1::1 . tcp . 30080 : goto empty",
    }


def test_every_virtual_server_has_its_claim() -> None:
    plan = planned(balancer(), *BACKENDS)  # type: ignore[arg-type]
    assert elements(plan, "service4", "service6") == {
        "service4 10.96.0.1 . tcp . 80 : goto cluster_ip",
        "service4 203.0.113.1 . tcp . 80 : goto external",
        "service4 198.51.100.1 . tcp . 80 : goto external",
        "service4 192.168.1.1 . tcp . 30080 : goto external",
        "service6 fd00:96::1 . tcp . 80 : goto cluster_ip",
        "service6 2001:db8::1 . tcp . 80 : goto external",
        "service6 fd00:1::1 . tcp . 30080 : goto external",
    }
    assert elements(plan, "vip4", "vip6") == {
        "vip4 10.96.0.1",
        "vip4 198.51.100.1",
        "vip4 203.0.113.1",
        "vip6 fd00:96::1",
        "vip6 2001:db8::1",
    }


@pytest.mark.parametrize(
    ("ranges", "v4", "v6"),
    [
        ((), None, None),
        (("10.0.0.0/8", "192.0.2.7/32"), ["10.0.0.0/8", "192.0.2.7"], None),  # the other family stays open
        (("10.0.0.0/8", "0.0.0.0/0"), None, None),  # /0: everybody
        (("fd00::/8", "0.0.0.0/0"), None, ["fd00::/8"]),
        (("10.0.0.0/8", "10.1.0.0/16"), ["10.0.0.0/8"], None),  # an interval set takes no overlaps
        (("10.0.0.0/9", "10.128.0.0/9"), ["10.0.0.0/8"], None),
    ],
)
def test_source_ranges(ranges: tuple[str, ...], v4: list[str] | None, v6: list[str] | None) -> None:
    plan = planned(balancer(*ranges), *BACKENDS)  # type: ignore[arg-type]
    services = elements(plan, "service4", "service6")
    for set_, vip, expected in (("4", "203.0.113.1", v4), ("6", "2001:db8::1", v6)):
        kind = "external" if expected is None else "ranged_external"
        assert f"service{set_} {vip} . tcp . 80 : goto {kind}" in services
        found = elements(plan, f"range{set_}")
        assert found == {f"range{set_} {vip} . tcp . 80 . {r}" for r in expected or ()}
    assert "service4 192.168.1.1 . tcp . 30080 : goto external" in services, "node ports are not covered by default"
    assert "service4 198.51.100.1 . tcp . 80 : goto external" in services


def test_source_ranges_cover_node_ports_if_asked() -> None:
    config = Config(additions=Additions(source_ranges_cover_node_ports=True))
    plan = planned(balancer("10.0.0.0/8"), *BACKENDS, config=config)  # type: ignore[arg-type]
    assert "service4 192.168.1.1 . tcp . 30080 : goto ranged_external" in elements(plan, "service4")
    assert "range4 192.168.1.1 . tcp . 30080 . 10.0.0.0/8" in elements(plan, "range4")


def test_ranges_hold_where_ingress_and_external_ip_are_one_address() -> None:
    web = service(
        "web",
        "10.96.0.1",
        type=ServiceType.LOAD_BALANCER,
        ingress=(LoadBalancerIngress(ip="203.0.113.1"),),
        external_ips=("203.0.113.1",),
        source_ranges=("10.0.0.0/8",),
    )
    assert "service4 203.0.113.1 . tcp . 80 : goto ranged_external" in elements(planned(web, BACKENDS[0]), "service4")


def test_ranged_local() -> None:
    web = balancer("10.0.0.0/8", external_policy=TrafficPolicy.LOCAL)
    kind = "service4 203.0.113.1 . tcp . 80 : goto ranged_external_{}"
    here = planned(web, endpoint_slice("web", "10.0.0.1@n1"))  # type: ignore[arg-type]
    assert kind.format("local") in elements(here, "service4")
    elsewhere = planned(web, endpoint_slice("web", "10.0.0.1@n2"))  # type: ignore[arg-type]
    assert kind.format("no_local") in elements(elsewhere, "service4")


def test_hairpins_are_endpoints_on_this_node_in_any_condition() -> None:
    plan = planned(
        service("web", "10.96.0.1"),
        endpoint_slice("web", "10.0.0.1@n1 10.0.0.2!@n1 10.0.0.3@n2 192.168.1.1@n1"),
    )
    assert elements(plan, "hairpin4") == {"hairpin4 10.0.0.1 . 10.0.0.1", "hairpin4 10.0.0.2 . 10.0.0.2"}


def test_the_nodes_own_address_needs_no_masquerade() -> None:
    assert elements(planned(), "source4", "source6") == {"source4 192.168.1.1", "source6 fd00:1::1"}


def test_a_source_the_machine_does_not_have_is_left_to_the_kernel() -> None:
    cloud = Node("n1", internal_ips=("10.128.0.2",), external_ips=("198.51.100.77",))
    node = view("eth0=10.128.0.3/32", node=cloud)
    plan = planned(service("web", "10.96.0.1"), node=node)
    assert plan.desired.vips == {"10.96.0.1": ""}
    assert elements(plan, "source4") == set()


# -- section 11: who is local

POD_CIDR_NODE = Node("n1", internal_ips=("192.168.1.1",), pod_cidrs=("10.244.1.0/24",))
PLAIN_NODE = Node("n1", internal_ips=("192.168.1.1",))
EVERYONE = {"cluster4 0.0.0.0/0", "cluster6 ::/0"}


@pytest.mark.parametrize(
    ("local", "node", "cluster", "on_node"),
    [
        (
            DetectLocal(cluster_cidrs=("10.244.0.0/16",)),
            POD_CIDR_NODE,
            {"cluster4 10.244.0.0/16", "cluster6 ::/0"},
            {"on_node4 10.244.0.0/16"},
        ),
        (
            DetectLocal(cluster_cidrs=("10.244.0.0/16", "fd00:244::/56")),
            PLAIN_NODE,
            {"cluster4 10.244.0.0/16", "cluster6 fd00:244::/56"},
            {"on_node4 10.244.0.0/16", "on_node6 fd00:244::/56"},
        ),
        (
            DetectLocal(mode=LocalMode.NODE_CIDR),
            POD_CIDR_NODE,
            {"cluster4 10.244.1.0/24", "cluster6 ::/0"},
            {"on_node4 10.244.1.0/24"},
        ),
        (DetectLocal(mode=LocalMode.NODE_CIDR), PLAIN_NODE, EVERYONE, {"on_node4 10.244.1.0/24"}),
        (DetectLocal(), POD_CIDR_NODE, EVERYONE, {"on_node4 10.244.1.0/24"}),
        (DetectLocal(), PLAIN_NODE, EVERYONE, {"on_node4 10.244.1.0/24"}),  # cni0's prefix, for a pod is in it
        (DetectLocal(mode=LocalMode.BRIDGE_INTERFACE, bridge_interface="cni0"), PLAIN_NODE, EVERYONE - EVERYONE, set()),
    ],
)
def test_detect_local(local: DetectLocal, node: Node, cluster: set[str], on_node: set[str]) -> None:
    plan = planned(
        service("web", "10.96.0.1"),
        endpoint_slice("web", "10.244.1.5@n1 192.168.1.1@n1 10.244.2.5@n2"),
        node=view(*ADDRESSES, node=node, links=LINKS),
        config=Config(detect_local=local),
    )
    if local.mode is not LocalMode.BRIDGE_INTERFACE:
        assert elements(plan, "cluster4", "cluster6") == cluster
    assert elements(plan, "on_node4", "on_node6") == on_node


def test_interfaces() -> None:
    plan = planned(node=view(*ADDRESSES, node=PLAIN_NODE, links=LINKS))
    assert elements(plan, "uplinks") == {"uplinks eth0", "uplinks flannel.1"}
    assert elements(plan, "tunnels") == {"tunnels flannel.1"}
    assert elements(plan, "pod_links") == {"pod_links veth1"}, "a veth with an address is no pod's"
    configured = Config(detect_local=DetectLocal(cluster_cidrs=("10.244.0.0/16", "fd00::/8")))
    assert not elements(planned(node=view(*ADDRESSES, links=LINKS), config=configured), "pod_links")


def test_connected_prefixes_that_overlap_become_the_widest() -> None:
    node = view("eth0=192.168.1.1/24", "cni0=10.244.0.1/16", "cni1=10.244.1.1/24", node=PLAIN_NODE)
    plan = planned(service("web", "10.96.0.1"), endpoint_slice("web", "10.244.1.5@n1 10.244.7.5@n1"), node=node)
    assert elements(plan, "on_node4") == {"on_node4 10.244.0.0/16"}


def test_a_name_that_nft_cannot_say_is_left_out() -> None:
    plan = planned(node=view("eth0=192.168.1.1/24", 'evil"; drop=10.0.0.1/8', links='e*: evil";:vxlan'))
    assert elements(plan, "uplinks", "tunnels") == {"uplinks eth0"}
