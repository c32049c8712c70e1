"""What the API server adds to and demands of an object on its way in: defaults, allocations, validation.

Services are treated in full, as their defaults are what clients see; EndpointSlices, Events, Leases and ServiceCIDRs
are validated as far as a client of ours could get them wrong; the rest passes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.lab.apiserver.kinds import Kind, Object
from tests.lab.apiserver.status import invalid
from tests.lab.apiserver.storage import Key, Storage, Stored

_LABEL_1035 = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_1123 = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_NAMES = {
    "/services": ("a DNS-1035 label", _LABEL_1035),
    "/namespaces": ("a lowercase RFC 1123 label", _LABEL_1123),
}
_PROTOCOLS = ("TCP", "UDP", "SCTP")
NODE_PORTS = range(30000, 32768)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Cause = tuple[str, str]


class Admission:
    """Defaults and checks objects against what is stored."""

    def __init__(self, storage: Storage, cidrs: Iterable[str], *, strict_ranges: bool) -> None:
        """`cidrs`: one or two service ranges, the first one's family is the default.

        `strict_ranges`: refuse a clusterIP from outside them, as a real server does.
        """
        self._allocated = _Allocated(storage)
        self._cidrs = [ipaddress.ip_network(c) for c in cidrs]
        self._strict = strict_ranges
        self._any_address = False
        self._next: dict[int, int] = {c.version: 10 for c in self._cidrs}
        self._next_port = 0

    def admit(self, kind: Kind, new: Object, old: Object | None, *, any_address: bool = False) -> Object:
        """`new` as it will be stored. Raises Refusal (422)."""
        self._any_address = any_address or not self._strict
        name = new["metadata"]["name"]
        causes: list[Cause] = []
        rule, pattern = _NAMES.get(kind.storage_key, ("a lowercase RFC 1123 subdomain", _SUBDOMAIN))
        if not pattern.fullmatch(name):
            causes.append(("metadata.name", f'Invalid value: "{name}": {rule} is required'))
        match kind.storage_key:
            case "/services":
                new = self._service(new, old, causes)
            case "discovery.k8s.io/endpointslices":
                new = _endpoint_slice(new, old, causes)
            case "/events":
                _event(kind, new, causes)
            case "coordination.k8s.io/leases":
                _lease(new, causes)
            case "networking.k8s.io/servicecidrs":
                _service_cidr(new, old, causes)
            case "/namespaces":
                new = {
                    **new,
                    "spec": new.get("spec") or {"finalizers": ["kubernetes"]},
                    "status": new.get("status") or {"phase": "Active"},
                }
            case "/pods":
                new = {**new, "status": new.get("status") or {"phase": "Pending"}}
        if causes:
            raise invalid(kind, name, *causes)
        return new

    # -- Services

    def _service(self, new: Object, old: Object | None, causes: list[Cause]) -> Object:
        spec: Object = {k: v for k, v in (new.get("spec") or {}).items() if v is not None}
        before: Object = (old or {}).get("spec") or {}
        key = (new["metadata"].get("namespace", ""), new["metadata"]["name"])
        result = {**new, "spec": spec, "status": new.get("status") or {"loadBalancer": {}}}
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["type"] not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
            causes.append(("spec.type", f'Unsupported value: "{spec["type"]}"'))
            return result
        if spec["sessionAffinity"] == "ClientIP":
            spec.setdefault("sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 10800}})
        ports = spec["ports"] = [self._port(p) for p in spec.get("ports") or ()]
        if not ports:
            del spec["ports"]
        self._check_ports(spec, ports, causes)
        if spec["type"] == "ExternalName":
            if not spec.get("externalName"):
                causes.append(("spec.externalName", "Required value"))
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(field, None)
            return result
        spec.setdefault("internalTrafficPolicy", "Cluster")
        if causes:
            return result
        self._allocated.refresh()
        self._addresses(spec, before, causes)
        if spec["type"] in ("NodePort", "LoadBalancer"):
            spec.setdefault("externalTrafficPolicy", "Cluster")
            if spec["type"] == "LoadBalancer":
                spec.setdefault("allocateLoadBalancerNodePorts", True)
            if spec.get("allocateLoadBalancerNodePorts", True):
                self._node_ports(key, ports, before, causes)
            if spec["type"] == "LoadBalancer" and spec["externalTrafficPolicy"] == "Local":
                if not spec.get("healthCheckNodePort"):
                    spec["healthCheckNodePort"] = before.get("healthCheckNodePort") or self._free_port()
            elif spec.get("healthCheckNodePort"):
                problem = "may only be set when type is LoadBalancer and externalTrafficPolicy is Local"
                causes.append(("spec.healthCheckNodePort", f"Invalid value: {problem}"))
        else:
            for port in ports:
                if port.pop("nodePort", 0) and not before:
                    causes.append(("spec.ports[0].nodePort", "Forbidden: may not be used when `type` is 'ClusterIP'"))
        return result

    @staticmethod
    def _port(port: Object) -> Object:
        port = {k: v for k, v in port.items() if v is not None}
        port.setdefault("protocol", "TCP")
        if not port.get("targetPort"):
            port["targetPort"] = port.get("port")
        if not port.get("name"):
            port.pop("name", None)
        return port

    @staticmethod
    def _check_ports(spec: Object, ports: list[Object], causes: list[Cause]) -> None:
        if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
            causes.append(("spec.ports", "Required value"))
        seen: set[tuple[str, Any]] = set()
        for i, port in enumerate(ports):
            field = f"spec.ports[{i}]"
            if not isinstance(port.get("port"), int) or not 1 <= port["port"] <= 65535:
                causes.append(
                    (f"{field}.port", f"Invalid value: {port.get('port')}: must be between 1 and 65535, inclusive")
                )
            if port["protocol"] not in _PROTOCOLS:
                causes.append(
                    (
                        f"{field}.protocol",
                        f'Unsupported value: "{port["protocol"]}": supported values: "SCTP", "TCP", "UDP"',
                    )
                )
            if len(ports) > 1 and not port.get("name"):
                causes.append((f"{field}.name", "Required value"))
            if port.get("name") and not _LABEL_1123.fullmatch(port["name"]):
                causes.append((f"{field}.name", f'Invalid value: "{port["name"]}"'))
            for mark in (("name", port.get("name")), (port["protocol"], port.get("port"))):
                if mark in seen and mark[1] is not None:
                    causes.append((field, f"Duplicate value: {mark}"))
                seen.add(mark)

    def _addresses(self, spec: Object, before: Object, causes: list[Cause]) -> None:
        given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        if not given and before.get("clusterIPs"):
            given = before["clusterIPs"]
        if before.get("clusterIPs") and given[0] != before["clusterIPs"][0]:
            causes.append(("spec.clusterIPs[0]", f"Invalid value: {given}: may not change once set"))
            return
        headless = given[:1] == ["None"]
        policy = spec.setdefault(
            "ipFamilyPolicy", before.get("ipFamilyPolicy") or ("SingleStack" if len(given) < 2 else "RequireDualStack")
        )
        families = list(spec.get("ipFamilies") or before.get("ipFamilies") or ())
        if not families and given and not headless:
            families = [f"IPv{ipaddress.ip_address(ip).version}" for ip in given]
        available = [f"IPv{c.version}" for c in self._cidrs]
        if policy == "RequireDualStack" and len(available) < 2 and len(families) < 2:
            causes.append(
                (
                    "spec.ipFamilyPolicy",
                    'Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services',
                )
            )
            return
        families = families or available[:1]
        if policy != "SingleStack":
            families += [f for f in available if f not in families]
        spec["ipFamilies"] = families[: 1 if policy == "SingleStack" else 2]
        if headless:
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return
        if not before:
            self._check_given(given, causes)
        addresses = list(given)
        for family in spec["ipFamilies"][len(addresses) :]:
            addresses.append(self._free_address(int(family[3:]), addresses))
        spec["clusterIP"], spec["clusterIPs"] = addresses[0], addresses

    def _check_given(self, given: list[str], causes: list[Cause]) -> None:
        for i, text in enumerate(given):
            address = ipaddress.ip_address(text)
            problem = ""
            if not self._any_address and not any(address in c for c in self._cidrs if c.version == address.version):
                problem = "the provided IP is not in the valid range"
            elif str(address) in self._allocated.addresses:
                problem = "provided IP is already allocated"
            if problem:
                causes.append(
                    (f"spec.clusterIPs[{i}]", f'Invalid value: ["{text}"]: failed to allocate IP {text}: {problem}')
                )

    def _free_address(self, family: int, taken: list[str]) -> str:
        network = next(c for c in self._cidrs if c.version == family)
        for _ in range(min(network.num_addresses, 2**16)):
            candidate = str(network[self._next[family] % network.num_addresses])
            self._next[family] += 1
            if candidate not in self._allocated.addresses and candidate not in taken:
                return candidate
        raise AssertionError("the service range is exhausted")

    def _node_ports(self, key: Key, ports: list[Object], before: Object, causes: list[Cause]) -> None:
        kept = {(p.get("port"), p.get("protocol")): p.get("nodePort") for p in before.get("ports") or ()}
        for i, port in enumerate(ports):
            wanted = port.get("nodePort")
            if not wanted:
                port["nodePort"] = kept.get((port["port"], port["protocol"])) or self._free_port()
            elif wanted not in NODE_PORTS:
                causes.append(
                    (
                        f"spec.ports[{i}].nodePort",
                        f"Invalid value: {wanted}: provided port is not in the valid range 30000-32767",
                    )
                )
            elif self._allocated.ports.get((wanted, port["protocol"]), key) != key:
                causes.append(
                    (f"spec.ports[{i}].nodePort", f"Invalid value: {wanted}: provided port is already allocated")
                )

    def _free_port(self) -> int:
        used = {number for number, _protocol in self._allocated.ports}
        for _ in NODE_PORTS:
            port = NODE_PORTS[self._next_port % len(NODE_PORTS)]
            self._next_port += 1
            if port not in used:
                return port
        raise AssertionError("no free node port")


class _Allocated:
    """Which Service holds which address and node port; follows the storage's history instead of searching all
    Services."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen = -1
        self.addresses: dict[str, Key] = {}
        self.ports: dict[tuple[int, str], Key] = {}

    def refresh(self) -> None:
        table = self._storage.table("/services")
        if self._seen < self._storage.compacted:
            self.addresses, self.ports = {}, {}
            for stored in table.objects.values():
                self._add(stored)
        else:
            for change in table.after(self._seen):
                if change.old:
                    self._remove(change.old)
                if change.new:
                    self._add(change.new)
        self._seen = self._storage.version

    def _add(self, stored: Stored) -> None:
        for address, port in _held(stored):
            if address:
                self.addresses[address] = stored.key
            if port:
                self.ports[port] = stored.key

    def _remove(self, stored: Stored) -> None:
        for address, port in _held(stored):
            self.addresses.pop(address, None)
            if port:
                self.ports.pop(port, None)


def _held(stored: Stored) -> Iterator[tuple[str, tuple[int, str] | None]]:
    spec = stored.value.get("spec") or {}
    for ip in spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else ()):
        if ip != "None":
            yield str(ipaddress.ip_address(ip)), None
    for port in spec.get("ports") or ():
        if port.get("nodePort"):
            yield "", (port["nodePort"], port.get("protocol", "TCP"))


# -- other kinds


def _endpoint_slice(new: Object, old: Object | None, causes: list[Cause]) -> Object:
    if new.get("addressType") not in ("IPv4", "IPv6", "FQDN"):
        causes.append(
            (
                "addressType",
                f'Unsupported value: "{new.get("addressType", "")}": supported values: "FQDN", "IPv4", "IPv6"',
            )
        )
    elif old is not None and old.get("addressType") != new["addressType"]:
        causes.append(("addressType", f'Invalid value: "{new["addressType"]}": field is immutable'))
    for i, endpoint in enumerate(new.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            causes.append((f"endpoints[{i}].addresses", "Required value: must contain at least 1 address"))
    ports = [{**p, "protocol": p.get("protocol") or "TCP", "name": p.get("name") or ""} for p in new.get("ports") or ()]
    if len({p["name"] for p in ports}) != len(ports):
        causes.append(("ports", "Duplicate value: names must be unique"))
    return {**new, "endpoints": new.get("endpoints"), "ports": ports or None}


_EVENT_REQUIRED = ("reportingComponent", "reportingInstance", "action", "reason")


def _event(kind: Kind, new: Object, causes: list[Cause]) -> None:
    """As stored, that is with the core group's field names."""
    involved = new.get("involvedObject") or {}
    namespace = new["metadata"].get("namespace", "")
    if involved.get("namespace", "") != namespace and not (not involved.get("namespace") and namespace == "default"):
        causes.append(
            (
                "involvedObject.namespace",
                f'Invalid value: "{involved.get("namespace", "")}": does not match event.namespace',
            )
        )
    if new.get("type") not in (None, "", "Normal", "Warning") or (kind.group and not new.get("type")):
        causes.append(("type", f'Invalid value: "{new.get("type")}": must be Normal or Warning'))
    if not kind.group and not new.get("eventTime"):
        return
    if not new.get("eventTime"):
        causes.append(("eventTime", "Required value"))
    causes += [(field, "Required value") for field in _EVENT_REQUIRED if not new.get(field)]
    limits = (("reason", 128), ("action", 128), ("reportingInstance", 128), ("message", 1024))
    causes += [(f, f"Invalid value: can have at most {n} characters") for f, n in limits if len(new.get(f) or "") > n]
    series = new.get("series")
    if series is not None and (series.get("count", 0) < 2 or not series.get("lastObservedTime")):
        causes.append(("series", "Required value: count of at least 2 and lastObservedTime"))


_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")


def _lease(new: Object, causes: list[Cause]) -> None:
    spec = new.get("spec") or {}
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        causes.append(
            ("spec.leaseDurationSeconds", f"Invalid value: {spec['leaseDurationSeconds']}: must be greater than 0")
        )
    if (spec.get("leaseTransitions") or 0) < 0:
        causes.append(("spec.leaseTransitions", "Invalid value: must be greater than or equal to 0"))
    for field in ("acquireTime", "renewTime"):
        if spec.get(field) is not None and not _MICRO_TIME.fullmatch(str(spec[field])):
            causes.append((f"spec.{field}", f"Invalid value: {spec[field]!r}: is no time"))


def _service_cidr(new: Object, old: Object | None, causes: list[Cause]) -> None:
    cidrs = (new.get("spec") or {}).get("cidrs") or []
    if not 1 <= len(cidrs) <= 2:
        causes.append(("spec.cidrs", "Invalid value: must have one or two entries"))
    if old is not None and (old.get("spec") or {}).get("cidrs") != cidrs:
        causes.append(("spec.cidrs", "Invalid value: field is immutable"))
    for i, cidr in enumerate(cidrs):
        try:
            ipaddress.ip_network(cidr)
        except ValueError as error:
            causes.append((f"spec.cidrs[{i}]", f'Invalid value: "{cidr}": {error}'))
