"""Messages to bytes: compression, truncation, the OPT record of a reply.

Knows the wire form of a message. Must not know where data comes from, sockets. `wire` is the other direction.

Only names in rdata of the types RFC 1035 defines are compressed (RFC 3597 §4). An SRV target never is (RFC 2782):
strict decoders refuse it.

Source: RFC 1035 §4.1, RFC 2181 §9 (TC), RFC 6891 (EDNS0), RFC 8914 (extended errors).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import groupby

from dnsserver.message import RR, Message, QType, Query, Question, Rcode

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
DO = 0x8000
OPCODE_MASK = 0x7800

OPTION_NSID, OPTION_EXPIRE, OPTION_COOKIE, OPTION_KEEPALIVE, OPTION_PADDING = 3, 9, 10, 11, 12
OPTION_EXTENDED_ERROR = 15
_ECHOED = frozenset({OPTION_NSID, OPTION_EXPIRE, OPTION_COOKIE, OPTION_KEEPALIVE, OPTION_PADDING})
MAX_EXTRA_TEXT_BYTES = 160
"""Of an extended error, so that the OPT record never crowds out an answer."""

COUNTS = struct.Struct("!HHH")
_HEADER = struct.Struct("!HHHHHH")
_QUESTION_TAIL = struct.Struct("!HH")
_RR_FIXED = struct.Struct("!HHIH")
_SHORT = struct.Struct("!H")
_POINTER_LIMIT = 0x4000

COMPRESSIBLE: dict[int, tuple[int, int]] = {
    2: (0, 1),
    3: (0, 1),
    4: (0, 1),
    5: (0, 1),
    6: (0, 2),
    7: (0, 1),
    8: (0, 1),
    9: (0, 1),
    12: (0, 1),
    14: (0, 2),
    15: (2, 1),
}
"""Type → bytes before the names in rdata, and how many names follow (NS MD MF CNAME SOA MB MG MR PTR MINFO MX)."""


class Packer:
    """A message under construction. Names are compressed against what was written, byte for byte, so case is kept."""

    def __init__(self, question: Question) -> None:
        self.data = bytearray(12)
        self._offsets: dict[bytes, int] = {}
        self.name(question.name)
        self.data += _QUESTION_TAIL.pack(question.qtype, question.qclass)

    def name(self, name: bytes) -> None:
        """Append a name, as a pointer where a suffix of it was written before."""
        data, offsets = self.data, self._offsets
        start = len(data)
        at = 0
        while name[at]:
            suffix = name[at:]
            known = offsets.get(suffix)
            if known is not None:
                data += name[:at]
                data += _SHORT.pack(0xC000 | known)
                return
            if start + at < _POINTER_LIMIT:
                offsets[suffix] = start + at
            at += 1 + name[at]
        data += name

    def record(self, rr: RR) -> None:
        """Append a record."""
        data = self.data
        self.name(rr.name)
        data += _RR_FIXED.pack(rr.type, rr.rclass, rr.ttl, len(rr.rdata))
        layout = COMPRESSIBLE.get(rr.type)
        if layout is None:
            data += rr.rdata
            return
        start = len(data)
        skip, count = layout
        data += rr.rdata[:skip]
        at = skip
        for _ in range(count):
            end = name_end(rr.rdata, at)
            self.name(rr.rdata[at:end])
            at = end
        data += rr.rdata[at:]
        _SHORT.pack_into(data, start - 2, len(data) - start)


def name_end(data: bytes, at: int) -> int:
    """The offset behind the uncompressed name that starts at `at`."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def encode(message: Message, query: Query, limit: int | None = None) -> bytes:
    """The reply `message` to `query`, of at most `limit` bytes.

    What does not fit: the rest of ANSWER goes, and TC says so; AUTHORITY goes with TC only if it is the answer (a
    denial's SOA); other whole RRsets go silently. Question and OPT always stay.

    Args:
        message: what to say.
        query: whom to; gives id, question, RD, CD, EDNS.
        limit: default: `query.limit_bytes`; a smaller one caps it, a bigger one has no effect over UDP.
    """
    most = query.limit_bytes if limit is None else min(limit, query.limit_bytes)
    edns = query.edns
    packer = Packer(query.question)
    rcode = message.rcode
    if rcode > 15 and edns is None:
        rcode = Rcode.SERVFAIL
    opt = opt_record(query, message, rcode, most - len(packer.data)) if edns else b""
    room = most - len(opt)
    answered, complete = _fill(packer, message.answer, room)
    authorities = additionals = 0
    truncated = message.tc or not complete
    if complete:
        authorities, complete = _fill_sets(packer, message.authority, room)
        truncated = truncated or (not complete and not message.answer)
    if complete:
        additionals, _ = _fill_sets(packer, message.additional, room)
    flags = QR | (rcode & 15)
    flags |= (message.aa and AA) | (truncated and TC) | (query.rd and RD) | (message.ra and RA) | (query.cd and CD)
    if message.ad and (query.ad or (edns is not None and edns.do)):
        flags |= AD
    packer.data += opt
    _HEADER.pack_into(packer.data, 0, query.id, flags, 1, answered, authorities, additionals + bool(opt))
    return bytes(packer.data)


def _fill(packer: Packer, section: Sequence[RR], room: int) -> tuple[int, bool]:
    """Write records while they fit: how many, and whether all."""
    for count, rr in enumerate(section):
        mark = len(packer.data)
        packer.record(rr)
        if len(packer.data) > room:
            del packer.data[mark:]
            return count, False
    return len(section), True


def _fill_sets(packer: Packer, section: Sequence[RR], room: int) -> tuple[int, bool]:
    """Write RRsets while they fit whole (RFC 2181 §9): how many records, and whether all."""
    written = 0
    for _, group in groupby(section, key=lambda rr: (rr.name, rr.type)):
        mark = len(packer.data)
        members = list(group)
        _, complete = _fill(packer, members, room)
        if not complete:
            del packer.data[mark:]
            return written, False
        written += len(members)
    return written, True


def opt_record(query: Query, message: Message, rcode: int, room: int) -> bytes:
    """The OPT record of a reply to a query with EDNS: size and DO as the client's, known options echoed, errors added.

    Options that leave no `room` are left out, padding first.
    """
    edns = query.edns
    if edns is None:
        return b""
    echoed = [(code, data) for code, data in edns.options if code in _ECHOED]
    errors = [(OPTION_EXTENDED_ERROR, extended_error(code, text)) for code, text in message.errors]
    for options in (echoed + errors, [o for o in echoed if o[0] != OPTION_PADDING] + errors, errors, []):
        body = pack_options(options)
        if len(body) + 11 <= room:
            break
    flags = (rcode >> 4) << 24 | (edns.do and DO)
    return b"\0" + _RR_FIXED.pack(QType.OPT, edns.udp_size_bytes, flags, len(body)) + body


def extended_error(code: int, text: str) -> bytes:
    """The data of an extended-error option; a long text is cut at a character."""
    raw = text.encode()[:MAX_EXTRA_TEXT_BYTES].decode(errors="ignore").encode()
    return _SHORT.pack(code) + raw


def pack_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """EDNS options in wire form."""
    return b"".join(_QUESTION_TAIL.pack(code, len(data)) + data for code, data in options)


def encode_query(
    question: Question, query_id: int, *, rd: bool = True, cd: bool = False, udp_size_bytes: int = 0, do: bool = False
) -> bytes:
    """A query to an upstream; with an OPT record if `udp_size_bytes` is not 0."""
    flags = (rd and RD) | (cd and CD)
    opt = b"\0" + _RR_FIXED.pack(QType.OPT, udp_size_bytes, do and DO, 0) if udp_size_bytes else b""
    header = _HEADER.pack(query_id, flags, 1, 0, 0, bool(opt))
    return header + question.name + _QUESTION_TAIL.pack(question.qtype, question.qclass) + opt
