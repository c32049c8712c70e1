"""Manifests loaded into the stub as `kubectl create` would, status included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from tests.lab.apiserver.cluster import Cluster
from tests.lab.apiserver.kinds import Object
from tests.lab.apiserver.status import Refusal

_FIRST = {"CustomResourceDefinition": 0, "Namespace": 1, "ServiceCIDR": 2, "Node": 3, "Service": 4}


def files(path: Path) -> list[Path]:
    """A file, or the .yaml, .yml and .json files of a directory."""
    return sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]


def read(path: Path) -> Iterator[Object]:
    """Every object of `files`; Lists are taken apart."""
    for file in files(path):
        for document in yaml.safe_load_all(file.read_text()):
            yield from _flat(document)


def _flat(document: object) -> Iterator[Object]:
    if not isinstance(document, dict):
        return
    if str(document.get("kind", "")).endswith("List") and "items" in document:
        for item in document["items"]:
            kind = document["kind"].removesuffix("List")
            yield from _flat({"apiVersion": document.get("apiVersion"), "kind": kind, **item} if kind else item)
    else:
        yield document


def _order(obj: Object) -> tuple[int, bool]:
    """Services that ask for an address come before those that take any."""
    spec = obj.get("spec") or {}
    return _FIRST.get(str(obj.get("kind")), 9), not (spec.get("clusterIP") or spec.get("clusterIPs"))


def load(cluster: Cluster, objects: Iterable[Object]) -> list[str]:
    """Create `objects`; returns what was left out and why. Namespaces that are used but not described are created."""
    problems = []
    for obj in sorted(objects, key=_order):
        kind = cluster.registry.of(obj)
        name = f"{obj.get('kind')} {(obj.get('metadata') or {}).get('name')}"
        if kind is None:
            problems.append(f"{name}: {obj.get('apiVersion')} is not served here")
            continue
        namespace = obj["metadata"].get("namespace") or "default"
        if kind.namespaced and ("", namespace) not in cluster.storage.table("/namespaces").objects:
            labels = {"kubernetes.io/metadata.name": namespace}
            cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
        metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
        new = {**obj, "metadata": metadata}
        try:
            if cluster.find(kind, namespace if kind.namespaced else "", metadata["name"]):
                cluster.put(new)  # what the cluster began with, described better
            else:
                cluster.create(new)
        except Refusal as refusal:
            problems.append(f"{name}: {refusal.message}")
    return problems
