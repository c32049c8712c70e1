"""The IPVS codec against a kernel: what is set is read back, by us, by ipvsadm and by pyroute2.

Functions named `guest_*` run in the guest.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipvsproxy.dataplane import (
    AddRealServer,
    AddVirtualServer,
    DeleteVirtualServer,
    EditVirtualServer,
    Op,
)
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.kernel.ipvs import Timeouts, open_ipvs
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.model import (
    ForwardMethod,
    RealServerConfig,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Protocol
from tests.strategies_dataplane import (
    real_server_configs,
    real_server_keys,
    virtual_server_configs,
    virtual_server_keys,
)

if TYPE_CHECKING:
    from tests.lab.kernel.net import Net

pytestmark = pytest.mark.kernel

WEB = VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 443)
DNS6 = VirtualServerKey(6, Protocol.UDP, "fd00:96::a", 53)
MARK4, MARK6 = VirtualServerKey(4, None, "", 0, 0x69000001), VirtualServerKey(6, None, "", 0, 0x69000001)
SCTP = VirtualServerKey(4, Protocol.SCTP, "10.96.0.1", 443)
POD, POD6 = RealServerKey("10.244.1.5", 8443), RealServerKey("fd00:244::5", 5353)
ONE = RealServerConfig()
Pods = dict[RealServerKey, RealServerConfig]

servers = virtual_server_keys.flatmap(
    lambda key: st.tuples(
        st.just(key),
        virtual_server_configs,
        st.dictionaries(real_server_keys(key.family), real_server_configs, max_size=4),
    )
)


async def guest_round_trip() -> int:
    """Any virtual server with any real servers comes back as it was set; the number of examples."""
    plane = await KernelDataPlane.open()
    count = 0

    async def check(
        key: VirtualServerKey, config: VirtualServerConfig, pods: dict[RealServerKey, RealServerConfig]
    ) -> None:
        added: list[Op] = [AddVirtualServer(key, VirtualServerConfig()), EditVirtualServer(key, config)]
        try:
            results = await plane.apply([*added, *(AddRealServer(key, pod, c) for pod, c in pods.items())])
            assert results == [None] * (2 + len(pods))
            there = await plane.dump_real_servers(key)
            assert there.config == config
            assert {pod: actual.config for pod, actual in there.real_servers.items()} == pods
        finally:
            assert await plane.apply([DeleteVirtualServer(key)]) == [None]

    loop = asyncio.get_running_loop()

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(servers)
    def examples(server: tuple[VirtualServerKey, VirtualServerConfig, Pods]) -> None:
        nonlocal count
        count += 1
        asyncio.run_coroutine_threadsafe(check(*server), loop).result(10)

    await asyncio.to_thread(examples)
    plane.close()
    return count


def test_what_is_set_is_read_back(net: Net) -> None:
    assert net.host("node").call(guest_round_trip, timeout_s=120) >= 100


async def guest_program() -> None:
    async with await KernelDataPlane.open() as plane:
        sticky = VirtualServerConfig(Scheduler.MH, ServiceFlag.SCHED_1 | ServiceFlag.SCHED_2, 10800)
        ops: list[Op] = [
            AddVirtualServer(WEB, sticky),
            AddRealServer(WEB, POD, RealServerConfig(3)),
            AddVirtualServer(DNS6, VirtualServerConfig(Scheduler.WLC, ServiceFlag.ONE_PACKET)),
            AddRealServer(DNS6, POD6, RealServerConfig(0)),
            AddVirtualServer(MARK4, VirtualServerConfig()),
            AddRealServer(MARK4, POD, RealServerConfig(1, ForwardMethod.DIRECT_ROUTE)),
            AddVirtualServer(MARK6, VirtualServerConfig(Scheduler.SH, persistence_s=60)),
            AddVirtualServer(SCTP, VirtualServerConfig(Scheduler.SED)),
            AddRealServer(SCTP, POD, RealServerConfig(1, ForwardMethod.MASQUERADE, 20, 10)),
        ]
        assert await plane.apply(ops) == [None] * len(ops)


def test_ipvsadm_sees_the_same(net: Net) -> None:
    node = net.host("node")
    node.call(guest_program)
    assert sorted(node.ipvs_rules()) == [
        "-A --sctp-service 10.96.0.1:443 -s sed",
        "-A -f 1761607681 -6 -s sh -p 60",
        "-A -f 1761607681 -s rr",
        "-A -t 10.96.0.1:443 -s mh -p 10800 -b mh-fallback,mh-port",
        "-A -u [fd00:96::a]:53 -s wlc -o",
        "-a --sctp-service 10.96.0.1:443 -r 10.244.1.5:8443 -m -w 1",
        "-a -f 1761607681 -r 10.244.1.5:8443 -g -w 1",
        "-a -t 10.96.0.1:443 -r 10.244.1.5:8443 -m -w 3",
        "-a -u [fd00:96::a]:53 -r [fd00:244::5]:5353 -m -w 0",
    ]


async def guest_pyroute2_dump() -> list[list[object]]:
    from pyroute2 import AsyncIPVS

    ipvs = AsyncIPVS()
    await ipvs.setup_endpoint()
    found: list[list[object]] = []
    for message in await ipvs.service("dump"):
        service = message.get("service")
        found.append([service.get(name) for name in ("af", "protocol", "addr", "port", "sched_name", "timeout")])
    return found


def test_pyroute2_sees_the_same(net: Net) -> None:
    node = net.host("node")
    node.call(guest_program)
    seen = node.call(guest_pyroute2_dump)
    assert [2, 6, "10.96.0.1", 443, "mh", 10800] in seen
    assert len(seen) == 5


async def guest_failures_in_large_batches(count: int) -> list[int]:
    """Indices and only those of what must fail, among messages that fill many buffers."""
    async with await KernelDataPlane.open() as plane:
        ops: list[Op] = []
        for index in range(count):
            key = VirtualServerKey(4, Protocol.TCP, f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 80)
            ops += [
                AddVirtualServer(key, VirtualServerConfig()),
                AddRealServer(key, POD, ONE),
                AddRealServer(key, POD, ONE),
            ]
        results = await plane.apply(ops)
        assert {result.errno for result in results if result is not None} == {errno.EEXIST}
        assert len(await plane.dump_keys()) == count
        again = await plane.apply(ops)  # every message fails: the receive buffer has to hold all that
        assert all(result is not None and result.errno == errno.EEXIST for result in again)
        return [index for index, result in enumerate(results) if result is not None]


def test_failures_find_their_operation(net: Net) -> None:
    assert net.host("node").call(guest_failures_in_large_batches, 3000, timeout_s=90) == list(range(2, 9000, 3))


async def guest_failures_within_virtual_servers(count: int) -> list[int]:
    """Indices of what must fail, one message in the middle of the many of its operation, the last buffer's last too."""
    async with await KernelDataPlane.open() as plane:
        pods = tuple(RealServerKey(f"10.244.7.{i}", 80) for i in range(1, 21))
        nobody = (*pods[:9], RealServerKey("224.0.0.1", 80), *pods[9:])
        keys = [VirtualServerKey(4, Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80) for i in range(count)]
        results = await plane.apply(
            [
                AddVirtualServer(key, VirtualServerConfig(), pods if index % 3 else nobody)
                for index, key in enumerate(keys)
            ]
        )
        assert {result.errno for result in results if result is not None} == {errno.EINVAL}
        there = await plane.dump_virtual_servers()
        assert all(set(there[key].real_servers) == set(pods) for key in keys)
        return [index for index, result in enumerate(results) if result is not None]


def test_failures_find_the_virtual_server_they_are_part_of(net: Net) -> None:
    assert net.host("node").call(guest_failures_within_virtual_servers, 301) == list(range(0, 301, 3))


async def guest_overflow(count: int) -> list[str]:
    """A receive buffer too small for the errors of one batch: what is not known is said to be unknown."""
    ipvs = await open_ipvs()
    ops = [DeleteVirtualServer(WEB._replace(port=port + 1)) for port in range(count)]
    ipvs.link.receive_buffer(2304)
    failures = await ipvs.submit(ops)
    ipvs.link.receive_buffer(1 << 20)
    assert sorted(failures) == list(range(count))
    await ipvs.timeouts()  # the socket is as good as before
    ipvs.close()
    return sorted({errno.errorcode[failure.errno] for failure in failures.values()})


def test_lost_answers(net: Net) -> None:
    assert net.host("node").call(guest_overflow, 300) == ["ENOBUFS"]


async def guest_many_real_servers(count: int) -> int:
    async with await KernelDataPlane.open() as plane:
        pods = [RealServerKey(f"10.244.{i >> 8}.{i & 255}", 80) for i in range(count)]
        await plane.apply([AddVirtualServer(WEB, VirtualServerConfig()), *(AddRealServer(WEB, p, ONE) for p in pods)])
        assert set((await plane.dump_real_servers(WEB)).real_servers) == set(pods)
        assert set(await plane.connections(WEB)) == set(pods)
        return len((await plane.dump_virtual_servers())[WEB].real_servers)


def test_a_dump_longer_than_a_buffer(net: Net) -> None:
    assert net.host("node").call(guest_many_real_servers, 1000) == 1000


async def guest_cancelled_dump() -> int:
    """A dump given up half-way leaves nothing that the next one could stumble over."""
    async with await KernelDataPlane.open() as plane:
        keys = [VirtualServerKey(4, Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80) for i in range(500)]
        await plane.apply([AddVirtualServer(key, VirtualServerConfig()) for key in keys])
        for patience in range(4):
            task = asyncio.create_task(plane.dump_keys())
            for _ in range(patience):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return len(await plane.dump_keys())


def test_a_dump_that_is_given_up(net: Net) -> None:
    assert net.host("node").call(guest_cancelled_dump) == 500


async def guest_what_others_set() -> list[str]:
    """Seen as different, and put right by an edit; connections' home, the real servers, stays."""
    async with await KernelDataPlane.open() as plane:
        before = (await plane.dump_virtual_servers())[WEB].config
        assert await plane.apply([EditVirtualServer(WEB, VirtualServerConfig(persistence_s=60))]) == [None]
        after = await plane.dump_real_servers(WEB)
    assert after.config == VirtualServerConfig(persistence_s=60)
    assert list(after.real_servers) == [POD]
    return [flag.name or "" for flag in before.flags]


def test_another_persistence_netmask(net: Net) -> None:
    node = net.host("node")
    node.ipvs("""
        -A -t 10.96.0.1:443 -s rr -p 60 -M 255.255.255.0
        -a -t 10.96.0.1:443 -r 10.244.1.5:8443 -m -w 1
    """)
    assert node.call(guest_what_others_set) == ["FOREIGN"]


async def guest_settings() -> list[object]:
    ipvs = await open_ipvs()
    before = await ipvs.timeouts()
    await ipvs.set_timeouts(Timeouts(600, 60, 30))
    after = await ipvs.timeouts()
    info = await ipvs.info()
    ipvs.close()
    return [list(before), list(after), list(info.version)[:2]]


def test_timeouts(net: Net) -> None:
    node = net.host("node")
    assert node.call(guest_settings) == [[900, 120, 300], [600, 60, 30], [1, 2]]
    assert "600 60 30" in node.run("ipvsadm -l --timeout").stdout


async def guest_no_scheduler() -> str:
    """Scheduler fo, with a letter changed on its way to the kernel."""
    ipvs = await open_ipvs()
    encode = ipvs.encoder
    op = AddVirtualServer(WEB, VirtualServerConfig(Scheduler.FO))
    failures = await ipvs.link.submit([op], lambda op, sequence: encode(op, sequence).replace(b"fo\0", b"fx\0"))
    ipvs.close()
    return error_for(op, failures[0].errno, failures[0].detail).detail


def test_a_scheduler_that_is_not_there(net: Net) -> None:
    assert net.host("node").call(guest_no_scheduler) == "no scheduler 'fo': load module ip_vs_fo"
