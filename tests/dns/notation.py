"""Questions and replies in the field's notation: zone-file lines, as dig prints them.

Replies are read from bytes with dnspython, a decoder other than ours.
"""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype

from dnsserver import names
from dnsserver.message import RR, Edns, QClass, Query, Question

NO_OPT = None


def question(text: str) -> Question:
    """`web.default.svc.cluster.local. SRV`, or with a class in front of the type."""
    name, *words = text.split()
    wire = names.from_text(name)
    qclass = QClass[words[0]] if len(words) == 2 else QClass.IN
    return Question(wire, wire.lower(), int(dns.rdatatype.from_text(words[-1])), int(qclass))


def query(
    text: str, *, edns: Edns | None = NO_OPT, transport: str = "udp", query_id: int = 4711, **more: object
) -> Query:
    """An accepted query for `question(text)`."""
    return Query(
        id=query_id,
        question=question(text),
        transport=transport,  # type: ignore[arg-type]
        client="192.0.2.7",
        client_port=5353,
        edns=edns,
        **more,  # type: ignore[arg-type]
    )


def query_bytes(text: str, *, query_id: int = 4711, payload: int | None = None, do: bool = False) -> bytes:
    """The datagram dig would send, made by dnspython."""
    name, *words = text.split()
    message = dns.message.make_query(
        name,
        words[-1],
        words[0] if len(words) == 2 else "IN",
        use_edns=None if payload is None else 0,
        payload=payload or 0,
    )
    message.id = query_id
    if do:
        message.ednsflags |= dns.flags.DO
    return message.to_wire()


def lines(rrsets: list[dns.rrset.RRset]) -> list[str]:
    """Zone-file lines, sorted."""
    return sorted(
        f"{rrset.name} {rrset.ttl} {rrset.rdclass.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
        for rrset in rrsets
        for rdata in rrset
    )


def shown(reply: bytes) -> str:
    """The response code, then one line a record; `;;` starts AUTHORITY and ADDITIONAL if there is something in them."""
    message = dns.message.from_wire(reply)
    out = [dns.rcode.to_text(message.rcode()), *lines(message.answer)]
    for title, section in (("AUTHORITY", message.authority), ("ADDITIONAL", message.additional)):
        if section:
            out += [f";; {title}", *lines(section)]
    return "\n".join(out)


def expected(text: str) -> str:
    """An expectation as written in a test: indentation off, records of a section sorted."""
    out: list[str] = []
    block: list[str] = []
    for raw in [*text.strip().splitlines(), ";;"]:
        line = " ".join(raw.split())
        if line.startswith(";;") or line.isupper():
            out += sorted(block)
            block = []
            out.append(line)
        elif line:
            block.append(line)
    return "\n".join(out[:-1])


def records(*texts: str) -> tuple[RR, ...]:
    """Records from zone-file lines, parsed by dnspython."""
    out = []
    for line in texts:
        name, ttl, rclass, rtype, data = line.split(None, 4)
        rdata = dns.rdata.from_text(rclass, rtype, data)
        out.append(RR(names.from_text(name), int(rdata.rdtype), int(rdata.rdclass), int(ttl), rdata.to_wire() or b""))
    return tuple(out)
