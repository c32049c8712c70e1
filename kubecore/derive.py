"""EndpointSlices for a Service that has none, made from Pods or from an Endpoints object as the controllers do it.

Knows: the rules of the EndpointSlice controller and of the mirroring controller. Must not know: files, the store.
Called by the file source, since manifests hold what people write and not what controllers make of it.

Departures, because a folder of manifests is not a whole cluster: a Pod counts although its Node is not described; and
the Endpoints of a Service with a selector are used if no Pod matches it (a dump that left the Pods out).

Source: KEP-752; KEP-1669 (conditions); KEP-4444 and KEP-3015 (trafficDistribution); DNS specification 1.1 (hostname).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

import msgspec

from kubecore.addresses import family_of
from kubecore.model import (
    ContainerPort,
    Endpoint,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    Family,
    Node,
    ObjectKey,
    Pod,
    Port,
    Service,
    ServiceType,
)

MAX_ENDPOINTS_PER_SLICE = 100
"""The controller's default."""

HEADLESS_LABEL = "service.kubernetes.io/headless"
SKIP_MIRROR_LABEL = "endpointslice.kubernetes.io/skip-mirror"

_Pairs = tuple[tuple[str, str], ...]


def selects(selector: _Pairs, labels: _Pairs) -> bool:
    """Whether every pair of the selector is among the labels; an empty selector selects nothing here."""
    return bool(selector) and set(selector) <= set(labels)


def derive_slices(
    service: Service,
    pods: Iterable[Pod],
    endpoints: Endpoints | None,
    nodes: Mapping[ObjectKey, Node],
) -> tuple[EndpointSlice, ...]:
    """The slices of a Service that comes with none: from the Pods it selects, else mirrored from its Endpoints.

    Args:
        service: of any type; an ExternalName has no endpoints.
        pods: those of its namespace, matching or not, in any order.
        endpoints: the object of the Service's name, if there is one.
        nodes: for the zones.
    """
    if service.type is ServiceType.EXTERNAL_NAME:
        return ()
    if service.selector:
        chosen = sorted((p for p in pods if selects(service.selector, p.labels)), key=lambda p: p.name)
        if chosen or endpoints is None:
            return tuple(_from_pods(service, chosen, nodes))
    return tuple(_mirrored(service, endpoints)) if endpoints is not None and _is_mirrored(endpoints) else ()


def _families(service: Service) -> tuple[Family, ...]:
    """As the Service says, else those of its addresses, else (headless, nothing said) both."""
    if service.ip_families:
        return service.ip_families
    return tuple(dict.fromkeys(family_of(ip) for ip in service.cluster_ips)) or (4, 6)


# -- from Pods


def _from_pods(service: Service, pods: Iterable[Pod], nodes: Mapping[ObjectKey, Node]) -> Iterator[EndpointSlice]:
    serving = [pod for pod in pods if pod.ips and pod.phase not in {"Succeeded", "Failed"}]
    labels = service.labels
    if service.headless:
        labels = tuple(sorted({**dict(labels), HEADLESS_LABEL: ""}.items()))
    for family in _families(service):
        groups: dict[tuple[EndpointPort, ...], list[Endpoint]] = {}
        for pod in serving:
            addresses = tuple(ip for ip in pod.ips if family_of(ip) == family)
            if addresses:
                ports = tuple(_ports(service, pod))
                groups.setdefault(ports, []).append(_endpoint(service, pod, addresses, nodes))
        like = EndpointSlice(service.namespace, "pods", service.name, family, labels=labels)
        yield from _slices(like, groups)


def _endpoint(
    service: Service,
    pod: Pod,
    addresses: tuple[str, ...],
    nodes: Mapping[ObjectKey, Node],
) -> Endpoint:
    node = nodes.get(ObjectKey("", pod.node_name))
    zone = node.zone if node else ""
    ready = service.publish_not_ready or (pod.ready and not pod.deleting)
    same_zone = service.traffic_distribution in {"PreferClose", "PreferSameZone", "PreferSameNode"}
    same_node = service.traffic_distribution == "PreferSameNode"
    return Endpoint(
        addresses=addresses,
        ready=ready,
        serving=pod.ready,
        terminating=pod.deleting,
        hostname=pod.hostname if pod.subdomain == service.name else "",
        node_name=pod.node_name,
        zone=zone,
        target_kind="Pod",
        target_name=pod.name,
        target_uid=pod.uid,
        hint_zones=(zone,) if ready and same_zone and zone else (),
        hint_nodes=(pod.node_name,) if ready and same_node and pod.node_name else (),
    )


def _ports(service: Service, pod: Pod) -> Iterator[EndpointPort]:
    """The service ports as this Pod serves them; one whose named target the Pod does not have is left out."""
    for port in service.ports:
        number = _target(port, pod.container_ports)
        if number is not None:
            yield EndpointPort(port.name, number, port.protocol, port.app_protocol)


def _target(port: Port, container_ports: Iterable[ContainerPort]) -> int | None:
    if isinstance(port.target_port, int):
        return port.target_port or port.port
    wanted = (port.target_port, port.protocol)
    return next((c.port for c in container_ports if (c.name, c.protocol) == wanted), None)


# -- from Endpoints


def _is_mirrored(endpoints: Endpoints) -> bool:
    return not endpoints.leader_record and dict(endpoints.labels).get(SKIP_MIRROR_LABEL) != "true"


def _mirrored(service: Service, endpoints: Endpoints) -> Iterator[EndpointSlice]:
    groups: dict[Family, dict[tuple[EndpointPort, ...], dict[tuple[str, ...], Endpoint]]] = {4: {}, 6: {}}
    for subset in endpoints.subsets:
        for endpoint in subset.endpoints:
            group = groups[family_of(endpoint.addresses[0])].setdefault(subset.ports, {})
            group.setdefault(endpoint.addresses, endpoint)
    for family, by_ports in groups.items():
        found = {ports: list(group.values()) for ports, group in by_ports.items()}
        like = EndpointSlice(
            service.namespace,
            "endpoints",
            service.name,
            family,
            labels=endpoints.labels,
            trigger_s=endpoints.trigger_s,
        )
        yield from _slices(like, found)


# -- both


def _slices(
    like: EndpointSlice,
    groups: Mapping[tuple[EndpointPort, ...], list[Endpoint]],
) -> Iterator[EndpointSlice]:
    """Slices as `like`, one for each set of ports, or more where it has too many endpoints; names are stable.

    A name is `SERVICE.ORIGIN-ipvN-n`: with its dot, no name a controller would make.
    """
    number = count()
    for ports, endpoints in groups.items():
        for at in range(0, len(endpoints), MAX_ENDPOINTS_PER_SLICE):
            yield msgspec.structs.replace(
                like,
                name=f"{like.service}.{like.name}-ipv{like.family}-{next(number)}",
                ports=ports,
                endpoints=tuple(endpoints[at : at + MAX_ENDPOINTS_PER_SLICE]),
            )
