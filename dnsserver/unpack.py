"""Bytes to messages: names, questions, EDNS and whole upstream replies.

Knows what a well-formed message is. Must not know zones, policy, sockets. `wire` reads queries with it, the forwarder
replies; `encode` is the other direction.

Source: RFC 1035 §4.1, RFC 2181 §8 (TTL), RFC 3597 §4 (names in rdata), RFC 6891 §6.1 (OPT).
"""

from __future__ import annotations

import struct

import msgspec

from dnsserver import names
from dnsserver.encode import AA, AD, COMPRESSIBLE, DO, OPCODE_MASK, OPTION_EXTENDED_ERROR, QR, RA, TC
from dnsserver.message import RR, Edns, Message, QType, Question

HEADER = struct.Struct("!HHHHHH")
RR_FIXED = struct.Struct("!HHIH")
_TWO_SHORTS = struct.Struct("!HH")
_MAX_TTL_S = 0x7FFFFFFF


class WireError(ValueError):
    """The bytes are no DNS message."""


class UpstreamReply(msgspec.Struct, frozen=True, gc=False):
    """A parsed reply: what `Message` leaves to the query, besides the message itself."""

    id: int
    question: Question | None
    """None where the reply has none (some servers' FORMERR)."""
    message: Message
    edns: Edns | None = None
    opcode: int = 0


def read_question(data: bytes) -> tuple[Question, int]:
    """The question at its fixed place; a pointer cannot be right there, as no name comes before it."""
    at = 12
    size = len(data)
    while True:
        if at >= size:
            raise WireError("the question's name is cut off")
        length = data[at]
        if not length:
            break
        if length > names.MAX_LABEL_BYTES:
            raise WireError("a pointer or an unknown label type in the question")
        at += 1 + length
    at += 1
    if at + 4 > size or at - 12 > names.MAX_NAME_BYTES:
        raise WireError("the question is cut off, or its name too long")
    name = bytes(data[12:at])
    qtype, qclass = _TWO_SHORTS.unpack_from(data, at)
    return Question(name, name.lower(), qtype, qclass), at + 4


def read_edns(size: int, ttl: int, rdata: bytes) -> Edns:
    """What an OPT record says, from its class, TTL and data.

    Raises:
        WireError: an option is cut off.
    """
    options: list[tuple[int, bytes]] = []
    at = 0
    while at < len(rdata):
        if at + 4 > len(rdata):
            raise WireError("an EDNS option is cut off")
        code, length = _TWO_SHORTS.unpack_from(rdata, at)
        at += 4
        if at + length > len(rdata):
            raise WireError("an EDNS option is cut off")
        options.append((code, rdata[at : at + length]))
        at += length
    return Edns(size, do=bool(ttl & DO), version=ttl >> 16 & 255, options=tuple(options))


def read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, decompressed, and the offset behind it.

    Raises:
        WireError: cut off, over 255 bytes, an unknown label type, or a pointer that does not point before itself.
    """
    parts: list[bytes] = []
    total = 1
    end = -1
    size = len(data)
    lowest = at
    while True:
        if at >= size:
            raise WireError("a name is cut off")
        length = data[at]
        if not length:
            return b"".join(parts) + names.ROOT, at + 1 if end < 0 else end
        if length >= 0xC0:
            if at + 1 >= size:
                raise WireError("a pointer is cut off")
            target = (length & 0x3F) << 8 | data[at + 1]
            if end < 0:
                end = at + 2
            if target >= lowest or target < 12:
                raise WireError("a pointer does not point back")
            at = lowest = target
            continue
        if length > names.MAX_LABEL_BYTES:
            raise WireError("an unknown label type")
        total += 1 + length
        if total > names.MAX_NAME_BYTES:
            raise WireError("a name is over 255 bytes")
        if at + 1 + length > size:
            raise WireError("a label is cut off")
        parts.append(bytes(data[at : at + 1 + length]))
        at += 1 + length


_NAMES_IN_RDATA: dict[int, tuple[int, int]] = COMPRESSIBLE | {
    17: (0, 2),
    18: (2, 1),
    21: (2, 1),
    24: (18, 1),
    26: (2, 2),
    30: (0, 1),
    33: (6, 1),
    36: (2, 1),
    39: (0, 1),
}
"""Type → bytes before the names in rdata, and how many: what receivers must decompress (RFC 3597 §4)."""
_NAPTR = 35
"""Its name comes after three strings, so the place is not fixed."""


def parse_reply(data: bytes) -> UpstreamReply:
    """The reply in `data`, names within rdata decompressed.

    Bytes behind the last record are ignored, as are records of the ADDITIONAL section a truncated (TC) reply lost.

    Raises:
        WireError: not a reply, or not well formed.
    """
    if len(data) < 12:
        raise WireError("shorter than a header")
    query_id, flags, questions, *counts = HEADER.unpack_from(data)
    if not flags & QR:
        raise WireError("not a reply")
    if questions > 1:
        raise WireError("several questions")
    question, at = read_question(data) if questions else (None, 12)
    sections: list[list[RR]] = [[], [], []]
    try:
        for section, count in zip(sections, counts, strict=True):
            for _ in range(count):
                rr, at = _record(data, at)
                section.append(rr)
    except WireError:
        if not flags & TC:
            raise
    edns, high_bits = _take_opt(sections)
    rcode = high_bits << 4 | flags & 15
    message = Message(
        rcode=rcode,
        answer=tuple(sections[0]),
        authority=tuple(sections[1]),
        additional=tuple(sections[2]),
        aa=bool(flags & AA),
        ra=bool(flags & RA),
        ad=bool(flags & AD),
        tc=bool(flags & TC),
        errors=_extended_errors(edns),
    )
    return UpstreamReply(query_id, question, message, edns, (flags & OPCODE_MASK) >> 11)


def _extended_errors(edns: Edns | None) -> tuple[tuple[int, str], ...]:
    """What the upstream says went wrong (RFC 8914), to be passed on."""
    if edns is None:
        return ()
    return tuple(
        (int.from_bytes(data[:2], "big"), data[2:].decode(errors="replace").rstrip("\0"))
        for code, data in edns.options
        if code == OPTION_EXTENDED_ERROR and len(data) >= 2
    )


def _take_opt(sections: list[list[RR]]) -> tuple[Edns | None, int]:
    """Take the OPT record out of the sections: what it says, and the upper bits of the response code."""
    found = [rr for section in sections for rr in section if rr.type == QType.OPT]
    if not found:
        return None, 0
    opt = found[0]
    if len(found) > 1 or opt.name != names.ROOT or opt not in sections[2]:
        raise WireError("a misplaced OPT record")
    sections[2].remove(opt)
    return read_edns(opt.rclass, opt.ttl, opt.rdata), opt.ttl >> 24


def _record(data: bytes, at: int) -> tuple[RR, int]:
    name, at = read_name(data, at)
    if at + 10 > len(data):
        raise WireError("a record is cut off")
    rtype, rclass, ttl, length = RR_FIXED.unpack_from(data, at)
    at += 10
    end = at + length
    if end > len(data):
        raise WireError("rdata is cut off")
    if rtype == QType.OPT:
        return RR(name, rtype, rclass, ttl, bytes(data[at:end])), end
    if ttl > _MAX_TTL_S:
        ttl = 0  # RFC 2181 §8: the top bit set means zero
    return RR(name, rtype, rclass, ttl, _rdata(data, rtype, at, end)), end


def _rdata(data: bytes, rtype: int, at: int, end: int) -> bytes:
    layout = _NAMES_IN_RDATA.get(rtype)
    if rtype == QType.A and end - at != 4:
        raise WireError("an A record is not of 4 bytes")
    if rtype == QType.AAAA and end - at != 16:
        raise WireError("an AAAA record is not of 16 bytes")
    if rtype == _NAPTR:
        layout = (_naptr_prefix(data, at, end), 1)
    if layout is None:
        return bytes(data[at:end])
    skip, count = layout
    parts = [bytes(data[at : at + skip])]
    at += skip
    for _ in range(count):
        name, at = read_name(data, at)
        parts.append(name)
    if at > end:
        raise WireError("a name runs over its rdata")
    parts.append(bytes(data[at:end]))
    return b"".join(parts)


def _naptr_prefix(data: bytes, at: int, end: int) -> int:
    """Bytes before a NAPTR record's name: order, preference, three strings."""
    start = at
    at += 4
    for _ in range(3):
        if at >= end:
            raise WireError("NAPTR rdata is cut off")
        at += 1 + data[at]
    return at - start


def with_ttl(records: tuple[RR, ...], ttl_s: int) -> tuple[RR, ...]:
    """The same records, all with this TTL."""
    return tuple(rr._replace(ttl=ttl_s) for rr in records)
