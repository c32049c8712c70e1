"""VIP routes in a kernel: sources, the device, and kube-proxy's addresses giving way to routes without a gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ipvsproxy.dataplane import AddVip, DataplaneError, DeleteVip, Op
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.model import InterfaceAddress, Link
from tests.lab.kernel.outcomes import Answer

if TYPE_CHECKING:
    from tests.lab.kernel.net import Host, Net

pytestmark = pytest.mark.kernel

NODE, NODE6, CLIENT, CLIENT6 = "192.168.50.10", "fd00:50::10", "192.168.50.99", "fd00:50::99"
VIPS, VIPS6 = ("10.96.0.1", "10.96.0.2"), ("fd00:96::1",)


async def guest_apply(ops: list[list[str]]) -> list[str]:
    """`["add", address, source]` or `["delete", address]`; "" or what failed, of each."""
    made: list[Op] = [AddVip(*rest) if verb == "add" else DeleteVip(*rest) for verb, *rest in ops]
    async with await KernelDataPlane.open() as plane:
        return ["" if error is None else str(error) for error in await plane.apply(made)]


async def guest_release(addresses: list[str]) -> list[str]:
    """What is left on the device."""
    async with await KernelDataPlane.open() as plane:
        await plane.release_addresses(addresses)
        return sorted(await plane.dump_device_addresses())


async def guest_vips() -> dict[str, str]:
    async with await KernelDataPlane.open() as plane:
        return await plane.dump_vips()


def a_node(net: Net) -> tuple[Host, Host]:
    """A node and a client on one LAN, the client's way to every VIP leading to the node."""
    net.lan("eth0", {"node": [f"{NODE}/24", f"{NODE6}/64"], "client": [f"{CLIENT}/24", f"{CLIENT6}/64"]})
    node, client = net.host("node"), net.host("client")
    client.ip([f"route add 10.96.0.0/16 via {NODE}", f"route add fd00:96::/64 via {NODE6}"])
    return node, client


def as_kube_proxy_left_it(node: Host, *, up: bool) -> None:
    """kube-ipvs0 with its addresses; kube-proxy leaves it down, a rollback from us leaves it up."""
    node.ip(
        [
            "link add kube-ipvs0 type dummy",
            *(["link set dev kube-ipvs0 up"] if up else []),
            *(f"address add {vip}/32 dev kube-ipvs0" for vip in VIPS),
            *(f"address add {vip}/128 dev kube-ipvs0 nodad" for vip in VIPS6),
        ]
    )


def test_route_and_source(net: Net) -> None:
    node, client = a_node(net)
    assert node.call(guest_apply, [["add", VIPS[0], NODE], ["add", VIPS6[0], NODE6]]) == ["", ""]
    assert node.run("ip route show table local proto 87").lines == [
        f"local {VIPS[0]} dev kube-ipvs0 scope host src {NODE} metric 1024"
    ]
    assert node.run("ip -6 route show table local proto 87").lines == [
        f"local {VIPS6[0]} dev kube-ipvs0 src {NODE6} metric 1024 pref medium"
    ]
    assert node.run("ip -br address show dev kube-ipvs0").stdout.split() == ["kube-ipvs0", "UNKNOWN"]
    # From outside a VIP is the node's; the host's own connections to it carry the node's address.
    node.serve(tcp=[80])
    for vip, source in ((VIPS[0], CLIENT), (f"[{VIPS6[0]}]", CLIENT6)):
        outcome = client.connect(f"{vip}:80")[0]
        assert isinstance(outcome, Answer)
        assert outcome.seen == source
    for vip, source in ((VIPS[0], NODE), (f"[{VIPS6[0]}]", NODE6)):
        outcome = node.connect(f"{vip}:80")[0]
        assert isinstance(outcome, Answer)
        assert outcome.seen == source
    assert node.call(guest_apply, [["delete", VIPS[0]], ["delete", VIPS6[0]]]) == ["", ""]
    assert node.call(guest_vips) == {}


@pytest.mark.parametrize("up", [False, True], ids=["device down", "device up"])
def test_addresses_give_way_to_routes_without_a_gap(net: Net, up: bool) -> None:
    node, client = a_node(net)
    as_kube_proxy_left_it(node, up=up)
    node.serve(tcp=[80])
    targets = [f"{VIPS[0]}:80", f"[{VIPS6[0]}]:80"]
    held = [host.open(target) for host in (client, node) for target in targets]
    assert [str(connection.first) for connection in held if not isinstance(connection.first, Answer)] == []
    streams = [client.traffic(target, interval_s=0.001, timeout_s=1.0) for target in targets]

    every = [*VIPS, *VIPS6]
    sources = {vip: NODE6 if ":" in vip else NODE for vip in every}
    assert node.call(guest_apply, [["add", vip, sources[vip]] for vip in every]) == [""] * 3
    assert node.call(guest_release, [VIPS[0]]) == [VIPS[1], *VIPS6]
    assert node.call(guest_release, [*every, "10.7.7.7"]) == []  # the last IPv4 address among them
    assert node.call(guest_release, every) == []

    for stream in streams:
        report = stream.stop()
        assert report.failures == []
        assert report.count > 20
    assert [str(c.ping()) for c in held if not isinstance(c.ping(), Answer)] == []
    assert node.call(guest_vips) == sources
    assert "dev lo" not in node.run("ip route show table local proto 87").stdout


def test_addresses_that_are_not_released_stay(net: Net) -> None:
    node, _ = a_node(net)
    as_kube_proxy_left_it(node, up=False)
    assert node.call(guest_apply, [["add", VIPS[0], NODE]]) == [""]
    assert node.call(guest_release, [VIPS[0]]) == [VIPS[1], *VIPS6]
    assert node.run(f"ip route get {VIPS[1]}").stdout.startswith("local")


@pytest.mark.parametrize("harm", ["link del kube-ipvs0", "link set kube-ipvs0 down"])
def test_the_device_is_made_again(net: Net, harm: str) -> None:
    node, _ = a_node(net)
    both = [["add", VIPS[0], NODE], ["add", VIPS6[0], NODE6]]
    node.call(guest_apply, both)
    node.ip([harm])
    assert node.call(guest_apply, both) == ["", ""]
    assert node.call(guest_vips) == {VIPS[0]: NODE, VIPS6[0]: NODE6}


async def guest_device_lost_between() -> dict[str, str]:
    """As before, under an open data plane that remembers the device's index."""
    import asyncio

    async with await KernelDataPlane.open() as plane:
        ops: list[Op] = [AddVip(VIPS[0], NODE), AddVip(VIPS6[0], NODE6)]
        assert await plane.apply(ops) == [None, None]
        for harm in ("link del kube-ipvs0", "link set kube-ipvs0 down"):
            process = await asyncio.create_subprocess_exec("ip", *harm.split())
            assert await process.wait() == 0
            assert await plane.apply(ops) == [None, None]
        return await plane.dump_vips()


def test_the_device_is_made_again_under_our_feet(net: Net) -> None:
    node, _ = a_node(net)
    assert node.call(guest_device_lost_between) == {VIPS[0]: NODE, VIPS6[0]: NODE6}


def test_a_device_of_another_kind_is_not_taken(net: Net) -> None:
    node, _ = a_node(net)
    node.ip(["link add kube-ipvs0 type bridge"])
    (complaint,) = node.call(guest_apply, [["add", VIPS[0], NODE]])
    assert complaint == "interface kube-ipvs0 is a bridge device, not a dummy: rename or delete it"
    assert node.call(guest_vips) == {}


def test_routes_of_others_are_left_alone(net: Net) -> None:
    node, _ = a_node(net)
    node.ip(["route add local 10.96.0.9 dev lo table local proto 98", "address add 10.96.0.8/32 dev eth0"])
    assert node.call(guest_vips) == {}
    assert node.call(guest_apply, [["delete", "10.96.0.9"], ["delete", "10.96.0.8"]]) == ["No such process"] * 2
    assert node.call(guest_apply, [["add", "10.96.0.8", ""], ["delete", "10.96.0.8"]]) == ["", ""]
    routes = node.run("ip route show table local").stdout
    assert "local 10.96.0.9 dev lo proto 98" in routes
    assert "local 10.96.0.8 dev eth0 proto kernel" in routes


async def guest_many(count: int) -> int:
    async with await KernelDataPlane.open() as plane:
        vips = [f"10.{97 + i // 65536}.{i // 256 % 256}.{i % 256}" for i in range(count)]
        assert all(error is None for error in await plane.apply([AddVip(vip, NODE) for vip in vips]))
        assert await plane.dump_vips() == dict.fromkeys(vips, NODE)
        assert all(error is None for error in await plane.apply([DeleteVip(vip) for vip in vips[1:]]))
        return len(await plane.dump_vips())


def test_many_routes(net: Net) -> None:
    node, _ = a_node(net)
    assert node.call(guest_many, 5000, timeout_s=60) == 1


async def guest_host() -> list[object]:
    async with await KernelDataPlane.open() as plane:
        host = await plane.read_host()
    return [list(map(list, host.addresses)), list(map(list, host.links)), sorted(host.gateways)]


def test_the_host_as_it_is(net: Net) -> None:
    node, _ = a_node(net)
    node.ip(
        [
            "link add br0 type bridge",
            "route add default via 192.168.50.1",
            "route add default via fd00:50::1",
            "route add 10.8.0.0/16 via 192.168.50.4 table 100",
            "route add 10.7.0.0/16 via inet6 fd00:50::5 dev eth0",
        ]
    )
    addresses, links, gateways = node.call(guest_host)
    assert list(InterfaceAddress("eth0", NODE, 24)) in addresses
    assert list(InterfaceAddress("eth0", NODE6, 64)) in addresses
    assert list(InterfaceAddress("lo", "127.0.0.1", 8)) in addresses
    assert sorted(links) == [list(Link(*link)) for link in (("br0", "bridge"), ("eth0", "veth"), ("lo", ""))]
    assert gateways == [
        *("192.168.50.1", "192.168.50.4"),
        *("fd00:50::1", "fd00:50::5"),
    ]


async def guest_remove() -> None:
    async with await KernelDataPlane.open() as plane:
        await plane.remove_device()
        await plane.remove_device()
        try:
            await plane.release_addresses(["10.96.0.1"])
        except DataplaneError as error:
            raise AssertionError("releasing from no device is no error") from error


def test_the_device_can_be_removed(net: Net) -> None:
    node, _ = a_node(net)
    as_kube_proxy_left_it(node, up=True)
    node.call(guest_remove)
    assert node.run("ip link show kube-ipvs0", check=False).code != 0
