"""A reply as dig prints it.

Knows dig's layout. Must not know where the reply came from. Called by the `query` command.
"""

from __future__ import annotations

import struct

from dnsserver import names, rrtext
from dnsserver.encode import AA, AD, CD, QR, RA, RD, TC
from dnsserver.message import RR, Question
from dnsserver.unpack import UpstreamReply, parse_reply

_FLAGS = (("qr", QR), ("aa", AA), ("tc", TC), ("rd", RD), ("ra", RA), ("ad", AD), ("cd", CD))
_EXTENDED_ERRORS = {
    0: "Other",
    3: "Stale Answer",
    13: "Cached Error",
    14: "Not Ready",
    15: "Blocked",
    17: "Filtered",
    19: "Stale NXDOMAIN Answer",
    20: "Not Authoritative",
    21: "Not Supported",
    22: "No Reachable Authority",
    23: "Network Error",
}
"""Names of RFC 8914 §4, of the codes this server sends."""


def status(reply: UpstreamReply) -> str:
    """The response code's mnemonic."""
    return rrtext.rcode_name(reply.message.rcode)


def flags_of(raw: bytes) -> list[str]:
    """The flags set in a message's header, in dig's order."""
    (word,) = struct.unpack_from("!H", raw, 2)
    return [name for name, bit in _FLAGS if word & bit]


def extended_errors(reply: UpstreamReply) -> list[str]:
    """`14 (Not Ready): (text)`, one a line."""
    found = []
    for info, text in reply.message.errors:
        name = _EXTENDED_ERRORS.get(info)
        found.append(f"{info}" + (f" ({name})" if name else "") + (f": ({text})" if text else ""))
    return found


def dig_text(raw: bytes) -> str:
    """The reply in `raw` as dig shows it, without the statistics dig takes.

    Raises:
        WireError: `raw` is no reply.
    """
    reply = parse_reply(raw)
    message = reply.message
    counts = struct.unpack_from("!HHHH", raw, 4)
    titles = ("QUERY", "ANSWER", "AUTHORITY", "ADDITIONAL")
    figures = ", ".join(f"{title}: {count}" for title, count in zip(titles, counts, strict=True))
    lines = [
        f";; ->>HEADER<<- opcode: QUERY, status: {status(reply)}, id: {reply.id}",
        f";; flags: {' '.join(flags_of(raw))}; {figures}",
        "",
    ]
    if reply.edns is not None:
        do = " do" if reply.edns.do else ""
        lines += [
            ";; OPT PSEUDOSECTION:",
            f"; EDNS: version: {reply.edns.version}, flags:{do}; udp: {reply.edns.udp_size_bytes}",
        ]
        lines += [f"; EDE: {error}" for error in extended_errors(reply)]
    if reply.question is not None:
        lines += [";; QUESTION SECTION:", f";{_question(reply.question)}", ""]
    for title, section in (
        ("ANSWER", message.answer),
        ("AUTHORITY", message.authority),
        ("ADDITIONAL", message.additional),
    ):
        if section:
            lines += [f";; {title} SECTION:", *map(_record, section), ""]
    lines.append(f";; MSG SIZE  rcvd: {len(raw)}")
    return "\n".join(lines)


def _question(question: Question) -> str:
    rclass, rtype = rrtext.class_name(question.qclass), rrtext.type_name(question.qtype)
    return f"{names.to_text(question.name)}\t\t{rclass}\t{rtype}"


def _record(rr: RR) -> str:
    owner, ttl, rclass, rtype, data = rrtext.to_text(rr).split(" ", 4)
    return f"{owner}\t{ttl}\t{rclass}\t{rtype}\t{data}"
