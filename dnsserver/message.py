"""DNS messages as values: what the answering code computes with, between bytes in and bytes out.

Knows the fields of a message. Must not know sockets, time, Kubernetes. `wire` converts to and from bytes; every plugin
of a server block takes a Query and gives a Message.

Names are uncompressed wire form (length-prefixed labels, ending in the root's zero byte). `lower` variants are ASCII
lower case, for look-ups; the others keep the case they came with.

Source: RFC 1035 §4, RFC 6891 (EDNS0), RFC 8914 (extended errors).
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

import msgspec


class QType(IntEnum):
    """Types this server builds or treats specially; any other number passes through as an int."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    OPT = 41
    DS = 43
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255


class QClass(IntEnum):
    """Classes."""

    IN = 1
    CH = 3
    ANY = 255


class Rcode(IntEnum):
    """Response codes; those above 15 need EDNS."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class ExtendedError(IntEnum):
    """INFO-CODEs of RFC 8914 §4 that we send."""

    OTHER = 0
    STALE_ANSWER = 3
    CACHED_ERROR = 13
    NOT_READY = 14
    BLOCKED = 15
    FILTERED = 17
    STALE_NXDOMAIN = 19
    NOT_AUTHORITATIVE = 20
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23


class RR(NamedTuple):
    """A resource record."""

    name: bytes
    type: int
    rclass: int
    ttl: int
    """Seconds."""
    rdata: bytes
    """Wire form, names within uncompressed."""


class Question(NamedTuple):
    """A question."""

    name: bytes
    """As asked, case kept."""
    lower: bytes
    """The same in lower case."""
    qtype: int
    qclass: int = QClass.IN


class Edns(msgspec.Struct, frozen=True, gc=False):
    """The OPT record of a query."""

    udp_size_bytes: int
    do: bool = False
    version: int = 0
    options: tuple[tuple[int, bytes], ...] = ()


Transport = Literal["udp", "tcp", "tls"]


class Query(msgspec.Struct, frozen=True, gc=False):
    """An accepted query: opcode QUERY, one question, well formed."""

    id: int
    question: Question
    transport: Transport
    client: str
    """Canonical address of who asked."""
    client_port: int
    rd: bool = True
    cd: bool = False
    ad: bool = False
    edns: Edns | None = None
    size_bytes: int = 0
    """Of the query as received; the log line prints it."""
    local: str = ""
    """Canonical address it was received on, where the socket tells."""
    chased: int = 0
    """How many aliases the server followed to ask itself this; 0: a client asked. Bounds loops through the chain."""

    @property
    def limit_bytes(self) -> int:
        """The largest reply the client takes over this transport."""
        if self.transport != "udp":
            return 65535
        return max(512, self.edns.udp_size_bytes) if self.edns else 512


class Message(msgspec.Struct, frozen=True, gc=False):
    """A reply before encoding: sections, response code, flags.

    Question, id, RD, CD and OPT are taken from the query.
    """

    rcode: int = Rcode.NOERROR
    answer: tuple[RR, ...] = ()
    authority: tuple[RR, ...] = ()
    additional: tuple[RR, ...] = ()
    """Without OPT."""
    aa: bool = False
    ra: bool = False
    ad: bool = False
    tc: bool = False
    errors: tuple[tuple[int, str], ...] = ()
    """Extended errors (INFO-CODE, EXTRA-TEXT); sent only to clients with EDNS."""
    cacheable: bool = True
    """False for the cluster's own data: it is never served from a cache."""


class Cuts(NamedTuple):
    """Where a long tail may end for clients that take no more: behind each record of ANSWER, then each RRset behind."""

    ends: array[int]
    """Offsets in the tail, ascending."""
    additionals: array[int]
    """Records of ADDITIONAL up to each of those that lie behind ANSWER."""


class Prepared(NamedTuple):
    """A reply that is ready but for id, RD, the question's case and OPT: what the hot path copies out.

    The reply is `id + flags(+RD) + counts + question as asked + tail (+ OPT)`. Names in a tail point back into the
    question (RFC 1035 §4.1.4), so that they take the question's case.
    """

    flags: int
    """The 16-bit flag word with QR, AA, RA and the RCODE (≤ 15); RD and CD clear."""
    counts: bytes
    """ANCOUNT, NSCOUNT, ARCOUNT without OPT: 6 bytes."""
    tails: tuple[bytes, ...]
    """One per rotation of a multi-address answer; at least one. See `record_bytes`."""
    options: bytes = b""
    """EDNS options (code, length, data) to add to the OPT record of clients that sent one: extended errors."""
    lower_only: bool = False
    """The tail repeats part of the question's name where no pointer may stand (SRV targets, RFC 2782): use it only for
    a question asked in lower case, build the reply in full for others."""
    record_bytes: int = 0
    """If not 0, the tails hold records of this size and nothing else, and may be cut behind any of them."""
    rings: bool = False
    """Each tail holds the records twice over, so that any of them can come first: they are too many to keep every
    rotation."""
    cuts: Cuts | None = None
    """Of a tail too long for some clients; None: of short ones, and where `record_bytes` tells."""


class Handler(Protocol):
    """One link of a server block's chain. None: no reply at all."""

    def __call__(self, query: Query, /) -> Awaitable[Message | None]:
        """Answer `query`; never raises on anything a client can send."""
        ...


Middleware = Callable[[Handler], Handler]
"""What a plugin is after set-up: given the rest of the chain, the chain with it in front."""
