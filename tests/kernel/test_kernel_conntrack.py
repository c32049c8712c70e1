"""Flows of dead endpoints are cut from connection tracking, and only those: real UDP through IPVS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ipvsproxy.dataplane import CutFlows
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.plane import KernelDataPlane
from kubecore.model import Protocol
from tests.lab.kernel.outcomes import Answer

if TYPE_CHECKING:
    from tests.lab.kernel.net import Connection, Host, Net

pytestmark = pytest.mark.kernel

NODE, NODE6 = "192.168.50.10", "fd00:50::10"
PODS, PODS6 = ("10.244.1.5", "10.244.2.5"), ("fd00:244:1::5", "fd00:244:2::5")


async def guest_cut(cuts: list[list[object]]) -> int:
    """`[address, port, real server or None]` of UDP; the number of entries deleted."""
    conntrack = Conntrack()
    ops = [CutFlows(Protocol.UDP, str(a), int(str(p)), None if s is None else str(s)) for a, p, s in cuts]
    try:
        return await conntrack.cut(ops)
    finally:
        conntrack.close()


async def guest_apply(address: str, port: int, server: str) -> None:
    async with await KernelDataPlane.open() as plane:
        assert await plane.apply([CutFlows(Protocol.UDP, address, port, server)]) == [None]


@pytest.fixture
def node(net: Net) -> Host:
    """UDP Services on port 53 of two VIPs and on 5353 of one, over two pods."""
    node = net.host(
        "node", forwarding=True, sysctls={"net.ipv4.vs.conntrack": "1", "net.ipv4.vs.expire_nodest_conn": "1"}
    )
    net.lan("eth0", {"node": [f"{NODE}/24", f"{NODE6}/64"], "client": ["192.168.50.99/24", "fd00:50::99/64"]})
    for number in (1, 2):
        gateway = [f"10.244.{number}.1/24", f"fd00:244:{number}::1/64"]
        pod = [f"{PODS[number - 1]}/24", f"{PODS6[number - 1]}/64"]
        net.link("node", f"p{number}", gateway, pod, gateway=True)
        net.host(f"p{number}").serve(udp=[53])
    node.ip(["link add kube-ipvs0 type dummy", "link set dev kube-ipvs0 up"])
    vips = ("10.96.0.10", "10.96.0.11", "fd00:96::a")
    node.ip(f"route add local {vip} dev kube-ipvs0 table local proto 87" for vip in vips)
    node.ipvs(
        "".join(
            f"-A -u {front} -s rr\n" + "".join(f"-a -u {front} -r {pod} -m\n" for pod in pods)
            for front, pods in {
                "10.96.0.10:53": [f"{pod}:53" for pod in PODS],
                "10.96.0.11:53": [f"{pod}:53" for pod in PODS],
                "10.96.0.10:5353": [f"{pod}:53" for pod in PODS],
                "[fd00:96::a]:53": [f"[{pod}]:53" for pod in PODS6],
            }.items()
        )
    )
    node.nft("table inet track { chain c { type filter hook input priority 0; ct state new accept; }; }")
    net.host("client").ip([f"route add 10.96.0.0/16 via {NODE}", f"route add fd00:96::/64 via {NODE6}"])
    return node


def flows(client: Host, target: str, count: int) -> list[Connection]:
    """Open UDP flows, each already answered once."""
    opened = [client.open(target, proto="udp") for _ in range(count)]
    assert [str(c.first) for c in opened if not isinstance(c.first, Answer)] == []
    return opened


def who(connections: list[Connection]) -> list[str]:
    answers = [c.ping() for c in connections]
    return [answer.server if isinstance(answer, Answer) else str(answer) for answer in answers]


def tracked(node: Host, vip: str, port: int = 53) -> list[str]:
    """The sources of replies that conntrack expects, of flows to a VIP."""
    listed = node.run(f"conntrack -L -p udp --orig-dst {vip} --orig-port-dst {port} 2>/dev/null").lines
    return sorted(line.split("src=")[2].split()[0] for line in listed)


@pytest.mark.parametrize(
    ("vip", "target", "pods"),
    [("10.96.0.10", "10.96.0.10:53", PODS), ("fd00:96::a", "[fd00:96::a]:53", PODS6)],
    ids=["IPv4", "IPv6"],
)
def test_flows_to_a_dead_endpoint_find_another(
    net: Net, node: Host, vip: str, target: str, pods: tuple[str, str]
) -> None:
    held = flows(net.host("client"), target, 4)
    assert tracked(node, vip) == [pods[0]] * 2 + [pods[1]] * 2
    server = f"{target[: -len(':53')]}:53"
    pod = f"[{pods[0]}]:53" if ":" in pods[0] else f"{pods[0]}:53"
    node.run(f"ipvsadm -d -u {server} -r {pod}")
    node.call(guest_apply, vip, 53, pods[0])
    assert tracked(node, vip) == [pods[1]] * 2
    assert who(held) == ["p2"] * 4


def test_only_what_is_named_is_cut(net: Net, node: Host) -> None:
    client = net.host("client")
    for target in ("10.96.0.10:53", "10.96.0.11:53", "10.96.0.10:5353", "[fd00:96::a]:53"):
        flows(client, target, 2)
    assert node.call(guest_cut, [["10.96.0.10", 53, PODS[0]]]) == 1
    assert tracked(node, "10.96.0.10") == [PODS[1]]
    assert tracked(node, "10.96.0.11") == list(PODS)
    assert tracked(node, "10.96.0.10", 5353) == list(PODS)
    assert tracked(node, "fd00:96::a") == list(PODS6)
    assert node.call(guest_cut, [["10.96.0.10", 53, PODS[0]], ["10.96.0.12", 53, None]]) == 0


def test_all_flows_of_a_virtual_server(net: Net, node: Host) -> None:
    flows(net.host("client"), "10.96.0.10:53", 4)
    assert node.call(guest_cut, [["10.96.0.10", 53, None]]) == 4
    assert tracked(node, "10.96.0.10") == []


def test_many_fronts_at_once(net: Net, node: Host) -> None:
    """More than are asked for one by one, in both families."""
    client = net.host("client")
    for target in ("10.96.0.10:53", "10.96.0.11:53", "10.96.0.10:5353", "[fd00:96::a]:53"):
        flows(client, target, 2)
    nobody: list[list[object]] = [[f"10.97.0.{i}", 53, None] for i in range(20)]
    cuts = [["10.96.0.10", 53, PODS[0]], ["10.96.0.11", 53, None], ["fd00:96::a", 53, PODS6[1]], *nobody]
    assert node.call(guest_cut, cuts) == 4
    assert tracked(node, "10.96.0.10") == [PODS[1]]
    assert tracked(node, "10.96.0.11") == []
    assert tracked(node, "10.96.0.10", 5353) == list(PODS)
    assert tracked(node, "fd00:96::a") == [PODS6[0]]
