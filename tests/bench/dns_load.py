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


def namespace_objects() -> Iterator[JSON]:
    """The namespaces."""
    for i in range(NAMESPACES):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns-{i:03d}"}}


# -- questions

A, AAAA = 1, 28


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
