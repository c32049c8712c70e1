"""Queries: which datagrams are answered, dropped or refused at once.

Knows the rules for a well-formed query. Must not know zones, policy, sockets. The servers call `accept`; the other
directions (`encode`, `parse_reply`) are offered from here too.

Whether to drop, refuse or answer is decided from the header before anything else is read.

Source: RFC 1035 §4.1, RFC 6891 §6.1.1 and §6.1.3 (OPT, BADVERS), RFC 8906 §3.1 (unknown opcodes).
"""

from __future__ import annotations

from typing import NamedTuple

from dnsserver import names
from dnsserver.encode import AD, CD, OPCODE_MASK, QR, RD, encode, encode_query
from dnsserver.message import Edns, Message, QType, Query, Question, Rcode, Transport
from dnsserver.unpack import (
    HEADER,
    RR_FIXED,
    UpstreamReply,
    WireError,
    parse_reply,
    read_edns,
    read_name,
    read_question,
)

__all__ = ["Reject", "UpstreamReply", "WireError", "accept", "encode", "encode_query", "parse_reply"]


class Reject(NamedTuple):
    """A datagram that is answered at once, without asking the chain."""

    reply: bytes
    rcode: int


def accept(
    datagram: bytes, transport: Transport, client: str, client_port: int = 0, local: str = ""
) -> Query | Reject | None:
    """The query in `datagram`; or the reply that refuses it; or None: say nothing (not even a header, or a reply).

    Never raises. What is cut off, has counts without records, records without counts, or two OPT records is FORMERR;
    opcodes but QUERY are NOTIMP; EDNS versions but 0 are BADVERS; zone transfers are refused.
    """
    if len(datagram) < 12:
        return None
    query_id, flags, *counts = HEADER.unpack_from(datagram)
    if flags & QR:
        return None
    if flags & OPCODE_MASK:
        return _header_only(query_id, flags & (OPCODE_MASK | RD), Rcode.NOTIMP)
    questions, answers, authorities, additionals = counts
    if questions != 1 or answers > 1 or authorities > 1 or additionals > 2:
        return _header_only(query_id, flags & RD, Rcode.FORMERR)
    try:
        question, edns = _read_body(datagram, answers + authorities, additionals)
    except WireError:
        return _header_only(query_id, flags & RD, Rcode.FORMERR)
    query = Query(
        id=query_id,
        question=question,
        transport=transport,
        client=client,
        client_port=client_port,
        rd=bool(flags & RD),
        cd=bool(flags & CD),
        ad=bool(flags & AD),
        edns=edns,
        size_bytes=len(datagram),
        local=local,
    )
    if edns is not None and edns.version:
        return Reject(encode(Message(rcode=Rcode.BADVERS), query), Rcode.BADVERS)
    if question.qtype in (QType.AXFR, QType.IXFR):
        return Reject(encode(Message(rcode=Rcode.REFUSED), query), Rcode.REFUSED)
    if question.qtype == QType.OPT:  # a pseudo type: there is nothing to ask for (RFC 6891 §6.1.1)
        return Reject(encode(Message(rcode=Rcode.FORMERR), query), Rcode.FORMERR)
    return query


def _read_body(data: bytes, others: int, additionals: int) -> tuple[Question, Edns | None]:
    """Question and OPT; the records of the other sections, and TSIG or SIG(0), are only stepped over."""
    question, at = read_question(data)
    edns = None
    for index in range(others + additionals):
        at, found = _skip_record(data, at)
        if found is None:
            continue
        if edns is not None or index < others:
            raise WireError("two OPT records, or one outside ADDITIONAL")
        edns = found
    if at != len(data):
        raise WireError("bytes after the last record")
    return question, edns


def _header_only(query_id: int, keep: int, rcode: int) -> Reject:
    return Reject(HEADER.pack(query_id, QR | keep | rcode, 0, 0, 0, 0), rcode)


def _skip_record(data: bytes, at: int) -> tuple[int, Edns | None]:
    """The offset behind the record at `at`, and what it says if it is OPT."""
    name, at = read_name(data, at)
    if at + 10 > len(data):
        raise WireError("a record is cut off")
    rtype, rclass, ttl, length = RR_FIXED.unpack_from(data, at)
    at += 10
    end = at + length
    if end > len(data):
        raise WireError("rdata is cut off")
    if rtype != QType.OPT:
        return end, None
    if name != names.ROOT:
        raise WireError("OPT is not at the root")
    return end, read_edns(rclass, ttl, bytes(data[at:end]))
