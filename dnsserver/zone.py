"""What the cluster's zones are made of: visible Services, namespaces, pod addresses, kept up to date by the Service.

Knows which objects are visible under a configuration, and which names a change touches. Must not know records (that is
`lookup`), messages, time. `apply` is called by the server when the cluster changed.

A Service (or ServiceImport) is visible if its namespace is exposed and its labels are selected. The Zone keeps the
objects it last saw, so that a change can be compared with them and every look-up sees whole Services, old or new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dnsserver import names
from dnsserver.config import KubernetesConfig, PodsMode
from dnsserver.imports import Imports, import_names
from dnsserver.podindex import PodIndex
from dnsserver.reverse import AddressIndex
from dnsserver.services import ServiceNames, answers_alike, differing_pairs, slice_pairs, slices_alike
from kubecore.model import EndpointSlice, ObjectKey, Pod, Resource
from kubecore.snapshot import Changes, ClusterState

_GONE_PHASES = frozenset({"Succeeded", "Failed", "Unknown"})


class Invalidation(NamedTuple):
    """Which memoised answers a change made wrong: all, or those whose question's `Zone.tag` is listed."""

    everything: bool
    tags: frozenset[bytes]

    def __bool__(self) -> bool:
        """Whether there is anything to drop."""
        return self.everything or bool(self.tags)


class Zone:
    """All zones of one `kubernetes` directive. One writer (`apply`); every look-up sees whole Services, old or new."""

    def __init__(self, config: KubernetesConfig, local_addresses: Iterable[str] = ()) -> None:
        """Args: `local_addresses`: this server's own, canonical, non-loopback: what NS and `ns.dns` say."""
        self.config = config
        self.serial = 0
        """Unix seconds of the last change of any answer, or one more than before where several fell into a second."""
        self.external_serial = 0
        """The same for external addresses, which other zones show."""
        self.synced = False
        """Whether every resource the zone is made of was listed: absence means something."""
        self.imports = Imports(config.multicluster)
        """What the multicluster zones among ours show, where others show Services."""
        self.local_addresses = tuple(local_addresses)
        self._zones = {zone: names.is_reverse(zone) for zone in config.zones}
        self._forward = tuple(zone for zone, reverse in self._zones.items() if not reverse)
        self._own = tuple(zone for zone in self._forward if zone not in self.imports.zones)
        self._has_reverse = any(self._zones.values())
        self._services: dict[ObjectKey, ServiceNames] = {}
        self._service_counts: dict[str, int] = {}
        self._namespaces: dict[str, bool] = {}
        self._pods = PodIndex()
        self._cluster_ips = AddressIndex()
        self._endpoint_ips = AddressIndex()
        self._external_ips = AddressIndex()

    # -- where a name belongs

    def cut(self, lower: bytes) -> int | None:
        """Where the longest of our zones begins in a lower-case name; None: the name is in none of them."""
        zones = self._zones
        at = 0
        while lower[at:] not in zones:
            if not lower[at]:
                return None
            at += 1 + lower[at]
        return at

    def serial_of(self, lower: bytes) -> Zone | Imports:
        """Who holds the serial that answers for a lower-case name show: multicluster zones have one of their own."""
        cut = self.cut(lower)
        return self.imports if cut is not None and lower[cut:] in self.imports.zones else self

    def is_synced(self, zone: bytes) -> bool:
        """Whether all that `zone` (one of ours, lower case) is made of was listed."""
        return self.synced and (zone not in self.imports.zones or self.imports.synced)

    def tag(self, lower: bytes) -> bytes:
        """The key under which `apply` reports changes of this name's answers: one a Service, one a namespace's pods.

        Memos are to be dropped by it: names below a Service that do not exist yet carry the Service's tag too.
        """
        cut = self.cut(lower)
        if cut == 0:
            return b""  # every apex changes with the serial
        if cut is None or self._zones[lower[cut:]]:
            return lower
        starts = [0]
        while (at := starts[-1] + 1 + lower[starts[-1]]) < cut:
            starts.append(at)
        if len(starts) >= 3 and lower[starts[-1] : cut] == b"\x03svc":
            return lower[starts[-3] :]
        if len(starts) >= 2 and lower[starts[-1] : cut] == b"\x03pod":
            return lower[starts[-2] :]
        return lower

    # -- what there is

    def service(self, namespace: str, name: str) -> ServiceNames | None:
        """A Service that is visible in these zones."""
        return self._services.get(ObjectKey(namespace, name))

    def services(self) -> Iterable[ServiceNames]:
        """All visible Services, in no order."""
        return self._services.values()

    def has_namespace(self, namespace: str) -> bool:
        """Whether a namespace exists (as an object, or by a Service or ServiceImport in it) and is exposed."""
        if namespace not in self._namespaces and namespace not in self._service_counts:
            return False
        return self._exposes(namespace)

    def has_pod(self, namespace: str, address: str) -> bool:
        """Whether a live pod of that namespace has the address. Known in the verified mode only."""
        return any(key.namespace == namespace for key in self._pods.owners(address))

    def service_of_ip(self, address: str) -> ServiceNames | None:
        """The Service with this ClusterIP; of several (one is going) the first by name."""
        owners = self._cluster_ips.owners(address)
        return self._services[owners[0]] if owners else None

    def services_of_endpoint(self, address: str) -> list[ServiceNames]:
        """The Services with a ready endpoint of this address, sorted."""
        return [self._services[key] for key in self._endpoint_ips.owners(address)]

    def service_of_external_ip(self, address: str) -> ServiceNames | None:
        """The Service with this external address; of several the first by name."""
        owners = self._external_ips.owners(address)
        return self._services[owners[0]] if owners else None

    def covers_external(self, name: names.ReverseName) -> bool:
        """Whether an external address begins with these bits."""
        return self._external_ips.covers(name)

    def covers(self, name: names.ReverseName) -> bool:
        """Whether a reverse name, or one below it, exists."""
        return self._cluster_ips.covers(name) or self._endpoint_ips.covers(name)

    def primary(self) -> bytes | None:
        """The first forward zone with the cluster's Services, lower case: where PTR records point to. None: none."""
        return self._own[0] if self._own else None

    # -- changing

    def load(self, state: ClusterState, now_s: float) -> None:
        """Take in a whole cluster; only for a new Zone."""
        for key in state.namespaces:
            self._put_namespace(state, key.name, set())
        for key, pod in state.pods.items():
            self._put_pod(key, pod, None)
        for key in state.services:
            entry = self._entry(state, key)
            if entry:
                self._services[key] = entry
                self._service_counts[key.namespace] = self._service_counts.get(key.namespace, 0) + 1
        for key in state.service_imports if self.imports.zones else ():
            if self.imports.put(key, self._import_entry(state, key)):
                self._service_counts[key.namespace] = self._service_counts.get(key.namespace, 0) + 1
        entries = self._services.values()
        self._cluster_ips.load((ip, e.owner) for e in entries if not e.is_alias for ip in e.service.cluster_ips)
        self._endpoint_ips.load((address, e.owner) for e in entries for address in e.slice_addresses())
        self._external_ips.load((address, e.owner) for e in entries for address in e.external_addresses())
        self.synced = state.is_listed(*self.resources())
        self.imports.synced = state.is_listed(Resource.SERVICE_IMPORTS)
        self.serial = self.external_serial = self.imports.serial = int(now_s)

    def resources(self) -> tuple[Resource, ...]:
        """What the zone is made of: to be watched, and listed before absence means anything.

        Not the ServiceImports: where they cannot be had, the cluster's own zones are well.
        """
        needed = [Resource.SERVICES, Resource.NAMESPACES]
        if not self.config.noendpoints:
            needed.append(Resource.ENDPOINT_SLICES)
        if self.config.pods is PodsMode.VERIFIED:
            needed.append(Resource.PODS)
        return tuple(needed)

    def apply(self, state: ClusterState, changes: Changes, now_s: float) -> Invalidation:
        """Bring the zone to `state`, of which only `changes` differ from before. Returns what to drop from memos.

        The cost is that of the changed Services. A large `changes` may be given in parts.
        """
        shared: set[bytes] = set()  # namespaces and pods are in all forward zones
        services, imports = set(changes.services), set(changes.service_imports)
        for key in changes.namespaces:
            if self._put_namespace(state, key.name, shared):
                services |= {service for service in state.services if service.namespace == key.name}
                imports |= {found for found in state.service_imports if found.namespace == key.name}
        for key in changes.pods:
            self._put_pod(key, state.pods.get(key), shared)
        own: set[bytes] = set()
        imported: set[bytes] = set()
        external = False
        for key in services:
            external |= self._put_service(key, self._entry(state, key), own, shared)
        for key in imports if self.imports.zones else ():
            self._put_import(key, self._import_entry(state, key), imported, shared)
        if external or own or shared:
            self.external_serial = max(int(now_s), self.external_serial + 1)
        if own or shared:
            self.serial = max(int(now_s), self.serial + 1)
        if imported or shared:
            self.imports.serial = max(int(now_s), self.imports.serial + 1)
        tags = own | imported | shared
        if tags:
            tags.add(b"")
        were = self.synced, self.imports.synced
        self.synced, self.imports.synced = (
            state.is_listed(*self.resources()),
            state.is_listed(Resource.SERVICE_IMPORTS),
        )
        return Invalidation(everything=were != (self.synced, self.imports.synced), tags=frozenset(tags))

    def _exposes(self, namespace: str) -> bool:
        if self.config.namespaces:
            return namespace in self.config.namespaces
        return self.config.namespace_labels is None or bool(self._namespaces.get(namespace))

    def _entry(self, state: ClusterState, key: ObjectKey) -> ServiceNames | None:
        """The Service as these zones show it; None if it is not there or filtered out."""
        service = state.services.get(key)
        labels = self.config.labels
        if service is None or not self._exposes(key.namespace) or (labels and not labels.matches(service.labels)):
            return None
        slices = () if self.config.noendpoints else state.slices_of(key)
        if labels:
            slices = tuple(piece for piece in slices if labels.matches(piece.labels))
        return ServiceNames(service, slices, pod_names=self.config.endpoint_pod_names, before=self._services.get(key))

    def _import_entry(self, state: ClusterState, key: ObjectKey) -> ServiceNames | None:
        """The ServiceImport as the multicluster zones show it; None as for `_entry`."""
        found = state.service_imports.get(key)
        labels = self.config.labels
        if found is None or not self._exposes(key.namespace) or (labels and not labels.matches(found.labels)):
            return None
        slices = () if self.config.noendpoints else state.import_slices_of(key)
        if labels:
            slices = tuple(piece for piece in slices if labels.matches(piece.labels))
        return import_names(found, slices, pod_names=self.config.endpoint_pod_names, before=self.imports.get(key))

    def _put_namespace(self, state: ClusterState, name: str, tags: set[bytes]) -> bool:
        """Take in a namespace; whether its Services came into sight or went out of it."""
        was = self._namespaces.pop(name, None)
        namespace = state.namespaces.get(ObjectKey("", name))
        selector = self.config.namespace_labels
        selected = None if namespace is None else selector is None or selector.matches(namespace.labels)
        if selected is not None:
            self._namespaces[name] = selected
        if was != selected:
            self._tag_namespace(name, tags)
        return selector is not None and bool(was) != bool(selected)

    def _put_pod(self, key: ObjectKey, pod: Pod | None, tags: set[bytes] | None) -> None:
        if self.config.pods is not PodsMode.VERIFIED:
            return
        labels = self.config.labels
        live = pod is not None and pod.phase not in _GONE_PHASES and (labels is None or labels.matches(pod.labels))
        changed = self._pods.put(key, pod.ips if pod is not None and live else ())
        if changed and tags is not None:
            tags.update(_container(key.namespace, b"\x03pod", zone) for zone in self._forward)

    def _put_service(self, key: ObjectKey, new: ServiceNames | None, tags: set[bytes], shared: set[bytes]) -> bool:
        """Replace a Service; whether its external addresses changed."""
        old = self._services.get(key)
        if new is None:
            if old is None:
                return False
            del self._services[key]
        else:
            self._services[key] = new
        self._index_cluster_ips(old, new, tags)
        changed = self._index_endpoints(old, new, tags)
        if old is None or new is None:
            self._count_service(key.namespace, 1 if new else -1, shared)
            changed = True
        elif not answers_alike(old, new):
            changed = True
        if changed:
            tags.update(_below_svc(key, zone) for zone in self._own)
        return self._index_external_ips(old, new)

    def _put_import(self, key: ObjectKey, new: ServiceNames | None, tags: set[bytes], shared: set[bytes]) -> None:
        step = (new is not None) - (self.imports.get(key) is not None)
        if not self.imports.put(key, new):
            return
        tags.update(_below_svc(key, zone) for zone in self.imports.zones)
        if step:
            self._count_service(key.namespace, step, shared)

    def _index_external_ips(self, old: ServiceNames | None, new: ServiceNames | None) -> bool:
        had = old.external_addresses() if old else ()
        has = new.external_addresses() if new else ()
        names_differ = (old.external_names() if old else ()) != (new.external_names() if new else ())
        if had == has:
            return names_differ
        self._reindex(self._external_ips, old or new, set(had), set(has), None)
        return True

    def _count_service(self, namespace: str, step: int, tags: set[bytes]) -> None:
        count = self._service_counts.pop(namespace, 0) + step
        if count:
            self._service_counts[namespace] = count
        if count in (0, 1):
            self._tag_namespace(namespace, tags)

    def _tag_namespace(self, namespace: str, tags: set[bytes]) -> None:
        for zone in self._forward:
            tags.add(_container(namespace, b"\x03svc", zone))
            tags.add(_container(namespace, b"\x03pod", zone))

    def _index_cluster_ips(self, old: ServiceNames | None, new: ServiceNames | None, tags: set[bytes]) -> None:
        had = old.service.cluster_ips if old and not old.is_alias else ()
        has = new.service.cluster_ips if new and not new.is_alias else ()
        if had != has:
            self._reindex(self._cluster_ips, old or new, set(had), set(has), tags)
            self._tag_addresses({*had} ^ {*has}, tags)

    def _index_endpoints(self, old: ServiceNames | None, new: ServiceNames | None, tags: set[bytes]) -> bool:
        """Bring the endpoint index from `old` to `new`; whether an endpoint or port changed."""
        was = {piece.name: piece for piece in old.slices} if old and not old.is_alias else {}
        now = {piece.name: piece for piece in new.slices} if new and not new.is_alias else {}
        any_changed = False
        for name in was.keys() | now.keys():
            before, after = was.get(name), now.get(name)
            if before is not None and after is not None and slices_alike(before, after, zonal=self.config.zonal):
                continue
            any_changed = True
            if before is not None and after is not None:
                had, has = differing_pairs(before, after, pod_names=self.config.endpoint_pod_names)
            else:
                had, has = self._pairs(before), self._pairs(after)
            self._reindex(self._endpoint_ips, old or new, {a for a, _ in had}, {a for a, _ in has}, tags)
            self._tag_addresses({address for address, _ in had ^ has}, tags)
        return any_changed

    def _pairs(self, piece: EndpointSlice | None) -> set[tuple[str, str]]:
        return slice_pairs(piece, pod_names=self.config.endpoint_pod_names) if piece else set()

    def _reindex(
        self, index: AddressIndex, who: ServiceNames | None, had: set[str], has: set[str], tags: set[bytes] | None
    ) -> None:
        if who is None:
            return
        touched = tags if self._has_reverse else None
        for address in has - had:
            index.add(address, who.owner, touched)
        for address in had - has:
            index.discard(address, who.owner, touched)

    def _tag_addresses(self, addresses: Iterable[str], tags: set[bytes]) -> None:
        if self._has_reverse:
            tags.update(_reverse_tags(addresses))


def _reverse_tags(addresses: Iterable[str]) -> Iterator[bytes]:
    for address in addresses:
        try:
            yield names.reverse_name(address)
        except ValueError:
            continue


def _wire_label(text: str) -> bytes:
    raw = text.lower().encode("latin-1", "replace")[: names.MAX_LABEL_BYTES]
    return bytes((len(raw),)) + raw


def _container(namespace: str, kind: bytes, zone: bytes) -> bytes:
    return _wire_label(namespace) + kind + zone


def _below_svc(key: ObjectKey, zone: bytes) -> bytes:
    return _wire_label(key.name) + _wire_label(key.namespace) + b"\x03svc" + zone
