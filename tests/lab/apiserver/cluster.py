"""The objects of the stub's cluster and the verbs that change them, without HTTP.

What the API server decides is decided here: names, uids, versions, conflicts, finalizers, what a status subresource may
change, and that an update which changes nothing is no event.
"""

from __future__ import annotations

import ipaddress
import random
import string
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.lab.apiserver import status
from tests.lab.apiserver.admission import Admission
from tests.lab.apiserver.kinds import Kind, Object, Registry
from tests.lab.apiserver.patch import json_patch, merge_patch, strategic_patch
from tests.lab.apiserver.status import Refusal
from tests.lab.apiserver.storage import Storage, Stored

_SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_STATUS_RESET = frozenset({"/services", "/pods", "/namespaces", "networking.k8s.io/servicecidrs"})
_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_patch,
    "application/json-patch+json": json_patch,
    "application/apply-patch+yaml": strategic_patch,
}


class Target(NamedTuple):
    """One object, or its status."""

    namespace: str
    name: str
    sub: str = ""


class Cluster:
    """Storage behind admission."""

    def __init__(self, service_cidrs: Iterable[str], *, bootstrap: bool) -> None:
        self.storage = Storage()
        self.registry = Registry()
        self._cidrs = tuple(service_cidrs)
        self._strict = bootstrap
        self._admission = Admission(self.storage, self._cidrs, strict_ranges=bootstrap)
        if bootstrap:
            self._bootstrap()

    def put(self, obj: Object) -> Object:
        """Create or replace an object as given: no defaults, no validation, no conflict. Returns what is stored."""
        kind = self.registry.of(obj)
        if kind is None:
            raise ValueError(f"no such kind: {obj.get('apiVersion')} {obj.get('kind')}")
        obj = kind.to_stored(obj)
        metadata = dict(obj["metadata"])
        if kind.namespaced:
            metadata.setdefault("namespace", "default")
        old = self.find(kind, metadata.get("namespace", ""), metadata["name"])
        self._stamp(metadata, old)
        return self._store(kind, {**obj, "metadata": metadata}, old)

    def create(self, obj: Object) -> Object:
        """Create an object as a client does, with defaults and validation, but with its status and any cluster address.

        Raises:
            Refusal: as the client would get it.
        """
        kind = self.registry.of(obj)
        if kind is None:
            raise ValueError(f"no such kind: {obj.get('apiVersion')} {obj.get('kind')}")
        namespace = (obj["metadata"].get("namespace") or "default") if kind.namespaced else ""
        return self.create_in(kind, namespace, obj, as_is=True)

    def delete(self, kind_name: str, namespace: str, name: str) -> None:
        """Delete at once, finalizers or not; no error if it is not there. `kind_name` as in `Service`."""
        kind = next(k for k in self.registry.all() if k.kind == kind_name)
        if self.find(kind, namespace, name):
            self.storage.write(kind.storage_key, (namespace, name), None)

    def objects(self, kind_name: str) -> list[Object]:
        """All objects of a kind, in order."""
        kind = next(k for k in self.registry.all() if k.kind == kind_name)
        return [self.shown(kind, s.value) for s in self.storage.page(kind.storage_key, None, None)]

    def _bootstrap(self) -> None:
        for name in _SYSTEM_NAMESPACES:
            self.create(
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                }
            )
        self.create(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": list(self._cidrs)},
            }
        )
        first = str(ipaddress.ip_network(self._cidrs[0])[1])
        self.create(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": "kubernetes",
                    "namespace": "default",
                    "labels": {"component": "apiserver", "provider": "kubernetes"},
                },
                "spec": {
                    "clusterIP": first,
                    "clusterIPs": [first],
                    "ports": [{"name": "https", "port": 443, "targetPort": 6443}],
                },
            }
        )

    def find(self, kind: Kind, namespace: str, name: str) -> Stored | None:
        """What is stored under this name, if anything."""
        return self.storage.table(kind.storage_key).objects.get((namespace, name))

    def get(self, kind: Kind, target: Target) -> Stored:
        """What is stored. Raises Refusal (404)."""
        stored = self.find(kind, target.namespace, target.name)
        if stored is None:
            raise status.not_found(kind, target.name)
        return stored

    @staticmethod
    def shown(kind: Kind, value: Object) -> Object:
        """A stored value as this kind shows it."""
        return {"kind": kind.kind, "apiVersion": kind.api_version, **without_type(kind.from_stored(value))}

    def _stamp(self, metadata: Object, old: Stored | None) -> None:
        """What the server alone decides; kept over the object's life."""
        before = old.value["metadata"] if old else {}
        if old:
            metadata["uid"] = before["uid"]
            metadata["creationTimestamp"] = before["creationTimestamp"]
            return
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def _store(self, kind: Kind, obj: Object, old: Stored | None) -> Object:
        value = without_type(obj)
        if old is not None and _same(value, old.value):
            return self.shown(kind, old.value)  # nothing changed: no new version, no event
        metadata = value["metadata"]
        stored = self.storage.write(kind.storage_key, (metadata.get("namespace", ""), metadata["name"]), value)
        assert stored is not None
        if kind.plural == "customresourcedefinitions":
            self.registry.add_custom(value)
        return self.shown(kind, stored.value)

    def create_in(
        self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False, as_is: bool = False
    ) -> Object:
        """POST. Raises Refusal.

        A status in the body is dropped, as it has its own verb, and a cluster address must be in range, but for
        `as_is`.
        """
        self._check_type(kind, obj)
        if not as_is and kind.storage_key in _STATUS_RESET:
            obj = {k: v for k, v in obj.items() if k != "status"}
        metadata = dict(obj.get("metadata") or {})
        name = metadata.get("name")
        if not name and metadata.get("generateName"):
            name = metadata["generateName"] + "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
        if not name:
            raise status.invalid(kind, "", ("metadata.name", "Required value: name or generateName is required"))
        metadata["name"] = name
        if metadata.get("resourceVersion"):
            raise status.bad_request("resourceVersion should not be set on objects to be created")
        if kind.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace or not namespace:
                raise status.bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            self._check_namespace(namespace, name, kind)
        else:
            metadata.pop("namespace", None)
        if self.find(kind, metadata.get("namespace", ""), name):
            raise status.already_exists(kind, name)
        for field in ("uid", "creationTimestamp", "deletionTimestamp", "selfLink", "managedFields"):
            metadata.pop(field, None)
        self._stamp(metadata, None)
        if kind.generation:
            metadata["generation"] = 1
        admitted = self._admission.admit(kind, {**kind.to_stored(obj), "metadata": metadata}, None, any_address=as_is)
        if dry_run:
            return self.shown(kind, admitted)
        return self._store(kind, admitted, None)

    def _check_type(self, kind: Kind, obj: Object) -> None:
        if not isinstance(obj, dict):
            raise status.bad_request("the body of the request is no object")
        for field, expected in (("kind", kind.kind), ("apiVersion", kind.api_version)):
            if obj.get(field) not in (None, "", expected):
                raise status.bad_request(
                    f"the {field} in the data ({obj[field]}) does not match the expected {field} ({expected})"
                )

    def _check_namespace(self, namespace: str, name: str, kind: Kind) -> None:
        if not self._strict:
            return
        stored = self.storage.table("/namespaces").objects.get(("", namespace))
        if stored is None:
            raise Refusal(
                404,
                "NotFound",
                f'namespaces "{namespace}" not found',
                details={"name": namespace, "kind": "namespaces"},
            )
        if stored.value["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise Refusal(403, "Forbidden", f'{kind.qualified} "{name}" is forbidden: {why}')

    def _replace(self, kind: Kind, target: Target, old: Stored, new: Object, *, dry_run: bool = False) -> Object:
        """The stored object after an update with `new` (in storage form)."""
        before = old.value["metadata"]
        metadata = dict(new.get("metadata") or {})
        if metadata.get("name", target.name) != target.name:
            raise status.bad_request("the name of the object does not match the name on the URL")
        if metadata.get("uid") not in (None, "", before["uid"]):
            why = "Precondition failed: UID in precondition differs from UID in object meta"
            raise status.conflict(kind, target.name, why)
        if metadata.get("resourceVersion") not in (None, "", before["resourceVersion"]):
            raise status.conflict(kind, target.name)
        if target.sub == "status":
            kept = {f: metadata[f] for f in ("labels", "annotations") if f in metadata}
            metadata = {**before, **kept}
            new = {**old.value, "status": new.get("status") or {}}
        elif kind.status:
            new = {k: v for k, v in new.items() if k != "status"}
            if "status" in old.value:
                new["status"] = old.value["status"]
        metadata["name"] = target.name
        if kind.namespaced:
            metadata["namespace"] = target.namespace
        self._stamp(metadata, old)
        for field in ("deletionTimestamp", "generation", "managedFields"):
            metadata.pop(field, None)
            if field in before:
                metadata[field] = before[field]
        admitted = without_type(self._admission.admit(kind, {**new, "metadata": metadata}, old.value))
        if kind.generation and not _same(admitted, old.value, but=("metadata", "status")):
            admitted["metadata"] = {**admitted["metadata"], "generation": before.get("generation", 0) + 1}
        if dry_run:
            return self.shown(kind, admitted)
        if admitted["metadata"].get("deletionTimestamp") and not admitted["metadata"].get("finalizers"):
            self.storage.write(kind.storage_key, old.key, None)
            return self.shown(kind, admitted)
        return self._store(kind, admitted, old)

    def update(self, kind: Kind, target: Target, obj: Object, *, dry_run: bool = False) -> Object:
        """PUT. Raises Refusal."""
        self._check_type(kind, obj)
        old = self.get(kind, target)
        if kind.plural == "leases" and not (obj.get("metadata") or {}).get("resourceVersion"):
            problem = "Invalid value: 0x0: must be specified for an update"
            raise status.invalid(kind, target.name, ("metadata.resourceVersion", problem))
        return self._replace(kind, target, old, kind.to_stored(obj), dry_run=dry_run)

    def patch(self, kind: Kind, target: Target, content_type: str, patch: Any, *, dry_run: bool = False) -> Object:
        """PATCH of any content type; an apply creates what is not there. Raises Refusal."""
        change = _PATCHES.get(content_type)
        if change is None:
            accepted = ", ".join(_PATCHES)
            message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
            raise Refusal(415, "UnsupportedMediaType", message)
        old = self.find(kind, target.namespace, target.name)
        if old is None and content_type == "application/apply-patch+yaml":
            return self.create_in(kind, target.namespace, patch, dry_run=dry_run)
        old = self.get(kind, target)
        patched = change(self.shown(kind, old.value), patch)
        self._check_type(kind, patched)
        return self._replace(kind, target, old, kind.to_stored(patched), dry_run=dry_run)

    def delete_target(self, kind: Kind, target: Target, options: Object) -> Object:
        """DELETE of one object, with preconditions. Raises Refusal."""
        old = self.get(kind, target)
        wanted = options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if wanted.get(field) not in (None, "", old.value["metadata"][field]):
                raise status.conflict(kind, target.name, f"Precondition failed: {field} differs")
        return self._remove(kind, old)

    def _remove(self, kind: Kind, old: Stored) -> Object:
        """Delete, or mark as being deleted where finalizers hold it; a namespace takes its content along."""
        metadata = old.value["metadata"]
        if metadata.get("finalizers"):
            if not metadata.get("deletionTimestamp"):
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                return self._store(kind, {**old.value, "metadata": {**metadata, "deletionTimestamp": now}}, old)
            return self.shown(kind, old.value)
        if kind.storage_key == "/namespaces":
            for other in self.registry.all():
                if other.namespaced and not other.stored_as:
                    for stored in list(self.storage.page(other.storage_key, None, None)):
                        if stored.key[0] == metadata["name"]:
                            self.storage.write(other.storage_key, stored.key, None)
        gone = self.storage.write(kind.storage_key, old.key, None)
        assert gone is not None
        details = {"name": metadata["name"], "kind": kind.plural, "uid": metadata["uid"]}
        if kind.group:
            details["group"] = kind.group
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def delete_selected(self, kind: Kind, selected: Callable[[Object], bool]) -> Object:
        """DELETE of a collection."""
        for stored in list(self.storage.page(kind.storage_key, None, None)):
            if selected(stored.value):
                self._remove(kind, stored)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def without_type(obj: Object) -> Object:
    """An object as it is stored: what kind it is depends on who looks."""
    return {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}


def _same(a: Object, b: Object, *, but: tuple[str, ...] = ()) -> bool:
    """Equal apart from the resourceVersion."""

    def stripped(obj: Object) -> Object:
        plain = {k: v for k, v in obj.items() if k not in but and k not in ("kind", "apiVersion")}
        if "metadata" in plain:
            plain["metadata"] = {k: v for k, v in plain["metadata"].items() if k != "resourceVersion"}
        return plain

    return stripped(a) == stripped(b)
