"""What supervisor and worker say to each other over a socket pair, and how it looks in bytes.

Knows frames and messages. Must not know what either side does with them. Both ends are this program and inherit the
socket; nobody else can reach it.

A frame is a 32-bit length and a msgpack pair (kind, payload).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dnsserver.metrics import FamilySnapshot
from kubecore.model import (
    RESOURCE_OF,
    Delete,
    EndpointSlice,
    Event,
    Listed,
    ListStarted,
    Namespace,
    ObjectKey,
    Pod,
    Resource,
    Service,
    ServiceImport,
    Upsert,
)

MAX_FRAME_BYTES = 64 << 20
KINDS: Mapping[Resource, Any] = {
    Resource.SERVICES: Service,
    Resource.ENDPOINT_SLICES: EndpointSlice,
    Resource.NAMESPACES: Namespace,
    Resource.PODS: Pod,
    Resource.SERVICE_IMPORTS: ServiceImport,
}
"""What the DNS server watches, and how it is decoded."""


class Address(msgspec.Struct, array_like=True):
    """One address to serve on, with its inherited sockets."""

    host: str
    port: int
    udp_fd: int
    tcp_fd: int


class Start(msgspec.Struct, tag=True):
    """The first message to a worker."""

    config: bytes
    """A pickled Config: exactly the supervisor's, whatever has become of the file since."""
    addresses: list[Address]
    one: bool
    now_s: float
    patience_s: float
    log_level: str
    log_format: str


class Events(msgspec.Struct, tag=True):
    """What happened in the cluster, as of `now_s`. A worker takes a frame in as a whole."""

    now_s: float
    events: list[tuple[str, str, msgspec.Raw]]
    """(`start`, `put`, `delete` or `listed`; resource; object or key)."""


class Serials(msgspec.Struct, tag=True):
    """The serials the zones have reached in the other workers, in the order of `Engine.serials`."""

    serials: list[int]


class Reload(msgspec.Struct, tag=True):
    """A new configuration for the same addresses."""

    config: bytes
    now_s: float


class Scrape(msgspec.Struct, tag=True):
    """Send your figures."""

    number: int


class Drain(msgspec.Struct, tag=True):
    """Take no more queries, finish what is in flight, and end."""

    grace_s: float


class Status(msgspec.Struct, tag=True):
    """A worker's state, sent every second and when it changes."""

    not_ready: list[str]
    serials: list[int]


class Reloaded(msgspec.Struct, tag=True):
    """What became of a Reload; empty: it is in effect."""

    error: str


class Figures(msgspec.Struct, tag=True):
    """The reply to a Scrape."""

    number: int
    families: list[FamilySnapshot]


ToWorker = Start | Events | Serials | Reload | Scrape | Drain
FromWorker = Status | Reloaded | Figures

_encoder = msgspec.msgpack.Encoder()
_object_decoders = {resource: msgspec.msgpack.Decoder(kind) for resource, kind in KINDS.items()}
_key_decoder = msgspec.msgpack.Decoder(ObjectKey)
to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker) -> bytes:
    """The message with its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


async def receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's bytes; None: the other side is gone."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_FRAME_BYTES:
            return None
        return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def open_link(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over one end of the pair."""
    return await asyncio.open_unix_connection(sock=sock, limit=1 << 20)


def pack_events(events: Iterable[Event], now_s: float) -> Events:
    """The message for these events. What no worker needs is left out."""
    packed: list[tuple[str, str, msgspec.Raw]] = []
    for event in events:
        match event:
            case ListStarted(resource):
                packed.append(("start", resource.value, _raw(None)))
            case Upsert(obj) if RESOURCE_OF[type(obj)] in KINDS:
                packed.append(("put", RESOURCE_OF[type(obj)].value, _raw(obj)))
            case Delete(resource, key):
                packed.append(("delete", resource.value, _raw(key)))
            case Listed(resource):
                packed.append(("listed", resource.value, _raw(None)))
    return Events(now_s, packed)


def unpack_events(message: Events) -> Iterable[Event]:
    """The events in a message, in order."""
    for what, name, raw in message.events:
        resource = Resource(name)
        match what:
            case "start":
                yield ListStarted(resource)
            case "put":
                yield Upsert(_object_decoders[resource].decode(raw))
            case "delete":
                yield Delete(resource, _key_decoder.decode(raw))
            case "listed":
                yield Listed(resource)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))
