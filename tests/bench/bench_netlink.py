"""What the data plane costs on top of the kernel: `python -m tests.bench.bench_netlink [--json] [SERVICES ...]`.

The floor is the same messages, encoded beforehand and sent in buffers of 64 KiB; both in a guest booted for that alone,
for IPVS searches its trash of removed destinations for two minutes after a deletion. What runs there is called guest_*.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence

from ipvsproxy import nftables, sets
from ipvsproxy.config import Config
from ipvsproxy.dataplane import AddVip, AddVirtualServer, ChangeElements, EditRealServer, Op
from ipvsproxy.kernel import rtnetlink
from ipvsproxy.kernel.conntrack import NETLINK_NETFILTER
from ipvsproxy.kernel.ipvs import NETLINK_GENERIC, Encoder, open_ipvs
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.kernel.rtnetlink import VipRoute
from ipvsproxy.kernel.setelements import SetElements
from ipvsproxy.model import Element, RealServerConfig, RealServerKey, VirtualServerConfig, VirtualServerKey
from kubecore.model import Protocol
from tests.bench.proxy_floor import touch_memory
from tests.lab.kernel.lab import Lab

ENDPOINTS = 10
_BUFFER_BYTES = 1 << 16
_SO_SNDBUFFORCE = 32


def virtual_servers(services: int) -> list[VirtualServerKey]:
    return [VirtualServerKey(4, Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80) for i in range(services)]


def ipvs_ops(services: int) -> list[AddVirtualServer]:
    ops = []
    for i, key in enumerate(virtual_servers(services)):
        pods = tuple(RealServerKey(f"10.{128 + j}.{i >> 8}.{i & 255}", 8080) for j in range(ENDPOINTS))
        ops.append(AddVirtualServer(key, VirtualServerConfig(), pods))
    return ops


def elements(services: int) -> tuple[Element, ...]:
    keys = virtual_servers(services)
    return (*(sets.service(k, sets.Kind.CLUSTER_IP) for k in keys), *(sets.vip(4, k.address) for k in keys))


class Stopwatch:
    """Wall and CPU time of steps, by name."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[float, float]] = {}

    def start(self) -> None:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, name: str) -> None:
        self.steps[name] = (time.perf_counter() - self._wall, time.process_time() - self._cpu)


async def guest_ours(services: int) -> dict[str, tuple[float, float]]:
    """Seconds (wall, CPU) of each step by the data plane."""
    watch = Stopwatch()
    touch_memory()
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        await plane.apply([AddVip("10.95.0.1")])
        steps: dict[str, Sequence[Op]] = {
            "set elements": [ChangeElements(elements(services))],
            "virtual and real servers": ipvs_ops(services),
            "routes": [AddVip(key.address) for key in virtual_servers(services)],
        }
        longest_s = 0.0
        for name, ops in steps.items():
            pulse = asyncio.create_task(_longest_gap_s())
            await asyncio.sleep(0)
            watch.start()
            results = await plane.apply(ops)
            watch.stop(name)
            pulse.cancel()
            longest_s = max(longest_s, *await asyncio.gather(pulse))
            assert not any(results), next(filter(None, results))
        key = virtual_servers(services)[services // 2]
        pod = next(iter((await plane.dump_real_servers(key)).real_servers))
        watch.start()
        await plane.apply([EditRealServer(key, pod, RealServerConfig(2))])
        watch.stop("one endpoint changed")
        watch.start()
        await plane.apply([ChangeElements((sets.hairpin(4, "10.244.1.5"),))])
        watch.stop("one set element added")
        for name, dump in {
            "dump: virtual servers alone": plane.dump_keys,
            "dump: with real servers": plane.dump_virtual_servers,
            "dump: routes": plane.dump_vips,
            "dump: set elements": plane.dump_elements,
        }.items():
            watch.start()
            assert await dump()
            watch.stop(name)
    return {**watch.steps, "longest time no other task ran": (longest_s, 0.0)}


async def _longest_gap_s() -> float:
    longest = 0.0
    last = time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


async def guest_floor(services: int) -> dict[str, tuple[float, float]]:
    """Seconds (wall, CPU) to send the same messages, encoded beforehand."""
    async with await KernelDataPlane.open() as plane:
        await plane.load_table(nftables.load(Config()))
        await plane.apply([AddVip("10.95.0.1")])
    index = socket.if_nametoindex("kube-ipvs0")
    ipvs = await open_ipvs()
    encode: Encoder = ipvs.encoder
    ipvs.close()
    table = SetElements(nftables.TABLE)
    await table.learn()
    transaction = b"".join(table.encode(ChangeElements(elements(services))))
    table.close()
    routes = (rtnetlink.put_vip(VipRoute(key.address, "", index)) for key in virtual_servers(services))
    buffers = {
        "set elements": (NETLINK_NETFILTER, [transaction]),
        "virtual and real servers": (NETLINK_GENERIC, _buffers([encode(op) for op in ipvs_ops(services)])),
        "routes": (socket.NETLINK_ROUTE, _buffers(list(routes))),
    }
    watch = Stopwatch()
    touch_memory()
    for name, (protocol, sends) in buffers.items():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
            sock.setblocking(False)
            watch.start()
            for buffer in sends:
                sock.send(buffer)
            watch.stop(name)
            try:
                raise AssertionError(f"the kernel refused: {sock.recv(4096)!r}")
            except BlockingIOError:  # nothing failed, so nothing was answered
                pass
    return watch.steps


def _buffers(messages: list[bytes]) -> list[bytes]:
    buffers, buffer = [], bytearray()
    for one in messages:
        buffer += one
        if len(buffer) >= _BUFFER_BYTES:
            buffers.append(bytes(buffer))
            buffer.clear()
    return [*buffers, bytes(buffer)]


def measure(function: Callable[[int], object], services: int) -> dict[str, tuple[float, float]]:
    """A guest function's result, in a guest booted for it."""
    with Lab.start(memory="2G") as lab, lab.net() as net:
        result: dict[str, tuple[float, float]] = net.host("node").call(
            f"tests.bench.bench_netlink:{function.__name__}", services, timeout_s=600
        )
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", nargs="*", type=int, default=[1000, 10000])
    parser.add_argument("--json", action="store_true", help="figures only, as JSON")
    options = parser.parse_args(argv)
    report = {
        services: {"floor": measure(guest_floor, services), "ours": measure(guest_ours, services)}
        for services in options.services
    }
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
        return 0
    for services, found in report.items():
        floor, ours = found["floor"], found["ours"]
        print(f"{services} Services of {ENDPOINTS} endpoints, seconds (CPU in brackets), one CPU of user-mode Linux")
        for name, (wall, cpu) in ours.items():
            least = floor.get(name)
            beside = f"  floor {least[0]:8.4f}   x {wall / least[0]:.1f}" if least else ""
            print(f"  {name:32} {wall:9.4f} ({cpu:7.4f}){beside}")
        ours_s, floor_s = (sum(found[who][name][0] for name in floor) for who in ("ours", "floor"))
        total = f"{ours_s:9.4f}            floor {floor_s:8.4f}   x {ours_s / floor_s:.1f}"
        print(f"  {'programmed from nothing':32} {total}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
