"""The controllers without which posting a Pod changes nothing: EndpointSlices from Pods, and mirrored from Endpoints.

They follow the stub's own storage, with kubecore's derivation, and own the slices whose managed-by label names them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kubecore import decode
from kubecore.derive import derive_slices
from kubecore.model import Endpoint, EndpointSlice, Node, ObjectKey, Pod, Resource, Service
from tests.lab.apiserver.cluster import Cluster
from tests.lab.apiserver.kinds import Object
from tests.lab.apiserver.storage import Key, Stored

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
_SLICES = "discovery.k8s.io/endpointslices"
_INPUTS = ("/services", "/pods", "/endpoints", "/nodes")


class SliceController:
    """Keeps the derived EndpointSlices of a Cluster up to date while `run` runs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._storage = cluster.storage
        self._seen = -1
        self._pods: dict[str, dict[str, Pod]] = {}
        self._nodes: dict[ObjectKey, Node] = {}

    async def run(self) -> None:
        """Until cancelled."""
        woken = asyncio.Event()
        tables = [self._storage.table(kind) for kind in _INPUTS]
        for table in tables:
            table.watchers.add(woken)
        try:
            while True:
                woken.clear()
                self.settle()
                await woken.wait()
        finally:
            for table in tables:
                table.watchers.discard(woken)

    def settle(self) -> None:
        """Bring the slices of every Service up to date that changed since the last call, or whose Pods did."""
        now = self._storage.version
        for name in sorted(self._touched()):
            self._derive(name)
        self._seen = now

    def _touched(self) -> set[Key]:
        services = self._storage.table("/services").objects
        if self._seen < self._storage.compacted:
            self._pods.clear()
            self._nodes.clear()
            for kind in ("/pods", "/nodes"):
                for stored in self._storage.table(kind).objects.values():
                    self._remember(kind, stored, present=True)
            return set(services)
        touched: set[Key] = set()
        for kind in _INPUTS:
            for change in self._storage.table(kind).after(self._seen):
                for seen in filter(None, (change.old, change.new)):
                    touched |= self._touched_by(kind, seen)
                latest = change.new or change.old
                if latest is not None:
                    self._remember(kind, latest, present=change.new is not None)
        return touched

    def _touched_by(self, kind: str, stored: Stored) -> set[Key]:
        services = self._storage.table("/services").objects
        if kind == "/nodes":
            return set(services)
        if kind != "/pods":
            return {stored.key}
        labels = (stored.value["metadata"].get("labels") or {}).items()
        namespace = stored.key[0]
        return {
            key
            for key, service in services.items()
            if key[0] == namespace and (service.value.get("spec") or {}).get("selector", {}).items() <= labels
        }

    def _remember(self, kind: str, stored: Stored, *, present: bool) -> None:
        namespace, name = stored.key
        if kind == "/pods":
            pods = self._pods.setdefault(namespace, {})
            pod = decode.decode_object(Resource.PODS, stored.value).object if present else None
            if isinstance(pod, Pod):
                pods[name] = pod
            else:
                pods.pop(name, None)
        elif kind == "/nodes":
            node = decode.decode_object(Resource.NODES, stored.value).object if present else None
            if isinstance(node, Node):
                self._nodes[node.key] = node
            else:
                self._nodes.pop(ObjectKey("", name), None)

    def _derive(self, key: Key) -> None:
        namespace, name = key
        stored = self._storage.table("/services").objects.get(key)
        service = decode.decode_object(Resource.SERVICES, stored.value).object if stored else None
        wanted: dict[str, Object] = {}
        if stored is not None and isinstance(service, Service):
            legacy = self._storage.table("/endpoints").objects.get(key)
            endpoints = decode.decode_endpoints(legacy.value)[1] if legacy else None
            pods = self._pods.get(namespace, {}).values()
            owner = {
                "apiVersion": "v1",
                "kind": "Service",
                "name": name,
                "uid": stored.value["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
            for piece in derive_slices(service, pods, endpoints, self._nodes):
                wanted[piece.name] = manifest_of(piece, owner)
        for old in self._owned(namespace, name):
            if old.key[1] not in wanted:
                self._storage.write(_SLICES, old.key, None)
        for manifest in wanted.values():
            self._cluster.put(manifest)

    def _owned(self, namespace: str, service: str) -> list[Stored]:
        found = []
        prefix = f"{service}."
        for key, stored in self._storage.table(_SLICES).objects.items():
            if key[0] == namespace and key[1].startswith(prefix):
                labels = stored.value["metadata"].get("labels") or {}
                if labels.get(MANAGED_BY) == CONTROLLER and labels.get("kubernetes.io/service-name") == service:
                    found.append(stored)
        return found


def manifest_of(piece: EndpointSlice, owner: Object | None = None) -> Object:
    """A model slice as the API shows it."""
    labels = {**dict(piece.labels), "kubernetes.io/service-name": piece.service, MANAGED_BY: CONTROLLER}
    metadata: Object = {"name": piece.name, "namespace": piece.namespace, "labels": labels}
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    ports = [
        {"name": p.name, "port": p.port, "protocol": p.protocol.value}
        | ({"appProtocol": p.app_protocol} if p.app_protocol else {})
        for p in piece.ports
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": f"IPv{piece.family}",
        "ports": ports,
        "endpoints": [_endpoint(e) for e in piece.endpoints],
    }


def _endpoint(endpoint: Endpoint) -> Object:
    conditions = {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating}
    shown: dict[str, Any] = {"addresses": list(endpoint.addresses), "conditions": conditions}
    for field, value in (("hostname", endpoint.hostname), ("nodeName", endpoint.node_name), ("zone", endpoint.zone)):
        if value:
            shown[field] = value
    if endpoint.target_name:
        shown["targetRef"] = {"kind": endpoint.target_kind, "name": endpoint.target_name, "uid": endpoint.target_uid}
    hints: Object = {}
    if endpoint.hint_zones:
        hints["forZones"] = [{"name": z} for z in endpoint.hint_zones]
    if endpoint.hint_nodes:
        hints["forNodes"] = [{"name": n} for n in endpoint.hint_nodes]
    if hints:
        shown["hints"] = hints
    return shown
