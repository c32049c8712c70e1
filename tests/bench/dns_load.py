"""The load of the DNS benchmarks: the cluster and the names asked for, the generator, and what a process costs.

The cluster has `SERVICES` Services of ten endpoints each. Of ten questions seven are A with an answer, two are AAAA of
an IPv4 Service (NODATA), one is for a name that does not exist; all with EDNS0.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

SERVICES = 10_000
ENDPOINTS_EACH = 10
EXTERNAL_NAMES = 5_000
NAMESPACES = 100
HEADLESS_SIZES = (3, 10, 100)
HEADLESS_EACH = 20
"""Headless Services of each of these sizes, beside the others."""
ZONE = "cluster.local"
EXTERNAL = "example"

JSON = dict[str, Any]


def service_name(i: int) -> tuple[str, str]:
    """Namespace and name of the i-th Service."""
    return f"ns-{i % NAMESPACES:03d}", f"svc-{i:05d}"


def cluster_ip(i: int) -> str:
    """Its ClusterIP."""
    return f"10.96.{i >> 8 & 255}.{i & 255}"


def service_object(i: int) -> JSON:
    """It as a manifest."""
    namespace, name = service_name(i)
    ip = cluster_ip(i)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": name},
        },
    }


def slice_object(i: int, turn: int = 0) -> JSON:
    """Its EndpointSlice; another `turn` has other addresses."""
    namespace, name = service_name(i)
    first = i * ENDPOINTS_EACH

    def endpoint(k: int) -> JSON:
        n = first + (k + turn) % ENDPOINTS_EACH if turn % 2 else first + k
        net = 128 + turn % 64 if k == 0 else 200 + (n >> 16)
        address = f"10.{net}.{n >> 8 & 255}.{n & 255}"
        return {
            "addresses": [address],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node-{n % 500:03d}",
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"{name}-{k}", "uid": f"pod-{n}"},
        }

    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-x7k2p",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [endpoint(k) for k in range(ENDPOINTS_EACH)],
    }


def headless_name(size: int, i: int) -> str:
    """The i-th headless Service with so many endpoints."""
    return f"set-{size:03d}-{i:02d}"


def headless_addresses(size: int, i: int) -> list[str]:
    """Its endpoints'."""
    return [f"10.{100 + size % 100}.{i}.{k + 1}" for k in range(size)]


def headless_objects() -> Iterator[JSON]:
    """The headless Services, all in the first namespace."""
    for size in HEADLESS_SIZES:
        for i in range(HEADLESS_EACH):
            name = headless_name(size, i)
            service, piece = service_object(0), slice_object(0)
            for obj, called in ((service, name), (piece, f"{name}-x")):
                obj["metadata"] = {"name": called, "namespace": "ns-000"}
            service["spec"] |= {"clusterIP": "None", "clusterIPs": ["None"]}
            piece["metadata"]["labels"] = {"kubernetes.io/service-name": name}
            piece["endpoints"] = [
                {"addresses": [address], "conditions": {"ready": True}} for address in headless_addresses(size, i)
            ]
            yield service
            yield piece


def cluster_addresses() -> Iterator[tuple[str, str]]:
    """Every name with an address, and each of its addresses: what the peers serve."""
    for i in range(SERVICES):
        namespace, name = service_name(i)
        yield f"{name}.{namespace}.svc.{ZONE}", cluster_ip(i)
    for size in HEADLESS_SIZES:
        for i in range(HEADLESS_EACH):
            for address in headless_addresses(size, i):
                yield f"{headless_name(size, i)}.ns-000.svc.{ZONE}", address


def namespace_objects() -> Iterator[JSON]:
    """The namespaces."""
    for i in range(NAMESPACES):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns-{i:03d}"}}


# -- questions

A, PTR, AAAA, SRV = 1, 12, 28, 33


def query(name: str, qtype: int, *, udp_size: int = 1232) -> bytes:
    """A query with EDNS0 and id 0."""
    wire = b"".join(bytes((len(label),)) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"
    opt = struct.pack("!BHHIH", 0, 41, udp_size, 0, 0)
    return struct.pack("!6H", 0, 0x0100, 1, 0, 0, 1) + wire + struct.pack("!HH", qtype, 1) + opt


def cluster_questions() -> Iterator[tuple[str, int]]:
    """One for each Service, in the mixture of the module's words."""
    for i in range(SERVICES):
        namespace, name = service_name(i)
        kind = i % 10
        if kind == 9:
            name = f"no-such-{i:05d}"
        yield f"{name}.{namespace}.svc.{ZONE}", AAAA if kind in {3, 6} else A


def shaped_questions() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """What else clients ask much, by shape: names of the search path that do not exist, sets, pods, reverse names."""
    some = [service_name(i) for i in range(0, SERVICES, 5)]
    yield "search path", [(f"{name}.{ns}.svc.{ZONE}.{ns}.svc.{ZONE}", A) for ns, name in some]
    yield "search path, foreign", [(f"www.{name}.{EXTERNAL}.svc.{ZONE}", A) for _, name in some]
    yield "AAAA without data", [(f"{name}.{ns}.svc.{ZONE}", AAAA) for ns, name in some]
    for size in HEADLESS_SIZES:
        yield f"headless, {size}", [(f"{headless_name(size, i)}.ns-000.svc.{ZONE}", A) for i in range(HEADLESS_EACH)]


def own_questions() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The same for shapes that only a cluster's server knows by itself."""
    some = range(0, SERVICES, 5)
    ns = [service_name(i)[0] for i in some]
    yield "SRV", [(f"_http._tcp.{service_name(i)[1]}.{service_name(i)[0]}.svc.{ZONE}", SRV) for i in some]
    yield "pods", [(f"10-1-{i >> 8}-{i & 255}.{n}.pod.{ZONE}", A) for i, n in zip(some, ns, strict=True)]
    yield "PTR", [(".".join(reversed(cluster_ip(i).split("."))) + ".in-addr.arpa", PTR) for i in some]


def external_questions() -> Iterator[tuple[str, int]]:
    """Names outside the cluster, in the same mixture."""
    for i in range(EXTERNAL_NAMES):
        kind = i % 10
        yield f"{'no-such' if kind == 9 else 'www'}-{i:05d}.site.{EXTERNAL}", AAAA if kind in {3, 6} else A


def write_queries(path: Path, questions: Iterable[tuple[str, int]]) -> Path:
    """A file for the generator."""
    with path.open("wb") as file:
        for name, qtype in questions:
            message = query(name, qtype)
            file.write(struct.pack("!H", len(message)) + message)
    return path


# -- the generator


def build_generator(directory: Path) -> Path:
    """The generator, compiled."""
    binary = directory / "loadgen"
    source = Path(__file__).with_name("loadgen.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(binary), str(source)], check=True)
    return binary


def generate(
    binary: Path,
    port: int,
    queries: Path,
    *,
    seconds: float,
    cpu: int | None = None,
    window: int = 128,
    sockets: int = 4,
    rate: int = 0,
    random_case: bool = False,
    host: str = "127.0.0.1",
) -> JSON:
    """Load for some seconds; what the generator says of it."""
    command = [str(binary), host, str(port), str(queries), str(seconds), str(window), str(sockets), str(rate)]
    done = subprocess.run(
        [*on_cpu(cpu), *command, "1" if random_case else "0"], check=True, capture_output=True, text=True
    )
    result: JSON = json.loads(done.stdout)
    return result


def on_cpu(cpu: int | None) -> list[str]:
    """What to put in front of a command to keep it on a processor, and ahead of whatever else runs on the machine.

    Real-time priority where it may be had: niceness does not reach beyond a session (sched(7), autogroup).
    """
    if cpu is None or (os.cpu_count() or 1) < 2:
        return []
    return [*ahead(), "taskset", "-c", str(cpu)]


@cache
def ahead() -> tuple[str, ...]:
    """What gives a command priority; empty where that is not allowed."""
    command = ("chrt", "-r", "1")
    try:
        allowed = subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else ()


# -- what a process costs


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    for member in found:
        found += children.get(member, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time these processes have used, user and system, of all threads."""
    total = 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
            except (OSError, ValueError, IndexError):
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def rss_mb(pids: Iterable[int], field: str = "VmRSS") -> float:
    """Resident memory of these processes together, MB; `VmHWM`: the most it was."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                total += int(line.split()[1])
    return total / 1024
