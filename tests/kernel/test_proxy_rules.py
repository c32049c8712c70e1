"""The plan by packets: IPVS, routes and our nftables table in a real kernel, and who receives what.

Two nodes and a client on one LAN; pod p1 is on this node, p2 on the other. What is planned for this node is loaded by
the kernel's own tools, so that this proves plan and rules, whatever our netlink code does.
"""

from __future__ import annotations

import re

import pytest

from ipvsproxy import ipvsadm, nftables
from ipvsproxy.config import Config, DetectLocal, LocalMode
from ipvsproxy.model import InterfaceAddress, Link
from ipvsproxy.nodeview import node_view
from ipvsproxy.planner import Planner
from kubecore.model import KubeObject, LoadBalancerIngress, Node, Protocol, Service, ServiceType, TrafficPolicy
from tests.builders import endpoint_slice, service
from tests.lab.kernel.net import Net
from tests.lab.kernel.outcomes import DENIED, REFUSED, TIMEOUT, servers, sources
from tests.proxy import cluster

pytestmark = pytest.mark.kernel

NODE, POD1, POD2, CLIENT = "192.168.50.10", "10.244.1.5", "10.244.2.5", "192.168.50.99"
NODE6, POD1_6, POD2_6, CLIENT6 = "fd00:50::10", "fd00:244:1::5", "fd00:244:2::5", "fd00:50::99"
THIS = Node("n1", internal_ips=(NODE, NODE6))
DETECT = Config(detect_local=DetectLocal(cluster_cidrs=("10.244.0.0/16", "fd00:244::/32")))
LOCAL = TrafficPolicy.LOCAL
LB, LB6 = "203.0.113.1", "2001:db8::1"


class World:
    """The network, and this node programmed with a plan."""

    def __init__(self, net: Net) -> None:
        self.net = net
        net.host("node", forwarding=True, sysctls={"net.ipv4.vs.conntrack": "1", "net.ipv4.vs.expire_nodest_conn": "1"})
        net.host("node2", forwarding=True)
        net.lan(
            "eth0",
            {
                "node": [f"{NODE}/24", f"{NODE6}/64"],
                "node2": ["192.168.50.11/24", "fd00:50::11/64"],
                "client": [f"{CLIENT}/24", f"{CLIENT6}/64"],
            },
        )
        net.link("node", "p1", ["10.244.1.1/24", "fd00:244:1::1/64"], [f"{POD1}/24", f"{POD1_6}/64"], gateway=True)
        net.link("node2", "p2", ["10.244.2.1/24", "fd00:244:2::1/64"], [f"{POD2}/24", f"{POD2_6}/64"], gateway=True)
        self.node, self.client, self.p1 = net.host("node"), net.host("client"), net.host("p1")
        self.node.ip(["route add 10.244.2.0/24 via 192.168.50.11", "route add fd00:244:2::/64 via fd00:50::11"])
        net.host("node2").ip(["route add 10.244.1.0/24 via 192.168.50.10", "route add fd00:244:1::/64 via fd00:50::10"])
        self.client.ip([f"route add default via {NODE}", f"route add default via {NODE6}"])
        for pod in ("p1", "p2"):
            net.host(pod).serve(tcp=[8080], udp=[8080], sctp=[8080])
        self.node.ip(["link add kube-ipvs0 type dummy", "link set dev kube-ipvs0 up"])

    def program(self, *objects: KubeObject, config: Config = DETECT) -> Planner:
        view = node_view(
            "n1",
            THIS,
            addresses=[
                InterfaceAddress("eth0", NODE, 24),
                InterfaceAddress("eth0", NODE6, 64),
                InterfaceAddress("p1", "10.244.1.1", 24),
                InterfaceAddress("p1", "fd00:244:1::1", 64),
            ],
            links=[Link("eth0", "veth"), Link("p1", "veth"), Link("lo", "")],
        )
        state = cluster(*objects)
        planner = Planner(config, view)
        planner.update(state, state.services)
        desired = planner.desired
        self.node.nft(nftables.load(config, desired.elements))
        self.node.ipvs("\n".join(ipvsadm.lines(desired.virtual_servers.values())))
        self.node.ip(
            f"route add local {vip} dev kube-ipvs0 table local proto 87 src {source}"
            for vip, source in desired.vips.items()
        )
        return planner

    def counted(self, comment: str) -> int:
        """Packets that rules with this comment dropped or rejected."""
        text = self.node.run(["nft", "list", "table", "inet", "ipvsproxy"]).stdout
        return sum(int(n) for n in re.findall(rf'packets (\d+) bytes.*comment "{comment}"', text))


@pytest.fixture
def world(net: Net) -> World:
    return World(net)


def web(**fields: object) -> Service:
    return service("web", "10.96.0.1 fd00:96::1", "80/TCP,80/UDP", **fields)


def balancer(**fields: object) -> Service:
    return service(
        "web",
        "10.96.0.1 fd00:96::1",
        "80@30080",
        type=ServiceType.LOAD_BALANCER,
        ingress=(LoadBalancerIngress(ip=LB), LoadBalancerIngress(ip=LB6)),
        **fields,
    )


def pods(text: str = "p1 p2", ports: str = "8080/TCP,8080/UDP") -> tuple[KubeObject, KubeObject]:
    """Slices with p1 (on this node) and p2 (elsewhere), of both families."""
    v4 = text.replace("p1", f"{POD1}@n1").replace("p2", f"{POD2}@n2")
    v6 = text.replace("p1", f"{POD1_6}@n1").replace("p2", f"{POD2_6}@n2")
    return endpoint_slice("web", v4, ports, suffix="4"), endpoint_slice("web", v6, ports, suffix="6", family=6)


@pytest.mark.parametrize(("vip", "family"), [("10.96.0.1:80", 4), ("[fd00:96::1]:80", 6)])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_cluster_ip_from_everywhere(world: World, vip: str, family: int, proto: str) -> None:
    world.program(web(), *pods())
    node, pod1, client = (NODE, POD1, CLIENT) if family == 4 else (NODE6, POD1_6, CLIENT6)
    outside = world.client.connect(vip, count=4, proto=proto)
    assert servers(outside) == {"p1": 2, "p2": 2}
    assert client not in sources(outside), "an off-cluster source is masqueraded, or replies would miss the node"
    host = world.node.connect(vip, count=4, proto=proto)
    assert servers(host) == {"p1": 2, "p2": 2}
    assert sources(host) == {node}, "the host's own connections leave with the node's address"
    pod = world.p1.connect(vip, count=4, proto=proto)
    assert servers(pod) == {"p1": 2, "p2": 2}
    seen = {a.server: a.seen for a in pod}  # type: ignore[union-attr]  # all answered
    assert seen["p2"] == pod1, "pods are not masqueraded"
    assert seen["p1"] != pod1, "unless they reach themselves"


def test_no_endpoints_refuses(world: World) -> None:
    world.program(web())
    for host in (world.client, world.node, world.p1):
        assert host.connect("10.96.0.1:80") == [REFUSED]
        assert host.connect("[fd00:96::1]:80") == [REFUSED]


def test_host_daemons_are_not_reachable_through_vips(world: World) -> None:
    world.node.serve(tcp=[22], udp=[22])
    world.program(web(), *pods())
    for host in (world.client, world.node, world.p1):
        for proto in ("tcp", "udp"):
            # A local datagram that is rejected fails in sendto(2) already, before its ICMP error can arrive.
            expected = [DENIED] if (host.name, proto) == ("node", "udp") else [REFUSED]
            assert host.connect("10.96.0.1:22", proto=proto) == expected, (host.name, proto)
            assert host.connect("[fd00:96::1]:22", proto=proto) == expected, (host.name, proto)
    assert servers(world.client.connect(f"{NODE}:22")) == {"node": 1}
    assert servers(world.client.connect(f"[{NODE6}]:22")) == {"node": 1}
    assert world.counted("not_a_service") > 0


def test_vips_answer_echo(world: World) -> None:
    world.program(web(), *pods())
    world.client.run(["ping", "-c1", "-W2", "10.96.0.1"])
    world.client.run(["ping", "-6", "-c1", "-W2", "fd00:96::1"])
    world.node.run(["ping", "-c1", "-W2", "10.96.0.1"])


def test_external_cluster_is_masqueraded(world: World) -> None:
    world.program(balancer(), *pods())
    for target in (f"{LB}:80", f"{NODE}:30080", f"[{LB6}]:80", f"[{NODE6}]:30080"):
        outside = world.client.connect(target, count=4)
        assert servers(outside) == {"p1": 2, "p2": 2}, target
        assert sources(outside).isdisjoint({CLIENT, CLIENT6})
        host = world.node.connect(target, count=4)
        assert servers(host) == {"p1": 2, "p2": 2}, target
        assert sources(host) <= {NODE, NODE6}
        assert servers(world.p1.connect(target, count=4)) == {"p1": 2, "p2": 2}, target


def test_external_local(world: World) -> None:
    """Outside: this node's endpoint, client's own address. On the node: all endpoints."""
    world.program(balancer(external_policy=LOCAL), *pods())
    for target, client, node, pod in (
        (f"{LB}:80", CLIENT, NODE, POD1),
        (f"{NODE}:30080", CLIENT, NODE, POD1),
        (f"[{LB6}]:80", CLIENT6, NODE6, POD1_6),
        (f"[{NODE6}]:30080", CLIENT6, NODE6, POD1_6),
    ):
        outside = world.client.connect(target, count=4)
        assert servers(outside) == {"p1": 4}, target
        assert sources(outside) == {client}, target
        host = world.node.connect(target, count=4)
        assert servers(host) == {"p1": 2, "p2": 2}, target
        assert sources(host) == {node}, target
        inside = world.p1.connect(target, count=4)
        assert servers(inside) == {"p1": 2, "p2": 2}, target
        assert {a.seen for a in inside if a.server == "p2"} == {pod}, target  # type: ignore[union-attr]


def test_external_local_without_local_endpoint(world: World) -> None:
    world.program(balancer(external_policy=LOCAL), *pods("p2"))
    for target in (f"{LB}:80", f"{NODE}:30080", f"[{LB6}]:80"):
        assert world.client.connect(target, timeout_s=0.5) == [TIMEOUT], target
        assert servers(world.node.connect(target, count=2)) == {"p2": 2}, target
        assert servers(world.p1.connect(target, count=2)) == {"p2": 2}, target
    assert world.counted("no_local_endpoint") >= 3
    assert servers(world.client.connect("10.96.0.1:80")) == {"p2": 1}


def test_internal_local_without_local_endpoint(world: World) -> None:
    world.program(balancer(internal_policy=LOCAL), *pods("p2"))
    for host in (world.client, world.node, world.p1):
        assert host.connect("10.96.0.1:80", timeout_s=0.5) == [TIMEOUT], host.name
    assert servers(world.client.connect(f"{LB}:80")) == {"p2": 1}


@pytest.mark.parametrize(
    "config",
    [
        Config(),  # no detector: the connected prefix of an endpoint here, or a veth, tells pods
        Config(detect_local=DetectLocal(mode=LocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="p")),
        Config(detect_local=DetectLocal(mode=LocalMode.BRIDGE_INTERFACE, bridge_interface="p1")),
        DETECT,
    ],
    ids=["none", "InterfaceNamePrefix", "BridgeInterface", "ClusterCIDR"],
)
def test_pods_of_this_node_are_told_in_every_mode(world: World, config: Config) -> None:
    world.program(balancer(external_policy=LOCAL), *pods(), config=config)
    assert servers(world.p1.connect(f"{LB}:80", count=4)) == {"p1": 2, "p2": 2}
    outside = world.client.connect(f"{LB}:80", count=4)
    assert servers(outside) == {"p1": 4}
    assert sources(outside) == {CLIENT}


def test_a_pod_of_another_node_is_outside(world: World) -> None:
    """Its source is within the cluster CIDR, but it arrives from the LAN."""
    world.net.host("node2").ip([f"route add {LB} via {NODE}"])
    world.program(balancer(external_policy=LOCAL), *pods())
    elsewhere = world.net.host("p2").connect(f"{LB}:80", count=4)
    assert servers(elsewhere) == {"p1": 4}
    assert sources(elsewhere) == {POD2}


def test_source_ranges(world: World) -> None:
    world.client.ip(["address add 192.168.50.98/24 dev eth0"])
    world.program(balancer(source_ranges=(f"{CLIENT}/32", "10.244.0.0/16")), *pods())
    assert servers(world.client.connect(f"{LB}:80", count=2)) == {"p1": 1, "p2": 1}
    assert world.client.connect(f"{LB}:80", source="192.168.50.98", timeout_s=0.5) == [TIMEOUT]
    assert servers(world.p1.connect(f"{LB}:80", count=2)) == {"p1": 1, "p2": 1}
    assert world.node.connect(f"{LB}:80", timeout_s=0.5)[0] in {TIMEOUT, DENIED}, "nor may the host itself"
    assert servers(world.client.connect(f"{NODE}:30080", source="192.168.50.98", count=2)) == {"p1": 1, "p2": 1}
    assert servers(world.client.connect(f"[{LB6}]:80", count=2)) == {"p1": 1, "p2": 1}, "the other family is open"
    assert world.counted("outside_ranges") > 0


def test_masquerade_all(world: World) -> None:
    config = Config(masquerade_all=True, detect_local=DETECT.detect_local)
    world.program(web(), *pods(), config=config)
    inside = world.p1.connect("10.96.0.1:80", count=4)
    assert servers(inside) == {"p1": 2, "p2": 2}
    assert POD1 not in sources(inside)


def test_another_source_of_the_host_becomes_the_nodes(world: World) -> None:
    """A socket bound to the bridge's address: nobody but this node knows the way back to it."""
    world.program(balancer(external_policy=LOCAL), *pods())
    for target in ("10.96.0.1:80", f"{LB}:80"):
        answers = world.node.connect(target, count=4, source="10.244.1.1")
        assert {a.seen for a in answers if a.server == "p2"} == {NODE}, target  # type: ignore[union-attr]
        assert servers(answers) == {"p1": 2, "p2": 2}


def test_host_traffic_through_an_overlay_carries_the_overlays_address(world: World) -> None:
    """As if the endpoint were addressed directly; else the reply comes back another way and rp_filter drops it."""
    world.net.link("node", "node2", ["10.255.0.1/30"], ["10.255.0.2/30"], device_a="flannel.1", device_b="flannel.1")
    world.node.ip(["route replace 10.244.2.0/24 via 10.255.0.2"])
    world.net.host("node2").ip(["route replace 10.244.1.0/24 via 10.255.0.1"])
    world.program(balancer(), *pods())
    world.node.nft('add element inet ipvsproxy tunnels { "flannel.1" }')
    for target in ("10.96.0.1:80", f"{LB}:80"):
        host = world.node.connect(target, count=4)
        assert {a.server: a.seen for a in host} == {"p1": NODE, "p2": "10.255.0.1"}, target  # type: ignore[union-attr]
    inside = world.p1.connect("10.96.0.1:80", count=4)
    assert {a.seen for a in inside if a.server == "p2"} == {POD1}, "pods keep their address"  # type: ignore[union-attr]


def test_affinity(world: World) -> None:
    world.program(balancer(affinity_timeout_s=600), *pods())
    assert len(servers(world.client.connect(f"{LB}:80", count=5))) == 1
    assert len(servers(world.node.connect("10.96.0.1:80", count=5))) == 1


def test_host_network_endpoint_on_this_node(world: World) -> None:
    """The API server's case: the endpoint is the node itself, reached from host, pod and outside."""
    world.node.serve(tcp=[6443])
    api = service("kubernetes", "10.96.0.1", "443")
    world.program(api, endpoint_slice("kubernetes", f"{NODE}@n1", "6443"))
    host = world.node.connect("10.96.0.1:443", count=2)
    assert servers(host) == {"node": 2}
    assert sources(host) == {NODE}
    inside = world.p1.connect("10.96.0.1:443", count=2)
    assert servers(inside) == {"node": 2}
    assert sources(inside) == {POD1}
    assert servers(world.client.connect("10.96.0.1:443", count=2)) == {"node": 2}


def test_health_check_port_is_open_on_vips(world: World) -> None:
    world.node.serve(tcp=[31000])
    world.program(balancer(external_policy=LOCAL, health_check_node_port=31000), *pods())
    assert servers(world.client.connect(f"{LB}:31000")) == {"node": 1}
    assert world.client.connect(f"{LB}:31001") == [REFUSED]


def test_open_connections_outlive_the_last_local_endpoint(world: World) -> None:
    planner = world.program(balancer(external_policy=LOCAL), *pods())
    connection = world.client.open(f"{LB}:80")
    assert str(connection.first) == f"p1 saw {CLIENT}"
    state = cluster(balancer(external_policy=LOCAL), *pods("p2"))
    after = Planner(DETECT, planner.node)
    after.update(state, state.services)
    world.node.run(["ipvsadm", "-e", "-t", f"{LB}:80", "-r", f"{POD1}:8080", "-m", "-w", "0"])
    world.node.nft(nftables.load(DETECT, after.desired.elements))
    assert str(connection.ping()) == f"p1 saw {CLIENT}"
    assert world.client.connect(f"{LB}:80", timeout_s=0.5) == [TIMEOUT]


def test_marks_leave_with_no_packet(world: World) -> None:
    """Neither mark survives postrouting: what encapsulates or routes by mark after us sees none."""
    world.program(balancer(external_policy=LOCAL), web_on("mail", "10.96.0.2"), *pods(), *pods_of("mail"))
    world.node.nft(
        "table inet witness { chain after { type filter hook postrouting priority 300; "
        # Linux 6.12 gives its own multicast listener reports a mark, with nobody's rules.
        'meta l4proto tcp meta mark != 0 counter comment "marked"; }; }\n'
    )
    world.client.connect("10.96.0.2:80", count=2)
    world.node.connect(f"{LB}:80", count=2)
    world.p1.connect(f"{LB}:80", count=2)
    listing = world.node.run(["nft", "list", "table", "inet", "witness"]).stdout
    assert "packets 0 " in listing, listing


def web_on(name: str, vip: str) -> Service:
    return service(name, vip, "80")


def pods_of(name: str) -> tuple[KubeObject]:
    return (endpoint_slice(name, f"{POD1}@n1 {POD2}@n2", "8080"),)


def test_sctp(world: World) -> None:
    sctp = service("web", "10.96.0.1", "80/SCTP")
    assert sctp.ports[0].protocol is Protocol.SCTP
    world.program(sctp, endpoint_slice("web", f"{POD1}@n1 {POD2}@n2", "8080/SCTP"))
    assert servers(world.client.connect("10.96.0.1:80", proto="sctp", count=4)) == {"p1": 2, "p2": 2}
    assert servers(world.node.connect("10.96.0.1:80", proto="sctp", count=4)) == {"p1": 2, "p2": 2}


def test_one_packet_scheduling_is_for_datagrams_that_want_no_answer(world: World) -> None:
    """Each goes to another pod, from one source port too; the kernel does not know their answers any more."""
    sinks = [world.net.host(pod).serve(udp=[514]) for pod in ("p1", "p2")]
    syslog = service("web", "10.96.0.1", "514/UDP", annotations="ipvsproxy.io/scheduler-flags=ops")
    planner = world.program(syslog, *pods(ports="514/UDP"))
    outcomes = world.node.connect("10.96.0.1:514", proto="udp", count=4, source_port=5514, timeout_s=0.2)
    assert [len(sink.seen()) for sink in sinks] == [2, 2]
    assert outcomes == [TIMEOUT] * 4
    assert [problem.reason for problem in planner.problems(syslog.key)] == ["AnswersLost"]


def test_ipvsadm_prints_what_we_print(world: World) -> None:
    planner = world.program(
        balancer(external_policy=LOCAL, affinity_timeout_s=600, annotations="ipvsproxy.io/scheduler=mh"),
        service("dns", "10.96.0.10", "53/UDP", annotations="ipvsproxy.io/scheduler-flags=ops,flag-3"),
        service("sig", "10.96.0.11 fd00:96::11", "2905/SCTP", annotations="ipvsproxy.io/scheduler=sh"),
        *pods(),
    )
    assert sorted(world.node.ipvs_rules()) == sorted(ipvsadm.lines(planner.desired.virtual_servers.values()))
