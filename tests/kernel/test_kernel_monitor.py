"""What others change is noticed, what we do ourselves is not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from ipvsproxy import nftables, sets
from ipvsproxy.config import Config
from ipvsproxy.dataplane import AddVip, ChangeElements, DeleteVip, Op
from ipvsproxy.kernel.plane import KernelDataPlane

if TYPE_CHECKING:
    from tests.lab.kernel.net import Host, Net

pytestmark = pytest.mark.kernel

QUIET_S = 0.15


class Listener:
    def __init__(self, plane: KernelDataPlane) -> None:
        self.heard: set[str] = set()
        self._task = asyncio.create_task(self._listen(plane))

    async def _listen(self, plane: KernelDataPlane) -> None:
        async for name in plane.changes():
            self.heard.add(name)

    async def since(self) -> list[str]:
        await asyncio.sleep(QUIET_S)
        heard, self.heard = self.heard, set()
        return sorted(heard)


async def sh(command: str) -> None:
    process = await asyncio.create_subprocess_shell(command)
    assert await process.wait() == 0, command


async def guest_commands(commands: list[str]) -> list[list[str]]:
    """What is heard after each command, on a node with our table and two VIP routes."""
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config(), [sets.vip(4, "10.96.0.1")]))
        assert await plane.apply([AddVip("10.96.0.1"), AddVip("10.96.0.2"), AddVip("fd00:96::1")]) == [None] * 3
        listener = Listener(plane)
        await listener.since()
        heard = []
        for command in commands:
            await sh(command)
            heard.append(await listener.since())
        return heard


def a_node(net: Net) -> Host:
    node = net.host("node")
    node.ip(["link add eth0 type dummy", "address add 192.168.50.10/24 dev eth0", "link set eth0 up"])
    return node


HEARD = {
    "ip address add 192.168.50.11/24 dev eth0": ["address"],
    "ip address del 192.168.50.11/24 dev eth0": ["address"],
    "ip route add default via 192.168.50.1": ["address"],
    "ip link add veth0 type veth peer name veth1": ["link"],
    "ip route del local 10.96.0.2 table local proto 87": ["route"],
    "ip -6 route del local fd00:96::1 table local proto 87": ["route"],
    "nft add element inet ipvsproxy vip4 '{ 10.96.0.7 }'": ["nft"],
    "nft flush chain inet ipvsproxy input": ["nft"],
    "nft delete table inet ipvsproxy": ["nft"],
    # The last IPv4 address takes every route of the device with it, and the kernel says nothing of those.
    "ip address add 10.96.0.9/32 dev kube-ipvs0; ip address del 10.96.0.9/32 dev kube-ipvs0": ["address", "route"],
    "ip link set kube-ipvs0 down": ["link", "route"],
    "ip link del kube-ipvs0": ["link", "route"],
}
UNHEARD = (
    "ip route add 10.9.0.0/16 via 192.168.50.1",
    "ip route add local 10.9.9.9 dev lo table local proto 98",
    "nft 'table inet other { set s { type ipv4_addr; elements = { 10.96.0.1 }; }; chain input { counter; }; }'",
    "nft delete table inet other",
    "ipvsadm -A -t 10.99.0.1:80 -s rr",
)


def test_what_others_do(net: Net) -> None:
    node = a_node(net)
    assert dict(zip(HEARD, node.call(guest_commands, list(HEARD), timeout_s=60), strict=True)) == HEARD


def test_what_is_nothing_to_us(net: Net) -> None:
    node = a_node(net)
    heard = node.call(guest_commands, list(UNHEARD), timeout_s=60)
    assert dict(zip(UNHEARD, heard, strict=True)) == {command: [] for command in UNHEARD}


async def guest_own_doing() -> list[str]:
    """More of it than would fit the monitor's receive buffer."""
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        await plane.apply([AddVip("10.96.0.1")])
        listener = Listener(plane)
        await listener.since()
        vips = [f"10.97.{i >> 8}.{i & 255}" for i in range(6000)]
        ops: list[Op] = [AddVip(vip) for vip in vips]
        ops.append(ChangeElements(tuple(sets.vip(4, vip) for vip in vips)))
        ops += [DeleteVip(vip) for vip in vips]
        assert await plane.apply(ops) == [None] * len(ops)
        await plane.load_table(nftables.load(Config(), [sets.vip(4, vip) for vip in vips]))
        await plane.apply([ChangeElements((sets.prefix(sets.CLUSTER, 4, "10.0.0.0/8"),))])
        return await listener.since()


def test_what_we_do_ourselves(net: Net) -> None:
    assert a_node(net).call(guest_own_doing, timeout_s=60) == []


async def guest_flood() -> list[str]:
    """Notices are lost: everything has to be read again."""
    async with await KernelDataPlane.open() as plane:
        listener = Listener(plane)
        await asyncio.sleep(QUIET_S)
        process = await asyncio.create_subprocess_exec("ip", "-batch", "-", stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        lines = "".join(f"route add local 10.9.{i >> 8}.{i & 255} dev lo table local proto 87\n" for i in range(4000))
        process.stdin.write(lines.encode())
        process.stdin.close()
        while process.returncode is None:
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is not to read meanwhile
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=0.001)
        return await listener.since()


def test_lost_notices(net: Net) -> None:
    heard = a_node(net).call(guest_flood, timeout_s=60)
    assert "route" in heard
