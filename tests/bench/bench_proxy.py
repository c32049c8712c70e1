"""What the proxy costs on a kernel: `python -m tests.bench.bench_proxy [--json] [--rounds N]` (`make bench-proxy`).

Each figure comes from a guest booted for it, for IPVS searches its trash of removed destinations for two minutes after
a deletion. The floor is the very messages of a cold start, recorded and sent again (see proxy_floor). What runs in the
guest is called guest_*. Figures are medians; machines are shared and noisy, so read ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ipvsproxy.config import Config
from ipvsproxy.health import ProxyHealth
from ipvsproxy.healthserver import ServiceHealthServers
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.metrics import ProxyMetrics
from ipvsproxy.model import VirtualServerKey
from ipvsproxy.reconciler import AUDIT_SHARE, Reconciler
from ipvsproxy.site import ALL_SCHEDULERS
from ipvsproxy.surroundings import Surroundings
from kubecore.model import EndpointSlice, Listed, ListStarted, Protocol, Resource, Service, Upsert
from kubecore.store import Store
from tests.bench.proxy_floor import guest_floor, record, save, touch_memory
from tests.builders import endpoint_slice, node, service
from tests.lab.kernel.lab import Lab

ENDPOINTS = 10
CHANGES = 300
BURST = 5000
PAGE = 500
PAGE_EVERY_S = 0.045
"""For a page of Services and one of slices: what `bench_watch` waits for an API server, its own CPU time taken off."""
KUBE_PROXY_S = {1000: 13.4, 5000: 56.4, 10000: 84.6}
"""kube-proxy v1.36 in IPVS mode on such a kernel, start to all virtual servers present (specification section 22)."""


def a_service(number: int) -> Service:
    return service(f"svc-{number}", f"10.96.{number >> 8}.{number & 255}", "http:80")


def its_slice(number: int, endpoints: int = ENDPOINTS) -> EndpointSlice:
    pods = " ".join(f"10.{128 + j}.{number >> 8}.{number & 255}@node-b" for j in range(endpoints))
    return endpoint_slice(f"svc-{number}", pods, "http:8080")


class Bench:
    """A reconciler on the guest's kernel, with a store full of Services."""

    def __init__(self, services: int, plane: KernelDataPlane) -> None:
        self.store = Store()
        self.cluster = [Upsert(each) for number in range(services) for each in (a_service(number), its_slice(number))]
        health = ProxyHealth(60.0)
        health.serve((4, 6), time.time())
        self.reconciler = Reconciler(
            store=self.store,
            dataplane=plane,
            config=Config(),
            node_name="node-a",
            schedulers=ALL_SCHEDULERS,
            around=Surroundings(
                metrics=ProxyMetrics(CollectorRegistry(), (4, 6)),
                health=health,
                report=lambda _key, _problem: None,
                health_servers=ServiceHealthServers(lambda: True, lambda _key, _text: None),
            ),
            clock=time,
        )
        gc.collect()
        gc.freeze()

    async def start(self) -> tuple[float, float, float]:
        """Tell the lists at the pace of an API server, and wait for the kernel.

        Returns:
            From LISTED to programmed, in seconds: wall, CPU with children; and CPU before that.
        """
        self.task = asyncio.create_task(self.reconciler.run())
        await asyncio.sleep(0.2)  # until the first answer
        before_s = cpu()
        for each in Resource:
            self.store.apply(ListStarted(each))
        self.store.apply(Upsert(node("node-a", "192.0.2.10")))
        for start in range(0, len(self.cluster), 2 * PAGE):
            self.store.apply_all(self.cluster[start : start + 2 * PAGE])
            await asyncio.sleep(PAGE_EVERY_S)
        wall_s, cpu_s = time.perf_counter(), cpu()
        for each in Resource:
            self.store.apply(Listed(each))
        await self.reconciler.in_step.wait()
        took = time.perf_counter() - wall_s, cpu() - cpu_s, cpu_s - before_s
        await asyncio.sleep(1)  # what comes after is not part of programming
        return took

    async def change(self, number: int, endpoints: int) -> float:
        """One endpoint change; seconds until the kernel has it."""
        started_s = time.perf_counter()
        self.store.apply(Upsert(its_slice(number, endpoints)))
        self.reconciler.in_step.clear()
        await self.reconciler.in_step.wait()
        return time.perf_counter() - started_s

    async def until_changed(self, number: int) -> float:
        """The same, whatever else goes on; an endpoint of that Service goes."""
        (address,) = a_service(number).cluster_ips
        key = VirtualServerKey(4, Protocol.TCP, address, 80)
        started_s = time.perf_counter()
        self.store.apply(Upsert(its_slice(number, ENDPOINTS - 1)))
        while not self.is_changed(key):  # noqa: ASYNC110 - the loop has no event for it
            await asyncio.sleep(0.001)
        return time.perf_counter() - started_s

    def is_changed(self, key: VirtualServerKey) -> bool:
        """Whether a real server of `key` has gone or gets no new connections."""
        assert self.reconciler.picture is not None
        there = self.reconciler.picture.servers[key].real_servers
        return len(there) < ENDPOINTS or not all(real.config.weight for real in there.values())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def cpu() -> float:
    """CPU seconds of this process and of the children that ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rss_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def guest_start(services: int, fresh: bool) -> dict[str, float]:
    """From LISTED to programmed: virtual servers, routes and sets. `fresh`: see `guest_floor`."""
    if not fresh:
        touch_memory()
    async with await KernelDataPlane.open() as plane:
        bench = Bench(services, plane)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        wall_s, cpu_s, ahead_s = await bench.start()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        await bench.stop()
    return {"wall_s": wall_s, "cpu_s": cpu_s, "ahead_s": ahead_s, "rss_mb": rss_mb(), "page_faults": faults}


async def guest_record(services: int, file: str) -> int:
    """Write what a cold start sends to a file; returns its size in bytes."""
    async with await KernelDataPlane.open() as plane:
        sent = record(plane)
        bench = Bench(services, plane)
        await bench.start()
        await bench.stop()
    save(sent, file)
    return sum(len(buffer) for _, buffer in sent)


async def guest_changes(services: int) -> dict[str, float]:
    """One endpoint of one Service comes and goes, many times."""
    touch_memory()
    async with await KernelDataPlane.open() as plane:
        bench = Bench(services, plane)
        await bench.start()
        cpu_s = cpu()
        # Each a Service of its own, so that no real server is added where one was just removed (the kernel's trash).
        latencies = [await bench.change(n % services, ENDPOINTS - 1 - n // services) for n in range(CHANGES)]
        cpu_s = cpu() - cpu_s
        await bench.stop()
    latencies.sort()
    return {
        "median_ms": statistics.median(latencies) * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "cpu_ms": cpu_s / CHANGES * 1e3,
    }


async def guest_idle(services: int) -> dict[str, float]:
    """Nothing changes; then two audits are asked for: the first after a start reads everything, the second is usual."""
    touch_memory()
    async with await KernelDataPlane.open() as plane:
        bench = Bench(services, plane)
        await bench.start()
        bench.reconciler._audit_at_s = None
        cpu_s = cpu()
        await asyncio.sleep(20)
        idle = (cpu() - cpu_s) / 20
        pulse = asyncio.create_task(longest_gap())
        first_s, audit_s = [await an_audit(bench), await an_audit(bench)]
        pulse.cancel()
        gap_s = (await asyncio.gather(pulse))[0]
        busy = asyncio.create_task(an_audit(bench))
        waits_s = [await bench.until_changed(number) async for number in until_done(busy)]
        await bench.stop()
    every_s = max(Config().ipvs.sync_period_s, audit_s / AUDIT_SHARE)
    return {
        "idle_percent": idle * 100,
        "audit_cpu_s": audit_s,
        "first_audit_cpu_s": first_s,
        "stall_ms": gap_s * 1e3,
        "change_ms": max(waits_s) * 1e3,
        "with_audit_percent": (idle + audit_s / every_s) * 100,
        "rss_mb": rss_mb(),
    }


async def until_done(task: asyncio.Task[Any]) -> AsyncIterator[int]:
    """Numbers, one every few milliseconds, for as long as `task` runs."""
    for number in itertools.count():
        await asyncio.sleep(0.003)
        if task.done():
            return
        yield number


async def an_audit(bench: Bench) -> float:
    """CPU seconds of an audit now."""
    cpu_s = cpu()
    bench.reconciler._audit_at_s = 0.0
    bench.reconciler._wake.set()
    while bench.reconciler._audit_at_s == 0.0:  # noqa: ASYNC110 - the loop has no event for it
        await asyncio.sleep(0.01)
    return cpu() - cpu_s


async def longest_gap() -> float:
    """Longest time in which no other task ran; polled, so the poll's own CPU is in the audit's figure."""
    longest, last = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last - 0.001), now
    except asyncio.CancelledError:
        return longest


async def guest_burst(services: int) -> dict[str, float]:
    """5,000 Services change within a second; another one changes in the midst of it."""
    touch_memory()
    async with await KernelDataPlane.open() as plane:
        bench = Bench(services, plane)
        await bench.start()
        started_s, cpu_s = time.perf_counter(), cpu()
        for number in range(BURST):
            bench.store.apply(Upsert(its_slice(number, ENDPOINTS - 1)))
            if number % 250 == 249:
                await asyncio.sleep(0.04)
        bench.reconciler.in_step.clear()
        single_s = await bench.until_changed(services - 1)
        await bench.reconciler.in_step.wait()
        total_s, cpu_s = time.perf_counter() - started_s, cpu() - cpu_s
        await bench.stop()
    return {"single_change_ms": single_s * 1e3, "all_s": total_s, "cpu_s": cpu_s}


def in_guest(function: Callable[..., Any], *arguments: Any) -> Any:
    """A guest function's result, in a guest booted for it alone, on a node with an uplink."""
    with Lab.start(memory="2G") as lab, lab.net() as net:
        net.lan("eth0", {"node": ["192.0.2.10/24"]})
        module = "tests.bench.bench_proxy" if function.__module__ == "__main__" else function.__module__
        return net.host("node").call(f"{module}:{function.__name__}", *arguments, timeout_s=600)


def cold_starts(services: int, rounds: int) -> dict[str, dict[str, float]]:
    """Ours and its floors in turn, each in a guest of its own: with memory as a boot leaves it, and touched before."""
    found: dict[str, list[dict[str, float]]] = {"fresh": [], "touched": []}
    with tempfile.NamedTemporaryFile() as file:
        tell(f"recording a cold start, {services} Services")
        in_guest(guest_record, services, file.name)
        for _ in range(rounds):
            for memory, rows in found.items():
                tell(f"cold start, {services} Services, memory {memory}")
                fresh = memory == "fresh"
                floor_s = {every: in_guest(guest_floor, file.name, every, fresh) for every in (False, True)}
                row = in_guest(guest_start, services, fresh)
                rows.append({"floor_s": floor_s[False], "acknowledged_floor_s": floor_s[True], **row})
    medians = {
        memory: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for memory, rows in found.items()
    }
    for median in medians.values():
        for name in ("floor", "acknowledged_floor"):
            median[f"times_{name}"] = median["wall_s"] / median[f"{name}_s"]
        median["of_kube_proxy"] = median["wall_s"] / KUBE_PROXY_S[services]
    return medians


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="figures only, as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the cold start, floor and ours in turn")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"start": {}, "changes": {}}
    for services in (1000, 10000):
        report["start"][services] = cold_starts(services, options.rounds)
    for services in (100, 10000):
        tell(f"single changes, {services} Services")
        report["changes"][services] = in_guest(guest_changes, services)
    small, large = report["changes"][100], report["changes"][10000]
    report["changes"]["ratio"] = {name: large[name] / small[name] for name in ("median_ms", "cpu_ms")}
    tell("idle and audit")
    report["idle"] = in_guest(guest_idle, 10000)
    tell("burst")
    report["burst"] = in_guest(guest_burst, 10000)
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
        return 0
    print(f"One CPU of user-mode Linux, freshly booted for each row; {ENDPOINTS} endpoints a Service, IPv4\n")
    for services, medians in report["start"].items():
        for memory, row in medians.items():
            row_text = "{wall_s:.2f} s, {cpu_s:.2f} s CPU, {rss_mb:.0f} MB".format(**row)
            print(f"start, {services:>6} Services     {row_text}, memory {memory}")
            print("  floor                   {floor_s:.2f} s, x {times_floor:.1f}".format(**row))
            text = "{acknowledged_floor_s:.2f} s, x {times_acknowledged_floor:.1f}".format(**row)
            print(f"  … each acknowledged     {text}")
            print("  before LISTED           {ahead_s:.2f} s CPU".format(**row))
            print("  page faults             {page_faults:.0f}".format(**row))
            print(f"  kube-proxy              {KUBE_PROXY_S[services]:.1f} s, x {1 / row['of_kube_proxy']:.0f}")
    for services, row in report["changes"].items():
        if services == "ratio":
            print("  ratio                   {median_ms:.2f} in time, {cpu_ms:.2f} in CPU".format(**row))
        else:
            text = "{median_ms:.2f} ms median, {p99_ms:.1f} ms p99, {cpu_ms:.2f} ms CPU".format(**row)
            print(f"one endpoint at {services:>6}    {text}")
    text = "{idle_percent:.3f} % of a core, {with_audit_percent:.3f} % with audits".format(**report["idle"])
    print(f"idle                      {text}")
    text = "{audit_cpu_s:.2f} s CPU, the first {first_audit_cpu_s:.2f}, longest stall {stall_ms:.0f} ms"
    print(f"  an audit                {text.format(**report['idle'])}")
    print("  a change during one     {change_ms:.0f} ms at most".format(**report["idle"]))
    print("  memory                  {rss_mb:.0f} MB".format(**report["idle"]))
    print(f"burst of {BURST}             " + "{all_s:.2f} s in all, {cpu_s:.2f} s CPU".format(**report["burst"]))
    print("  an unrelated change     {single_change_ms:.0f} ms meanwhile".format(**report["burst"]))
    return 0


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
