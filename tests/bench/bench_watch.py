"""What it costs to know a cluster: 10,000 Services with 100,000 endpoints, from API bytes to ClusterState.

`make bench-watch`, or `python -m tests.bench.bench_watch [--json]`. The API server is another process, and so is each
client, so that a figure of memory is that of a fresh daemon with nothing but the source in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from kubecore import log
from kubecore.access import load_access
from kubecore.api import ApiClient
from kubecore.decode import Skipped
from kubecore.model import Event, Resource
from kubecore.reflector import Reflector
from kubecore.store import Store
from kubecore.watchproto import Watched, WatchSession
from tests.lab.apiserver import ApiServer

SERVICES = 10_000
ENDPOINTS_PER_SERVICE = 10
NAMESPACES = 100
SIZES = (100, 1_000, 10_000)
CHANGES = 2_000
Object = dict[str, Any]
WATCHED = (Watched(Resource.SERVICES), Watched(Resource.ENDPOINT_SLICES))


def service(i: int) -> Object:
    """A Service as a real API server shows it, managed fields apart."""
    ip = f"10.{96 + i // 65536}.{i // 256 % 256}.{i % 256}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": f"svc-{i:05}",
            "namespace": f"ns-{i % NAMESPACES:03}",
            "uid": f"00000000-0000-4000-8000-{i:012}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": f"app-{i}", "app.kubernetes.io/part-of": "bench"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x" * 300},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": f"app-{i}"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(i: int, generation: int = 0) -> Object:
    """Its slice; a `generation` later one endpoint's readiness differs."""
    endpoints = []
    for j in range(ENDPOINTS_PER_SERVICE):
        n = i * ENDPOINTS_PER_SERVICE + j
        ready = not (j == 0 and generation % 2)
        endpoints.append(
            {
                "addresses": [f"10.{128 + n // 65536}.{n // 256 % 256}.{n % 256}"],
                "conditions": {"ready": ready, "serving": ready, "terminating": False},
                "nodeName": f"node-{n % 500:03}",
                "zone": f"zone-{n % 3}",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": f"ns-{i % NAMESPACES:03}",
                    "name": f"app-{i}-{j:05}",
                    "uid": f"10000000-0000-4000-8000-{n:012}",
                },
            },
        )
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"svc-{i:05}-abcde",
            "namespace": f"ns-{i % NAMESPACES:03}",
            "uid": f"20000000-0000-4000-8000-{i:012}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": generation + 1,
            "labels": {
                "kubernetes.io/service-name": f"svc-{i:05}",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }


# -- the server's process


async def serve(kubeconfig: Path) -> None:
    """Serve the cluster until standard input ends."""
    async with ApiServer() as server:
        for i in range(SERVICES):
            server.put(service(i))
            server.put(endpoint_slice(i))
        kubeconfig.write_text(server.kubeconfig())  # noqa: ASYNC240 - nobody is served yet
        for table in ("/services", "discovery.k8s.io/endpointslices"):  # encode once, before anybody measures
            for stored in server.storage.page(table, None, None):
                stored.json  # noqa: B018 - cached on first use
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


# -- a client's process


def rss_mb() -> float:
    """Resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mb() -> float:
    """The most there ever was."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def follow(kubeconfig: Path, *, streaming: bool) -> dict[str, float]:
    """List, lose the history, list again, then single changes; figures of this process."""
    store = Store()
    async with ApiClient(load_access(kubeconfig=str(kubeconfig)), user_agent="bench/1") as api:
        await api.request("GET", "/version")  # kubernetes.aio is imported here, so that it is not counted as listing
        figures = {"start_mb": rss_mb()}
        started_s, cpu_s = time.perf_counter(), time.process_time()
        task = asyncio.create_task(Reflector(api, WATCHED, streaming=streaming).run(store))
        await store.wait_listed(Resource.SERVICES, Resource.ENDPOINT_SLICES)
        figures |= {"list_s": time.perf_counter() - started_s, "list_cpu_s": time.process_time() - cpu_s}
        store.take_changes()
        figures |= {"listed_mb": rss_mb(), "list_peak_mb": peak_mb()}
        await asyncio.sleep(6)  # now the watches count as healthy
        cpu_s = time.process_time()
        await api.request("POST", "/_faults", {"action": "restart", "lose_history": True, "down_s": 0.1})
        while any(store.figures[w.resource].lists < 2 for w in WATCHED):
            await store.wait_changed()
            store.take_changes()
        figures |= {"relist_cpu_s": time.process_time() - cpu_s, "relisted_mb": rss_mb(), "relist_peak_mb": peak_mb()}
        figures["change_ms"] = await changes_ms(api, store)
        task.cancel()
    endpoints = sum(len(s.endpoints) for s in store.state.slices.values())
    return figures | {"services": len(store.state.services), "endpoints": endpoints}


async def changes_ms(api: ApiClient, store: Store) -> float:
    """Milliseconds from sending a change to seeing it, over HTTP both ways; the median."""
    taken = []
    for i in range(50):
        path = f"/api/v1/namespaces/ns-{i % NAMESPACES:03}/services/svc-{i:05}"
        patch = {"metadata": {"labels": {"changed": str(time.time_ns())}}}  # the same again would be no change
        store.take_changes()
        started_s = time.perf_counter()
        await api.request("PATCH", path, patch, content_type="application/merge-patch+json")
        while not store.take_changes().services:
            await store.wait_changed()
        taken.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(taken)


# -- one change


async def change_us(size: int) -> float:
    """Microseconds for one changed EndpointSlice, from the watch line to the changed Services; the median of five."""
    store = Store()
    session = WatchSession(Watched(Resource.ENDPOINT_SLICES), uniform=lambda low, _: low, streaming=False)
    session.request()
    items = [endpoint_slice(i) for i in range(size)]
    body = msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": items})
    _take(store, session.data(body, 0.0))
    _take(store, session.end(0.0))
    store.take_changes()
    session.request()
    rounds = []
    for generation in range(1, 6):
        lines = []
        for n in range(CHANGES):
            obj = endpoint_slice(n * 7919 % size, generation + n // size)
            obj["metadata"]["resourceVersion"] = str(generation * CHANGES + n)
            lines.append(msgspec.json.encode({"type": "MODIFIED", "object": obj}) + b"\n")
        started_s = time.perf_counter()
        for line in lines:
            _take(store, session.data(line, 0.0))
            store.take_changes()
        rounds.append((time.perf_counter() - started_s) / CHANGES * 1e6)
    return statistics.median(rounds)


def _take(store: Store, items: Any) -> None:
    event: Event | Skipped
    for event in items:
        if not isinstance(event, Skipped):
            store.apply(event)


# -- the whole


def measure() -> dict[str, Any]:
    """Every figure."""
    results: dict[str, Any] = {}
    module = [sys.executable, "-m", "tests.bench.bench_watch"]
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as directory:
        kubeconfig = Path(directory) / "kubeconfig"
        server = subprocess.Popen(
            [*module, "--serve", str(kubeconfig)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "ready":
                raise SystemExit("the API server's process did not start")
            for mode in ("pages", "stream"):
                command = [*module, "--follow", str(kubeconfig), "--mode", mode]
                output = subprocess.run(
                    command, stdout=subprocess.PIPE, check=True, cwd=root, stderr=subprocess.DEVNULL
                )
                results[mode] = json.loads(output.stdout)
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(timeout=10)
    results["change_us"] = {str(size): asyncio.run(change_us(size)) for size in SIZES}
    return results


def show(results: dict[str, Any]) -> None:
    """The figures as a table."""
    first = results["pages"]
    title = f"{first['services']:,.0f} Services, {first['endpoints']:,.0f} endpoints"
    table = Table("", "list in pages", "streaming list", title=title)
    rows = (
        ("first list", "list_s", "s"),
        ("  of which our own processor time", "list_cpu_s", "s"),
        ("relist after lost history, processor time", "relist_cpu_s", "s"),
        ("resident before", "start_mb", "MB"),
        ("resident with the cluster", "listed_mb", "MB"),
        ("peak, first list", "list_peak_mb", "MB"),
        ("peak, relist", "relist_peak_mb", "MB"),
        ("resident after the relist", "relisted_mb", "MB"),
        ("a change, sent to seen", "change_ms", "ms"),
    )
    for text, key, unit in rows:
        table.add_row(text, *(f"{results[mode][key]:,.2f} {unit}" for mode in ("pages", "stream")))
    console = Console()
    console.print(table)
    changes = Table("one changed slice of ten endpoints, of", "µs", title="Watch line to changed Service")
    for size, us in results["change_us"].items():
        changes.add_row(f"{int(size):,} slices", f"{us:.1f}")
    console.print(changes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--follow", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="stream", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve))
    elif args.follow:
        log.configure(level="error")
        print(json.dumps(asyncio.run(follow(args.follow, streaming=args.mode == "stream"))))
    else:
        results = measure()
        if args.json:
            print(json.dumps(results, indent=2))
        else:
            show(results)


if __name__ == "__main__":
    main()
