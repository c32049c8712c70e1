"""Two nodes, both families: from everywhere, through everything; sources, affinity, hostNetwork, hairpin."""

from __future__ import annotations

import pytest

from tests.demo import api
from tests.demo.cluster import OUTSIDE, Cluster
from tests.lab.kernel.net import answered
from tests.lab.kernel.outcomes import REFUSED, TIMEOUT, servers, sources

pytestmark = pytest.mark.kernel

WEB = {"web-1", "web-2", "web-3"}
ON = {"node-a": {"web-1"}, "node-b": {"web-2", "web-3"}}
CLUSTER_IP = ("10.96.20.1:80/tcp", "10.96.20.1:9000/udp", "[fd00:10:96::20:1]:80/tcp", "[fd00:10:96::20:1]:9000/udp")
NODE_PORT = {
    "node-a": ("192.168.50.10:30081/tcp", "[fd00:50::10]:30081/tcp"),
    "node-b": ("192.168.50.11:30081/tcp", "[fd00:50::11]:30081/tcp"),
}
VIP = ("203.0.113.81:80/tcp", "[2001:db8::81]:80/tcp")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (source, target)
        for source in ("client", "web-1", "web-2", "node-a", "node-b", "outside")
        for target in (*CLUSTER_IP, *NODE_PORT["node-a"], *NODE_PORT["node-b"], *VIP)
        if source != "outside" or target not in CLUSTER_IP  # no route leads from outside to a ClusterIP
    ],
)
def test_every_pod_answers(cluster: Cluster, source: str, target: str) -> None:
    address, proto = target.split("/")
    assert set(servers(cluster.host(source).connect(address, proto=proto, count=6))) == WEB


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_policy_local_keeps_the_clients_address(cluster: Cluster, node: str, family: int) -> None:
    address = NODE_PORT[node][family == 6].split("/")[0].replace("30081", "30082")
    outcomes = answered(cluster.host("outside").connect(address, count=6))
    assert set(servers(outcomes)) == ON[node]
    assert sources(outcomes) == {OUTSIDE[family]}


@pytest.mark.parametrize("address", ["203.0.113.82:80", "[2001:db8::82]:80", "192.168.50.10:30082"])
def test_policy_local_from_the_node_reaches_every_pod(cluster: Cluster, address: str) -> None:
    for source in ("client", "node-a"):
        assert set(servers(cluster.host(source).connect(address, count=6))) == WEB


def test_policy_cluster_hides_the_client(cluster: Cluster) -> None:
    outcomes = answered(cluster.host("outside").connect("192.168.50.11:30081", count=6))
    assert OUTSIDE[4] not in sources(outcomes)


def test_a_pod_reaches_itself_through_its_service(cluster: Cluster) -> None:
    """Hairpin: the pod must see somebody else than itself as the source, or its reply would never leave it."""
    for target in ("10.96.20.1:80", "[fd00:10:96::20:1]:80"):
        outcomes = answered(cluster.host("web-1").connect(target, count=6))
        to_itself = [o for o in outcomes if o.server == "web-1"]
        assert len(to_itself) == 2
        assert not sources(to_itself) & {"10.244.1.11", "fd00:10:244:1::11"}


def test_pods_of_other_nodes_are_seen_as_themselves(cluster: Cluster) -> None:
    outcomes = answered(cluster.host("client").connect("10.96.20.1:80", count=3))
    assert sources(outcomes) == {"10.244.1.99"}


def test_a_host_daemon_is_not_reachable_through_a_vip(cluster: Cluster) -> None:
    daemon = cluster.host("node-a").serve(tcp=[9999], name="daemon")
    try:
        for vip in ("203.0.113.81", "192.168.50.200"):
            cluster.host("outside").ip([f"route replace {vip} via 192.168.50.10"])
            assert cluster.host("outside").connect(f"{vip}:9999") == [REFUSED]
        assert cluster.host("client").connect("10.96.20.1:9999") == [REFUSED]
        assert set(servers(cluster.host("outside").connect("192.168.50.10:9999"))) == {"daemon"}
    finally:
        daemon.close()
        cluster.host("outside").ip(
            ["route del 203.0.113.81 via 192.168.50.10", "route replace 192.168.50.200 via 192.168.50.11"]
        )


def test_ingress_scenario_host_network_endpoint(cluster: Cluster) -> None:
    """The hostNetwork endpoint on node-b is reached from pods of both nodes and from its own node."""
    for source in ("client", "web-2", "node-a", "node-b"):
        assert set(servers(cluster.host(source).connect("10.96.7.7:80", count=2))) == {"192.168.50.11"}, source


def test_ingress_scenario_from_outside(cluster: Cluster) -> None:
    """On node-b its own endpoint, with the client's address; on node-a, which has but a terminating one, that one."""
    for via, server in (("192.168.50.11", "192.168.50.11"), ("192.168.50.10", "10.244.1.9")):
        cluster.host("outside").ip([f"route replace 192.168.50.200 via {via}"])
        outcomes = answered(cluster.host("outside").connect("192.168.50.200:80", count=3))
        assert set(servers(outcomes)) == {server}
        assert sources(outcomes) == {OUTSIDE[4]}
    cluster.host("outside").ip(["route replace 192.168.50.200 via 192.168.50.11"])


def test_ingress_scenario_from_a_pod_of_the_node(cluster: Cluster) -> None:
    """Through the load balancer's address, too, a pod on node-a reaches the cluster-wide set."""
    assert set(servers(cluster.host("client").connect("192.168.50.200:80", count=3))) == {"192.168.50.11"}


def test_ingress_scenario_affinity_lasts(cluster: Cluster) -> None:
    rules = cluster.host("node-a").ipvs_rules()
    for front in ("10.96.7.7:80", "192.168.50.200:80", "192.168.50.10:30080"):
        assert f"-A -t {front} -s rr -p 600" in rules


def test_ingress_scenario_source_ranges(cluster: Cluster) -> None:
    """A client outside loadBalancerSourceRanges is dropped at the VIP, on either node."""
    outside = cluster.host("outside")
    outside.ip(["address add 198.51.100.7/32 dev lo"])
    for node in cluster.nodes:
        cluster.host(node).ip(["route add 198.51.100.7 via 192.168.50.77"])
    try:
        refused = outside.connect("192.168.50.200:80", source="198.51.100.7", timeout_s=1.0)
        assert refused == [TIMEOUT]
        assert set(servers(outside.connect("203.0.113.81:80", source="198.51.100.7", count=3))) == WEB
    finally:
        outside.ip(["address del 198.51.100.7/32 dev lo"])
        for node in cluster.nodes:
            cluster.host(node).ip(["route del 198.51.100.7 via 192.168.50.77"])


def test_session_affinity(cluster: Cluster) -> None:
    """A client stays with one pod, through changes elsewhere; when that pod goes, it moves to another and stays."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sticky", "namespace": "demo"},
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.20.41",
            "clusterIPs": ["10.96.20.41"],
            "selector": {"app": "web"},
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30041}],
        },
    }
    cluster.call(api.apply, [service])
    cluster.call(api.until_answered, "10.96.20.41:80")
    clients = {"client": "10.96.20.41:80", "outside": "192.168.50.10:30041", "node-b": "10.96.20.41:80"}
    try:
        first = {}
        for host, target in clients.items():
            seen = servers(cluster.host(host).connect(target, count=8))
            assert len(seen) == 1, f"{host}: {seen}"
            first[host] = next(iter(seen))
        leaving = first["client"]
        cluster.call(api.set_ready, "demo", leaving, False)
        cluster.call(api.until_answered, "10.96.20.41:80", sorted(WEB - {leaving}))
        moved = servers(cluster.host("client").connect("10.96.20.41:80", count=8))
        assert len(moved) == 1
        assert leaving not in moved
        for host, target in clients.items():
            if first[host] != leaving:
                assert set(servers(cluster.host(host).connect(target, count=8))) == {first[host]}
    finally:
        for pod in WEB:
            cluster.call(api.set_ready, "demo", pod, True)
        cluster.call(api.delete, "Service", "demo", "sticky")
