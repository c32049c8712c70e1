"""Model objects in one line each, and the same notation back, for tests that read like a specification.

Ports of a Service: `"http:80/TCP>8080@30080"` (name, port, protocol, target port, node port; all but the port
optional), several with commas. Ports of a slice: `"http:8080/TCP"`, with `?` for a null name.
Endpoints: `"10.0.0.1"`, not ready `"10.0.0.1!"`, terminating but serving `"10.0.0.1~"`, with node and zone
`"10.0.0.1@node-a/zone-1"`, with hostname `"10.0.0.1=web-0"`; several with blanks.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kubecore.addresses import family_of
from kubecore.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    KubeObject,
    Node,
    ObjectKey,
    Pod,
    Port,
    Protocol,
    Resource,
    Service,
)
from kubecore.snapshot import ClusterState

_PORT = re.compile(r"(?:([-a-z0-9]*|\?):)?(\d+)(?:/(TCP|UDP|SCTP))?(?:>([-a-z0-9]+))?(?:@(\d+))?")
_ENDPOINT = re.compile(r"([0-9a-f.:]+)([!~]?)(?:@([^/=\s]*)(?:/([^=\s]*))?)?(?:=(\S+))?")


def key(text: str) -> ObjectKey:
    """`ns/name`, or `name` in namespace default."""
    namespace, slash, name = text.rpartition("/")
    return ObjectKey(namespace if slash else "default", name)


def ports(text: str) -> tuple[Port, ...]:
    """Service ports from the notation above."""
    result = []
    for part in filter(None, text.split(",")):
        name, number, protocol, target, node_port = _matched(_PORT, part.strip())
        to: int | str = int(target) if (target or "").isdigit() else target or 0
        result.append(Port(name or "", int(number), Protocol(protocol or "TCP"), int(node_port or 0), to))
    return tuple(result)


def service(name: str, cluster_ips: str = "", port_list: str = "80", **fields: Any) -> Service:
    """A Service: `service("ns/web", "10.96.0.1", "http:80>8080", selector="app=web")`; addresses "None": headless."""
    namespace, plain = key(name)
    headless = cluster_ips == "None"
    ips = () if headless else tuple(cluster_ips.split())
    for pairs in ("selector", "labels", "annotations"):
        if isinstance(fields.get(pairs), str):
            fields[pairs] = labels(fields[pairs])
    fields.setdefault("ip_families", tuple(family_of(ip) for ip in ips))
    return Service(namespace, plain, cluster_ips=ips, headless=headless, ports=ports(port_list), **fields)


def labels(text: str) -> tuple[tuple[str, str], ...]:
    """Sorted pairs of `a=1,b=2`."""
    return tuple(sorted((k, v) for k, _, v in (pair.partition("=") for pair in filter(None, text.split(",")))))


def endpoints(text: str) -> tuple[Endpoint, ...]:
    """Endpoints from the notation above."""
    result = []
    for part in text.split():
        address, state, node, zone, hostname = _matched(_ENDPOINT, part)
        result.append(
            Endpoint(
                addresses=(address,),
                ready=not state,
                serving=state != "!",
                terminating=state == "~",
                node_name=node or "",
                zone=zone or "",
                hostname=hostname or "",
            ),
        )
    return tuple(result)


def endpoint_slice(owner: str, text: str, port_list: str = "80", *, suffix: str = "x", **fields: Any) -> EndpointSlice:
    """A slice of the Service `owner` called `<owner>-<suffix>`; its family is that of its first endpoint."""
    namespace, plain = key(owner)
    found = endpoints(text)
    slice_ports = []
    for part in filter(None, port_list.split(",")):
        name, number, protocol, _, _ = _matched(_PORT, part.strip())
        slice_ports.append(EndpointPort(None if name == "?" else name or "", int(number), Protocol(protocol or "TCP")))
    family = fields.pop("family", family_of(found[0].addresses[0]) if found else 4)
    return EndpointSlice(
        namespace, f"{plain}-{suffix}", plain, family, ports=tuple(slice_ports), endpoints=found, **fields
    )


def pod(name: str, ips: str, label_list: str = "", **fields: Any) -> Pod:
    """A running, ready Pod with these addresses: `pod("web-0", "10.0.0.1", "app=web", node_name="n1")`."""
    namespace, plain = key(name)
    fields.setdefault("phase", "Running")
    fields.setdefault("ready", True)
    return Pod(namespace, plain, ips=tuple(ips.split()), labels=labels(label_list), **fields)


def node(name: str, ips: str = "", zone: str = "", **fields: Any) -> Node:
    """A Node with these internal addresses."""
    return Node(name, internal_ips=tuple(ips.split()), zone=zone, **fields)


def slice_line(piece: EndpointSlice) -> str:
    """`http:8080/TCP: 10.0.0.1@node-a/zone-1 10.0.0.2!`: what `endpoint_slice` reads, to compare with."""
    listed = ",".join(f"{'?' if p.name is None else p.name}:{p.port}/{p.protocol.value}" for p in piece.ports)
    return f"{listed}: {' '.join(endpoint_text(e) for e in piece.endpoints)}".strip()


def endpoint_text(e: Endpoint) -> str:
    """One endpoint in the notation above."""
    state = "~" if e.terminating and e.serving else "" if e.ready else "!"
    place = f"@{e.node_name}/{e.zone}" if e.zone else f"@{e.node_name}" if e.node_name else ""
    return ",".join(e.addresses) + state + place + (f"={e.hostname}" if e.hostname else "")


def same_objects(one: ClusterState, other: ClusterState) -> bool:
    """Whether two states hold the same objects, apart from what an API server adds: uids and times."""
    return all(_contents(one, r) == _contents(other, r) for r in Resource)


def _contents(state: ClusterState, resource: Resource) -> dict[ObjectKey, KubeObject]:
    tables: dict[Resource, Any] = {
        Resource.SERVICES: state.services,
        Resource.ENDPOINT_SLICES: state.slices,
        Resource.NODES: state.nodes,
        Resource.NAMESPACES: state.namespaces,
        Resource.PODS: state.pods,
        Resource.SERVICE_CIDRS: state.service_cidrs,
        Resource.SERVICE_IMPORTS: state.service_imports,
    }
    return {k: without_identity(obj) for k, obj in tables[resource].items()}


def without_identity(obj: KubeObject) -> KubeObject:
    """The object without uids and times."""
    match obj:
        case EndpointSlice():
            plain = tuple(msgspec.structs.replace(e, target_uid="") for e in obj.endpoints)
            return msgspec.structs.replace(obj, endpoints=plain, trigger_s=0.0)
        case Service():
            return msgspec.structs.replace(obj, uid="", created_s=0.0)
        case Node() | Pod():
            return msgspec.structs.replace(obj, uid="")
        case _:
            return obj


def _matched(pattern: re.Pattern[str], text: str) -> tuple[Any, ...]:
    match = pattern.fullmatch(text)
    assert match, f"not in the notation of tests/builders.py: {text!r}"
    return match.groups()
