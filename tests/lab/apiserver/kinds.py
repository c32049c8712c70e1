"""The kinds of objects the stub serves, and how the two faces of an Event relate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Kind:
    """One kind as one API version shows it."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    status: bool = False
    """Has a status subresource: status cannot be changed by a plain update, nor the rest by /status."""
    generation: bool = False
    short_names: tuple[str, ...] = ()
    selectable: tuple[str, ...] = ()
    """Fields that field selectors may name, besides name and namespace."""
    stored_as: str = ""
    """`group/plural` under which objects are kept; empty: this one's own."""
    to_stored: Callable[[Object], Object] = lambda obj: obj
    from_stored: Callable[[Object], Object] = lambda obj: obj

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage_key(self) -> str:
        return self.stored_as or f"{self.group}/{self.plural}"

    @property
    def qualified(self) -> str:
        """As in messages: `endpointslices.discovery.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_EVENT_FIELDS = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_EVENT_FIELDS_BACK = {core: new for new, core in _EVENT_FIELDS.items()}


def _rename(obj: Object, names: dict[str, str], api_version: str) -> Object:
    renamed = {names.get(k, k): v for k, v in copy.copy(obj).items()}
    renamed["apiVersion"] = api_version
    return renamed


_EVENTS_SELECTABLE = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "reason",
    "type",
    "reportingComponent",
    "source",
)

KINDS = (
    Kind(
        *("", "v1", "Service", "services"),
        namespaced=True,
        status=True,
        short_names=("svc",),
        selectable=("spec.clusterIP", "spec.type"),
    ),
    Kind("", "v1", "Endpoints", "endpoints", namespaced=True, short_names=("ep",)),
    Kind(
        *("", "v1", "Node", "nodes"),
        namespaced=False,
        status=True,
        short_names=("no",),
        selectable=("spec.unschedulable",),
    ),
    Kind(
        *("", "v1", "Namespace", "namespaces"),
        namespaced=False,
        status=True,
        short_names=("ns",),
        selectable=("status.phase",),
    ),
    Kind(
        *("", "v1", "Pod", "pods"),
        namespaced=True,
        status=True,
        generation=True,
        short_names=("po",),
        selectable=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
    ),
    Kind("", "v1", "ConfigMap", "configmaps", namespaced=True, short_names=("cm",)),
    Kind("", "v1", "Event", "events", namespaced=True, short_names=("ev",), selectable=_EVENTS_SELECTABLE),
    Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", namespaced=True, generation=True),
    Kind("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", namespaced=False, status=True),
    Kind("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True),
    Kind(
        "events.k8s.io",
        "v1",
        "Event",
        "events",
        namespaced=True,
        stored_as="/events",
        selectable=_EVENTS_SELECTABLE,
        to_stored=lambda obj: _rename(obj, _EVENT_FIELDS, "v1"),
        from_stored=lambda obj: _rename(obj, _EVENT_FIELDS_BACK, "events.k8s.io/v1"),
    ),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        namespaced=False,
        status=True,
    ),
)


class Registry:
    """Kinds by path and by apiVersion; a CustomResourceDefinition adds to it."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        self._by_type: dict[tuple[str, str], Kind] = {}
        for kind in KINDS:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        self._by_path[kind.group, kind.version, kind.plural] = kind
        self._by_type[kind.api_version, kind.kind] = kind

    def add_custom(self, definition: Object) -> None:
        """The kinds a CustomResourceDefinition declares."""
        spec = definition["spec"]
        names = spec["names"]
        for version in spec["versions"]:
            if version.get("served", True):
                subresources = version.get("subresources") or {}
                self.add(
                    Kind(
                        spec["group"],
                        version["name"],
                        names["kind"],
                        names["plural"],
                        namespaced=spec.get("scope") == "Namespaced",
                        status="status" in subresources,
                        generation=True,
                        short_names=tuple(names.get("shortNames") or ()),
                    )
                )

    def at(self, group: str, version: str, plural: str) -> Kind | None:
        return self._by_path.get((group, version, plural))

    def of(self, obj: Object) -> Kind | None:
        return self._by_type.get((str(obj.get("apiVersion")), str(obj.get("kind"))))

    def all(self) -> tuple[Kind, ...]:
        return tuple(self._by_path.values())
