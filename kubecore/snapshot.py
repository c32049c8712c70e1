"""The cluster as last told: an index of immutable objects, and what changed in it since it was last asked.

Knows: which Services a change touches, and when a change is none. Must not know: where events come from, time, asyncio.
One writer (the store); readers take immutable values out and may keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubecore.model import (
    RESOURCE_OF,
    Delete,
    EndpointSlice,
    Event,
    KubeObject,
    Listed,
    ListStarted,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    Resource,
    Service,
    ServiceCIDR,
    ServiceImport,
    Upsert,
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two looks at a ClusterState. A change that undid itself in between is not in here."""

    services: frozenset[ObjectKey] = frozenset()
    """Services to be looked at again: the Service itself or one of its slices changed, came or went."""
    nodes: frozenset[ObjectKey] = frozenset()
    namespaces: frozenset[ObjectKey] = frozenset()
    pods: frozenset[ObjectKey] = frozenset()
    service_cidrs: frozenset[ObjectKey] = frozenset()
    service_imports: frozenset[ObjectKey] = frozenset()
    """ServiceImports to be looked at again: as `services`."""
    listed: frozenset[Resource] = frozenset()
    """Resources whose first list became complete."""

    def __bool__(self) -> bool:
        """Whether anything changed at all."""
        return bool(
            self.services
            or self.nodes
            or self.namespaces
            or self.pods
            or self.service_cidrs
            or self.service_imports
            or self.listed
        )


@dataclass(slots=True)
class _Table:
    """Objects of one resource, what readers last saw of those touched since, and the marks of a running list."""

    objects: dict[ObjectKey, KubeObject] = field(default_factory=dict)
    before: dict[ObjectKey, KubeObject | None] = field(default_factory=dict)
    unseen: set[ObjectKey] | None = None
    listed: bool = False

    def put(self, key: ObjectKey, value: KubeObject | None) -> KubeObject | None:
        """Store `value` (None: remove) and return what was there."""
        old = self.objects.get(key)
        if self.unseen is not None:
            self.unseen.discard(key)
        if old == value:
            return old
        self.before.setdefault(key, old)
        if value is None:
            del self.objects[key]
        else:
            self.objects[key] = value
        return old

    def take(self) -> frozenset[ObjectKey]:
        """Keys whose value differs from what was last taken."""
        if not self.before:
            return frozenset()
        changed = frozenset(k for k, old in self.before.items() if self.objects.get(k) != old)
        self.before.clear()
        return changed


class ClusterState:
    """Every object of the watched resources, by key, and the slices of each Service.

    `apply_event` costs the size of the object, not of the cluster. Events may repeat; order between resources is free.
    """

    def __init__(self) -> None:
        self._tables = {r: _Table() for r in Resource}
        self._slices: dict[ObjectKey, dict[str, EndpointSlice]] = {}
        self._import_slices: dict[ObjectKey, dict[str, EndpointSlice]] = {}
        self._newly_listed: set[Resource] = set()

    # -- reading

    @property
    def services(self) -> Mapping[ObjectKey, Service]:
        """All Services."""
        return self._tables[Resource.SERVICES].objects  # type: ignore[return-value]  # one type a table, by RESOURCE_OF

    @property
    def slices(self) -> Mapping[ObjectKey, EndpointSlice]:
        """All EndpointSlices by their own key."""
        return self._tables[Resource.ENDPOINT_SLICES].objects  # type: ignore[return-value]

    @property
    def nodes(self) -> Mapping[ObjectKey, Node]:
        """All Nodes; keys have an empty namespace."""
        return self._tables[Resource.NODES].objects  # type: ignore[return-value]

    @property
    def namespaces(self) -> Mapping[ObjectKey, Namespace]:
        """All Namespaces; keys have an empty namespace."""
        return self._tables[Resource.NAMESPACES].objects  # type: ignore[return-value]

    @property
    def pods(self) -> Mapping[ObjectKey, Pod]:
        """All Pods."""
        return self._tables[Resource.PODS].objects  # type: ignore[return-value]

    @property
    def service_cidrs(self) -> Mapping[ObjectKey, ServiceCIDR]:
        """All ServiceCIDRs."""
        return self._tables[Resource.SERVICE_CIDRS].objects  # type: ignore[return-value]

    @property
    def service_imports(self) -> Mapping[ObjectKey, ServiceImport]:
        """All ServiceImports."""
        return self._tables[Resource.SERVICE_IMPORTS].objects  # type: ignore[return-value]

    def slices_of(self, service: ObjectKey) -> tuple[EndpointSlice, ...]:
        """The slices labelled with this Service's name, sorted by name; empty if there are none."""
        return _sorted_slices(self._slices.get(service))

    def import_slices_of(self, service_import: ObjectKey) -> tuple[EndpointSlice, ...]:
        """The slices labelled with this ServiceImport's name, of all clusters; sorted and empty as `slices_of`."""
        return _sorted_slices(self._import_slices.get(service_import))

    def is_listed(self, *resources: Resource) -> bool:
        """Whether each of `resources` has been listed completely at least once."""
        return all(self._tables[r].listed for r in resources)

    def __eq__(self, other: object) -> bool:
        """Equal objects in every table; what was seen or listed when does not matter."""
        if not isinstance(other, ClusterState):
            return NotImplemented
        return all(self._tables[r].objects == other._tables[r].objects for r in Resource)  # noqa: SLF001 - same class

    __hash__ = None  # type: ignore[assignment]  # mutable

    # -- writing

    def apply_event(self, event: Event) -> None:
        """Take one event in. Never raises on what a source can send."""
        match event:
            case Upsert(obj):
                self._put(RESOURCE_OF[type(obj)], obj.key, obj)
            case Delete(resource, key):
                self._put(resource, key, None)
            case ListStarted(resource):
                table = self._tables[resource]
                table.unseen = set(table.objects)
            case Listed(resource):
                self._finish_list(resource)

    def take_changes(self) -> Changes:
        """What differs from the state at the previous call; the first call compares with an empty cluster."""
        tables = self._tables
        services = set(tables[Resource.SERVICES].take())
        imports = set(tables[Resource.SERVICE_IMPORTS].take())
        slice_table = tables[Resource.ENDPOINT_SLICES]
        before = dict(slice_table.before)
        for key in slice_table.take():
            for obj in (before[key], slice_table.objects.get(key)):
                if isinstance(obj, EndpointSlice) and obj.service:
                    services.add(obj.service_key)
                if isinstance(obj, EndpointSlice) and obj.service_import:
                    imports.add(obj.import_key)
        listed, self._newly_listed = frozenset(self._newly_listed), set()
        return Changes(
            services=frozenset(services),
            nodes=tables[Resource.NODES].take(),
            namespaces=tables[Resource.NAMESPACES].take(),
            pods=tables[Resource.PODS].take(),
            service_cidrs=tables[Resource.SERVICE_CIDRS].take(),
            service_imports=frozenset(imports),
            listed=listed,
        )

    def _put(self, resource: Resource, key: ObjectKey, value: KubeObject | None) -> None:
        old = self._tables[resource].put(key, value)
        if resource is Resource.ENDPOINT_SLICES and old != value:
            self._index_slice(old, value)

    def _index_slice(self, old: KubeObject | None, new: KubeObject | None) -> None:
        if isinstance(old, EndpointSlice) and old.service:
            _remove(self._slices, old.service_key, old.name)
        if isinstance(old, EndpointSlice) and old.service_import:
            _remove(self._import_slices, old.import_key, old.name)
        if isinstance(new, EndpointSlice) and new.service:
            self._slices.setdefault(new.service_key, {})[new.name] = new
        if isinstance(new, EndpointSlice) and new.service_import:
            self._import_slices.setdefault(new.import_key, {})[new.name] = new

    def _finish_list(self, resource: Resource) -> None:
        table = self._tables[resource]
        for key in table.unseen or ():
            self._put_gone(resource, key)
        table.unseen = None
        if not table.listed:
            table.listed = True
            self._newly_listed.add(resource)

    def _put_gone(self, resource: Resource, key: ObjectKey) -> None:
        old = self._tables[resource].objects.get(key)
        if old is None:
            return
        table = self._tables[resource]
        table.before.setdefault(key, old)
        del table.objects[key]
        if resource is Resource.ENDPOINT_SLICES:
            self._index_slice(old, None)


def _sorted_slices(by_name: Mapping[str, EndpointSlice] | None) -> tuple[EndpointSlice, ...]:
    return tuple(by_name[name] for name in sorted(by_name)) if by_name else ()


def _remove(index: dict[ObjectKey, dict[str, EndpointSlice]], owner: ObjectKey, name: str) -> None:
    by_name = index[owner]
    del by_name[name]
    if not by_name:
        del index[owner]
