"""What a set of manifest files says together: one definition of each object, and slices for Services that have none.

Knows: which file wins, which Services a change concerns. Must not know: file systems, time, logging. Held by the file
source; the cost of an update is that of the objects it changes and of the Services they concern.

Where two files define an object, the one later in the order of names holds, as with `kubectl apply -f` on a directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, cast

from kubecore.convert import SERVICE_NAME_LABEL
from kubecore.derive import derive_slices, selects
from kubecore.manifestfile import Entry, FileContent, Ident, Problem, Severity
from kubecore.model import (
    RESOURCE_OF,
    Delete,
    Endpoints,
    EndpointSlice,
    Event,
    KubeObject,
    Node,
    ObjectKey,
    Pod,
    Resource,
    Service,
    Upsert,
)
from kubecore.selectors import Selection

_Pair = tuple[str, str]
K = TypeVar("K")
V = TypeVar("V")


class Folder:
    """The contents of all files, merged. `update` is the only way in, events the only way out."""

    def __init__(self, selections: Mapping[Resource, Selection]) -> None:
        """`selections` has an entry for each resource that events are wanted of."""
        self._selections = selections
        self._files: dict[str, FileContent] = {}
        self._definitions: dict[Ident, dict[str, Entry]] = {}
        self._current: dict[Ident, Entry] = {}
        self._services: dict[ObjectKey, Service] = {}
        self._endpoints: dict[ObjectKey, Endpoints] = {}
        self._nodes: dict[ObjectKey, Node] = {}
        self._slices: dict[ObjectKey, set[ObjectKey]] = {}
        """Keys of the slices that files give a Service."""
        self._pods_by_label: dict[tuple[str, _Pair], dict[ObjectKey, Pod]] = {}
        self._services_by_label: dict[tuple[str, _Pair], set[ObjectKey]] = {}
        """By namespace and one pair of the selector: all must match, so one is enough to find candidates."""
        self._derived: dict[ObjectKey, tuple[EndpointSlice, ...]] = {}

    @property
    def resources(self) -> tuple[Resource, ...]:
        """The resources that events are wanted of."""
        return tuple(self._selections)

    def content(self, file: str) -> FileContent | None:
        """What holds of a file now; None: nothing."""
        return self._files.get(file)

    def update(self, files: Mapping[str, FileContent | None]) -> tuple[list[Event], list[Problem]]:
        """Take in new contents of files (None: gone), all at once.

        Returns:
            The events that bring a store up to date, and objects of these files that another file also defines.
        """
        touched: dict[Ident, None] = {}
        for file in sorted(files):
            old, new = self._files.pop(file, None), files[file]
            for ident in old.entries if old else ():
                touched[ident] = None
                del self._definitions[ident][file]
            if new is not None:
                self._files[file] = new
            for ident, entry in new.entries.items() if new else ():
                touched[ident] = None
                self._definitions.setdefault(ident, {})[file] = entry
        problems = [p for ident in touched for p in self._rivals(ident, files)]
        events: list[Event] = []
        concerned: set[ObjectKey] = set()
        for ident in touched:
            concerned.update(self._settle(ident, events))
        for key in sorted(concerned):
            self._rederive(key, events)
        return events, problems

    def _rivals(self, ident: Ident, files: Mapping[str, FileContent | None]) -> Iterator[Problem]:
        by_file = self._definitions[ident]
        winner = max(by_file, default="")
        for file, entry in by_file.items():
            if file != winner and (file in files or winner in files):
                what = f"{ident[0].__name__} {ident[1]}"
                line = by_file[winner].line
                reason = f"also defined in {winner}{f':{line}' if line else ''}, which holds"
                yield Problem(Severity.WARNING, file, entry.line, what, "", reason, "remove one of them")

    def _settle(self, ident: Ident, events: list[Event]) -> Iterator[ObjectKey]:
        """Make the winning definition current; yields the Services whose slices it may concern."""
        by_file = self._definitions[ident]
        old = self._current.get(ident)
        new = by_file[max(by_file)] if by_file else None
        if not by_file:
            del self._definitions[ident]
        if new is None:
            self._current.pop(ident, None)
        else:
            self._current[ident] = new
        before, after = old.object if old else None, new.object if new else None
        if ident[0] is not Endpoints:
            resource = RESOURCE_OF[cast("type[KubeObject]", ident[0])]
            if resource in self._selections:
                shown = cast("KubeObject | None", before) if old and old.selected else None
                wanted = cast("KubeObject | None", after) if new and new.selected else None
                _tell(resource, ident[1], shown, wanted, events)
        if before != after:
            yield from self._reindex(before)
            yield from self._reindex(after, add=True)

    def _reindex(self, obj: KubeObject | Endpoints | None, *, add: bool = False) -> Iterator[ObjectKey]:
        match obj:
            case Service():
                if obj.selector:
                    _toggle(self._services_by_label, (obj.namespace, obj.selector[0]), obj.key, add=add)
                _set(self._services, obj.key, obj if add else None)
                yield obj.key
            case EndpointSlice() if obj.service:
                _toggle(self._slices, obj.service_key, obj.key, add=add)
                yield obj.service_key
            case Endpoints():
                _set(self._endpoints, obj.key, obj if add else None)
                yield obj.key
            case Pod():
                yield from self._reindex_pod(obj, add=add)
            case Node():
                _set(self._nodes, obj.key, obj if add else None)
                # Zones change once in a node's life: no index for that.
                for key, slices in self._derived.items():
                    if any(e.node_name == obj.name for s in slices for e in s.endpoints):
                        yield key

    def _reindex_pod(self, pod: Pod, *, add: bool) -> Iterator[ObjectKey]:
        for pair in pod.labels:
            place = (pod.namespace, pair)
            pods = self._pods_by_label.setdefault(place, {})
            _set(pods, pod.key, pod if add else None)
            if not pods:
                del self._pods_by_label[place]
            for key in self._services_by_label.get(place, ()):
                if selects(self._services[key].selector, pod.labels):
                    yield key

    def _rederive(self, key: ObjectKey, events: list[Event]) -> None:
        """Bring the derived slices of a Service up to date."""
        service = self._services.get(key)
        new: tuple[EndpointSlice, ...] = ()
        if service is not None and key not in self._slices:
            new = derive_slices(service, self._candidates(service), self._endpoints.get(key), self._nodes)
        old = self._derived.get(key, ())
        _set(self._derived, key, new or None)
        selection = self._selections.get(Resource.ENDPOINT_SLICES)
        if selection is None or old == new:
            return
        shown = {s.key: s for s in old if _takes(selection, s)}
        wanted = {s.key: s for s in new if _takes(selection, s)}
        for slice_key in {**shown, **wanted}:
            _tell(Resource.ENDPOINT_SLICES, slice_key, shown.get(slice_key), wanted.get(slice_key), events)

    def _candidates(self, service: Service) -> Iterable[Pod]:
        """The Pods that have at least the rarest label of the selector."""
        sets = [self._pods_by_label.get((service.namespace, pair), {}) for pair in service.selector]
        return min(sets, key=len, default={}).values()


def _tell(
    resource: Resource,
    key: ObjectKey,
    shown: KubeObject | None,
    wanted: KubeObject | None,
    events: list[Event],
) -> None:
    if wanted is None:
        if shown is not None:
            events.append(Delete(resource, key))
    elif shown != wanted:
        events.append(Upsert(wanted))


def _takes(selection: Selection, piece: EndpointSlice) -> bool:
    labels = {**dict(piece.labels), SERVICE_NAME_LABEL: piece.service}
    return selection.takes({"metadata": {"namespace": piece.namespace, "name": piece.name, "labels": labels}})


def _set(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _toggle(table: dict[K, set[ObjectKey]], place: K, key: ObjectKey, *, add: bool) -> None:
    if add:
        table.setdefault(place, set()).add(key)
        return
    table[place].discard(key)
    if not table[place]:
        del table[place]
