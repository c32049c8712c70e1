"""Packets through the daemon: every kind of virtual server and policy, who received what, and which source was seen.

One daemon, started once, serves all of these Services; each row is one client's connections to one of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubecore.model import LoadBalancerIngress, Service, ServiceType, TrafficPolicy
from tests.builders import service
from tests.lab.kernel.fixtures import Kernel
from tests.lab.kernel.outcomes import DENIED, REFUSED, UNREACHABLE, servers, sources
from tests.proxy_daemon import CLIENT, CLIENT6, NODE, NODE6, THIS, Site, backends, until

pytestmark = pytest.mark.kernel

LOCAL = TrafficPolicy.LOCAL
LB = ServiceType.LOAD_BALANCER


def balanced(number: int, name: str, ports: str, **fields: object) -> Service:
    """A dual-stack load balancer whose addresses all end in `number`."""
    return service(
        name,
        f"10.96.0.{number} fd00:96::{number}",
        ports,
        type=LB,
        ingress=(LoadBalancerIngress(ip=f"203.0.113.{number}"), LoadBalancerIngress(ip=f"2001:db8::{number}")),
        external_ips=(f"198.51.100.{number}", f"2001:db8:e::{number}"),
        **fields,
    )


ALL = "t:80/TCP@30011,u:80/UDP@30011,s:80/SCTP@30011"
ALL_PODS = "t:8080/TCP,u:8080/UDP,s:8080/SCTP"
SERVICES = (
    (balanced(11, "web", ALL), backends("web", "p1 p2", ALL_PODS)),
    (
        balanced(12, "here", "80@30012", external_policy=LOCAL, health_check_node_port=31012),
        backends("here", "p1 p2"),
    ),
    (
        balanced(13, "elsewhere", "80@30013", external_policy=LOCAL, health_check_node_port=31013),
        backends("elsewhere", "p2"),
    ),
    (balanced(14, "inner", "80@30014", internal_policy=LOCAL), backends("inner", "p1 p2")),
    (balanced(15, "inner-elsewhere", "80@30015", internal_policy=LOCAL), backends("inner-elsewhere", "p2")),
    (balanced(16, "empty", "t:80@30016,u:80/UDP@30016"), ()),
    (balanced(17, "sticky", "80@30017", affinity_timeout_s=77), backends("sticky", "p1 p2")),
    (balanced(18, "guarded", "80@30018", source_ranges=("10.244.1.0/24",)), backends("guarded", "p1 p2")),
    (balanced(19, "no-node-port", "80"), backends("no-node-port", "p1 p2")),
    (balanced(20, "last-words", "80@30020"), backends("last-words", "p1~ p2!")),
    (service("single", "10.96.0.21", "80", labels="x=1"), backends("single", "p1 p2")),
)
HEALTH_OF_HERE = {"service": {"namespace": "default", "name": "here"}, "localEndpoints": 1, "serviceProxyHealthy": True}


@pytest.fixture(scope="module")
def site(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory: Path = tmp_path_factory.mktemp("daemon")
    with kernel.lab.net() as net:
        it = Site(net, directory)
        it.put(THIS, *(s for s, _ in SERVICES), *(piece for _, pieces in SERVICES for piece in pieces))
        it.node.serve(tcp=[22], udp=[22], name="host-daemon")
        it.start()
        yield it


def spread(text: str) -> Counter[str]:
    """`p1=2 p2=2` as counts."""
    return Counter({name: int(number) for name, _, number in (part.partition("=") for part in text.split())})


ADDRESSES = {
    4: lambda n: {"cluster": f"10.96.0.{n}:80", "lb": f"203.0.113.{n}:80", "ext": f"198.51.100.{n}:80"},
    6: lambda n: {"cluster": f"[fd00:96::{n}]:80", "lb": f"[2001:db8::{n}]:80", "ext": f"[2001:db8:e::{n}]:80"},
}


def target(kind: str, number: int, family: int) -> str:
    """Where a Service's virtual server of this kind listens."""
    if kind == "node":
        return f"{NODE}:{30000 + number}" if family == 4 else f"[{NODE6}]:{30000 + number}"
    return ADDRESSES[family](number)[kind]


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["cluster", "node", "ext", "lb"])
def test_every_virtual_server_from_everywhere(site: Site, kind: str, family: int, proto: str) -> None:
    outside = site.client.connect(target(kind, 11, family), proto=proto, count=4)
    assert servers(outside) == spread("p1=2 p2=2")
    assert sources(outside).isdisjoint({CLIENT, CLIENT6}), "masqueraded: the reply has to come back through this node"
    host = site.node.connect(target(kind, 11, family), proto=proto, count=4)
    assert servers(host) == spread("p1=2 p2=2")
    assert sources(host) == {(NODE, NODE6)[family == 6]}
    pod = site.p1.connect(target(kind, 11, family), proto=proto, count=4)
    assert servers(pod) == spread("p1=2 p2=2"), "its own pod among them: hairpin"


# Service · policy · who connects to which address · expected. `me`: the server sees the client's own address.
POLICY = [
    ("here", 12, "client", "lb node ext", "p1=2", "me"),
    ("here", 12, "node p1", "lb node ext", "p1=1 p2=1", ""),
    ("here", 12, "client node p1", "cluster", "p1=1 p2=1", ""),
    ("elsewhere", 13, "client", "lb node ext", "<timeout>=2", ""),
    ("elsewhere", 13, "node p1", "lb node ext", "p2=2", ""),
    ("elsewhere", 13, "client", "cluster", "p2=2", ""),
    ("inner", 14, "client node p1", "cluster", "p1=2", ""),
    ("inner", 14, "client", "lb node ext", "p1=1 p2=1", ""),
    ("inner-elsewhere", 15, "client node p1", "cluster", "<timeout>=2", ""),
    ("inner-elsewhere", 15, "client node p1", "lb node ext", "p2=2", ""),
    ("empty", 16, "client node p1", "cluster lb node ext", "<refused>=2", ""),
    ("guarded", 18, "client", "lb", "<timeout>=2", ""),
    ("guarded", 18, "p1", "lb", "p1=1 p2=1", ""),
    ("guarded", 18, "client", "node ext cluster", "p1=1 p2=1", ""),
    ("last-words", 20, "client node p1", "cluster lb node ext", "p1=2", ""),
]


@pytest.mark.parametrize(("name", "number", "who", "kinds", "expected", "seen"), POLICY, ids=str)
def test_policies(site: Site, name: str, number: int, who: str, kinds: str, expected: str, seen: str) -> None:
    for family in (4, 6) if name not in {"guarded", "empty"} else (4,):
        for kind in kinds.split():
            for client in who.split():
                where = target(kind, number, family)
                # At once, so that drops are waited for together.
                found = site.host(client).connect(where, count=2, parallel=2, timeout_s=0.4 if "<t" in expected else 3)
                assert servers(found) == spread(expected), f"{client} -> {where}: {list(map(str, found))}"
                if seen == "me":
                    assert sources(found) == {CLIENT if family == 4 else CLIENT6}


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_an_empty_service_refuses_over_ipv6(site: Site, proto: str) -> None:
    # An ICMPv6 error that arrives while the socket still sends its SYN is lost; the second attempt meets the next one.
    for kind in ("cluster", "node"):
        assert site.client.connect(target(kind, 16, 6), proto=proto) == [REFUSED], kind


def test_an_empty_service_refuses_datagrams(site: Site) -> None:
    for client in ("client", "p1"):
        assert site.host(client).connect(target("cluster", 16, 4), proto="udp") == [REFUSED]
        assert site.host(client).connect(target("node", 16, 4), proto="udp") == [REFUSED]


@pytest.mark.parametrize("client", ["client", "node", "p1"])
def test_host_daemons_are_not_reachable_through_vips(site: Site, client: str) -> None:
    for vip in ("10.96.0.11", "203.0.113.11", "198.51.100.11", "[fd00:96::11]", "[2001:db8::11]"):
        assert site.host(client).connect(f"{vip}:22") == [REFUSED], vip
        datagram = site.host(client).connect(f"{vip}:22", proto="udp")
        # A local datagram that is rejected fails in sendto(2) already.
        assert datagram == [DENIED if client == "node" else REFUSED], vip
    assert servers(site.host(client).connect(f"{NODE}:22")) == spread("host-daemon=1")


def test_affinity(site: Site) -> None:
    assert "-A -t 10.96.0.17:80 -s rr -p 77" in site.node.ipvs_rules()
    for kind in ("cluster", "lb", "node", "ext"):
        for family in (4, 6):
            assert len(servers(site.client.connect(target(kind, 17, family), count=4))) == 1, (kind, family)


def test_no_node_port_where_none_is_allocated(site: Site) -> None:
    assert servers(site.client.connect(target("lb", 19, 4), count=2)) == spread("p1=1 p2=1")
    assert site.client.connect(f"{NODE}:30019") == [REFUSED]


def test_health_check_node_ports(site: Site) -> None:
    status, body = site.get(f"http://{NODE}:31012/", host="client")
    assert (status, json.loads(body)) == (200, HEALTH_OF_HERE)
    assert site.get(f"http://[{NODE6}]:31012/", host="client")[0] == 200
    assert site.get("http://203.0.113.12:31012/", host="client")[0] == 200, "balancers ask at the VIP"
    status, body = site.get(f"http://{NODE}:31013/", host="client")
    assert status == 503
    assert json.loads(body)["localEndpoints"] == 0


def test_vips_answer_echo(site: Site) -> None:
    for vip in ("10.96.0.11", "203.0.113.11", "fd00:96::11"):
        site.client.run(["ping", "-c1", "-W2", vip])


def test_closed_and_unrouted(site: Site) -> None:
    assert site.client.connect("10.96.0.11:81") == [REFUSED]
    assert site.client.connect("10.96.0.250:80") == [UNREACHABLE], "no VIP of ours: routed on"


def test_metrics_probes_and_settings(site: Site) -> None:
    status, body = site.get("http://127.0.0.1:10249/metrics")
    assert status == 200
    for name in (
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_network_programming_duration_seconds_bucket",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "process_resident_memory_bytes",
    ):
        assert name in body, name
    assert 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1.0' in body
    assert 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1.0' in body
    ours = [line for line in body.splitlines() if line.startswith("ipvsproxy_") and "10.96.0.11" in line]
    assert any("default/web" in line for line in ours), "counters of a virtual server name its Service"
    assert site.get("http://127.0.0.1:10249/proxyMode") == (200, "ipvs")
    assert site.get("http://127.0.0.1:10249/healthz") == (200, "ok")
    assert (
        'kubernetes_healthcheck{name="IPv4",type="healthz"} 1.0' in site.get("http://127.0.0.1:10249/metrics/slis")[1]
    )
    status, body = site.get("http://127.0.0.1:10249/configz")
    assert (status, json.loads(body)["kubeproxy.config.k8s.io"]["ipvs"]["scheduler"]) == (200, "rr")
    for path in ("healthz", "livez"):
        status, body = site.get(f"http://{NODE}:10256/{path}", host="client")
        assert (status, json.loads(body)["healthy"]) == (200, True), body


def test_nothing_differs(site: Site) -> None:
    result = site.diff()
    assert (result.code, result.stdout) == (0, ""), result


def test_another_proxys_label_takes_a_service_away_and_back(site: Site) -> None:
    ours = next(s for s, _ in SERVICES if s.name == "single")
    theirs = service("single", "10.96.0.21", "80", labels="service.kubernetes.io/service-proxy-name=other")
    assert servers(site.client.connect("10.96.0.21:80", count=2)) == spread("p1=1 p2=1")
    site.put(theirs)
    until(lambda: ("-t 10.96.0.21:80" in site.servers(), "10.96.0.21" in site.vips()), (False, False))
    assert "10.96.0.21" not in site.node.run(["nft", "list", "table", "inet", "ipvsproxy"]).stdout
    assert site.client.connect("10.96.0.21:80") == [UNREACHABLE], "no local address any more: routed on, to nowhere"
    site.put(ours)
    until(lambda: "10.96.0.21" in site.vips(), True)
    assert servers(site.client.connect("10.96.0.21:80", count=2)) == spread("p1=1 p2=1")
