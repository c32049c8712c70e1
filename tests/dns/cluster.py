"""A cluster in a few words, for tests of the zone: Services, slices, pods and namespaces as one-liners."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dnsserver import names
from dnsserver.answer import Reply, answer
from dnsserver.config import KubernetesConfig
from dnsserver.encode import encode
from dnsserver.zone import Zone
from kubecore.model import (
    RESOURCE_OF,
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    KubeObject,
    Listed,
    Namespace,
    Pod,
    Port,
    Protocol,
    Resource,
    Service,
    ServiceImport,
    ServiceType,
    Upsert,
)
from kubecore.snapshot import ClusterState
from tests.dns.notation import query, shown

SERIAL = 1_700_000_000


def _split(key: str) -> tuple[str, str]:
    namespace, name = key.split("/")
    return namespace, name


def _ports(text: str) -> Iterable[tuple[str, int, Protocol]]:
    """`http:80/TCP dns:53/UDP 8080` - an unnamed port has no colon, TCP is the default."""
    for word in text.split():
        front, _, protocol = word.partition("/")
        name, _, number = front.rpartition(":")
        yield name, int(number), Protocol(protocol or "TCP")


def service(key: str, ips: str = "", ports: str = "", **more: object) -> Service:
    """A ClusterIP Service; `ips="None"` makes it headless, `to=` an ExternalName."""
    namespace, name = _split(key)
    external = str(more.pop("to", ""))
    made = Service(
        namespace=namespace,
        name=name,
        type=ServiceType.EXTERNAL_NAME if external else ServiceType.CLUSTER_IP,
        cluster_ips=() if ips == "None" else tuple(ips.split()),
        headless=ips == "None",
        ports=tuple(Port(name=n, port=p, protocol=q) for n, p, q in _ports(ports)),
        external_name=external,
    )
    return msgspec.structs.replace(made, **more)


def piece(of: str, endpoints: str, ports: str = "", name: str = "a", **more: object) -> EndpointSlice:
    """A slice. Endpoints: `10.1.0.1=web-0` with hostname, `10.1.0.1@pod-x` of a pod, `10.1.0.2/east-1` in a topology
    zone, `10.1.0.3!` not ready."""
    namespace, svc = _split(of)
    made = []
    for word in endpoints.split():
        ready = not word.endswith("!")
        rest, _, zone = word.rstrip("!").partition("/")
        rest, _, pod = rest.partition("@")
        address, _, hostname = rest.partition("=")
        made.append(
            Endpoint(addresses=(address,), ready=ready, serving=ready, hostname=hostname, target_name=pod, zone=zone)
        )
    built = EndpointSlice(
        namespace=namespace,
        name=f"{svc}-{name}",
        service=svc,
        family=6 if ":" in endpoints.split("=", maxsplit=1)[0] else 4,
        ports=tuple(EndpointPort(name=n, port=p, protocol=q) for n, p, q in _ports(ports)),
        endpoints=tuple(made),
    )
    return msgspec.structs.replace(built, **more)


def service_import(key: str, ips: str = "", ports: str = "", **more: object) -> ServiceImport:
    """A ServiceImport; `ips="None"` makes it headless."""
    ns, name = _split(key)
    made = ServiceImport(
        namespace=ns,
        name=name,
        headless=ips == "None",
        ips=() if ips == "None" else tuple(ips.split()),
        ports=tuple(Port(name=n, port=p, protocol=q) for n, p, q in _ports(ports)),
    )
    return msgspec.structs.replace(made, **more)


def imported(of: str, cluster: str, endpoints: str, ports: str = "", name: str = "", **more: object) -> EndpointSlice:
    """A slice of a ServiceImport with endpoints in `cluster`; written as `piece`."""
    made = piece(of, endpoints, ports, name=name or cluster or "a", service="", service_import=of.split("/")[1])
    return msgspec.structs.replace(made, source_cluster=cluster, **more)


def namespace(name: str, **labels: str) -> Namespace:
    return Namespace(name=name, labels=tuple(sorted(labels.items())))


def pod(key: str, ips: str, phase: str = "Running", **more: object) -> Pod:
    ns, name = _split(key)
    return msgspec.structs.replace(Pod(namespace=ns, name=name, ips=tuple(ips.split()), phase=phase), **more)


def state_of(*objects: KubeObject, listed: bool = True) -> ClusterState:
    state = ClusterState()
    put(state, *objects)
    for resource in Resource if listed else ():
        state.apply_event(Listed(resource))
    state.take_changes()
    return state


def put(state: ClusterState, *objects: KubeObject) -> None:
    for obj in objects:
        state.apply_event(Upsert(obj))


def remove(state: ClusterState, *objects: KubeObject) -> None:
    for obj in objects:
        state.apply_event(Delete(RESOURCE_OF[type(obj)], obj.key))


def config(zones: str = "cluster.local", **more: object) -> KubernetesConfig:
    wire = tuple(zone for text in zones.split() for zone in names.zones_of(text))
    fallthrough = more.pop("fallthrough", None)
    if isinstance(fallthrough, str):
        more["fallthrough"] = tuple(zone for text in fallthrough.split() for zone in names.zones_of(text))
    more["multicluster"] = tuple(names.zones_of(zone)[0] for zone in str(more.pop("multicluster", "")).split())
    return KubernetesConfig(zones=wire, **more)  # type: ignore[arg-type]


def zone_of(
    *objects: KubeObject, settings: KubernetesConfig | None = None, local: str = "", listed: bool = True
) -> Zone:
    zone = Zone(settings or config(), local.split())
    zone.load(state_of(*objects, listed=listed), SERIAL)
    return zone


def ask(zone: Zone, text: str) -> str:
    """The reply of a zone over TCP in the field's notation; authoritative, and in no cache."""
    asked = query(text, transport="tcp")
    outcome = answer(zone, asked.question)
    assert isinstance(outcome, Reply), outcome
    assert outcome.message.aa
    assert not outcome.message.cacheable
    return shown(encode(outcome.message, asked))
