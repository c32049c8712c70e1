"""API bytes (or a manifest's mapping) to model values; a malformed object is left out and named, never more than that.

Knows: pages of a list, lines of a watch, and where in an object an error is. Must not know: HTTP, when to list or
watch. Called by the reflector (bytes) and the file source (mappings).

A page is decoded in one pass with full types. Only if that fails are its objects decoded one by one, so that the bad
ones can be named; a well-formed cluster pays nothing for this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from kubecore import convert, wire
from kubecore.model import Endpoints, KubeObject, ObjectKey, Resource

KIND_RESOURCES: dict[tuple[str, str], Resource] = {
    ("v1", "Service"): Resource.SERVICES,
    ("discovery.k8s.io/v1", "EndpointSlice"): Resource.ENDPOINT_SLICES,
    ("v1", "Node"): Resource.NODES,
    ("v1", "Namespace"): Resource.NAMESPACES,
    ("v1", "Pod"): Resource.PODS,
    ("networking.k8s.io/v1", "ServiceCIDR"): Resource.SERVICE_CIDRS,
    ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"): Resource.SERVICE_IMPORTS,
}
"""(apiVersion, kind) of what can be decoded."""

NAMESPACED = frozenset({Resource.SERVICES, Resource.ENDPOINT_SLICES, Resource.PODS, Resource.SERVICE_IMPORTS})


class MalformedBody(ValueError):  # noqa: N818 - names what is malformed
    """The bytes are not what the API sends (cut short, not JSON, no list): nothing of them can be used, ask again."""


class Skipped(msgspec.Struct, frozen=True, gc=False):
    """Something that was left out: a whole object, or the part `field` of it if `whole` is False."""

    resource: Resource
    """That of slices for the old Endpoints, which are mirrored to slices."""
    key: ObjectKey | None
    """None where not even a name could be read."""
    field: str
    """Path in the object, `spec.ports[2].port`; empty: the object itself."""
    reason: str
    whole: bool = True


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """One object from the API."""

    key: ObjectKey | None
    """Identity as sent; None where it could not be read."""
    object: KubeObject | None
    """None: not usable (see `skipped`), or of no interest (a slice of FQDNs). Any earlier version is no longer true."""
    resource_version: str = ""
    skipped: tuple[Skipped, ...] = ()


class Page(msgspec.Struct, frozen=True):
    """One page of a list."""

    items: list[KubeObject]
    resource_version: str
    continue_token: str
    """Empty: this was the last page."""
    remaining: int | None
    """Items after this page, if the server said."""
    skipped: list[Skipped]


class Added(Decoded, frozen=True, gc=False):
    """Watch event ADDED."""


class Modified(Decoded, frozen=True, gc=False):
    """Watch event MODIFIED."""


class Deleted(Decoded, frozen=True, gc=False):
    """Watch event DELETED; only the key matters, and `object` is None."""


class Bookmark(msgspec.Struct, frozen=True, gc=False):
    """Watch event BOOKMARK: everything up to `resource_version` has been sent."""

    resource_version: str
    initial_events_end: bool = False
    """A streaming list is complete (annotation `k8s.io/initial-events-end`, KEP-3157)."""


class Error(msgspec.Struct, frozen=True, gc=False):
    """Watch event ERROR: a Status ends the watch; code 410 means the resource version is too old."""

    code: int
    reason: str
    message: str
    retry_after_s: int | None = None


class Unknown(msgspec.Struct, frozen=True, gc=False):
    """A watch event of a type this client does not know; to be ignored."""

    type: str


WatchItem = Added | Modified | Deleted | Bookmark | Error | Unknown

W = TypeVar("W", bound=wire.Object)
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_AT = re.compile(r"(?s)(.*) - at `(?:key in )?\$\.?(.*)`")
_MISSING = re.compile(r"Object missing required field `(\w+)`")


class _Outcome(NamedTuple):
    """As `Decoded`, for any kind."""

    key: ObjectKey | None
    value: Any
    resource_version: str
    skipped: tuple[Skipped, ...]


class _ListOf(wire.Wire, Generic[W]):
    items: list[W] | None
    metadata: wire.ListMeta = msgspec.field(default_factory=wire.ListMeta)


class _Codec(Generic[W]):
    """How one kind is decoded: its wire shape, its converter, and the decoders made from them once."""

    def __init__(
        self,
        shape: type[W],
        converter: Callable[[W, convert.Note], Any],
        *,
        resource: Resource,
        namespaced: bool,
    ) -> None:
        self.shape = shape
        self.list_decoder: msgspec.json.Decoder[_ListOf[W]] = msgspec.json.Decoder(_ListOf[shape])  # type: ignore[valid-type]
        self.object_decoder = msgspec.json.Decoder(shape)
        self._resource = resource
        self._namespaced = namespaced
        self._converter = converter

    def from_wire(self, w: W) -> _Outcome:
        """The model value, or why there is none."""
        parts: list[tuple[str, str]] = []
        meta = w.metadata
        key = self._key(meta.name, meta.namespace)
        try:
            value = self._converter(w, lambda field, reason: parts.append((field, reason)))
        except convert.Refused as refused:
            verdict = Skipped(self._resource, key, refused.field, refused.reason)
            return _Outcome(key, None, meta.resource_version or "", (verdict,))
        skipped = tuple(Skipped(self._resource, key, f, r, whole=False) for f, r in parts) if parts else ()
        return _Outcome(key, value, meta.resource_version or "", skipped)

    def identify(self, raw: Any) -> tuple[ObjectKey | None, str]:
        """(key, resource version) as well as they can be read from an undecoded object."""
        metadata = raw.get("metadata") if isinstance(raw, Mapping) else None
        if not isinstance(metadata, Mapping):
            return None, ""
        version = metadata.get("resourceVersion")
        return self._key(metadata.get("name"), metadata.get("namespace")), version if isinstance(version, str) else ""

    def refuse(self, raw: Any, error: BaseException) -> _Outcome:
        """What is left of an object whose types are wrong: its identity, the field and the reason."""
        key, version = self.identify(raw)
        at = _AT.fullmatch(str(error))
        field, reason = (at[2], at[1]) if at else ("", str(error))
        if missing := _MISSING.fullmatch(reason):
            field, reason = f"{field}.{missing[1]}".lstrip("."), "missing"
        if isinstance(error, RecursionError):
            field, reason = "", "nested too deeply"
        return _Outcome(key, None, version, (Skipped(self._resource, key, field, reason),))

    def from_json(self, data: bytes | msgspec.Raw) -> _Outcome:
        """The same from JSON."""
        try:
            return self.from_wire(self.object_decoder.decode(data))
        except _ERRORS as error:
            return self.refuse(_anything(data), error)

    def from_mapping(self, data: Mapping[str, Any]) -> _Outcome:
        """The same from what a YAML or JSON parser made."""
        try:
            return self.from_wire(msgspec.convert(data, self.shape))
        except (msgspec.ValidationError, RecursionError) as error:
            return self.refuse(data, error)

    def _key(self, name: object, namespace: object) -> ObjectKey | None:
        if not isinstance(name, str) or not name:
            return None
        if not self._namespaced:
            return ObjectKey("", name)
        return ObjectKey(namespace if isinstance(namespace, str) and namespace else "default", name)


_CODECS: dict[Resource, _Codec[Any]] = {
    resource: _Codec(shape, converter, resource=resource, namespaced=resource in NAMESPACED)
    for resource, shape, converter in (
        (Resource.SERVICES, wire.Service, convert.service),
        (Resource.ENDPOINT_SLICES, wire.EndpointSlice, convert.endpoint_slice),
        (Resource.NODES, wire.Node, convert.node),
        (Resource.NAMESPACES, wire.Namespace, convert.namespace),
        (Resource.PODS, wire.Pod, convert.pod),
        (Resource.SERVICE_CIDRS, wire.ServiceCIDR, convert.service_cidr),
        (Resource.SERVICE_IMPORTS, wire.ServiceImport, convert.service_import),
    )
}
_ENDPOINTS = _Codec(wire.Endpoints, convert.endpoints, resource=Resource.ENDPOINT_SLICES, namespaced=True)


_RAW_LIST = msgspec.json.Decoder(_ListOf[msgspec.Raw])  # type: ignore[type-var]  # undecoded items
_WATCH_LINE = msgspec.json.Decoder(wire.WatchLine)
_STATUS = msgspec.json.Decoder(wire.Status)
_OBJECT = msgspec.json.Decoder(wire.Object)
_ANYTHING = msgspec.json.Decoder()


def decode_list_page(resource: Resource, body: bytes) -> Page:
    """One page of `GET /apis/…/<resource>`; bad objects are in `skipped` and nowhere else.

    Raises:
        MalformedBody: the body is no list.
    """
    codec = _CODECS[resource]
    try:
        typed = codec.list_decoder.decode(body)
        metadata, outcomes = typed.metadata, map(codec.from_wire, typed.items or ())
    except _ERRORS:
        try:
            raw = _RAW_LIST.decode(body)
        except _ERRORS as error:
            raise MalformedBody(f"not a list of {resource.value}: {error}") from error
        metadata, outcomes = raw.metadata, map(codec.from_json, raw.items or ())
    items: list[KubeObject] = []
    skipped: list[Skipped] = []
    for outcome in outcomes:
        if outcome.value is not None:
            items.append(outcome.value)
        skipped += outcome.skipped
    return Page(
        items=items,
        resource_version=metadata.resource_version or "",
        continue_token=metadata.continue_ or "",
        remaining=metadata.remaining_item_count,
        skipped=skipped,
    )


def decode_watch_line(resource: Resource, line: bytes) -> WatchItem:
    """One line of a watch; a bad object gives an Added or Modified without object, so that the version before it goes.

    Raises:
        MalformedBody: the line is no watch event (cut short, say).
    """
    codec = _CODECS[resource]
    try:
        event = _WATCH_LINE.decode(line)
        match event.type:
            case "ADDED":
                return Added(*codec.from_json(event.object))
            case "MODIFIED":
                return Modified(*codec.from_json(event.object))
            case "DELETED":
                key, version = codec.identify(_ANYTHING.decode(event.object))
                return Deleted(key, None, version)
            case "BOOKMARK":
                metadata = _OBJECT.decode(event.object).metadata
                end = (metadata.annotations or {}).get("k8s.io/initial-events-end") == "true"
                return Bookmark(metadata.resource_version or "", end)
            case "ERROR":
                status = _STATUS.decode(event.object)
                retry_after_s = status.details.retry_after_seconds if status.details else None
                return Error(status.code or 0, status.reason or "", status.message or "", retry_after_s)
            case other:
                return Unknown(other)
    except _ERRORS as error:
        raise MalformedBody(f"not a watch event of {resource.value}: {error}") from error


def decode_object(resource: Resource, data: bytes | Mapping[str, Any]) -> Decoded:
    """One object from JSON bytes or from a manifest's mapping; never raises."""
    codec = _CODECS[resource]
    return Decoded(*(codec.from_mapping(data) if isinstance(data, Mapping) else codec.from_json(data)))


def decode_endpoints(data: Mapping[str, Any]) -> tuple[ObjectKey | None, Endpoints | None, tuple[Skipped, ...]]:
    """A v1 Endpoints object from a manifest: (key, value or None, what was left out)."""
    outcome = _ENDPOINTS.from_mapping(data)
    return outcome.key, outcome.value, outcome.skipped


def _anything(data: bytes | msgspec.Raw) -> Any:
    """The undecoded form; None where there is none."""
    try:
        return _ANYTHING.decode(data)
    except _ERRORS:
        return None
