"""The Kubernetes objects in one manifest file, as far as they can be used, and a sentence about each that cannot.

Knows: kinds, Lists, and what the API server would fill in or refuse in an object written by hand. Must not know: file
systems, other files. Called by the file source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from kubecore import decode
from kubecore.addresses import family_of
from kubecore.manifest import Document, ManifestError, parse_documents
from kubecore.model import Endpoints, EndpointSlice, KubeObject, ObjectKey, Resource, Service, ServiceType
from kubecore.selectors import Selection

_ENDPOINTS_KIND = ("v1", "Endpoints")
_KNOWN_KINDS = {kind: version for version, kind in (*decode.KIND_RESOURCES, _ENDPOINTS_KIND)}
_MAX_LIST_DEPTH = 5


class Severity(Enum):
    """What a problem means for the file."""

    ERROR = "error"
    """An object, or all of the file, cannot be used."""
    WARNING = "warning"
    """A part of an object is ignored."""
    HINT = "hint"
    """Used as it is, but perhaps not what was meant."""
    NOTE = "note"
    """Not for this program; said for completeness."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something its author should know."""

    severity: Severity
    file: str
    line: int
    """From 1; 0: the file as a whole."""
    object: str
    """`Service ns/name`; empty: no one object."""
    field: str
    reason: str
    remedy: str = ""
    resource: Resource | None = None
    """That of an object which was left out as a whole."""

    def __str__(self) -> str:
        """One line for a terminal."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = ": ".join(x for x in (self.object, self.field, self.reason) if x)
        return f"{where}: {self.severity.value}: {what}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as one file defines it."""

    object: KubeObject | Endpoints
    line: int
    """Where it begins; 0: not known (JSON)."""
    selected: bool = True
    """Whether the Selection of its resource takes it; others still count where slices are derived."""


Ident = tuple[type, ObjectKey]
"""Class of the model and key: what may be defined only once."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file says. Of an object defined twice in it, the later definition holds, as if applied in order."""

    entries: Mapping[Ident, Entry] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    broken: bool = False
    """It could not be parsed at all, perhaps because it is half written."""

    @property
    def has_errors(self) -> bool:
        """Whether something in it could not be used."""
        return any(p.severity is Severity.ERROR for p in self.problems)


def read_file(text: bytes | str, filename: str, selections: Mapping[Resource, Selection]) -> FileContent:
    """The usable objects of a manifest file and what is wrong with the rest; never raises.

    Args:
        text: YAML or JSON, one or several documents, Lists or single objects.
        filename: what problems call the file.
        selections: wanted objects by resource; without an entry all are.
    """
    try:
        documents = parse_documents(text, filename)
    except ManifestError as error:
        return broken_file(error)
    reader = _FileReader(selections)
    for document in documents:
        reader.read(document)
    return FileContent(reader.entries, tuple(reader.problems))


def broken_file(error: ManifestError) -> FileContent:
    """The content of a file nothing can be read of."""
    problem = Problem(Severity.ERROR, error.file, error.line, "", error.field, error.reason, error.remedy)
    return FileContent(problems=(problem,), broken=True)


class _FileReader:
    def __init__(self, selections: Mapping[Resource, Selection]) -> None:
        self.entries: dict[Ident, Entry] = {}
        self.problems: list[Problem] = []
        self._selections = selections
        self._ignored: set[tuple[str, str]] = set()

    def read(self, document: Document, depth: int = 0) -> None:
        data = document.data
        if not isinstance(data, dict):
            self._report(document, "", (), "not a Kubernetes object", remedy="write a mapping with apiVersion and kind")
            return
        version, kind = data.get("apiVersion"), data.get("kind")
        if not isinstance(version, str) or not isinstance(kind, str):
            name = "kind" if isinstance(version, str) else "apiVersion"
            remedy = "begin the object with, for example, apiVersion: v1 and kind: Service"
            self._report(document, "", (name,), "missing" if name not in data else "not a text", remedy=remedy)
        elif kind.endswith("List"):
            self._read_list(document, version, kind.removesuffix("List"), depth)
        elif (version, kind) == _ENDPOINTS_KIND:
            self._keep(document, kind, *decode.decode_endpoints(data), selected=True)
        elif (resource := decode.KIND_RESOURCES.get((version, kind))) is not None:
            selection = self._selections.get(resource)
            decoded = decode.decode_object(resource, data)
            selected = selection is None or (decoded.object is not None and selection.takes(data))
            self._keep(document, kind, decoded.key, decoded.object, decoded.skipped, selected=selected)
        else:
            self._ignore(document, version, kind)

    def _read_list(self, document: Document, version: str, item_kind: str, depth: int) -> None:
        items = document.data.get("items")
        if items is None:
            return
        if not isinstance(items, list) or depth >= _MAX_LIST_DEPTH:
            reason = "not a list" if depth < _MAX_LIST_DEPTH else "Lists within Lists within Lists"
            self._report(document, "", ("items",), reason)
            return
        for i, item in enumerate(items):
            if item_kind and isinstance(item, dict):  # the items of a ServiceList need not say what they are
                item.setdefault("apiVersion", version)
                item.setdefault("kind", item_kind)
            self.read(document.at(("items", i)), depth + 1)

    def _keep(
        self,
        document: Document,
        kind: str,
        key: ObjectKey | None,
        obj: KubeObject | Endpoints | None,
        skipped: tuple[decode.Skipped, ...],
        *,
        selected: bool,
    ) -> None:
        what = f"{kind} {key}" if key else kind
        for s in skipped:
            severity = Severity.ERROR if s.whole else Severity.WARNING
            remedy = _remedy(s.reason)
            self._report(document, what, s.field, s.reason, severity=severity, remedy=remedy, resource=s.resource)
        if isinstance(obj, Service):
            obj = _with_families(obj)
            refused = False
            for field_, reason, remedy, severity in _check_service(obj, document.data):
                resource = Resource.SERVICES if severity is Severity.ERROR else None
                self._report(document, what, field_, reason, severity=severity, remedy=remedy, resource=resource)
                refused |= severity is Severity.ERROR
            if refused:
                return
        if isinstance(obj, EndpointSlice):
            for field_, reason, remedy in _check_slice(obj):
                self._report(document, what, field_, reason, severity=Severity.HINT, remedy=remedy)
        if obj is None:
            return
        ident = (type(obj), obj.key)
        if (earlier := self.entries.get(ident)) is not None:
            reason = f"defined before{_in_line(earlier.line)}; this definition holds"
            self._report(document, what, (), reason, severity=Severity.WARNING, remedy="remove one of them")
        self.entries[ident] = Entry(obj, document.start, selected)

    def _ignore(self, document: Document, version: str, kind: str) -> None:
        if (version, kind) in self._ignored:
            return
        self._ignored.add((version, kind))
        known = _KNOWN_KINDS.get(kind)
        if known is None or _group(version) != _group(known):  # a Service of Knative is another kind altogether
            self._report(document, f"{version} {kind}", (), "objects of this kind are not used", severity=Severity.NOTE)
        else:
            reason = f"{version} is no version of {kind} that is read"
            remedy = f"write apiVersion: {known}"
            self._report(document, kind, ("apiVersion",), reason, remedy=remedy)

    def _report(
        self,
        document: Document,
        what: str,
        where: str | tuple[str | int, ...],
        reason: str,
        *,
        severity: Severity = Severity.ERROR,
        remedy: str = "",
        resource: Resource | None = None,
    ) -> None:
        e = document.error(where, reason, remedy)
        self.problems.append(Problem(severity, e.file, e.line, what, e.field, e.reason, e.remedy, resource))


def _in_line(line: int) -> str:
    return f" in line {line} of this file" if line else " in this file"


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def _remedy(reason: str) -> str:
    """What to write instead, for the reasons that `decode` gives."""
    if reason.startswith("Expected `str"):
        return "put the value in quotes"
    if reason.startswith("Expected `int`, got"):
        return "write a number without quotes"
    if reason.startswith("Expected `int` "):
        return "a port is a number from 1 to 65535"
    if reason.endswith("no IP address"):
        return "write an address such as 10.96.0.10 or fd00::10"
    if reason.endswith("no CIDR"):
        return "write a network such as 192.0.2.0/24"
    if "DNS label" in reason or "DNS subdomain" in reason:
        return "use lower-case letters, digits and '-'"
    return "add it" if reason == "missing" else ""


def _check_slice(piece: EndpointSlice) -> Iterator[tuple[str, str, str]]:
    """(field, reason, remedy) for ports of a slice written by hand that lead nowhere."""
    for i, port in enumerate(piece.ports):
        if port.name is None:
            remedy = 'write the name of the Service\'s port, "" for an unnamed one'
            yield f"ports[{i}].name", "missing; such a port belongs to no port of a Service", remedy
        elif port.port is None:
            yield f"ports[{i}].port", "missing; such a port leads nowhere", "write the number that pods listen on"


# -- what the API server would do with a Service


def _with_families(service: Service) -> Service:
    if service.ip_families or not service.cluster_ips:
        return service
    return msgspec.structs.replace(service, ip_families=tuple(family_of(ip) for ip in service.cluster_ips))


def _check_service(service: Service, data: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Severity]]:
    """(field, reason, remedy, severity) for what the API server would refuse, or would have filled in."""
    spec = data.get("spec") or {}
    yield from _check_cluster_ips(service, spec)
    names = [p.name for p in service.ports]
    numbers = [(p.port, p.protocol) for p in service.ports]
    for i, port in enumerate(service.ports):
        if len(names) > 1 and not port.name:
            yield f"spec.ports[{i}].name", "missing", "with several ports each needs a name", Severity.ERROR
        elif port.name in names[:i]:
            yield f"spec.ports[{i}].name", f"{port.name!r} is taken by a port before", "names differ", Severity.ERROR
        if (port.port, port.protocol) in numbers[:i]:
            reason = f"{port.port}/{port.protocol.value} is taken by a port before"
            yield f"spec.ports[{i}].port", reason, "give each port its own number", Severity.ERROR
        if not port.node_port and service.type is ServiceType.NODE_PORT:
            reason = "missing; nothing allocates one here, so that it has no node port"
            yield f"spec.ports[{i}].nodePort", reason, "write one of 30000..32767", Severity.HINT
    if service.type is ServiceType.EXTERNAL_NAME and not service.external_name:
        yield "spec.externalName", "missing", "write the name the Service stands for", Severity.ERROR


def _check_cluster_ips(service: Service, spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Severity]]:
    if service.type is ServiceType.EXTERNAL_NAME or service.headless:
        return
    if not service.cluster_ips:
        reason = "missing; nothing allocates an address here, so that the Service has none"
        yield "spec.clusterIP", reason, "write an address, or None for a headless Service", Severity.HINT
        return
    if spec.get("clusterIP") and spec.get("clusterIPs") and spec["clusterIP"] != spec["clusterIPs"][0]:
        yield "spec.clusterIP", "not the first of clusterIPs", "write the same address in both", Severity.ERROR
    families = [family_of(ip) for ip in service.cluster_ips]
    if len(set(families)) < len(families):
        yield "spec.clusterIPs", "two addresses of one family", "at most one IPv4 and one IPv6 address", Severity.ERROR
    elif list(service.ip_families[: len(families)]) != families:
        reason = "does not go with clusterIPs: " + ", ".join(f"IPv{f}" for f in families)
        yield "spec.ipFamilies", reason, "name the families in the order of the addresses", Severity.ERROR
