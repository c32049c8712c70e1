"""A node with the real daemon on it: `ipvsproxy run` in the lab's kernel, fed from manifests that tests rewrite.

Two nodes and a client on one LAN, dual-stack; pod p1 is on the node with the daemon, p2 and p3 on the other.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kubecore.model import Endpoint, EndpointSlice, KubeObject, Node, Service
from tests.builders import endpoint_slice
from tests.lab.kernel.net import Host, Net, Process, Result

NODE, NODE6 = "192.168.50.10", "fd00:50::10"
CLIENT, CLIENT6 = "192.168.50.99", "fd00:50::99"
PODS = {
    "p1": ("10.244.1.5", "fd00:244:1::5"),
    "p2": ("10.244.2.5", "fd00:244:2::5"),
    "p3": ("10.244.3.5", "fd00:244:3::5"),
}
THIS = Node("n1", internal_ips=(NODE, NODE6))

CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ipvs
clusterCIDR: 10.244.0.0/16,fd00:244::/32
---
apiVersion: ipvsproxy.io/v1alpha1
kind: IPVSProxyConfiguration
drain: {grace: 60s, pollPeriod: 500ms}
auditPeriod: 1s
"""
IPVSPROXY = [sys.executable, "-m", "ipvsproxy"]
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")
STARTED = "reconciler.started"
_T = TypeVar("_T")


class Site:
    """The network, the directory of manifests, and the daemon on host `node` once it is started."""

    def __init__(self, net: Net, directory: Path, *, third: bool = False) -> None:
        self.net = net
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.config = directory / "config.yaml"
        self.config.write_text(CONFIG)
        self.daemon: Process | None = None
        # An empty virtual server refuses by ICMP, of which the kernel sends a peer six at once and then one a second.
        net.host("node", sysctls={"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0"})
        net.host("node2", forwarding=True)
        net.lan(
            "eth0",
            {
                "node": [f"{NODE}/24", f"{NODE6}/64"],
                "node2": ["192.168.50.11/24", "fd00:50::11/64"],
                "client": [f"{CLIENT}/24", f"{CLIENT6}/64"],
            },
        )
        self.node, self.client = net.host("node"), net.host("client")
        self._pod("p1", "node", 1)
        self._pod("p2", "node2", 2)
        if third:
            self._pod("p3", "node2", 3)
        self.p1 = net.host("p1")
        self.node.ip(["route add 10.244.0.0/16 via 192.168.50.11", "route add fd00:244::/32 via fd00:50::11"])
        net.host("node2").ip([f"route add 10.244.1.0/24 via {NODE}", f"route add fd00:244:1::/64 via {NODE6}"])
        self.client.ip([f"route add default via {NODE}", f"route add default via {NODE6}"])

    def _pod(self, name: str, node: str, number: int) -> None:
        gateway = [f"10.244.{number}.1/24", f"fd00:244:{number}::1/64"]
        own = [f"{PODS[name][0]}/24", f"{PODS[name][1]}/64"]
        self.net.link(node, name, gateway, own, gateway=True)
        self.net.host(name).serve(tcp=[8080], udp=[8080], sctp=[8080])

    def host(self, name: str) -> Host:
        """A host by name."""
        return self.net.host(name)

    # -- the cluster

    def put(self, *objects: KubeObject) -> None:
        """Writes each object into a file of its own, replacing what stood there."""
        for obj in objects:
            file = self._file(obj)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(manifest(obj)))
            part.rename(file)

    def delete(self, *objects: KubeObject) -> None:
        """Removes the objects' files."""
        for obj in objects:
            self._file(obj).unlink()

    def _file(self, obj: KubeObject) -> Path:
        return self.manifests / f"{type(obj).__name__}-{str(obj.key).replace('/', '-')}.json".lower()

    # -- the daemon

    def start(self, *arguments: str, wait: str = STARTED, prefix: tuple[str, ...] = ()) -> Process:
        """Starts the daemon and waits until the kernel holds what the manifests say."""
        argv = [*prefix, *IPVSPROXY, "run", *self.options(), *arguments]
        self.daemon = self.node.popen(argv, env={"PYTHONDONTWRITEBYTECODE": "1"})
        self.daemon.wait_for_log(wait, timeout_s=30)
        return self.daemon

    def options(self) -> list[str]:
        """The arguments that every command takes here."""
        return ["--source", str(self.manifests), "--node", "n1", "--config", str(self.config)]

    def kill(self) -> None:
        """Ends the daemon without a chance to do anything (SIGKILL)."""
        assert self.daemon is not None
        self.daemon.kill(signal.SIGKILL)
        assert self.daemon.wait() == -signal.SIGKILL

    def stop(self) -> int:
        """The daemon's exit code after SIGTERM."""
        assert self.daemon is not None
        return self.daemon.stop()

    def command(self, *arguments: str) -> Result:
        """Another command of ours, to its end, whatever it exits with."""
        return self.node.run([*IPVSPROXY, *arguments], check=False, timeout_s=30)

    def diff(self) -> Result:
        """`ipvsproxy diff` for this node."""
        return self.command("diff", *self.options())

    # -- looking

    def real_servers(self, server: str) -> dict[str, int]:
        """Weights by real server of `-t 10.96.0.1:80`."""
        start = f"-a {server} -r "
        lines = [line.removeprefix(start).split() for line in self.node.ipvs_rules() if line.startswith(start)]
        return {words[0]: int(words[words.index("-w") + 1]) for words in lines}

    def servers(self) -> set[str]:
        """Virtual servers as `-t 10.96.0.1:80`."""
        return {" ".join(line.split()[1:3]) for line in self.node.ipvs_rules() if line.startswith("-A ")}

    def vips(self, family: int = 4) -> set[str]:
        """Addresses that our routes make local."""
        text = self.node.run(f"ip -{family} route show table local proto 87").stdout
        return {line.split()[1] for line in text.splitlines() if line.startswith("local ")}

    def get(self, url: str, *, host: str = "node") -> tuple[int, str]:
        """Status and body of an HTTP GET."""
        text = self.net.host(host).run(["curl", "-s", "-g", "-m", "3", "-w", "\n%{http_code}", url], check=False).stdout
        body, _, code = text.rpartition("\n")
        return int(code), body


def until(look: Callable[[], _T], wanted: _T, timeout_s: float = 8.0) -> float:
    """Seconds until `look()` was what is wanted. Raises AssertionError if it does not come to that."""
    start = time.monotonic()
    while True:
        seen = look()
        if seen == wanted:
            return time.monotonic() - start
        assert time.monotonic() < start + timeout_s, f"after {timeout_s:g} s still {seen!r}, not {wanted!r}"
        time.sleep(0.05)


def backends(name: str, text: str, ports: str = "8080") -> tuple[EndpointSlice, EndpointSlice]:
    """Slices of both families with pods as `p1 p2~ p3!`, marked as in `builders.endpoints`."""
    listed: tuple[list[str], list[str]] = ([], [])
    for word in text.split():
        pod, mark = word[:2], word[2:]
        for family, addresses in enumerate(listed):
            addresses.append(f"{PODS[pod][family]}{mark}@{'n1' if pod == 'p1' else 'n2'}")
    return (
        endpoint_slice(name, " ".join(listed[0]), ports, suffix="4", family=4),
        endpoint_slice(name, " ".join(listed[1]), ports, suffix="6", family=6),
    )


def manifest(obj: KubeObject) -> dict[str, Any]:
    """The object as the API server shows it."""
    match obj:
        case Service():
            return _service(obj)
        case EndpointSlice():
            return _slice(obj)
        case Node():
            return _node(obj)
    raise TypeError(type(obj).__name__)


def _service(s: Service) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "type": s.type.value,
        "clusterIP": s.cluster_ips[0] if s.cluster_ips else "None",
        "clusterIPs": list(s.cluster_ips),
        "ipFamilies": [f"IPv{f}" for f in s.ip_families],
        "externalIPs": list(s.external_ips),
        "externalTrafficPolicy": s.external_policy.value,
        "internalTrafficPolicy": s.internal_policy.value,
        "loadBalancerSourceRanges": list(s.source_ranges),
        "ports": [
            {"name": p.name, "port": p.port, "protocol": p.protocol.value}
            | ({"nodePort": p.node_port} if p.node_port else {})
            for p in s.ports
        ],
    }
    if s.affinity_timeout_s:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": s.affinity_timeout_s}}
    if s.health_check_node_port:
        spec["healthCheckNodePort"] = s.health_check_node_port
    metadata = {
        "name": s.name,
        "namespace": s.namespace,
        "labels": dict(s.labels),
        "annotations": dict(s.annotations),
    }
    ingress = [{"ip": i.ip} for i in s.ingress]
    status = {"loadBalancer": {"ingress": ingress}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def _slice(s: EndpointSlice) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": s.name,
            "namespace": s.namespace,
            "labels": {"kubernetes.io/service-name": s.service},
        },
        "addressType": f"IPv{s.family}",
        "ports": [{"name": p.name, "port": p.port, "protocol": p.protocol.value} for p in s.ports],
        "endpoints": [_endpoint(e) for e in s.endpoints],
    }


def _endpoint(e: Endpoint) -> dict[str, Any]:
    conditions = {"ready": e.ready, "serving": e.serving, "terminating": e.terminating}
    return {"addresses": list(e.addresses), "conditions": conditions, "nodeName": e.node_name}


def _node(n: Node) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": n.name},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in n.taints]},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in n.internal_ips]},
    }
