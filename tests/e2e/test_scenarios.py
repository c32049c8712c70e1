"""The scenarios: what must come out on each node, by packets and by dig, from nothing but the manifest files.

`ipvsproxy run --source FILE` on the scenario's node, `dnsserver run --source FILE` beside it. The ingress scenario's
packets are in test_two_nodes, on two nodes and by the API.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.demo.objects import SCENARIOS
from tests.lab.kernel.lab import Lab
from tests.lab.kernel.net import Host, Net
from tests.lab.kernel.outcomes import REFUSED, Answer

pytestmark = pytest.mark.kernel
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Scenario:
    """A node of a scenario, and what must be seen there."""

    file: str
    node: str
    address: str
    """The node's, with prefix length."""
    pods: tuple[str, ...]
    """`10.254.4.24:8080`; who answers there."""
    reached: dict[str, set[str]]
    """From a client on the node's network: target → exactly these answer."""
    refused: tuple[str, ...] = ()
    names: dict[str, set[str]] = field(default_factory=dict)
    """dig's arguments → lines of +short."""
    statuses: dict[str, str] = field(default_factory=dict)


OPENSHIFT = Scenario(
    "openshift.yaml",
    "worker0.ocp4.labs.semperti.local",
    "10.252.7.235/24",
    pods=(
        *("10.254.4.24:8080", "10.254.5.61:8080", "10.254.5.59:5432"),
        *("10.254.4.30:8080", "10.254.5.62:8080", "10.254.5.63:8080", "10.254.4.31:8080"),
    ),
    reached={
        "172.30.85.132:8080": {"10.254.4.24:8080", "10.254.5.61:8080"},
        "172.30.194.95:5432": {"10.254.5.59:5432"},
        "10.252.7.235:32291": {"10.254.4.30:8080", "10.254.5.62:8080", "10.254.5.63:8080"},
        "172.30.191.202:8080": {"10.254.4.30:8080", "10.254.5.62:8080", "10.254.5.63:8080"},
        "172.30.7.213:8080": {"10.254.4.31:8080"},
        "10.252.7.235:30927": {"10.254.4.31:8080"},
    },
    names={
        "minio.test-services.svc.cluster.local CNAME": {"minio.ocp4.labs.semperti.local."},
        "django-psql-example.test-services.svc.cluster.local": {"172.30.85.132"},
    },
)
DEPLOY = {"192.168.16.171:80", "192.168.16.173:80", "192.168.16.172:8080"}
DEEP_DIVE = Scenario(
    "deep-dive.yaml",
    "k8smaster",
    "10.0.2.15/24",
    pods=(
        *("192.168.16.171:80", "192.168.16.172:80", "192.168.16.172:8080", "192.168.16.173:80"),
        *("192.168.16.174:80", "192.168.16.174:8080"),
        *("172.17.0.4:80", "172.17.0.5:80", "172.17.0.6:80", "216.58.207.131:443", "140.82.118.4:443"),
    ),
    reached={
        "10.100.200.199:80": DEPLOY,
        "10.103.100.13:5000": {"192.168.16.171:80", "192.168.16.172:80", "192.168.16.173:80"},
        "10.97.110.238:80": DEPLOY,
        "10.0.2.15:32000": DEPLOY,
        "10.99.12.62:443": {"216.58.207.131:443", "140.82.118.4:443"},
        "10.97.238.145:80": {"172.17.0.4:80", "172.17.0.5:80", "172.17.0.6:80"},
    },
    refused=("10.110.153.149:5678", "10.0.2.15:31434"),
    names={
        "my-headless-service.default.svc.cluster.local": {"172.17.0.4", "172.17.0.5", "172.17.0.6"},
        "web-0.my-headless-service.default.svc.cluster.local": {"172.17.0.4"},
        "my-non-headless-service.default.svc.cluster.local": {"10.97.238.145"},
        "my-ext-svc.default.svc.cluster.local CNAME": {"www.mozilla.org."},
        "empty-headless.default.svc.cluster.local": set(),
    },
    statuses={
        "empty-headless.default.svc.cluster.local": "NXDOMAIN",
        "my-headless-service.default.svc.cluster.local": "NOERROR",
    },
)


@pytest.fixture(scope="module", params=[OPENSHIFT, DEEP_DIVE], ids=lambda s: s.file)
def scenario(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Scenario, Net]]:
    """A scenario's node with both daemons at work, its pods behind a second host, a client in front."""
    wanted: Scenario = request.param
    with lab.net() as net:
        node, pods = _lay_out(net, wanted)
        for target in wanted.pods:
            address, port = target.split(":")
            pods.serve(tcp=[int(port)], name=target, address=address)
        source = str(SCENARIOS / wanted.file)
        settings = ("--cluster-cidr", "10.200.0.0/16")  # the client's address is in it: no masquerade, as for a pod
        proxy = node.popen([str(BIN / "ipvsproxy"), "run", "--source", source, "--node", wanted.node, *settings])
        dns = node.popen([str(BIN / "dnsserver"), "run", "--source", source])
        proxy.wait_for_log("ipvsproxy.reconciler.started", 60)
        dns.wait_for_log("process.daemon.started", 60)
        yield wanted, net


def _lay_out(net: Net, wanted: Scenario) -> tuple[Host, Host]:
    node = net.host("node", forwarding=True)
    net.link("node", "client", ["10.200.0.1/24"], ["10.200.0.2/24"], gateway=True)
    net.link("node", "pods", [wanted.address], ["198.18.0.2/32"], gateway=True)
    addresses = sorted({pod.split(":")[0] for pod in wanted.pods})
    net.host("pods").ip(f"address add {address}/32 dev lo" for address in addresses)
    node.ip(["route add 198.18.0.2/32 dev pods", *(f"route add {a}/32 via 198.18.0.2" for a in addresses)])
    return node, net.host("pods")


def test_services(scenario: tuple[Scenario, Net]) -> None:
    wanted, net = scenario
    for target, endpoints in wanted.reached.items():
        outcomes = net.host("client").connect(target, count=2 * len(endpoints))
        assert {o.server if isinstance(o, Answer) else str(o) for o in outcomes} == endpoints, target


def test_refused_not_a_hang(scenario: tuple[Scenario, Net]) -> None:
    wanted, net = scenario
    for target in wanted.refused:
        assert net.host("client").connect(target) == [REFUSED], target


def test_nothing_else_is_programmed(scenario: tuple[Scenario, Net]) -> None:
    """A load balancer known by hostname makes no VIP; a pod that is not ready gets nothing."""
    wanted, net = scenario
    rules = net.host("node").ipvs_rules()
    own = {wanted.address.split("/")[0], "10.200.0.1"}
    vips = {line.split()[2].rpartition(":")[0] for line in rules if line.startswith("-A")} - own
    services = {target.split(":")[0] for target in (*wanted.reached, *wanted.refused)} - own
    assert vips - services <= {"10.96.0.1"}  # the API server's own
    assert not any("192.168.16.174" in line for line in rules)


def test_names(scenario: tuple[Scenario, Net]) -> None:
    wanted, net = scenario
    for question, answer in wanted.names.items():
        lines = net.host("node").run(f"dig -r +short @127.0.0.1 {question}").lines
        assert set(lines) == answer, question
    for question, status in wanted.statuses.items():
        assert f"status: {status}" in net.host("node").run(f"dig -r @127.0.0.1 {question}").stdout


def test_headless_addresses_come_in_varying_order(scenario: tuple[Scenario, Net]) -> None:
    wanted, net = scenario
    for question, answer in wanted.names.items():
        if len(answer) > 1:
            orders = {tuple(net.host("node").run(f"dig -r +short @127.0.0.1 {question}").lines) for _ in range(10)}
            assert len(orders) > 1
            assert {frozenset(order) for order in orders} == {frozenset(answer)}


def test_ingress_health_check_ports(net: Net) -> None:
    """node-a has no ready endpoint (503, 0), node-b has one (200, 1)."""
    expected = {"node-a": ("192.168.50.10/24", "503", 0), "node-b": ("192.168.50.11/24", "200", 1)}
    source = str(SCENARIOS / "ingress.yaml")
    running = {}
    for name, (address, _, _) in expected.items():
        node = net.host(name, forwarding=True)
        net.link(name, f"peer-{name[-1]}", [address], ["192.168.50.99/24"])
        running[name] = node.popen([str(BIN / "ipvsproxy"), "run", "--source", source, "--node", name])
    for name, (_, code, count) in expected.items():
        running[name].wait_for_log("ipvsproxy.reconciler.started", 60)
        reply = net.host(name).run("curl -s -w '%{http_code}' http://127.0.0.1:31999/").stdout
        assert reply.endswith(code), name
        assert f'"localEndpoints": {count}' in reply
