"""The documents by which clients find out what is served."""

from __future__ import annotations

from tests.lab.apiserver import status
from tests.lab.apiserver.kinds import ALL_VERBS, Object, Registry

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0-stub",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.25",
    "compiler": "gc",
    "platform": "linux/amd64",
}
PATHS = ("/version", "/api", "/apis")


def document(registry: Registry, parts: list[str]) -> Object:
    """What is at `/` + the joined parts. Raises Refusal (404)."""
    groups: dict[str, list[str]] = {}
    for kind in registry.all():
        versions = groups.setdefault(kind.group, [])
        if kind.version not in versions:
            versions.append(kind.version)
    match parts:
        case ["version"]:
            return dict(VERSION)
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            listed = [_api_group(g, v) for g, v in groups.items() if g]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        case ["apis", group] if group and group in groups:
            return {"kind": "APIGroup", "apiVersion": "v1", **_api_group(group, groups[group])}
        case ["api", version] if version in groups[""]:
            return _resources(registry, "", version)
        case ["apis", group, version] if version in groups.get(group, ()):
            return _resources(registry, group, version)
        case _:
            raise status.no_such_path()


def _api_group(group: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


def _resources(registry: Registry, group: str, version: str) -> Object:
    resources: list[Object] = []
    for kind in registry.all():
        if (kind.group, kind.version) != (group, version):
            continue
        common: Object = {"namespaced": kind.namespaced, "kind": kind.kind}
        short = {"shortNames": list(kind.short_names)} if kind.short_names else {}
        singular = kind.kind.lower()
        resources.append({"name": kind.plural, "singularName": singular, "verbs": list(ALL_VERBS), **common, **short})
        if kind.status:
            verbs = ["get", "patch", "update"]
            resources.append({"name": f"{kind.plural}/status", "singularName": "", "verbs": verbs, **common})
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}
