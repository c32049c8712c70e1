"""Our table in a kernel: netlink writes what nft lists, changed rules are seen, errors name the element."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from ipvsproxy import nftables, sets
from ipvsproxy.config import Config
from ipvsproxy.dataplane import ChangeElements
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.model import Element
from tests.contract.dataplane_cases import EVERY_KIND, OTHER_CLAIM, VIP, WEB

if TYPE_CHECKING:
    from tests.lab.kernel.net import Net

pytestmark = pytest.mark.kernel

LIST = "nft -j list table inet ipvsproxy"


async def guest_add(elements: list[list[object]]) -> list[str | None]:
    """`[set, [key parts], value]`, all in one transaction; what was said."""
    made = tuple(Element(str(s), tuple(k), str(v)) for s, k, v in elements)  # type: ignore[arg-type]
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        return [None if error is None else error.detail for error in await plane.apply([ChangeElements(made)])]


def plain(elements: list[Element]) -> list[list[object]]:
    return [[e.set, list(e.key), e.value] for e in elements]


def test_nft_lists_what_netlink_wrote(net: Net) -> None:
    node = net.host("node")
    by_netlink = [e for e in EVERY_KIND if not e.set.startswith(("cluster", "on_node"))]
    assert node.call(guest_add, plain(by_netlink)) == [None]
    listing = json.loads(node.run(LIST).stdout)
    assert nftables.parse_elements(listing) == set(by_netlink)
    text = node.run("nft list table inet ipvsproxy").stdout
    assert "10.96.0.1 . tcp . 80 : goto cluster_ip" in text
    assert "10.96.0.1 . tcp . 80 . 203.0.113.0/24" in text
    assert "10.96.0.1 . tcp . 80 : 0x69000001" in text


async def guest_dump() -> list[list[object]]:
    async with await KernelDataPlane.open() as plane:
        elements = await plane.dump_elements()
    assert elements is not None
    return plain(sorted(elements))


def test_netlink_reads_what_nft_wrote(net: Net) -> None:
    node = net.host("node")
    adjacent = [sets.prefix(sets.CLUSTER, 4, cidr) for cidr in ("10.1.0.0/16", "10.2.0.0/16", "255.255.255.255/32")]
    elements = sorted({*EVERY_KIND, *adjacent, sets.prefix(sets.ON_NODE, 6, "::/0")})
    node.nft(nftables.load(Config(), elements))
    assert node.call(guest_dump) == plain(elements)


@pytest.mark.parametrize(
    ("elements", "complaint"),
    [
        ([VIP, OTHER_CLAIM, EVERY_KIND[0]], "10.96.0.1 . tcp . 80 in `add element inet ipvsproxy service4"),
        ([Element("vip4", ("fd00::1",))], "'fd00::1' does not fit its place in a set's key"),
        ([Element("service4", ("10.96.0.1", "icmp", "1"), "goto cluster_ip")], "'icmp' does not fit its place"),
        ([sets.service(WEB, sets.Kind.CLUSTER_IP)._replace(value="goto nowhere")], "10.96.0.1 . tcp . 80 in `add"),
        ([Element("uplinks", ("a-name-that-is-too-long",))], "'a-name-that-is-too-long' does not fit its place"),
        ([Element("nosuchset", ("10.96.0.1",))], "nosuchset"),
    ],
    ids=["two values", "family", "protocol", "chain", "interface", "set"],
)
def test_errors_name_the_element(net: Net, elements: list[Element], complaint: str) -> None:
    (said,) = net.host("node").call(guest_add, plain(elements))
    assert said is not None
    assert complaint in said


async def guest_after(commands: list[str]) -> list[bool]:
    """Whether the table still passes for ours after each command, put right in between."""
    async with await KernelDataPlane.open() as plane:
        ours = []
        for command in commands:
            await plane.load_table(nftables.load(Config(), [VIP]))
            process = await asyncio.create_subprocess_shell(command)
            assert await process.wait() == 0, command
            ours.append(await plane.dump_elements() is not None)
        return ours


def test_changed_rules_are_seen(net: Net) -> None:
    table = "inet ipvsproxy"
    harm = [
        f"nft delete table {table}",
        f"nft flush chain {table} input",
        f"nft insert rule {table} stray accept",
        f"nft add chain {table} extra",
        f"nft add set {table} extra '{{ type ipv4_addr; }}'",
    ]
    harmless = [
        f"nft add element {table} vip4 '{{ 10.96.0.77 }}'",
        f"nft flush set {table} vip4",
        "nft add table inet other",
        "true",
    ]
    node = net.host("node")
    heard = node.call(guest_after, [*harm, *harmless], timeout_s=60)
    assert dict(zip([*harm, *harmless], heard, strict=True)) == {
        **dict.fromkeys(harm, False),
        **dict.fromkeys(harmless, True),
    }


async def guest_table_of_another_shape() -> list[str | None]:
    """The table was made anew by an older version, with other sets, behind our back."""
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        script = "delete table inet ipvsproxy; table inet ipvsproxy { set vip4 { type inet_service; }; }"
        process = await asyncio.create_subprocess_exec("nft", script)
        assert await process.wait() == 0
        (result,) = await plane.apply([ChangeElements((VIP,))])
        assert await plane.dump_elements() is None
        return [None if result is None else type(result).__name__]


def test_a_table_of_another_shape(net: Net) -> None:
    assert net.host("node").call(guest_table_of_another_shape) == ["DataplaneError"]
