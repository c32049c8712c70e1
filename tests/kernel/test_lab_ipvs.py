"""The ground holds: real packets through hand-made IPVS virtual servers, with an nftables masquerade in the path.

A client reaches two pods through one node:  client -- lan -- node (IPVS, nftables) -- pod1, pod2
"""

import pytest

from tests.lab.kernel.net import Net, answered
from tests.lab.kernel.outcomes import REFUSED, TIMEOUT, UNREACHABLE, Answer, endpoint, servers, sources

pytestmark = pytest.mark.kernel

TRANSPORTS = {"tcp": ("-t", 8080), "udp": ("-u", 5353), "sctp": ("--sctp-service", 9090)}
FAMILIES = {
    "IPv4": {
        "vip": "10.96.0.10",
        "node": "192.168.50.10",
        "client": "192.168.50.20",
        "pods": ("10.244.1.2", "10.244.2.2"),
    },
    "IPv6": {"vip": "fd00:96::10", "node": "fd00:50::10", "client": "fd00:50::20", "pods": ("fd00:1::2", "fd00:2::2")},
}
# The node masquerades what a virtual server forwards; IPVS hands its packets to conntrack only with this sysctl.
MASQUERADE = """
table inet lab {
    chain prerouting {
        type filter hook prerouting priority -150
        ip daddr 10.96.0.0/16 meta mark set 0x4000
        ip6 daddr fd00:96::/64 meta mark set 0x4000
    }
    chain postrouting {
        type nat hook postrouting priority 100
        meta mark 0x4000 counter masquerade
    }
}
"""


@pytest.fixture
def cluster(net: Net) -> Net:
    node = net.host("node", forwarding=True, sysctls={"net.ipv4.vs.conntrack": "1"})
    net.lan("lan", {"node": ["192.168.50.10/24", "fd00:50::10/64"], "client": ["192.168.50.20/24", "fd00:50::20/64"]})
    for n in (1, 2):
        gateways = [f"10.244.{n}.1/24", f"fd00:{n}::1/64"]
        net.link("node", f"pod{n}", gateways, [f"10.244.{n}.2/24", f"fd00:{n}::2/64"], gateway=True)
        net.host(f"pod{n}").serve(tcp=[8080], udp=[5353], sctp=[9090])
    # The virtual addresses, as local routes.
    node.ip(
        [
            "link add name vips type dummy",
            "link set dev vips up",
            "route add local 10.96.0.10/32 dev vips table local src 192.168.50.10",
            "route add local fd00:96::10/128 dev vips table local src fd00:50::10",
        ]
    )
    net.host("client").ip(["route add default via 192.168.50.10", "route add default via fd00:50::10"])
    return net


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
class TestVirtualServer:
    def virtual_server(self, cluster: Net, family: str, transport: str) -> str:
        """The virtual server's address and port."""
        option, port = TRANSPORTS[transport]
        service = endpoint(FAMILIES[family]["vip"], port)  # type: ignore[arg-type]
        pods = [endpoint(pod, port) for pod in FAMILIES[family]["pods"]]
        cluster.host("node").ipvs(
            f"""
            -A {option} {service} -s rr
            -a {option} {service} -r {pods[0]} -m -w 1
            -a {option} {service} -r {pods[1]} -m -w 1
            """
        )
        return service

    def test_spreads_connections_and_shows_the_client(self, cluster: Net, family: str, transport: str) -> None:
        service = self.virtual_server(cluster, family, transport)
        outcomes = cluster.host("client").connect(service, proto=transport, count=6)
        assert servers(outcomes) == {"pod1": 3, "pod2": 3}
        assert sources(outcomes) == {FAMILIES[family]["client"]}

    def test_masqueraded_connections_come_from_the_node(self, cluster: Net, family: str, transport: str) -> None:
        service = self.virtual_server(cluster, family, transport)
        cluster.host("node").nft(MASQUERADE)
        outcomes = cluster.host("client").connect(service, proto=transport, count=6)
        assert servers(outcomes) == {"pod1": 3, "pod2": 3}
        # Masquerade takes the address of the device towards each pod.
        towards = {"IPv4": {"10.244.1.1", "10.244.2.1"}, "IPv6": {"fd00:1::1", "fd00:2::1"}}
        assert sources(outcomes) == towards[family]

    def test_the_node_itself_reaches_it(self, cluster: Net, family: str, transport: str) -> None:
        service = self.virtual_server(cluster, family, transport)
        outcomes = cluster.host("node").connect(service, proto=transport, count=4)
        assert servers(outcomes) == {"pod1": 2, "pod2": 2}
        assert sources(outcomes) == {FAMILIES[family]["node"]}


def test_weight_0_drains_a_real_server_but_keeps_its_connections(cluster: Net) -> None:
    node, client = cluster.host("node"), cluster.host("client")
    node.ipvs("""
        -A -t 10.96.0.10:8080 -s rr
        -a -t 10.96.0.10:8080 -r 10.244.1.2:8080 -m -w 1
    """)
    kept = client.open("10.96.0.10:8080")
    assert kept.first == Answer("pod1", "192.168.50.20", 0, "")
    node.run("ipvsadm -e -t 10.96.0.10:8080 -r 10.244.1.2:8080 -m -w 0")
    node.run("ipvsadm -a -t 10.96.0.10:8080 -r 10.244.2.2:8080 -m -w 1")
    assert servers(client.connect("10.96.0.10:8080", count=3)) == {"pod2": 3}
    assert kept.ping() == Answer("pod1", "192.168.50.20", 0, "")
    kept.close()


def test_the_rules_read_back_as_they_were_written(cluster: Net) -> None:
    rules = [
        "-A -t 10.96.0.10:8080 -s rr -p 10800",
        "-a -t 10.96.0.10:8080 -r 10.244.1.2:8080 -m -w 1",
        "-A -t [fd00:96::10]:8080 -s mh -b mh-port",
        "-a -t [fd00:96::10]:8080 -r [fd00:1::2]:8080 -m -w 7",
        "-A -f 16384 -s wrr",
    ]
    cluster.host("node").ipvs("\n".join(rules))
    assert sorted(cluster.host("node").ipvs_rules()) == sorted(rules)


def test_outcomes_tell_apart_refused_dropped_rejected_and_unrouted(cluster: Net) -> None:
    client = cluster.host("client")
    cluster.host("pod1").nft("""
        table inet lab {
            chain input {
                type filter hook input priority 0
                tcp dport 81 drop
                tcp dport 82 reject with icmpx host-unreachable
            }
        }
    """)
    for pod in ("10.244.1.2", "fd00:1::2"):
        assert client.connect(endpoint(pod, 80)) == [REFUSED]
        assert client.connect(endpoint(pod, 80), proto="udp") == [REFUSED]
        assert client.connect(endpoint(pod, 81), timeout_s=0.3) == [TIMEOUT]
        assert client.connect(endpoint(pod, 82)) == [UNREACHABLE]
    client.ip(["route add unreachable 198.18.0.0/24"])
    assert client.connect("198.18.0.1:80") == [UNREACHABLE]


def test_background_traffic_counts_what_it_met(cluster: Net) -> None:
    client, pod = cluster.host("client"), cluster.host("pod1")
    server = pod.serve(tcp=[7000], name="first")
    traffic = client.traffic("10.244.1.2:7000", interval_s=0.01)
    while traffic.report().answers.get("first", 0) < 5:
        pass
    server.close()
    while len(traffic.report().failures) < 5:
        pass
    report = traffic.stop()
    assert report.answers.keys() == {"first"}
    # The connection that was open when the server closed may have been reset.
    assert {what for _, what in report.failures[1:]} == {"refused (ECONNREFUSED)"}
    assert report.count == report.answers["first"] + len(report.failures)
    limited = client.traffic("10.244.1.2:8080", limit=3).wait()
    assert (limited.count, limited.answers, limited.done) == (3, {"pod1": 3}, True)


def test_a_udp_port_that_asks_two_virtual_servers_of_a_pod(cluster: Net) -> None:
    """A limit of IPVS, documented in the README: an answer belongs to the newest flow of its pod and client port."""
    cluster.host("node").ip(["route add local 10.96.0.11/32 dev vips table local src 192.168.50.10"])
    cluster.host("node").ipvs("""
        -A -u 10.96.0.10:53 -s rr
        -a -u 10.96.0.10:53 -r 10.244.1.2:5353 -m -w 1
        -A -u 10.96.0.11:53 -s rr
        -a -u 10.96.0.11:53 -r 10.244.1.2:5353 -m -w 1
    """)
    client = cluster.host("client")
    targets = ["10.96.0.10:53", "10.96.0.11:53", "10.96.0.10:53"]

    same = [client.connect(to, proto="udp", source_port=20000, timeout_s=1)[0] for to in targets]
    assert [isinstance(outcome, Answer) for outcome in same] == [True, True, False]

    own = [client.connect(to, proto="udp")[0] for to in targets * 20]
    assert servers(own) == {"pod1": 60}
    assert len({answer.seen_port for answer in own if isinstance(answer, Answer)}) == 60


def test_servers_remember_whom_they_answered_and_speak_http(cluster: Net) -> None:
    client = cluster.host("client")
    web = cluster.host("pod2").serve(tcp=[80], name="web")
    body = client.run("curl -sS http://10.244.2.2/ http://[fd00:2::2]/").lines
    assert [line.split(":")[0] for line in body] == ["web saw 192.168.50.20", "web saw [fd00"]
    (answer,) = answered(client.connect("10.244.2.2:80", source_port=40404))
    assert (answer.seen_port, answer.at) == (40404, "10.244.2.2:80")
    assert web.seen()[-1] == "tcp 192.168.50.20:40404"
