"""The objects of the cluster, and where the machines go that they speak of.

Knows: manifests, and that every endpoint address needs somebody who answers there. Must not know: namespaces,
processes. Called by `cluster`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from kubecore.files import load
from kubecore.manifest import ManifestError, parse_documents
from kubecore.model import Node, Pod
from kubecore.snapshot import ClusterState
from tests.demo.api import KINDS
from tests.lab.apiserver import manifests

OWN = Path(__file__).parent / "manifests"
SCENARIOS = Path(__file__).parents[1] / "scenarios"
ELSEWHERE = "elsewhere"
"""The host of all addresses outside the cluster."""
_RESERVED = frozenset({"control", "upstream", "outside", ELSEWHERE, "switch-eth0", "eth0", "lo", "kube-ipvs0"})
"""Names of hosts and devices that no pod can have."""
_OWN_NAMESPACES = ("demo", "kube-system")
_SPARE = "scale-up"
_DELAY = "demo/delay"

Object = dict[str, Any]


def own_objects() -> list[Object]:
    """The demo's own cluster as it is at the beginning."""
    paths = [path for path in sorted(OWN.glob("*.yaml")) if not path.name.startswith(_SPARE)]
    return [finalized(obj) for path in paths for obj in manifests.read(path)]


def spare_pods() -> dict[str, Object]:
    """Pods that have a machine but are not in the cluster yet, by name."""
    pods = (obj for path in sorted(OWN.glob(f"{_SPARE}*.yaml")) for obj in manifests.read(path))
    return {obj["metadata"]["name"]: finalized(obj) for obj in pods}


def finalized(obj: Object) -> Object:
    """A Pod that ends as with a kubelet: first terminating, then gone (`api.finish`); other objects as they are."""
    if obj["kind"] != "Pod":
        return obj
    return {**obj, "metadata": {**obj["metadata"], "finalizers": ["demo/machine"]}}


def theirs(path: Path) -> tuple[list[Object], list[str]]:
    """The user's objects that are part of a service network, and what is to be said about the manifests, a line each.

    Raises ManifestError: a file cannot be read, or there is nothing of the kind.
    """
    for file in manifests.files(path):
        parse_documents(file.read_bytes(), str(file))
    _, problems = load(path)
    # An address that is missing is given by the API server.
    remarks = [str(p) for p in problems if p.field != "spec.clusterIP" or "missing" not in p.reason]
    found = [obj for obj in manifests.read(path) if _is_ours(obj)]
    if not found:
        kinds = ", ".join(KINDS)
        remedy = f"name a directory with .yaml, .yml or .json files, or one such file, with objects of {kinds}"
        raise ManifestError(str(path), 0, "nothing in it belongs to a service network", remedy=remedy)
    return found, remarks


def _is_ours(obj: Object) -> bool:
    kind, metadata = obj.get("kind"), obj.get("metadata")
    version = KINDS[kind][0].removeprefix("/apis/").removeprefix("/api/") if kind in KINDS else ""
    return obj.get("apiVersion") == version and isinstance(metadata, dict) and isinstance(metadata.get("name"), str)


def merged(own: list[Object], further: Iterable[Object]) -> tuple[list[Object], list[str]]:
    """The demo's own objects with `further` ones, and what of those had to give way, a line each.

    The demo's nodes, API server and cluster DNS are real and cannot be described otherwise; nor can two objects have
    one name, nor two pods one address.
    """
    taken = {_identity(obj) for obj in own}
    addresses = {address for obj in (*own, *spare_pods().values()) for address in _addresses(obj)}
    services = {(namespace, name) for kind, namespace, name in taken if kind == "Service"}
    result, left_out = list(own), []
    for obj in further:
        kind, namespace, name = _identity(obj)
        labels = obj["metadata"].get("labels") or {}
        service = labels.get("kubernetes.io/service-name", name) if kind == "EndpointSlice" else name
        if (
            (kind, namespace, name) in taken
            or (kind in ("Endpoints", "EndpointSlice") and (namespace, service) in services)
            or not addresses.isdisjoint(_addresses(obj))
        ):
            left_out.append(f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}")
        else:
            result.append(obj)
            if kind == "Pod":
                addresses |= _addresses(obj)
    return result, left_out


def _addresses(obj: Object) -> set[str]:
    """Those that a node or a pod with a network of its own has; a pod that has ended has none any more."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if obj["kind"] == "Node":
        return {a["address"] for a in status.get("addresses") or [] if a["type"] == "InternalIP"}
    if obj["kind"] != "Pod" or spec.get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return set()
    return {each.get("ip", "") for each in status.get("podIPs") or [{"ip": status.get("podIP", "")}]} - {""}


def write(objects: Iterable[Object], path: Path) -> None:
    """One manifest file with all of them."""
    path.write_text(yaml.safe_dump_all(objects, sort_keys=False))


def _identity(obj: Object) -> tuple[str, str, str]:
    metadata = obj["metadata"]
    kind = obj["kind"]
    namespace = "" if kind in ("Node", "Namespace") else metadata.get("namespace", "default")
    return kind, namespace, metadata["name"]


@dataclass(frozen=True)
class Machine:
    """One that answers at some addresses."""

    name: str
    """How it calls itself: the pod's name, or the address where no pod is known."""
    addresses: tuple[str, ...]
    ports: frozenset[tuple[str, int]] = frozenset()
    """(`tcp`, 8080); what the cluster's slices send to it."""
    host: str = ELSEWHERE
    """The node it is on; ELSEWHERE outside the cluster."""
    own_namespace: bool = False
    """A pod with a namespace of its own; otherwise its addresses are the host's."""
    serves: bool = True
    """False: something else than a lab server runs in it."""
    delay_s: float = 0.0


def machines(state: ClusterState, objects: Iterable[Object]) -> list[Machine]:
    """Everyone that must exist for the endpoints of `state` to answer: pods on their nodes, all else ELSEWHERE."""
    ports: dict[str, set[tuple[str, int]]] = {}
    for piece in state.slices.values():
        for endpoint in piece.endpoints:
            for address in endpoint.addresses:
                numbers = ((p.protocol.value.lower(), p.port) for p in piece.ports if p.port)
                ports.setdefault(address, set()).update(numbers)
    delays = _delays(objects)
    nodes = [n for n in state.nodes.values() if n.pod_cidrs]
    found: list[Machine] = []
    names = {*_RESERVED, *(node.name for node in nodes)}
    for pod in sorted(state.pods.values(), key=lambda p: (p.namespace not in _OWN_NAMESPACES, p.name, p.namespace)):
        if pod.ips and not pod.host_network and pod.phase not in ("Succeeded", "Failed"):
            mine = frozenset(p for address in pod.ips for p in ports.pop(address, ()))
            name = pod.name if pod.name not in names else f"{pod.namespace}.{pod.name}"
            names.add(name)
            machine = Machine(name, pod.ips, mine, serves=not _is_dns(pod), delay_s=delays.get(pod.name, 0.0))
            found.append(_placed(machine, nodes))
    for address in sorted(ports):
        found.append(_placed(Machine(address, (address,), frozenset(ports[address])), nodes))
    return found


def _placed(machine: Machine, nodes: list[Node]) -> Machine:
    address = ip_address(machine.addresses[0])
    for node in nodes:
        if str(address) in node.internal_ips:
            return replace(machine, host=node.name)
        if any(address in ip_network(cidr) for cidr in node.pod_cidrs):
            return replace(machine, host=node.name, own_namespace=True)
    return machine


def _is_dns(pod: Pod) -> bool:
    return pod.namespace == "kube-system" and ("k8s-app", "kube-dns") in pod.labels


def _delays(objects: Iterable[Object]) -> dict[str, float]:
    found = {}
    for obj in objects:
        text = (obj["metadata"].get("annotations") or {}).get(_DELAY)
        if text:
            found[obj["metadata"]["name"]] = float(str(text).removesuffix("ms")) / 1000
    return found
