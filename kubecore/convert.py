"""Wire shapes to model values: defaults, canonical addresses, and what of a bad object can still be used.

Knows: the API's defaults and what kube-proxy does with a bad part (it ignores that part, not the object). Must not
know: bytes, lists, watches. Called by `decode` alone.

A converter raises `Refused` where the object cannot be used at all, and calls `note(field, reason)` for each part it
left out. Repeated values (names of nodes and zones, tuples of ports, labels) are shared between objects: with 100,000
endpoints that is most of the memory.

Source: Kubernetes API reference, KEP-752 (EndpointSlice), KEP-1645 (ServiceImport), KEP-1860 (ipMode), KEP-2433
(hints).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar, cast

from kubecore import wire
from kubecore.addresses import canonical_cidr, canonical_ip, family_of
from kubecore.model import (
    ContainerPort,
    Endpoint,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    EndpointsSubset,
    Family,
    LoadBalancerIngress,
    Namespace,
    Node,
    Pod,
    Port,
    Protocol,
    Service,
    ServiceCIDR,
    ServiceImport,
    ServiceType,
    TrafficPolicy,
)

T = TypeVar("T")
Note = Callable[[str, str], None]

KEPT_ANNOTATIONS = ("ipvsproxy.io/", "kube-router.io/service.")
"""Prefixes of the Service annotations somebody reads; all others are dropped at the door."""

DEFAULT_AFFINITY_TIMEOUT_S = 10800
"""`sessionAffinityConfig.clientIP.timeoutSeconds` where the API leaves it out."""
MAX_AFFINITY_TIMEOUT_S = 86400
"""The longest the API server accepts."""

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
ZONE_LABEL = "topology.kubernetes.io/zone"
SERVICE_IMPORT_LABEL = "multicluster.kubernetes.io/service-name"
SOURCE_CLUSTER_LABEL = "multicluster.kubernetes.io/source-cluster"

_PROTOCOLS = {p.value: p for p in Protocol}
_SERVICE_TYPES = {t.value: t for t in ServiceType}
_FAMILIES: dict[str, Family] = {"IPv4": 4, "IPv6": 6}
_is_label = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?").fullmatch
_is_subdomain = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?").fullmatch


class Refused(Exception):  # noqa: N818 - a verdict, not an error of the program
    """The object cannot be used.

    Attributes:
        field: path of the offending field, `spec.ports[2].port`.
        reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


# -- parts


@lru_cache(maxsize=16384)
def _first(value: Hashable) -> Hashable:
    return value


def _shared(value: T) -> T:
    """The first of all equal values (small immutable ones: tuples of ports, labels, zones)."""
    return cast("T", _first(value))


def _intern(text: str | None) -> str:
    return sys.intern(text) if text else ""


def _seconds(timestamp: str | None) -> float:
    """Unix seconds of an RFC 3339 time; 0 where it is absent or no such time."""
    if not timestamp:
        return 0.0
    try:
        moment = datetime.fromisoformat(timestamp)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def _pairs(labels: wire.Labels | None) -> tuple[tuple[str, str], ...]:
    if not labels:
        return ()
    return _shared(tuple((sys.intern(k), sys.intern(labels[k])) for k in sorted(labels)))


def _label_name(meta: wire.Meta) -> str:
    if not _is_label(meta.name):
        raise Refused("metadata.name", "missing" if not meta.name else f"{meta.name!r} is no DNS label")
    return sys.intern(meta.name)


def _name(meta: wire.Meta) -> str:
    if not _is_subdomain(meta.name):
        raise Refused("metadata.name", "missing" if not meta.name else f"{meta.name!r} is no DNS subdomain")
    return meta.name


def _namespace(meta: wire.Meta) -> str:
    namespace = meta.namespace or "default"
    if not _is_label(namespace):
        raise Refused("metadata.namespace", f"{namespace!r} is no DNS label")
    return sys.intern(namespace)


def _protocol(text: str | None) -> Protocol | None:
    return _PROTOCOLS.get(text) if text else Protocol.TCP


def _port_name(name: str, field: str) -> str:
    if name and not _is_label(name):
        raise Refused(field, f"{name!r} is no DNS label")
    return sys.intern(name)


def _addresses(texts: Iterable[str], field: str, note: Note, read: Callable[[str], str | None]) -> tuple[str, ...]:
    """Canonical forms in the given order, each once; what `read` cannot read is noted and left out."""
    found: dict[str, None] = {}
    for i, text in enumerate(texts):
        address = read(text)
        if address is None:
            note(f"{field}[{i}]", f"{text!r} is no {'IP address' if read is canonical_ip else 'CIDR'}")
        else:
            found[address] = None
    return tuple(found)


# -- Service


def service(w: wire.Service, note: Note) -> Service:
    """A Service; an unknown type or policy counts as the default one, as kube-proxy treats it."""
    meta, spec = w.metadata, w.spec or wire.ServiceSpec()
    kind = _SERVICE_TYPES.get(spec.type or "ClusterIP")
    if kind is None:
        note("spec.type", f"{spec.type!r} is unknown; taken as ClusterIP")
        kind = ServiceType.CLUSTER_IP
    external_name = kind is ServiceType.EXTERNAL_NAME
    cluster_ips, headless = ((), False) if external_name else _cluster_ips(spec)
    annotations = {k: v for k, v in (meta.annotations or {}).items() if k.startswith(KEPT_ANNOTATIONS)}
    return Service(
        namespace=_namespace(meta),
        name=_label_name(meta),
        uid=meta.uid or "",
        created_s=_seconds(meta.creation_timestamp),
        type=kind,
        cluster_ips=cluster_ips,
        headless=headless,
        ip_families=_families(spec.ip_families, note),
        ports=_shared(tuple(_service_ports(spec.ports or (), note))),
        selector=_pairs(spec.selector),
        external_ips=_addresses(spec.external_ips or (), "spec.externalIPs", note, canonical_ip),
        external_name=spec.external_name or "" if external_name else "",
        ingress=tuple(_ingress(w, note)),
        load_balancer_class=_intern(spec.load_balancer_class),
        source_ranges=_addresses(
            spec.load_balancer_source_ranges or (),
            "spec.loadBalancerSourceRanges",
            note,
            canonical_cidr,
        ),
        external_policy=_policy(spec.external_traffic_policy, "spec.externalTrafficPolicy", note),
        internal_policy=_policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy", note),
        affinity_timeout_s=_affinity_timeout_s(spec, note),
        health_check_node_port=spec.health_check_node_port or 0,
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        traffic_distribution=_intern(spec.traffic_distribution),
        labels=_pairs(meta.labels),
        annotations=_pairs(annotations),
    )


def _cluster_ips(spec: wire.ServiceSpec) -> tuple[tuple[str, ...], bool]:
    """Canonical cluster addresses and whether the Service is headless; positions matter (they pair with ipFamilies)."""
    many = spec.cluster_ips or ()
    texts = many or ([spec.cluster_ip] if spec.cluster_ip else ())
    if "None" in texts:
        return (), True
    addresses = []
    for i, text in enumerate(texts):
        address = canonical_ip(text)
        if address is None:
            raise Refused(f"spec.clusterIPs[{i}]" if many else "spec.clusterIP", f"{text!r} is no IP address")
        addresses.append(address)
    return tuple(addresses), False


def _families(texts: list[str] | None, note: Note) -> tuple[Family, ...]:
    families = []
    for i, text in enumerate(texts or ()):
        family = _FAMILIES.get(text)
        if family is None:
            note(f"spec.ipFamilies[{i}]", f"{text!r} is neither IPv4 nor IPv6")
        else:
            families.append(family)
    return _shared(tuple(families))


def _affinity_timeout_s(spec: wire.ServiceSpec, note: Note) -> int:
    """How long a client stays with its endpoint; 0: not at all."""
    if spec.session_affinity in (None, "", "None"):
        return 0
    if spec.session_affinity != "ClientIP":
        note("spec.sessionAffinity", f"{spec.session_affinity!r} is unknown; taken as None")
        return 0
    client_ip = spec.session_affinity_config and spec.session_affinity_config.client_ip
    given = client_ip.timeout_seconds if client_ip else None
    if given is None:
        return DEFAULT_AFFINITY_TIMEOUT_S
    taken = min(given, MAX_AFFINITY_TIMEOUT_S) if given > 0 else DEFAULT_AFFINITY_TIMEOUT_S
    if taken != given:
        field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        note(field, f"{given} is outside 1..{MAX_AFFINITY_TIMEOUT_S}; taken as {taken}")
    return taken


def _policy(text: str | None, field: str, note: Note) -> TrafficPolicy:
    if text == "Local":
        return TrafficPolicy.LOCAL
    if text not in (None, "", "Cluster"):
        note(field, f"{text!r} is unknown; taken as Cluster")
    return TrafficPolicy.CLUSTER


def _service_ports(ports: Iterable[wire.ServicePort], note: Note) -> Iterator[Port]:
    for i, p in enumerate(ports):
        protocol = _protocol(p.protocol)
        if protocol is None:
            note(f"spec.ports[{i}].protocol", f"{p.protocol!r} is none of TCP, UDP, SCTP")
            continue
        target = p.target_port or 0
        if isinstance(target, int) and not 0 <= target <= 65535:
            raise Refused(f"spec.ports[{i}].targetPort", f"{target} is outside 1..65535")
        yield _shared(
            Port(
                name=_port_name(p.name or "", f"spec.ports[{i}].name"),
                port=p.port,
                protocol=protocol,
                node_port=p.node_port or 0,
                target_port=target,
                app_protocol=_intern(p.app_protocol),
            ),
        )


def _ingress(w: wire.Service, note: Note) -> Iterator[LoadBalancerIngress]:
    balancer = w.status and w.status.load_balancer
    for i, entry in enumerate((balancer and balancer.ingress) or ()):
        ip = ""
        if entry.ip:
            address = canonical_ip(entry.ip)
            if address is None:
                note(f"status.loadBalancer.ingress[{i}].ip", f"{entry.ip!r} is no IP address")
                continue
            ip = address
        # kube-proxy takes every mode it does not know for "not mine"
        yield LoadBalancerIngress(ip, entry.hostname or "", entry.ip_mode not in (None, "", "VIP"))


# -- EndpointSlice


def endpoint_slice(w: wire.EndpointSlice, note: Note) -> EndpointSlice | None:
    """An EndpointSlice; None for one of FQDNs, which neither daemon serves."""
    if w.address_type == "FQDN":
        return None
    family = _FAMILIES.get(w.address_type or "")
    if family is None:
        raise Refused("addressType", f"{w.address_type!r} is none of IPv4, IPv6, FQDN" if w.address_type else "missing")
    meta = w.metadata
    labels = meta.labels or {}
    service_import = labels.pop(SERVICE_IMPORT_LABEL, "")
    return EndpointSlice(
        namespace=_namespace(meta),
        name=_name(meta),
        service=_intern(labels.pop(SERVICE_NAME_LABEL, "")),
        family=family,
        ports=_endpoint_ports(w.ports or (), "ports", note),
        endpoints=tuple(_endpoints(w.endpoints or (), family, note)),
        labels=_pairs({k: v for k, v in labels.items() if k != MANAGED_BY_LABEL}),
        trigger_s=_seconds(meta.annotations.get(TRIGGER_ANNOTATION)) if meta.annotations else 0.0,
        service_import=_intern(service_import),
        source_cluster=_source_cluster(labels.get(SOURCE_CLUSTER_LABEL, ""), note) if service_import else "",
    )


def _source_cluster(text: str, note: Note) -> str:
    """A cluster's id is a label of its endpoints' names (KEP-2149)."""
    if text and not _is_label(text.lower()):
        note(f"metadata.labels.{SOURCE_CLUSTER_LABEL}", f"{text!r} is no DNS label")
        return ""
    return sys.intern(text)


def _endpoint_ports(
    ports: Iterable[wire.EndpointPort],
    field: str,
    note: Note,
    *,
    absent_name: str | None = None,
) -> tuple[EndpointPort, ...]:
    """The ports; one without a name keeps None, which matches nothing, unless `absent_name` says otherwise."""
    result = []
    for i, p in enumerate(ports):
        protocol = _protocol(p.protocol)
        if protocol is None:
            note(f"{field}[{i}].protocol", f"{p.protocol!r} is none of TCP, UDP, SCTP")
            continue
        name = absent_name if p.name is None else _port_name(p.name, f"{field}[{i}].name")
        result.append(_shared(EndpointPort(name, p.port or None, protocol, _intern(p.app_protocol))))
    return _shared(tuple(result))


def _endpoints(endpoints: Iterable[wire.Endpoint], family: Family, note: Note) -> Iterator[Endpoint]:
    for i, e in enumerate(endpoints):
        addresses = _endpoint_addresses(e.addresses or (), family, f"endpoints[{i}].addresses", note)
        if not addresses:
            continue
        conditions, target, hints = e.conditions, e.target_ref, e.hints
        yield Endpoint(
            addresses=addresses,
            ready=conditions is None or conditions.ready is not False,
            serving=conditions is None or conditions.serving is not False,
            terminating=conditions is not None and conditions.terminating is True,
            hostname=_hostname(e.hostname, f"endpoints[{i}].hostname", note),
            node_name=_intern(e.node_name),
            zone=_intern(e.zone),
            target_kind=_intern(target.kind) if target else "",
            target_name=(target.name or "") if target else "",
            target_uid=(target.uid or "") if target else "",
            hint_zones=_hint_names(hints.for_zones) if hints else (),
            hint_nodes=_hint_names(hints.for_nodes) if hints else (),
        )


def _endpoint_addresses(texts: Iterable[str], family: Family, field: str, note: Note) -> tuple[str, ...]:
    """The usable addresses; none if the first is bad, since it alone is what traffic goes to."""
    addresses = []
    for j, text in enumerate(texts):
        address = canonical_ip(text)
        if address is not None and family_of(address) == family:
            addresses.append(address)
            continue
        note(f"{field}[{j}]", f"{text!r} is no IPv{family} address")
        if j == 0:
            return ()
    return tuple(addresses)


def _hostname(text: str | None, field: str, note: Note) -> str:
    if not text:
        return ""
    if not _is_label(text):
        note(field, f"{text!r} is no DNS label")
        return ""
    return text


def _hint_names(hints: list[wire.Hint] | None) -> tuple[str, ...]:
    return _shared(tuple(sys.intern(h.name) for h in hints)) if hints else ()


def endpoints(w: wire.Endpoints, note: Note) -> Endpoints:
    """The old Endpoints object; an absent port name is the empty one there."""
    meta = w.metadata
    return Endpoints(
        namespace=_namespace(meta),
        name=_name(meta),
        subsets=tuple(
            EndpointsSubset(
                ports=_endpoint_ports(s.ports or (), f"subsets[{i}].ports", note, absent_name=""),
                endpoints=(
                    *_legacy(s.addresses or (), f"subsets[{i}].addresses", note, ready=True),
                    *_legacy(s.not_ready_addresses or (), f"subsets[{i}].notReadyAddresses", note, ready=False),
                ),
            )
            for i, s in enumerate(w.subsets or ())
        ),
        labels=_pairs(meta.labels),
        trigger_s=_seconds(meta.annotations.get(TRIGGER_ANNOTATION)) if meta.annotations else 0.0,
        leader_record="control-plane.alpha.kubernetes.io/leader" in (meta.annotations or ()),
    )


def _legacy(addresses: Iterable[wire.EndpointAddress], field: str, note: Note, *, ready: bool) -> Iterator[Endpoint]:
    for i, a in enumerate(addresses):
        ip = canonical_ip(a.ip)
        if ip is None:
            note(f"{field}[{i}].ip", f"{a.ip!r} is no IP address")
            continue
        target = a.target_ref
        yield Endpoint(
            addresses=(ip,),
            ready=ready,
            hostname=_hostname(a.hostname, f"{field}[{i}].hostname", note),
            node_name=_intern(a.node_name),
            target_kind=_intern(target.kind) if target else "",
            target_name=(target.name or "") if target else "",
            target_uid=(target.uid or "") if target else "",
        )


# -- the others


def node(w: wire.Node, note: Note) -> Node:
    """A Node; addresses other than IPs and the host name do not matter here."""
    meta, spec, status = w.metadata, w.spec or wire.NodeSpec(), w.status or wire.NodeStatus()
    by_type: dict[str, dict[str, None]] = {"InternalIP": {}, "ExternalIP": {}}
    hostname = ""
    for i, entry in enumerate(status.addresses or ()):
        if entry.type in by_type:
            ip = canonical_ip(entry.address)
            if ip is None:
                note(f"status.addresses[{i}].address", f"{entry.address!r} is no IP address")
            else:
                by_type[entry.type][ip] = None
        elif entry.type == "Hostname":
            hostname = hostname or entry.address
    pod_cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    return Node(
        name=sys.intern(_name(meta)),
        internal_ips=tuple(by_type["InternalIP"]),
        external_ips=tuple(by_type["ExternalIP"]),
        hostname=hostname,
        zone=_intern((meta.labels or {}).get(ZONE_LABEL)),
        pod_cidrs=_addresses(pod_cidrs, "spec.podCIDRs", note, canonical_cidr),
        taints=tuple(sorted({sys.intern(t.key) for t in spec.taints or ()})),
        deleting=meta.deletion_timestamp is not None,
        uid=meta.uid or "",
    )


def namespace(w: wire.Namespace, _note: Note) -> Namespace:
    """A Namespace."""
    return Namespace(name=_label_name(w.metadata), labels=_pairs(w.metadata.labels))


def pod(w: wire.Pod, note: Note) -> Pod:
    """A Pod; `status.podIP` counts where `podIPs` is absent."""
    meta, spec, status = w.metadata, w.spec or wire.PodSpec(), w.status or wire.PodStatus()
    ips = [p.ip for p in status.pod_ips or () if p.ip] or ([status.pod_ip] if status.pod_ip else [])
    return Pod(
        namespace=_namespace(meta),
        name=_name(meta),
        uid=meta.uid or "",
        ips=_addresses(ips, "status.podIPs", note, canonical_ip),
        phase=_intern(status.phase),
        deleting=meta.deletion_timestamp is not None,
        ready=any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()),
        node_name=_intern(spec.node_name),
        hostname=_hostname(spec.hostname, "spec.hostname", note),
        subdomain=spec.subdomain or "",
        host_network=bool(spec.host_network),
        labels=_pairs(meta.labels),
        container_ports=_shared(tuple(_container_ports(spec, note))),
    )


def _container_ports(spec: wire.PodSpec, note: Note) -> Iterator[ContainerPort]:
    """Named ports of the containers, then of the sidecars (KEP-753): the order in which names are looked up."""
    sidecars = [c for c in spec.init_containers or () if c.restart_policy == "Always"]
    for i, container in enumerate((*(spec.containers or ()), *sidecars)):
        for j, p in enumerate(container.ports or ()):
            protocol = _protocol(p.protocol)
            if protocol is None:
                note(f"spec.containers[{i}].ports[{j}].protocol", f"{p.protocol!r} is none of TCP, UDP, SCTP")
            elif p.name:
                yield ContainerPort(sys.intern(p.name), p.container_port, protocol)


def service_cidr(w: wire.ServiceCIDR, note: Note) -> ServiceCIDR:
    """A ServiceCIDR."""
    cidrs = (w.spec and w.spec.cidrs) or cast("list[str]", [])
    return ServiceCIDR(name=_name(w.metadata), cidrs=_addresses(cidrs, "spec.cidrs", note, canonical_cidr))


def service_import(w: wire.ServiceImport, note: Note) -> ServiceImport:
    """A ServiceImport; an unknown type counts as ClusterSetIP."""
    meta, spec = w.metadata, w.spec or wire.ServiceImportSpec()
    if spec.type not in (None, "", "ClusterSetIP", "Headless"):
        note("spec.type", f"{spec.type!r} is unknown; taken as ClusterSetIP")
    headless = spec.type == "Headless"
    ports = []
    for i, p in enumerate(spec.ports or ()):
        protocol = _protocol(p.protocol)
        if protocol is None:
            note(f"spec.ports[{i}].protocol", f"{p.protocol!r} is none of TCP, UDP, SCTP")
        else:
            ports.append(_shared(Port(_port_name(p.name or "", f"spec.ports[{i}].name"), p.port, protocol)))
    return ServiceImport(
        namespace=_namespace(meta),
        name=_label_name(meta),
        headless=headless,
        ips=() if headless else _addresses(spec.ips or (), "spec.ips", note, canonical_ip),
        ports=_shared(tuple(ports)),
        labels=_pairs(meta.labels),
    )
