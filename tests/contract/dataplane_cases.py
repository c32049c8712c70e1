"""What every data plane does, as cases that run on the fake and on a kernel: `async def case(plane)`.

Each starts with nothing in the kernel but a node address of each family on `eth0`.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest

from ipvsproxy import nftables, sets
from ipvsproxy.config import Config
from ipvsproxy.dataplane import (
    AddRealServer,
    AddVip,
    AddVirtualServer,
    AlreadyExists,
    ChangeElements,
    CutFlows,
    DataPlane,
    DeleteRealServer,
    DeleteVip,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    NotFound,
    Op,
)
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    Element,
    ForwardMethod,
    InterfaceAddress,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Family, Protocol

NODE: dict[Family, str] = {4: "192.168.50.10", 6: "fd00:50::10"}
Case = Callable[[DataPlane], Awaitable[None]]
CASES: dict[str, Case] = {}

WEB = VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 80)
DNS6 = VirtualServerKey(6, Protocol.UDP, "fd00:96::a", 53)
GHOST = VirtualServerKey(4, Protocol.TCP, "10.96.0.99", 80)
POD_A, POD_B = RealServerKey("10.244.1.5", 8080), RealServerKey("10.244.2.7", 8080)
POD6 = RealServerKey("fd00:244::5", 5353)
PLAIN = VirtualServerConfig()
ONE = RealServerConfig()


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


async def outcomes(plane: DataPlane, *ops: Op) -> list[str]:
    """`ok`, or the kind of error, of each operation; every error names its operation."""
    results = await plane.apply(ops)
    assert len(results) == len(ops)
    assert all(result is None or result.op == op for op, result in zip(ops, results, strict=True))
    return ["ok" if result is None else type(result).__name__ for result in results]


async def servers(
    plane: DataPlane,
) -> dict[VirtualServerKey, tuple[VirtualServerConfig, dict[RealServerKey, RealServerConfig]]]:
    dumped = await plane.dump_virtual_servers()
    return {k: (v.config, {r: a.config for r, a in v.real_servers.items()}) for k, v in dumped.items()}


# -- virtual and real servers


@case
async def what_is_added_is_dumped(plane: DataPlane) -> None:
    sticky = VirtualServerConfig(Scheduler.MH, ServiceFlag.SCHED_2, 10800)
    heavy = RealServerConfig(65535, ForwardMethod.TUNNEL, 20, 10)
    mark = VirtualServerKey(6, None, "", 0, 0x69ABCDEF)
    ops: list[Op] = [
        AddVirtualServer(WEB, sticky),
        AddRealServer(WEB, POD_A, heavy),
        AddRealServer(WEB, POD_B, RealServerConfig(0)),
        AddVirtualServer(DNS6, VirtualServerConfig(Scheduler.WLC, ServiceFlag.ONE_PACKET)),
        AddRealServer(DNS6, POD6, ONE),
        AddVirtualServer(mark, PLAIN),
        AddRealServer(mark, POD6, RealServerConfig(3, ForwardMethod.DIRECT_ROUTE)),
    ]
    assert await outcomes(plane, *ops) == ["ok"] * 7
    assert await servers(plane) == {
        WEB: (sticky, {POD_A: heavy, POD_B: RealServerConfig(0)}),
        DNS6: (VirtualServerConfig(Scheduler.WLC, ServiceFlag.ONE_PACKET), {POD6: ONE}),
        mark: (PLAIN, {POD6: RealServerConfig(3, ForwardMethod.DIRECT_ROUTE)}),
    }
    assert dict(await plane.dump_keys()) == {key: config for key, (config, _) in (await servers(plane)).items()}
    assert await plane.dump_real_servers(DNS6) == ActualVirtualServer(
        VirtualServerConfig(Scheduler.WLC, ServiceFlag.ONE_PACKET), {POD6: ActualRealServer(ONE)}
    )


@case
async def a_key_is_address_protocol_and_port(plane: DataPlane) -> None:
    keys = [WEB, WEB._replace(port=81), WEB._replace(protocol=Protocol.UDP), WEB._replace(protocol=Protocol.SCTP)]
    keys += [
        WEB._replace(address="10.96.0.2"),
        VirtualServerKey(4, None, "", 0, 1),
        VirtualServerKey(6, None, "", 0, 1),
    ]
    assert await outcomes(plane, *[AddVirtualServer(k, PLAIN) for k in keys]) == ["ok"] * len(keys)
    assert set(await servers(plane)) == set(keys)


@case
async def adding_twice_changes_nothing(plane: DataPlane) -> None:
    ops: list[Op] = [AddVirtualServer(WEB, PLAIN), AddRealServer(WEB, POD_A, ONE)]
    assert await outcomes(plane, *ops) == ["ok", "ok"]
    again: list[Op] = [
        AddVirtualServer(WEB, VirtualServerConfig(Scheduler.LC)),
        AddRealServer(WEB, POD_A, RealServerConfig(9)),
    ]
    assert await outcomes(plane, *again) == ["AlreadyExists", "AlreadyExists"]
    assert await servers(plane) == {WEB: (PLAIN, {POD_A: ONE})}


@case
async def editing_keeps_the_real_servers(plane: DataPlane) -> None:
    sticky = VirtualServerConfig(Scheduler.SH, ServiceFlag.SCHED_1 | ServiceFlag.SCHED_2, 60)
    await outcomes(plane, AddVirtualServer(WEB, sticky), AddRealServer(WEB, POD_A, ONE))
    assert await outcomes(plane, EditVirtualServer(WEB, PLAIN), EditRealServer(WEB, POD_A, RealServerConfig(0))) == [
        "ok",
        "ok",
    ]
    assert await servers(plane) == {WEB: (PLAIN, {POD_A: RealServerConfig(0)})}
    assert await outcomes(plane, EditVirtualServer(WEB, sticky)) == ["ok"]
    assert await servers(plane) == {WEB: (sticky, {POD_A: RealServerConfig(0)})}


@case
async def nothing_is_done_to_what_is_not_there(plane: DataPlane) -> None:
    await outcomes(plane, AddVirtualServer(WEB, PLAIN))
    ops: list[Op] = [
        EditVirtualServer(GHOST, PLAIN),
        DeleteVirtualServer(GHOST),
        AddRealServer(GHOST, POD_A, ONE),
        EditRealServer(GHOST, POD_A, ONE),
        DeleteRealServer(GHOST, POD_A),
        EditRealServer(WEB, POD_A, ONE),
        DeleteRealServer(WEB, POD_A),
    ]
    assert await outcomes(plane, *ops) == ["NotFound"] * len(ops)
    assert await servers(plane) == {WEB: (PLAIN, {})}


@case
async def deleting_a_virtual_server_takes_its_real_servers(plane: DataPlane) -> None:
    await outcomes(plane, AddVirtualServer(WEB, PLAIN), AddRealServer(WEB, POD_A, ONE), AddRealServer(WEB, POD_B, ONE))
    assert await outcomes(plane, DeleteRealServer(WEB, POD_A)) == ["ok"]
    assert await servers(plane) == {WEB: (PLAIN, {POD_B: ONE})}
    assert await outcomes(plane, DeleteVirtualServer(WEB), AddVirtualServer(WEB, PLAIN)) == ["ok", "ok"]
    assert await servers(plane) == {WEB: (PLAIN, {})}


@case
async def a_failure_does_not_stop_what_follows(plane: DataPlane) -> None:
    ops: list[Op] = [
        AddVirtualServer(WEB, PLAIN),
        AddVirtualServer(WEB, PLAIN),
        AddRealServer(GHOST, POD_A, ONE),
        AddRealServer(WEB, RealServerKey("no address", 80), ONE),
        AddRealServer(WEB, POD_A, RealServerConfig(-1)),
        AddRealServer(WEB, POD_A, RealServerConfig(1, ForwardMethod.MASQUERADE, 5, 6)),
        AddRealServer(WEB, POD6, ONE),
        AddRealServer(WEB, POD_A, ONE),
        DeleteVip("10.96.0.77"),
        AddRealServer(WEB, POD_B, ONE),
    ]
    assert await outcomes(plane, *ops) == [
        "ok",
        "AlreadyExists",
        "NotFound",
        *["DataplaneError"] * 4,
        "ok",
        "NotFound",
        "ok",
    ]
    assert await servers(plane) == {WEB: (PLAIN, {POD_A: ONE, POD_B: ONE})}


@case
async def errors_carry_the_kernels_number(plane: DataPlane) -> None:
    await outcomes(plane, AddVirtualServer(WEB, PLAIN))
    ops = [
        AddRealServer(WEB, POD_A, RealServerConfig(-1)),
        AddRealServer(WEB, POD6, ONE),
        AddRealServer(GHOST, POD_A, ONE),
    ]
    results = await plane.apply([*ops, DeleteRealServer(WEB, POD_A)])
    assert [r.errno for r in results if r is not None] == [errno.ERANGE, errno.EINVAL, errno.ESRCH, errno.ENOENT]


@case
async def a_virtual_server_brings_its_real_servers(plane: DataPlane) -> None:
    mixed = (POD_A, POD_B, RealServerKey(POD_A.address, 9090), RealServerKey("10.244.9.9", POD_A.port))
    heavy = RealServerConfig(7, ForwardMethod.MASQUERADE, 20, 10)
    mark = VirtualServerKey(6, None, "", 0, 0x69ABCDEF)
    ops: list[Op] = [
        AddVirtualServer(WEB, PLAIN, mixed, heavy),
        AddVirtualServer(DNS6, PLAIN, (POD6,)),
        AddVirtualServer(mark, PLAIN, (POD6,), heavy),
        DeleteRealServer(WEB, POD_B),
    ]
    assert await outcomes(plane, *ops) == ["ok"] * 4
    assert await servers(plane) == {
        WEB: (PLAIN, {key: heavy for key in mixed if key != POD_B}),
        DNS6: (PLAIN, {POD6: ONE}),
        mark: (PLAIN, {POD6: heavy}),
    }


@case
async def a_real_server_that_is_refused_fails_its_virtual_server_alone(plane: DataPlane) -> None:
    nobody, no_port = RealServerKey("224.0.0.1", 80), RealServerKey("10.244.9.9", 1 << 16)
    ops: list[Op] = [
        AddVirtualServer(WEB, PLAIN, (POD_A, nobody, POD_B)),
        AddVirtualServer(WEB, VirtualServerConfig(Scheduler.LC), (POD_A, RealServerKey("10.244.9.9", 80))),
        AddVirtualServer(DNS6, PLAIN, (POD6, nobody)),
        AddVirtualServer(GHOST, PLAIN, (POD_A, no_port)),
        AddVirtualServer(WEB._replace(port=81), PLAIN, (POD_A,)),
    ]
    results = await plane.apply(ops)
    assert [None if r is None else r.errno for r in results] == [
        errno.EINVAL,
        errno.EEXIST,
        errno.EINVAL,
        errno.EINVAL,
        None,
    ]
    assert await servers(plane) == {
        WEB: (PLAIN, {POD_A: ONE, POD_B: ONE, RealServerKey("10.244.9.9", 80): ONE}),
        DNS6: (PLAIN, {POD6: ONE}),
        WEB._replace(port=81): (PLAIN, {POD_A: ONE}),
    }


@case
async def only_tunnels_cross_families(plane: DataPlane) -> None:
    tunnel = RealServerConfig(1, ForwardMethod.TUNNEL)
    await outcomes(plane, AddVirtualServer(DNS6, PLAIN))
    assert await outcomes(plane, AddRealServer(DNS6, POD_A, ONE), AddRealServer(DNS6, POD_A, tunnel)) == [
        "DataplaneError",
        "ok",
    ]
    assert await servers(plane) == {DNS6: (PLAIN, {POD_A: tunnel})}


@case
async def a_real_server_is_one_host(plane: DataPlane) -> None:
    await outcomes(plane, AddVirtualServer(WEB, PLAIN), AddVirtualServer(DNS6, PLAIN))
    nobody = [(WEB, "224.0.0.1"), (WEB, "0.0.0.0"), (WEB, "255.255.255.255"), (DNS6, "ff02::1"), (DNS6, "fe80::1")]
    ops = [AddRealServer(server, RealServerKey(address, 53), ONE) for server, address in [*nobody, (DNS6, "::")]]
    assert await outcomes(plane, *ops) == ["DataplaneError"] * 6
    assert await outcomes(plane, AddRealServer(WEB, RealServerKey("127.0.0.1", 80), ONE)) == ["ok"]


@case
async def connections_tell_none_from_missing(plane: DataPlane) -> None:
    await outcomes(plane, AddVirtualServer(WEB, PLAIN))
    assert await plane.connections(WEB) == {}
    await outcomes(plane, AddRealServer(WEB, POD_A, ONE))
    assert await plane.connections(WEB) == {POD_A: RealServerCounters(0, 0, 0)}
    for ask in (plane.connections, plane.dump_real_servers):
        with pytest.raises(NotFound):
            await ask(GHOST)


@case
async def a_fingerprint_changes_with_what_it_stands_for(plane: DataPlane) -> None:
    mark = VirtualServerKey(4, None, "", 0, 0x69000001)
    servers = (WEB, DNS6, mark)
    await plane.apply([AddVirtualServer(key, PLAIN) for key in servers])
    await plane.apply([AddRealServer(WEB, POD_A, ONE), AddRealServer(DNS6, POD6, ONE), AddRealServer(mark, POD_A, ONE)])
    before = await plane.fingerprints()
    assert set(servers) <= set(before)
    assert GHOST not in before
    assert await plane.fingerprints() == before
    for change in (
        EditRealServer(WEB, POD_A, RealServerConfig(0)),
        AddRealServer(WEB, POD_B, ONE),
        EditVirtualServer(WEB, VirtualServerConfig(Scheduler.SH)),
        EditVirtualServer(WEB, VirtualServerConfig(Scheduler.SH, persistence_s=600)),
        DeleteRealServer(WEB, POD_B),
    ):
        await plane.apply([change])
        after = await plane.fingerprints()
        assert after[WEB] != before[WEB], change
        assert (after[DNS6], after[mark]) == (before[DNS6], before[mark])
        before = after
    await plane.apply([DeleteVirtualServer(WEB), EditRealServer(mark, POD_A, RealServerConfig(7))])
    after = await plane.fingerprints()
    assert WEB not in after
    assert after[mark] != before[mark]


@case
async def an_empty_list_is_done(plane: DataPlane) -> None:
    assert await plane.apply([]) == []
    assert await plane.dump_virtual_servers() == {}


# -- VIP routes


@case
async def a_vip_is_a_route_with_a_source(plane: DataPlane) -> None:
    assert await plane.dump_vips() == {}
    ops = [AddVip("10.96.0.1", NODE[4]), AddVip("10.96.0.2"), AddVip("fd00:96::1", NODE[6]), AddVip("fd00:96::2")]
    assert await outcomes(plane, *ops) == ["ok"] * 4
    assert await plane.dump_vips() == {"10.96.0.1": NODE[4], "10.96.0.2": "", "fd00:96::1": NODE[6], "fd00:96::2": ""}
    assert await plane.dump_device_addresses() == set()


@case
async def adding_a_vip_again_sets_its_source(plane: DataPlane) -> None:
    first = [AddVip("10.96.0.1"), AddVip("fd00:96::1")]
    second = [AddVip("10.96.0.1", NODE[4]), AddVip("fd00:96::1", NODE[6])]
    assert await outcomes(plane, *first, *first, *second, *second) == ["ok"] * 8
    assert await plane.dump_vips() == {"10.96.0.1": NODE[4], "fd00:96::1": NODE[6]}
    assert await outcomes(plane, *first) == ["ok"] * 2
    assert await plane.dump_vips() == {"10.96.0.1": "", "fd00:96::1": ""}


@case
async def a_vip_goes_once(plane: DataPlane) -> None:
    await outcomes(plane, AddVip("10.96.0.1", NODE[4]), AddVip("fd00:96::1"), AddVip("10.96.0.2"))
    ops = [DeleteVip("10.96.0.1"), DeleteVip("fd00:96::1"), DeleteVip("10.96.0.1"), DeleteVip("fd00:96::1")]
    assert await outcomes(plane, *ops) == ["ok", "ok", "NotFound", "NotFound"]
    assert await plane.dump_vips() == {"10.96.0.2": ""}


@case
async def a_vip_that_cannot_be_is_refused(plane: DataPlane) -> None:
    ops = [AddVip("10.96.0"), AddVip("10.96.0.1", "10.9.9.9"), AddVip("10.96.0.1", NODE[6]), AddVip("10.96.0.3")]
    assert await outcomes(plane, *ops) == [*["DataplaneError"] * 3, "ok"]
    assert await plane.dump_vips() == {"10.96.0.3": ""}


@case
async def the_host_shows_its_addresses(plane: DataPlane) -> None:
    host = await plane.read_host()
    assert InterfaceAddress("eth0", NODE[4], 24) in host.addresses
    assert InterfaceAddress("eth0", NODE[6], 64) in host.addresses
    assert "eth0" in {link.name for link in host.links}


# -- the table

CLAIM = sets.service(WEB, sets.Kind.CLUSTER_IP)
OTHER_CLAIM = sets.service(WEB, sets.Kind.EXTERNAL)
VIP = sets.vip(4, "10.96.0.1")
EVERY_KIND = [
    CLAIM,
    sets.service(DNS6, sets.Kind.RANGED_EXTERNAL_NO_LOCAL),
    VIP,
    sets.vip(6, "fd00:96::a"),
    sets.mark(WEB, 0x69000001),
    sets.mark(DNS6, 0x69FFFF7F),
    sets.source_range(WEB, "203.0.113.0/24"),
    sets.source_range(WEB, "198.51.100.7/32"),
    sets.source_range(WEB._replace(address="10.96.0.3"), "0.0.0.0/0"),
    sets.source_range(DNS6, "2001:db8::/33"),
    sets.hairpin(4, "10.244.1.5"),
    sets.hairpin(6, "fd00:244::5"),
    sets.prefix(sets.CLUSTER, 4, "10.244.0.0/16"),
    sets.prefix(sets.CLUSTER, 4, "10.245.0.0/16"),
    sets.prefix(sets.CLUSTER, 6, "fd00:244::/56"),
    sets.prefix(sets.ON_NODE, 4, "10.244.1.0/24"),
    sets.prefix(sets.ON_NODE, 4, "10.250.0.1/32"),
    sets.source(4, NODE[4]),
    sets.source(6, NODE[6]),
    sets.health_port(32000),
    sets.interface(sets.UPLINK, "eth0"),
    sets.interface(sets.POD_LINK, "cni0"),
    sets.interface(sets.TUNNEL, "flannel.1"),
]


async def loaded(plane: DataPlane, *elements: Element) -> None:
    await plane.load_table(nftables.load(Config(), elements))


def change(add: list[Element] = [], delete: list[Element] = []) -> ChangeElements:  # noqa: B006 - read only
    return ChangeElements(tuple(add), tuple(delete))


@case
async def no_table_has_no_elements(plane: DataPlane) -> None:
    assert await plane.dump_elements() is None
    assert await outcomes(plane, change([VIP])) == ["NotFound"]
    await loaded(plane)
    assert await plane.dump_elements() == set()
    await plane.remove_table()
    await plane.remove_table()
    assert await plane.dump_elements() is None


@case
async def every_kind_of_element_comes_back(plane: DataPlane) -> None:
    await loaded(plane)
    assert await outcomes(plane, change(EVERY_KIND)) == ["ok"]
    assert await plane.dump_elements() == set(EVERY_KIND)
    assert await outcomes(plane, change(delete=EVERY_KIND[::2])) == ["ok"]
    assert await plane.dump_elements() == set(EVERY_KIND[1::2])
    assert await outcomes(plane, change(delete=EVERY_KIND[1::2])) == ["ok"]
    assert await plane.dump_elements() == set()


@case
async def a_table_is_loaded_with_elements(plane: DataPlane) -> None:
    await loaded(plane, *EVERY_KIND)
    assert await plane.dump_elements() == set(EVERY_KIND)
    await loaded(plane, VIP)
    assert await plane.dump_elements() == {VIP}


@case
async def a_script_that_fails_changes_nothing(plane: DataPlane) -> None:
    await loaded(plane, VIP)
    with pytest.raises(AlreadyExists):
        await plane.load_table(nftables.load(Config(), [CLAIM, OTHER_CLAIM]))
    assert await plane.dump_elements() == {VIP}


@case
async def adding_what_is_there_is_fine(plane: DataPlane) -> None:
    await loaded(plane, CLAIM, VIP)
    assert await outcomes(plane, change([CLAIM, VIP])) == ["ok"]
    assert await plane.dump_elements() == {CLAIM, VIP}


@case
async def a_key_has_one_value(plane: DataPlane) -> None:
    await loaded(plane, CLAIM)
    assert await outcomes(plane, change([OTHER_CLAIM, VIP])) == ["AlreadyExists"]
    assert await plane.dump_elements() == {CLAIM}
    assert await outcomes(plane, change([OTHER_CLAIM], [CLAIM])) == ["ok"]
    assert await plane.dump_elements() == {OTHER_CLAIM}


@case
async def a_transaction_is_all_or_nothing(plane: DataPlane) -> None:
    await loaded(plane, VIP)
    ops = [
        change([CLAIM], [VIP, sets.vip(4, "10.96.0.9")]),
        change([CLAIM, Element("nosuchset", ("10.96.0.1",))], [VIP]),
        change([CLAIM, sets.vip(4, "10.96.0.300")], [VIP]),
        change([sets.vip(4, f"10.97.{i // 256}.{i % 256}") for i in range(3000)], [sets.vip(6, "fd00::77")]),
    ]
    assert await outcomes(plane, *ops) == ["NotFound", "NotFound", "DataplaneError", "NotFound"]
    assert await plane.dump_elements() == {VIP}
    assert await outcomes(plane, change([CLAIM], [VIP])) == ["ok"]
    assert await plane.dump_elements() == {CLAIM}


@case
async def overlapping_intervals_are_refused(plane: DataPlane) -> None:
    # In a set of concatenated keys, too, on the fake; a kernel takes the overlapping one there and forgets it (its
    # comparison stops after four bytes), so nobody may rely on either.
    cluster, within = sets.prefix(sets.CLUSTER, 4, "10.0.0.0/8"), sets.prefix(sets.CLUSTER, 4, "10.244.0.0/16")
    wide, elsewhere = sets.source_range(WEB, "10.0.0.0/8"), sets.source_range(WEB._replace(port=81), "10.1.0.0/16")
    await loaded(plane, wide, cluster)
    assert await outcomes(plane, change([within]), change([elsewhere])) == ["AlreadyExists", "ok"]
    assert await plane.dump_elements() == {wide, elsewhere, cluster}


@case
async def a_large_transaction_is_one(plane: DataPlane) -> None:
    many = [sets.vip(4, f"10.97.{i // 256}.{i % 256}") for i in range(4000)]
    many += [sets.service(WEB._replace(address=e.key[0]), sets.Kind.CLUSTER_IP) for e in many]
    await loaded(plane, VIP)
    assert await outcomes(plane, change(many, [VIP])) == ["ok"]
    assert await plane.dump_elements() == set(many)


# -- flows


@case
async def cutting_where_nothing_flows_is_done(plane: DataPlane) -> None:
    ops = [CutFlows(Protocol.UDP, "10.96.0.10", 53, "10.244.1.5"), CutFlows(Protocol.SCTP, "fd00:96::a", 53)]
    assert await outcomes(plane, *ops) == ["ok", "ok"]
    assert await outcomes(plane, CutFlows(Protocol.UDP, "10.96.0", 53)) in (["DataplaneError"], ["ok"])
