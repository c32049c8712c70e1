"""What one Service and its EndpointSlices put below `SVC.NS.svc.ZONE`: names, addresses, ports; no records yet.

Knows endpoint naming, readiness, ports, when a name exists. Must not know zones, TTLs, messages, other Services. Held
by `zone`, one a Service; the endpoint names of a Service are indexed when first asked for.

Source: Kubernetes DNS-based service discovery 1.1.0 §2.3 to §2.5; discovery.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import msgspec

from dnsserver import names
from kubecore.model import Endpoint, EndpointSlice, ObjectKey, Service, ServiceType


class Target(NamedTuple):
    """One candidate of an SRV answer."""

    label: str
    """The endpoint's name, of an import two labels with a dot; empty: the Service itself."""
    address: str
    port: int


class PortName(NamedTuple):
    """`_port._proto` of a question, underscores stripped, lower case."""

    port: str
    protocol: str


def endpoint_label(endpoint: Endpoint, address: str, *, pod_names: bool) -> str:
    """The one label an endpoint's address is found under: hostname, else pod name (if wanted), else dashed address."""
    if endpoint.hostname and _is_label(endpoint.hostname):
        return endpoint.hostname
    if pod_names and endpoint.target_name and _is_label(endpoint.target_name):
        return endpoint.target_name
    dashed = address.replace(".", "-").replace(":", "-")
    return dashed + "0" if dashed.endswith("-") else dashed  # `2001:db8::` would end in a dash


def _is_label(text: str) -> bool:
    return len(text) <= names.MAX_LABEL_BYTES and "." not in text and text.isascii()


def in_topology_zone(piece: EndpointSlice, zone: str) -> EndpointSlice:
    """The slice with only the endpoints of a topology zone (lower case)."""
    return msgspec.structs.replace(piece, endpoints=tuple(e for e in piece.endpoints if e.zone.lower() == zone))


def slice_pairs(
    piece: EndpointSlice, *, pod_names: bool, but: Collection[tuple[str, ...]] = ()
) -> set[tuple[str, str]]:
    """The (address, label) pairs of a slice's ready endpoints, but for endpoints with exactly these addresses."""
    return {
        (address, endpoint_label(endpoint, address, pod_names=pod_names))
        for endpoint in piece.endpoints
        if endpoint.ready and endpoint.addresses not in but
        for address in endpoint.addresses
    }


def differing_pairs(
    old: EndpointSlice, new: EndpointSlice, *, pod_names: bool
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """`slice_pairs` of both, without what an endpoint that is in both alike puts in both: most of them."""
    before = {e.addresses: e for e in old.endpoints if e.ready}
    after = {e.addresses: e for e in new.endpoints if e.ready}
    alike = set()
    if _all_distinct(old, before) and _all_distinct(new, after):
        for addresses, endpoint in after.items():
            same = before.get(addresses)
            if same and same.hostname == endpoint.hostname and same.target_name == endpoint.target_name:
                alike.add(addresses)
    return slice_pairs(old, pod_names=pod_names, but=alike), slice_pairs(new, pod_names=pod_names, but=alike)


def _all_distinct(piece: EndpointSlice, ready: Mapping[tuple[str, ...], Endpoint]) -> bool:
    """Whether no address stands twice in the slice's ready endpoints, which are `ready` by their addresses."""
    given = [address for addresses in ready for address in addresses]
    return len(set(given)) == len(given) == sum(len(e.addresses) for e in piece.endpoints if e.ready)


class _SliceIndex(NamedTuple):
    """The ready endpoints of one slice by lower-case label."""

    of: EndpointSlice
    addresses: dict[str, tuple[str, ...]]


class ServiceNames:
    """A Service with its slices, as the zone sees it. Immutable but for indexes made on first use."""

    __slots__ = ("_addresses", "_indexes", "imported", "key", "owner", "pod_names", "service", "slices")

    def __init__(
        self,
        service: Service,
        slices: tuple[EndpointSlice, ...],
        *,
        pod_names: bool,
        imported: bool = False,
        before: ServiceNames | None = None,
    ) -> None:
        """Nothing is indexed yet.

        Args:
            service: the Service.
            slices: its slices, sorted by name.
            pod_names: endpoints without a hostname are named after their pod.
            imported: it is a ServiceImport: an endpoint's name has two labels, its own and its cluster's.
            before: the same Service earlier; what was indexed of slices that did not change is taken over.
        """
        self.key = service.key
        self.owner: tuple[ObjectKey] = (self.key,)
        """Shared by all its addresses in an index."""
        self.service = service
        self.slices = slices
        self.pod_names = pod_names
        self.imported = imported
        self._addresses: tuple[str, ...] | None = None
        self._indexes: dict[str, _SliceIndex] = {}
        indexed = before._indexes if before is not None else None  # noqa: SLF001 - same class
        if indexed:
            kept = {piece.name: piece for piece in slices}
            self._indexes = {name: index for name, index in indexed.items() if kept.get(name) is index.of}

    @property
    def is_alias(self) -> bool:
        """ExternalName: a CNAME, and nothing below."""
        return self.service.type is ServiceType.EXTERNAL_NAME

    @property
    def alias_target(self) -> bytes | None:
        """Where an ExternalName Service points; None if that is no domain name (an address, say)."""
        text = self.service.external_name
        bare = text.rstrip(".")
        if not bare or ":" in bare or bare.replace(".", "").isdigit():
            return None
        try:
            return names.from_text(text)
        except ValueError:
            return None

    @property
    def has_ready_endpoints(self) -> bool:
        """Whether any slice has a ready endpoint with an address."""
        return any(e.ready and e.addresses for piece in self.slices for e in piece.endpoints)

    def slice_addresses(self) -> Iterator[str]:
        """The addresses of the ready endpoints, each once a slice."""
        if not self.is_alias:
            for piece in self.slices:
                yield from {address for endpoint in piece.endpoints if endpoint.ready for address in endpoint.addresses}

    def external_addresses(self) -> tuple[str, ...]:
        """External IPs and the load balancer's addresses, each once."""
        given = (*self.service.external_ips, *(entry.ip for entry in self.service.ingress if entry.ip))
        return tuple(dict.fromkeys(given))

    def external_names(self) -> tuple[str, ...]:
        """The load balancer's hostnames, each once."""
        return tuple(dict.fromkeys(entry.hostname for entry in self.service.ingress if entry.hostname))

    # -- names

    def endpoint(self, label: str) -> tuple[str, ...]:
        """The addresses of the endpoints called `label` (lower case; `EP.CLUSTER` of an import), each once.

        Empty: no such name.
        """
        found: dict[str, None] = {}
        for piece in self.slices:
            index = self._indexes.get(piece.name)
            if index is None:
                by_label: dict[str, tuple[str, ...]] = {}
                for target in self._ready_in(piece):
                    name = target.label.lower()
                    by_label[name] = (*by_label.get(name, ()), target.address)
                index = self._indexes[piece.name] = _SliceIndex(piece, by_label)
            found.update(dict.fromkeys(index.addresses.get(label, ())))
        return tuple(found)

    def labels_of(self, address: str) -> list[str]:
        """The names of the ready endpoints with this address, sorted, each once."""
        return sorted(
            {
                self.label_of(piece, endpoint, address)
                for piece in self.slices
                for endpoint in piece.endpoints
                if address in endpoint.addresses and endpoint.ready
            }
        )

    def label_of(self, piece: EndpointSlice, endpoint: Endpoint, address: str) -> str:
        """An endpoint's name; empty: it has none, as nobody says which cluster it is in."""
        label = endpoint_label(endpoint, address, pod_names=self.pod_names)
        if not self.imported:
            return label
        return f"{label}.{piece.source_cluster}" if piece.source_cluster else ""

    def has_cluster(self, cluster: str) -> bool:
        """Whether an import has a ready endpoint in this cluster (lower case): `CLUSTER.SVC` has names below it."""
        return any(
            piece.source_cluster.lower() == cluster and any(e.ready for e in piece.endpoints) for piece in self.slices
        )

    def in_topology_zone(self, zone: str) -> ServiceNames:
        """The Service as if it had only the endpoints of a topology zone (lower case)."""
        slices = tuple(in_topology_zone(piece, zone) for piece in self.slices)
        return ServiceNames(self.service, slices, pod_names=self.pod_names, imported=self.imported)

    def has_protocol(self, protocol: str) -> bool:
        """Whether `_protocol.SVC` has a named port below it."""
        if self.service.headless:
            return any(
                port.name and port.port and port.protocol.value.lower() == protocol
                for piece in self.slices
                if any(e.ready for e in piece.endpoints)
                for port in piece.ports
            )
        return any(port.name and port.protocol.value.lower() == protocol for port in self.service.ports)

    # -- data

    def addresses(self) -> tuple[str, ...]:
        """What the Service's own name stands for: ClusterIPs, or the ready endpoints of a headless one; each once."""
        if self.service.headless:
            if self._addresses is None:
                self._addresses = tuple(
                    dict.fromkeys(a for piece in self.slices for e in piece.endpoints if e.ready for a in e.addresses)
                )
            return self._addresses
        return self.service.cluster_ips

    def targets(self, port: PortName | None, label: str | None = None) -> list[Target]:
        """The SRV candidates, duplicates included (they count in the weight).

        Args:
            port: only ports of this name and protocol; None: every port, unnamed ones too.
            label: only this endpoint (lower case); None: the Service.
        """
        if self.service.headless or label is not None:
            return [
                Target(target.label, target.address, number)
                for piece in self.slices
                for number in self._slice_ports(piece, port)
                for target in self._ready_in(piece)
                if label is None or target.label.lower() == label
            ]
        return [
            Target("", address, declared.port)
            for declared in self.service.ports
            if port is None or _matches(port, declared.name, declared.protocol.value)
            for address in self.service.cluster_ips
        ]

    def has_port(self, port: PortName) -> bool:
        """Whether the name `_port._proto.SVC` exists."""
        if self.service.headless:
            return bool(self.targets(port))
        return any(_matches(port, declared.name, declared.protocol.value) for declared in self.service.ports)

    def _slice_ports(self, piece: EndpointSlice, wanted: PortName | None) -> Iterator[int]:
        for port in piece.ports:
            if port.port and (wanted is None or _matches(wanted, port.name or "", port.protocol.value)):
                yield port.port

    def _ready_in(self, piece: EndpointSlice) -> Iterator[Target]:
        for endpoint in piece.endpoints:
            if endpoint.ready:
                for address in endpoint.addresses:
                    yield Target(self.label_of(piece, endpoint, address), address, 0)


def _matches(wanted: PortName, name: str, protocol: str) -> bool:
    return bool(name) and name.lower() == wanted.port and protocol.lower() == wanted.protocol


def answers_alike(old: ServiceNames, new: ServiceNames) -> bool:
    """Whether the two Services' own fields (slices aside) give the same answers."""
    a, b = old.service, new.service
    return (
        old.is_alias == new.is_alias
        and a.headless == b.headless
        and a.cluster_ips == b.cluster_ips
        and a.external_name == b.external_name
        and (a.ports == b.ports or _port_answer(a) == _port_answer(b))
    )


def _port_answer(service: Service) -> list[tuple[object, ...]]:
    return [(port.name, port.port, port.protocol) for port in service.ports]


def slices_alike(old: EndpointSlice, new: EndpointSlice, *, zonal: bool = False) -> bool:
    """Whether the two slices have the same ports and ready endpoints in the same order; `zonal`: and the same zones."""
    if old is new:
        return True
    if zonal and [e.zone for e in old.endpoints if e.ready] != [e.zone for e in new.endpoints if e.ready]:
        return False
    return _slice_answer(old) == _slice_answer(new)


def _slice_answer(piece: EndpointSlice) -> tuple[object, ...]:
    return (
        [(port.name, port.port, port.protocol) for port in piece.ports],
        [(e.addresses, e.hostname, e.target_name) for e in piece.endpoints if e.ready],
    )
