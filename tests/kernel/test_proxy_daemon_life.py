"""The life of a daemon: killed, stopped and started beside open connections; endpoints that leave and return; drift;
what belongs to others; an address or a Node that changes.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from kubecore.model import LoadBalancerIngress, Node, Service, ServiceType
from tests.builders import service
from tests.lab.kernel.net import Net
from tests.lab.kernel.outcomes import REFUSED, RESET, UNREACHABLE, Answer, servers
from tests.proxy_daemon import CONFIG, NODE, NODE6, PODS, THIS, Site, backends, until

pytestmark = pytest.mark.kernel

P1, P2, P3 = (f"{PODS[name][0]}:8080" for name in ("p1", "p2", "p3"))
VIP, VIP6, LB = "10.96.0.1:80", "[fd00:96::1]:80", "203.0.113.1:80"
SERVER = f"-t {VIP}"


def web(ports: str = "80@30080", **fields: object) -> Service:
    return service(
        "web",
        "10.96.0.1 fd00:96::1",
        ports,
        type=ServiceType.LOAD_BALANCER,
        ingress=(LoadBalancerIngress(ip="203.0.113.1"),),
        **fields,
    )


@pytest.fixture
def site(net: Net, tmp_path: Path) -> Site:
    return Site(net, tmp_path)


def test_killed_and_restarted_beside_open_connections(site: Site) -> None:
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start()
    targets = (VIP, VIP6, LB, f"{NODE}:30080", f"[{NODE6}]:30080")
    open_ones = [site.host(who).open(target) for target in targets for who in ("client", "node", "p1")]
    before = [connection.first for connection in open_ones]
    assert all(isinstance(outcome, Answer) for outcome in before)
    table = site.node.ipvs_rules()

    site.kill()
    assert [connection.ping() for connection in open_ones] == before
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}, "works without the daemon"
    site.put(*backends("web", "p2"))  # missed by everybody
    site.start()
    assert [connection.ping() for connection in open_ones] == before, "also those to p1, which drains now"
    assert site.real_servers(SERVER) == {P1: 0, P2: 1}
    site.put(*backends("web", "p1 p2"))
    until(lambda: sorted(site.node.ipvs_rules()), sorted(table))

    assert site.stop() == 0
    assert [connection.ping() for connection in open_ones] == before
    assert sorted(site.node.ipvs_rules()) == sorted(table)
    for target in targets:
        assert servers(site.client.connect(target, count=2)) == {"p1": 1, "p2": 1}


def test_a_removed_endpoint_keeps_its_connections_until_the_limit(site: Site) -> None:
    site.config.write_text(CONFIG.replace("grace: 60s", "grace: 3s"))
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start()
    connections = {c.first.server: c for c in (site.client.open(VIP), site.client.open(VIP))}  # type: ignore[union-attr]
    assert connections.keys() == {"p1", "p2"}
    short = site.client.open(VIP6)
    site.put(*backends("web", "p2"))
    until(lambda: site.real_servers(SERVER), {P1: 0, P2: 1})
    assert isinstance(connections["p1"].ping(), Answer)
    assert servers(site.client.connect(VIP, count=4)) == {"p2": 4}
    assert isinstance(short.ping(), Answer)
    waited = until(lambda: site.real_servers(SERVER), {P2: 1})
    assert waited > 1.5, "not before the limit"
    assert not isinstance(connections["p1"].ping(timeout_s=0.5), Answer), "the limit is one"
    assert isinstance(connections["p2"].ping(), Answer)


def test_an_idle_endpoint_goes_at_once_and_a_busy_one_with_its_last_connection(site: Site) -> None:
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start("--ipvs-tcpfin-timeout", "1s")
    site.put(*backends("web", "p2"))
    until(lambda: site.real_servers(SERVER), {P2: 1}, 3)
    site.put(*backends("web", "p1"))
    until(lambda: site.real_servers(SERVER), {P1: 1}, 3)
    connection = site.client.open(VIP)
    site.put(*backends("web", "p2"))
    until(lambda: site.real_servers(SERVER), {P1: 0, P2: 1})
    connection.close(reset=True)
    until(lambda: site.real_servers(SERVER), {P2: 1}, 14)  # a reset connection is counted as closing for 10 s


def test_serving_terminating_and_returning_endpoints(site: Site) -> None:
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start()
    connections = [site.client.open(VIP) for _ in range(4)]
    before = [c.first for c in connections]
    assert servers(before) == {"p1": 2, "p2": 2}
    site.put(*backends("web", "p1~ p2"))
    until(lambda: site.real_servers(SERVER), {P1: 0, P2: 1})
    assert [c.ping() for c in connections] == before
    assert servers(site.client.connect(VIP, count=4)) == {"p2": 4}
    site.put(*backends("web", "p1 p2"))
    until(lambda: site.real_servers(SERVER), {P1: 1, P2: 1})
    assert [c.ping() for c in connections] == before, "weight restored, not deleted and added"
    assert servers(site.client.connect(VIP, count=4)).keys() == {"p1", "p2"}
    site.put(*backends("web", "p1~ p2!"))
    until(lambda: site.real_servers(SERVER), {P1: 1, P2: 0}), "nobody is ready: who terminates and still serves does it"
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 2}


def _leads_to(site: Site, pod: str) -> bool:
    """Whether any virtual server or flow does. Those of a Service are seen to one after another."""
    known = "ipvsadm -Sn; for f in ipv4 ipv6; do conntrack -L -f $f; done 2>/dev/null"
    text = site.node.run(known, check=False).stdout
    return any(address in text for address in PODS[pod])


@pytest.mark.parametrize("target", [VIP, VIP6, f"{NODE}:30080"])
def test_a_flow_of_datagrams_leaves_a_dead_endpoint_at_once(site: Site, target: str) -> None:
    ports = "80/UDP@30080"
    site.put(THIS, web(ports), *backends("web", "p1", "8080/UDP"))
    site.start()
    flow = site.client.open(target, proto="udp", source_port=4053)
    assert servers([flow.first]) == {"p1": 1}
    site.put(*backends("web", "p2", "8080/UDP"))
    until(lambda: _leads_to(site, "p1"), wanted=False)
    assert servers([flow.ping()]) == {"p2": 1}, "the same socket, so the same source port"


@pytest.mark.parametrize("target", [VIP, VIP6, f"{NODE}:30080"])
def test_an_sctp_association_leaves_a_dead_endpoint_at_once(site: Site, target: str) -> None:
    ports = "80/SCTP@30080"
    site.put(THIS, web(ports), *backends("web", "p1 p2", "8080/SCTP"))
    site.start()
    held = [site.client.open(target, proto="sctp", source_port=4060 + i) for i in range(2)]
    first = [c.first for c in held]
    assert servers(first) == {"p1": 1, "p2": 1}
    site.put(*backends("web", "p2", "8080/SCTP"))
    until(lambda: _leads_to(site, "p1"), wanted=False)
    after = [c.ping() for c in held]
    kept = next(i for i, answer in enumerate(first) if servers([answer]) == {"p2": 1})
    assert after[kept] == first[kept], "the association with the endpoint that stays goes on"
    assert after[1 - kept] == RESET, "the other one does not linger with the dead pod"
    held[1 - kept].close(reset=True)
    again = site.client.connect(target, proto="sctp", source_port=4060 + 1 - kept)
    assert servers(again) == {"p2": 1}, "the same source port finds the pod that is left"


# What somebody does to our state, by the command that does it.
DRIFT = {
    "virtual server": f"ipvsadm -D -t {VIP}",
    "real server": f"ipvsadm -d -t {VIP} -r {P1}",
    "weight": f"ipvsadm -e -t {VIP} -r {P1} -m -w 7",
    "scheduler": f"ipvsadm -E -t {VIP} -s wlc",
    "foreign real server": f"ipvsadm -a -t {VIP} -r 192.0.2.1:80 -m -w 1",
    "everything in IPVS": "ipvsadm -C",
    "route": "ip route del local 10.96.0.1 table local proto 87",
    "IPv6 route": "ip -6 route del local fd00:96::1 table local proto 87",
    "table": "nft delete table inet ipvsproxy",
    "elements": "nft flush map inet ipvsproxy service4",
    "device": "ip link del kube-ipvs0",
    "device down": "ip link set kube-ipvs0 down",
    "rules": "nft flush chain inet ipvsproxy input",
}


def test_drift_is_repaired(site: Site) -> None:
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start()
    wanted = _state(site)
    unrepaired = {}
    for what, command in DRIFT.items():
        site.node.run(command)
        try:
            until(lambda: _state(site), wanted, 5)
        except AssertionError as error:
            unrepaired[what] = str(error)
    assert unrepaired == {}
    for client in (site.client, site.node, site.p1):
        for target in (VIP, VIP6, LB, f"{NODE}:30080"):
            assert servers(client.connect(target, count=2)) == {"p1": 1, "p2": 1}, (client.name, target)
    assert site.diff().code == 0


def test_a_foreign_device_under_the_name_of_ours_is_told_of_until_it_is_gone(site: Site) -> None:
    site.put(THIS, web(), *backends("web", "p1 p2"))
    daemon = site.start()
    daemon.kill(signal.SIGSTOP)
    site.node.ip(["link del kube-ipvs0", "link add kube-ipvs0 type bridge"])
    daemon.kill(signal.SIGCONT)
    until(lambda: "not a dummy: rename or delete it" in site.get("http://127.0.0.1:10256/healthz")[1], True, 5)
    assert site.client.connect(VIP) == [UNREACHABLE]
    site.node.ip(["link del kube-ipvs0"])
    until(lambda: servers(site.client.connect(VIP, count=2)), {"p1": 1, "p2": 1}, 10)
    until(lambda: "degraded" in site.get("http://127.0.0.1:10256/healthz")[1], False, 5)


def _state(site: Site) -> tuple[list[str], set[str], set[str], list[str]]:
    listed = site.node.run("nft -s list table inet ipvsproxy", check=False).stdout
    return sorted(site.node.ipvs_rules()), site.vips(), site.vips(6), sorted(listed.split())


def test_what_belongs_to_others_is_left_alone(site: Site) -> None:
    theirs = """
        -A -t 192.0.2.80:80 -s wlc
        -a -t 192.0.2.80:80 -r 10.244.1.5:8080 -m -w 3
        -A -f 77 -s rr
        -A -t 192.168.50.10:30099 -s rr
        """
    owners = ("192.0.2.80:80", "77", f"{NODE}:30099")
    table = "table ip theirs {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.7 }\n\t}\n}\n"
    site.node.ipvs(theirs)
    site.node.nft(table)
    site.node.ip(
        ["link add kept type dummy", "address add 192.0.2.81/32 dev kept", "route add blackhole 192.0.2.128/25"]
    )

    def others() -> tuple[set[str], str, str]:
        rules = {line for line in site.node.ipvs_rules() if any(f" {name} " in line for name in owners)}
        routes = site.node.run("ip route show type blackhole; ip -br address show dev kept").stdout
        return rules, site.node.run("nft list table ip theirs").stdout, routes

    before = others()
    assert len(before[0]) == 4
    site.put(THIS, web(), *backends("web", "p1 p2"))
    site.start()
    assert others() == before
    site.put(*backends("web", "p2"))
    until(lambda: site.real_servers(SERVER), {P2: 1})
    site.delete(web())
    until(lambda: SERVER in site.servers(), False)
    assert others() == before
    assert site.stop() == 0
    for _ in range(2):
        result = site.command("cleanup")
        assert result.code == 0, result
        assert others() == before
    assert site.servers() == {f"-{flag}" for flag in ("t 192.0.2.80:80", "f 77", f"t {NODE}:30099")}
    assert site.node.run("nft list tables").lines == ["table ip theirs"]
    assert site.vips() == site.vips(6) == set()
    assert "kube-ipvs0" not in site.node.run("ip link").stdout


def test_node_addresses_and_node_object(site: Site) -> None:
    """No Node at first; then an address comes and goes, then the Node, its taint, its deletion."""
    site.put(web(), *backends("web", "p1 p2"))
    site.start()
    assert servers(site.client.connect(f"{NODE}:30080", count=2)) == {"p1": 1, "p2": 1}
    assert site.get(f"http://{NODE}:10256/healthz")[0] == 503, "not known to be eligible"
    assert site.get(f"http://{NODE}:10256/livez")[0] == 200

    for address in ("192.168.50.20", "fd00:50::20"):
        server = f"-t {address}:30080" if "." in address else f"-t [{address}]:30080"
        prefix = 24 if "." in address else 64
        site.node.ip([f"address add {address}/{prefix} dev eth0"])
        assert until(lambda s=server: s in site.servers(), True) < 2  # type: ignore[misc]
        assert len(servers(site.client.connect(server[3:], count=2))) == 2
        site.node.ip([f"address del {address}/{prefix} dev eth0"])
        assert until(lambda s=server: s in site.servers(), False) < 2  # type: ignore[misc]

    site.put(THIS)
    until(lambda: site.get(f"http://{NODE}:10256/healthz")[0], 200)
    assert json.loads(site.get(f"http://{NODE}:10256/healthz")[1])["nodeEligible"] is True
    site.put(Node("n1", internal_ips=(NODE, NODE6), taints=("ToBeDeletedByClusterAutoscaler",)))
    until(lambda: site.get(f"http://{NODE}:10256/healthz")[0], 503)
    assert site.get(f"http://{NODE}:10256/livez")[0] == 200
    site.put(THIS)
    until(lambda: site.get(f"http://{NODE}:10256/healthz")[0], 200)
    site.delete(THIS)
    until(lambda: site.get(f"http://{NODE}:10256/healthz")[0], 503)
    assert servers(site.client.connect(f"{NODE}:30080", count=2)) == {"p1": 1, "p2": 1}, "traffic goes on"


def test_services_come_and_go(site: Site) -> None:
    site.put(THIS)
    site.start()
    assert site.client.connect(VIP) == [UNREACHABLE]
    site.put(web())
    until(lambda: "10.96.0.1" in site.vips(), True)
    assert site.client.connect(VIP) == [REFUSED]
    site.put(*backends("web", "p1 p2"))
    until(lambda: site.real_servers(SERVER), {P1: 1, P2: 1})
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}
    site.put(*backends("web", ""))
    until(lambda: set(site.real_servers(SERVER).values()) <= {0}, True)
    assert site.client.connect(VIP) == [REFUSED]
    site.delete(web())
    until(lambda: len(site.vips() | site.vips(6)), 0)
    assert site.servers() == set()
    assert site.client.connect(VIP) == [UNREACHABLE]
