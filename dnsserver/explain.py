"""Which objects an answer came from, or why there is none: sentences for the `query` command.

Knows the objects behind a name, also those the zone does not show. Must not know messages or sockets. Not fast: it
looks through everything, to name what is near.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from dnsserver import names
from dnsserver.config import KubernetesConfig, PodsMode
from dnsserver.lookup import Found, Kind, Reason, find, pod_address
from dnsserver.message import Question
from dnsserver.services import ServiceNames
from dnsserver.zone import Zone
from kubecore.model import EndpointSlice, ObjectKey, Resource, ServiceType
from kubecore.snapshot import ClusterState

_SHOWN = 10
"""Endpoints or names listed before the rest is only counted."""


def explain(zone: Zone, state: ClusterState, question: Question) -> list[str]:
    """Lines that say where the zone's answer comes from; aliases are followed within the zone."""
    lines: list[str] = []
    seen: set[bytes] = set()
    current = question
    while current.lower not in seen:
        seen.add(current.lower)
        cut = zone.cut(current.lower)
        if cut is None:
            lines.append(f"{names.to_text(current.name)} is in none of the cluster's zones ({_zones(zone.config)})")
            break
        found = find(zone, current, cut)
        lines += _Explanation(zone, state, current, cut, found).lines()
        if found.kind is not Kind.ALIAS:
            break
        current = Question(found.target, found.target.lower(), question.qtype, question.qclass)
    else:
        lines.append("the aliases lead back to where they began")
    if not zone.synced:
        missing = [r.value for r in zone.resources() if not state.is_listed(r)]
        lines.append(_unlisted(missing))
    elif current.lower[zone.cut(current.lower) :] in zone.imports.zones and not zone.imports.synced:
        lines.append(_unlisted([Resource.SERVICE_IMPORTS.value]))
    return lines


def _unlisted(missing: list[str]) -> str:
    return f"not listed yet: {', '.join(missing)}; what is missing may still come"


def _zones(config: KubernetesConfig) -> str:
    return ", ".join(names.to_text(zone) for zone in config.zones[:_SHOWN])


class _Explanation:
    """The lines for one name."""

    def __init__(self, zone: Zone, state: ClusterState, question: Question, cut: int, found: Found) -> None:
        self.zone = zone
        self.state = state
        self.question = question
        self.found = found
        self.reverse = names.is_reverse(question.lower[cut:])
        self.imports = zone.imports if question.lower[cut:] in zone.imports.zones else None
        self.labels = [names.label_text(label) for label in names.labels(question.lower[:cut] + names.ROOT)]

    def lines(self) -> list[str]:
        if self.reverse:
            return self._address()
        match self.labels:
            case [*left, name, namespace, "svc"]:
                return self._service(ObjectKey(namespace, name), left)
            case [namespace, "svc"]:
                return self._namespace(namespace)
            case [label, namespace, "pod"]:
                return self._pod(label, namespace)
            case [namespace, "pod"] if self.found.reason is not Reason.PODS_DISABLED:
                return self._namespace(namespace)
        if self.found.kind is Kind.NXDOMAIN:
            return [self.found.reason.value]
        return ["a name of the zone itself"]

    def _namespace(self, namespace: str) -> list[str]:
        config = self.zone.config
        known = {key.name for key in self.state.namespaces} | {key.namespace for key in self._known()}
        if self.zone.has_namespace(namespace):
            return [f"Namespace {namespace}"]
        if namespace not in known:
            return [f"no namespace {namespace}{_near(namespace, known)}"]
        if config.namespaces:
            return [
                f"Namespace {namespace} is not among the directive's namespaces: {_some(sorted(config.namespaces))}"
            ]
        return [f"Namespace {namespace} is not selected by namespace_labels {config.namespace_labels}"]

    def _service(self, key: ObjectKey, left: list[str]) -> list[str]:
        if not self.zone.has_namespace(key.namespace):
            return self._namespace(key.namespace)
        service = self.imports.get(key) if self.imports else self.zone.service(*key)
        if service is None:
            return self._no_service(key)
        lines = [_describe(service)]
        if self.found.reason is Reason.BAD_ALIAS:
            return [*lines, f"externalName {service.service.external_name!r} is not a domain name"]
        if service.is_alias:
            return lines
        endpoints = [_slice(piece, service) for piece in service.slices]
        match self.found.reason:
            case Reason.NO_READY_ENDPOINTS:
                lines.append("no ready endpoints" + ("" if endpoints else ": no EndpointSlice"))
            case Reason.NO_ENDPOINT:
                label = ".".join(left)
                lines.append(f"no ready endpoint called {label}{_near(label, _endpoint_names(service))}")
            case Reason.NO_PORT:
                endpoints = endpoints if service.service.headless else []
                lines.append(f"no port {'.'.join(left)}; named ports: {_some(_port_names(service))}")
            case Reason.NOT_A_CLUSTER_NAME:
                return [*lines, f"nothing is called {'.'.join(left)} below a Service"]
            case _ if not service.service.headless and (not left or left[0].startswith("_")):
                return lines
        return lines + endpoints

    def _no_service(self, key: ObjectKey) -> list[str]:
        kind, known = ("ServiceImport" if self.imports else "Service"), self._known()
        if key in known:
            return [f"{kind} {key} is not selected by labels {self.zone.config.labels}"]
        here = [k.name for k in known if k.namespace == key.namespace]
        elsewhere = sorted(k.namespace for k in known if k.name == key.name)
        lines = [f"no {kind} {key.name} in namespace {key.namespace}{_near(key.name, here)}"]
        if elsewhere:
            lines.append(f"a {kind} of that name is in: {_some(elsewhere)}")
        orphans = self.state.import_slices_of(key) if self.imports else self.state.slices_of(key)
        if orphans:
            lines.append(f"EndpointSlices without their {kind}: {_some([s.name for s in orphans])}")
        return lines

    def _known(self) -> Iterable[ObjectKey]:
        """All Services (or ServiceImports), also those the zone does not show."""
        return (self.state.service_imports if self.imports else self.state.services).keys()

    def _pod(self, label: str, namespace: str) -> list[str]:
        mode = self.zone.config.pods
        if mode is PodsMode.DISABLED:
            return ["pod names are disabled (pods disabled)"]
        if not self.zone.has_namespace(namespace):
            return self._namespace(namespace)
        address = pod_address(label)
        if address is None:
            return [f"{label} is no address with dashes for dots or colons"]
        if mode is PodsMode.INSECURE:
            return [f"Namespace {namespace}; the address is echoed (pods insecure)"]
        pods = [pod for pod in self.state.pods.values() if address in pod.ips]
        if not pods:
            return [f"no Pod has the address {address}"]
        return [f"Pod {pod.key} ({pod.phase or 'phase unknown'})" for pod in sorted(pods, key=lambda pod: pod.key)]

    def _address(self) -> list[str]:
        name = names.parse_reverse(self.question.lower)
        address = name.address if name else None
        if address is None:
            return ["the beginning of addresses that have names" if self.found.kind is not Kind.NXDOMAIN else
                    self.found.reason.value]  # fmt: skip
        service = self.zone.service_of_ip(address)
        if service:
            return [_describe(service)]
        owners = self.zone.services_of_endpoint(address)
        lines = [line for owner in owners for line in (_describe(owner), *_slices_with(owner, address))]
        return lines or [f"{address} is no ClusterIP, and no ready endpoint of a Service", *self._unready(address)]

    def _unready(self, address: str) -> list[str]:
        return [
            f"EndpointSlice {piece.key} has it, " + ("of no visible Service" if e.ready else "not ready")
            for piece in self.state.slices.values()
            for e in piece.endpoints
            if address in e.addresses
        ]


def _describe(names_of: ServiceNames) -> str:
    service = names_of.service
    if names_of.imported:
        addresses = ", ".join(service.cluster_ips) or "no address yet"
        return f"ServiceImport {service.key} ({'headless' if service.headless else f'ClusterSetIP {addresses}'})"
    if service.type is ServiceType.EXTERNAL_NAME:
        return f"Service {service.key} (ExternalName {service.external_name})"
    kind = (
        "headless" if service.headless else f"{service.type.value} {', '.join(service.cluster_ips) or 'no address yet'}"
    )
    return f"Service {service.key} ({kind})"


def _slice(piece: EndpointSlice, service: ServiceNames) -> str:
    shown = [
        f"{address} {service.label_of(piece, e, address)}".rstrip() + _target(e.target_kind, e.target_name)
        for e in piece.endpoints
        if e.ready
        for address in e.addresses
    ]
    hidden = [
        f"{address}{_target(e.target_kind, e.target_name)}"
        for e in piece.endpoints
        if not e.ready
        for address in e.addresses
    ]
    parts = [f"{len(shown)} ready ({_some(shown)})"] if shown else []
    parts += [f"{len(hidden)} not ready ({_some(hidden)})"] if hidden else []
    return f"EndpointSlice {piece.key}: {', '.join(parts) or 'no endpoints'}"


def _slices_with(service: ServiceNames, address: str) -> list[str]:
    return [
        f"EndpointSlice {piece.key}{_target(e.target_kind, e.target_name)}"
        for piece in service.slices
        for e in piece.endpoints
        if e.ready and address in e.addresses
    ]


def _target(kind: str, name: str) -> str:
    return f" {kind or 'Pod'} {name}" if name else ""


def _endpoint_names(service: ServiceNames) -> set[str]:
    return {
        service.label_of(piece, e, address)
        for piece in service.slices
        for e in piece.endpoints
        if e.ready
        for address in e.addresses
    }


def _port_names(service: ServiceNames) -> list[str]:
    if service.service.headless:
        found = {(p.name or "", p.protocol.value) for piece in service.slices for p in piece.ports}
    else:
        found = {(p.name, p.protocol.value) for p in service.service.ports}
    return [f"_{name}._{protocol.lower()}" for name, protocol in sorted(found) if name]


def _near(name: str, known: Iterable[str]) -> str:
    """`; nearest: a, b`, or nothing."""
    candidates = sorted(set(known))
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5) or (candidates if len(candidates) <= 5 else [])
    return f"; nearest: {', '.join(near)}" if near else ""


def _some(texts: list[str]) -> str:
    if not texts:
        return "none"
    rest = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
