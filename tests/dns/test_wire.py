"""Bytes in, bytes out: what is dropped, refused, accepted; sizes, truncation, EDNS. dnspython is the second opinion."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from dnsserver.encode import encode, encode_query
from dnsserver.message import Edns, Message, Query, Rcode, Transport
from dnsserver.wire import Reject, WireError, accept, parse_reply
from tests.dns.notation import query, query_bytes, question, records, shown

A = "web.default.svc.cluster.local. A"
NAME = b"\3web\7default\3svc\7cluster\5local\0"
QUESTION = NAME + b"\0\1\0\1"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def packet(
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    body: bytes = QUESTION,
    query_id: int = 0x1234,
) -> bytes:
    return struct.pack("!HHHHHH", query_id, flags, *counts) + body


def taken(datagram: bytes, transport: Transport = "udp") -> Query | Reject | None:
    return accept(datagram, transport, "192.0.2.7", 5353)


# -- section 5's table

DROPPED = [
    ("empty", b""),
    ("a byte short of a header", packet()[:11]),
    ("a reply", packet(0x8100)),
    ("a reply of another opcode", packet(0xA800)),
    ("a reply with nothing in it", packet(0x8000, (0, 0, 0, 0), b"")),
]


@pytest.mark.parametrize("datagram", [d for _, d in DROPPED], ids=[n for n, _ in DROPPED])
def test_dropped(datagram: bytes) -> None:
    assert taken(datagram) is None


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 5, 6, 15])
@pytest.mark.parametrize("body", [b"", QUESTION, b"\xff\xff"])
def test_other_opcodes_are_not_implemented(opcode: int, body: bytes) -> None:
    reply = taken(packet(opcode << 11 | 0x0100, body=body))
    assert isinstance(reply, Reject)
    assert reply.reply == struct.pack("!HHHHHH", 0x1234, 0x8100 | opcode << 11 | 4, 0, 0, 0, 0)


COOKIE_CUT = b"\0\0\x29\x04\xd0\0\0\0\0\0\x06\0\x0a\0\x08ab"
FORMERR = [
    ("no question", packet(counts=(0, 0, 0, 0), body=b"")),
    ("two questions", packet(counts=(2, 0, 0, 0), body=QUESTION + QUESTION)),
    ("65535 questions", packet(counts=(65535, 0, 0, 0))),
    ("two answers", packet(counts=(1, 2, 0, 0))),
    ("two authorities", packet(counts=(1, 0, 2, 0))),
    ("three additionals", packet(counts=(1, 0, 0, 3), body=QUESTION + OPT)),
    ("a question counted but not there", packet(body=b"")),
    ("a record counted but not there", packet(counts=(1, 0, 0, 1))),
    ("an answer counted but not there", packet(counts=(1, 1, 0, 0))),
    ("name cut off", packet(body=NAME[:9])),
    ("name without its end", packet(body=NAME[:-1])),
    ("no type", packet(body=NAME)),
    ("no class", packet(body=NAME + b"\0\1\0")),
    ("compressed into itself", packet(body=b"\xc0\x0c\0\1\0\1")),
    ("compressed into the header", packet(body=b"\xc0\x00\0\1\0\1")),
    ("label type 01", packet(body=b"\x41" + b"a" * 65 + b"\0\0\1\0\1")),
    ("a name of 256 bytes", packet(body=(b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0\0\1\0\1")),
    ("bytes after the question", packet(body=QUESTION + b"\0")),
    ("bytes after OPT", packet(counts=(1, 0, 0, 1), body=QUESTION + OPT + b"x")),
    ("two OPT records", packet(counts=(1, 0, 0, 2), body=QUESTION + OPT + OPT)),
    ("OPT not at the root", packet(counts=(1, 0, 0, 1), body=QUESTION + b"\1a" + OPT)),
    ("OPT in ANSWER", packet(counts=(1, 1, 0, 0), body=QUESTION + OPT)),
    ("OPT cut off", packet(counts=(1, 0, 0, 1), body=QUESTION + OPT[:-1])),
    ("option cut off", packet(counts=(1, 0, 0, 1), body=QUESTION + COOKIE_CUT)),
    ("rdata longer than the packet", packet(counts=(1, 0, 0, 1), body=QUESTION + OPT[:-1] + b"\x09")),
    ("owner a pointer to itself", packet(counts=(1, 0, 0, 1), body=QUESTION + b"\xc0\x2f\0\1\0\1\0\0\0\0\0\0")),
]


@pytest.mark.parametrize("datagram", [d for _, d in FORMERR], ids=[n for n, _ in FORMERR])
def test_malformed_is_formerr_header_only(datagram: bytes) -> None:
    reply = taken(datagram)
    assert isinstance(reply, Reject)
    assert reply.reply == struct.pack("!HHHHHH", 0x1234, 0x8101, 0, 0, 0, 0)


ACCEPTED = [
    ("plain", packet()),
    ("RD clear", packet(0)),
    ("with OPT", packet(counts=(1, 0, 0, 1), body=QUESTION + OPT)),
    ("TSIG behind OPT", packet(counts=(1, 0, 0, 2), body=QUESTION + OPT + b"\1k\0\0\xfa\0\xff\0\0\0\0\0\0")),
    (
        "an owner that points to the question",
        packet(counts=(1, 1, 0, 0), body=QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0"),
    ),
    ("the root", packet(body=b"\0\0\2\0\1")),
    ("the longest name", packet(body=(b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0\0\1\0\1")),
    ("bytes no letter", packet(body=b"\4\0\xff.\\\0\0\1\0\1")),
    ("Z and AD and CD set", packet(0x0170)),
]


@pytest.mark.parametrize("datagram", [d for _, d in ACCEPTED], ids=[n for n, _ in ACCEPTED])
def test_accepted(datagram: bytes) -> None:
    assert isinstance(taken(datagram), Query)


def test_what_a_query_says() -> None:
    made = taken(query_bytes("WEB.default.svc.cluster.local. AAAA", query_id=7, payload=4096, do=True), "tcp")
    assert isinstance(made, Query)
    assert made.id == 7
    assert made.question == question("WEB.default.svc.cluster.local. AAAA")
    assert made.question.lower == question("web.default.svc.cluster.local. AAAA").name
    assert (made.transport, made.client, made.client_port) == ("tcp", "192.0.2.7", 5353)
    assert made.edns == Edns(4096, do=True)
    assert (made.rd, made.ad, made.cd) == (True, False, False)


@pytest.mark.parametrize("rtype", ["AXFR", "IXFR"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_zone_transfers_are_refused(rtype: str, transport: Transport) -> None:
    reply = taken(query_bytes(f"cluster.local. {rtype}"), transport)
    assert isinstance(reply, Reject)
    assert shown(reply.reply) == "REFUSED"


@pytest.mark.parametrize("version", [1, 255])
def test_bad_edns_version(version: int) -> None:
    asked = dns.message.make_query("web.default.svc.cluster.local.", "A", use_edns=version, payload=1400)
    reply = taken(asked.to_wire())
    assert isinstance(reply, Reject)
    message = dns.message.from_wire(reply.reply)
    assert message.rcode() == dns.rcode.BADVERS
    assert message.edns == 0
    assert message.question == asked.question
    assert message.payload == 1400


# -- replies: flags and EDNS


def reply_to(asked: Query, message: Message, limit: int | None = None) -> dns.message.Message:
    raw = encode(message, asked, limit)
    assert len(raw) <= (asked.limit_bytes if limit is None else min(limit, asked.limit_bytes))
    return dns.message.from_wire(raw)


@pytest.mark.parametrize(
    ("of_query", "of_reply", "flags"),
    [
        ({"rd": False}, {}, "QR"),
        ({}, {}, "QR RD"),
        ({}, {"aa": True}, "QR AA RD"),
        ({}, {"ra": True}, "QR RD RA"),
        ({"cd": True}, {}, "QR RD CD"),
        ({}, {"ad": True}, "QR RD"),
        ({"ad": True}, {"ad": True}, "QR RD AD"),
        ({"edns": Edns(1232, do=True)}, {"ad": True}, "QR RD AD"),
        ({"edns": Edns(1232)}, {"ad": True}, "QR RD"),
        ({"ad": True}, {}, "QR RD"),
        ({}, {"tc": True}, "QR TC RD"),
    ],
)
def test_flags(of_query: dict[str, object], of_reply: dict[str, object], flags: str) -> None:
    message = reply_to(query(A, **of_query), Message(**of_reply))  # type: ignore[arg-type]
    assert dns.flags.to_text(message.flags) == flags
    assert message.id == 4711


def test_no_opt_without_opt() -> None:
    message = reply_to(query(A), Message(errors=((0, "why"),)))
    assert message.edns == -1


@pytest.mark.parametrize("size", [0, 512, 1232, 65535])
@pytest.mark.parametrize("do", [False, True])
def test_size_and_do_are_the_clients(size: int, do: bool) -> None:
    message = reply_to(query(A, edns=Edns(size, do=do)), Message())
    assert (message.edns, message.payload) == (0, size)
    assert message.ednsflags == (dns.flags.DO if do else 0)


def test_which_options_come_back() -> None:
    sent = (
        (3, b""),
        (8, b"\0\1\x18\0\x0a\0\0"),
        (9, b""),
        (10, b"12345678"),
        (11, b""),
        (12, b"\0" * 9),
        (65001, b"x"),
    )
    message = reply_to(query(A, edns=Edns(1232, options=sent)), Message())
    assert [int(option.otype) for option in message.options] == [3, 9, 10, 11, 12]


def test_padding_gives_way_to_the_answer() -> None:
    asked = query(A, edns=Edns(512, options=((12, b"\0" * 480), (10, b"12345678"))))
    message = reply_to(asked, Message(answer=records("web.default.svc.cluster.local. 5 IN A 10.0.0.1")))
    assert [int(option.otype) for option in message.options] == [10]


def test_extended_errors() -> None:
    message = reply_to(
        query(A, edns=Edns(1232)), Message(rcode=Rcode.SERVFAIL, errors=((14, "not yet"), (0, "ä" * 200)))
    )
    first, second = message.options
    assert isinstance(first, dns.edns.EDEOption)
    assert isinstance(second, dns.edns.EDEOption)
    assert (first.code, first.text) == (14, "not yet")
    assert second.text == "ä" * 80


def test_an_upper_response_code_needs_edns() -> None:
    assert reply_to(query(A, edns=Edns(512)), Message(rcode=23)).rcode() == dns.rcode.BADCOOKIE
    assert reply_to(query(A), Message(rcode=23)).rcode() == dns.rcode.SERVFAIL


# -- replies: sizes


def many(count: int, name: str = "web.default.svc.cluster.local.") -> tuple[str, ...]:
    return tuple(f"{name} 5 IN A 10.0.{i >> 8}.{i & 255}" for i in range(count))


SOA = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
SIZES = [
    # what the client takes, the cap, transport, how many A records go in, how many come out, TC
    (None, None, "udp", 20, 20, False),
    (None, None, "udp", 29, 29, False),  # 12 + 35 + 29 * 16 = 511
    (None, None, "udp", 30, 29, True),
    (Edns(100), None, "udp", 40, 28, True),  # never below 512; OPT takes 11
    (Edns(1232), None, "udp", 73, 73, False),
    (Edns(1232), None, "udp", 74, 73, True),
    (Edns(4096), 1232, "udp", 200, 73, True),
    (Edns(512), 1232, "udp", 200, 28, True),
    (Edns(512), None, "tcp", 1000, 1000, False),
    (None, None, "tcp", 4093, 4093, False),
    (None, None, "tcp", 4094, 4093, True),
]


@pytest.mark.parametrize(("edns", "cap", "transport", "given", "sent", "tc"), SIZES)
def test_truncation_keeps_question_and_opt(
    edns: Edns | None, cap: int | None, transport: Transport, given: int, sent: int, tc: bool
) -> None:
    message = reply_to(query(A, edns=edns, transport=transport), Message(answer=records(*many(given))), cap)
    assert sum(len(rrset) for rrset in message.answer) == sent
    assert bool(message.flags & dns.flags.TC) is tc
    assert len(message.question) == 1
    assert (message.edns == 0) is (edns is not None)


def test_glue_goes_silently_and_as_whole_sets() -> None:
    glue = records(*many(20, "a.x."), *many(20, "b.x."))
    message = reply_to(query(A), Message(answer=records(*many(3)), additional=glue))
    assert not message.flags & dns.flags.TC
    assert [len(rrset) for rrset in message.additional] == [20]


def test_a_denial_without_its_soa_is_truncated() -> None:
    padding = Edns(512, options=((3, b"c" * 400),))
    message = reply_to(query(A, edns=padding), Message(rcode=Rcode.NXDOMAIN, authority=records(SOA)))
    assert message.flags & dns.flags.TC
    assert not message.authority


def test_authority_beside_an_answer_goes_silently() -> None:
    message = reply_to(query(A), Message(answer=records(*many(27)), authority=records(SOA)))
    assert sum(len(rrset) for rrset in message.answer) == 27
    assert not message.authority
    assert not message.flags & dns.flags.TC


def test_compression_keeps_case_and_leaves_srv_targets_alone() -> None:
    lines = (
        "web.default.svc.cluster.local. 5 IN SRV 0 100 80 a.web.default.svc.cluster.local.",
        "web.default.svc.Cluster.Local. 5 IN CNAME Web.default.svc.cluster.local.",
        "x.org. 5 IN MX 10 mail.x.org.",
        SOA,
    )
    raw = encode(Message(answer=records(*lines)), query(A, transport="tcp"))
    assert b"\1a\3web\7default\3svc\7cluster\5local\0" in raw
    got = [line for rr in parse_reply(raw).message.answer for line in [rr]]
    assert got == list(records(*lines))
    assert len(raw) < sum(len(line) for line in lines)


def test_a_pointer_never_goes_beyond_its_14_bits() -> None:
    lines = [*many(1030), *(f"h{i}.far.example. 5 IN CNAME t{i}.far.example." for i in range(50))]
    raw = encode(Message(answer=records(*lines)), query(A, transport="tcp"))
    assert list(parse_reply(raw).message.answer) == list(records(*lines))
    assert sum(len(r) for r in dns.message.from_wire(raw).answer) == 1080


# -- what upstreams send

RDATA = [
    "x.org. 60 IN A 192.0.2.1",
    "x.org. 60 IN AAAA 2001:db8::1",
    "x.org. 60 IN NS ns.x.org.",
    "x.org. 60 IN CNAME Y.x.org.",
    "x.org. 60 IN SOA ns.x.org. h.x.org. 1 2 3 4 5",
    "x.org. 60 IN PTR p.x.org.",
    "x.org. 60 IN MX 10 mx.x.org.",
    'x.org. 60 IN TXT "a" "b c"',
    "x.org. 60 IN SRV 1 2 3 s.x.org.",
    'x.org. 60 IN NAPTR 1 2 "u" "sip" "!a!b!" n.x.org.',
    "x.org. 60 IN DNAME d.x.org.",
    "x.org. 60 IN RP a.x.org. b.x.org.",
    "x.org. 60 IN AFSDB 1 a.x.org.",
    "x.org. 60 IN KX 1 k.x.org.",
    'x.org. 60 IN CAA 0 issue "ca.org"',
    "x.org. 60 IN HTTPS 1 . alpn=h2",
    "x.org. 60 IN DS 1 8 2 " + "ab" * 32,
    r"x.org. 60 IN TYPE65280 \# 3 010203",
]


@pytest.mark.parametrize("line", RDATA)
def test_upstream_records_come_through_unchanged(line: str) -> None:
    reply = dns.message.make_response(dns.message.make_query("x.org.", "ANY", use_edns=0))
    name, ttl, rclass, rtype, data = line.split(None, 4)
    reply.answer.append(dns.rrset.from_text(name, int(ttl), rclass, rtype, data))
    reply.additional.append(dns.rrset.from_text("x.org.", 1, "IN", "A", "192.0.2.9"))
    parsed = parse_reply(reply.to_wire())
    assert parsed.message.answer == records(line)
    assert parsed.message.additional == records("x.org. 1 IN A 192.0.2.9")
    assert parsed.edns is not None
    assert shown(encode(parsed.message, query("x.org. ANY"))) == shown(reply.to_wire())


BAD_REPLIES = [
    ("short", packet(0x8180)[:11]),
    ("a query", packet()),
    ("two questions", packet(0x8180, (2, 0, 0, 0), QUESTION + QUESTION)),
    ("record missing", packet(0x8180, (1, 1, 0, 0))),
    ("forward pointer", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\xff\0\1\0\1\0\0\0\0\0\4abcd")),
    ("pointer to itself", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x2f\0\1\0\1\0\0\0\0\0\4abcd")),
    ("pointer into the header", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x00\0\1\0\1\0\0\0\0\0\4abcd")),
    ("A of three bytes", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\3abc")),
    ("AAAA of four bytes", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x0c\0\x1c\0\1\0\0\0\0\0\4abcd")),
    ("name over its rdata", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x0c\0\5\0\1\0\0\0\0\0\2\3abc\0")),
    ("SOA cut", packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x0c\0\6\0\1\0\0\0\0\0\2\xc0\x0c")),
    ("two OPT", packet(0x8180, (1, 0, 0, 2), QUESTION + OPT + OPT)),
    ("OPT in AUTHORITY", packet(0x8180, (1, 0, 1, 0), QUESTION + OPT)),
]


@pytest.mark.parametrize("reply", [d for _, d in BAD_REPLIES], ids=[n for n, _ in BAD_REPLIES])
def test_bad_replies(reply: bytes) -> None:
    with pytest.raises(WireError):
        parse_reply(reply)


def test_a_pointer_loop_ends() -> None:
    loop = b"\1a\xc0\x2f"  # at 47: a label, then back to it
    with pytest.raises(WireError, match="point back"):
        parse_reply(packet(0x8180, (1, 1, 0, 0), QUESTION + loop + b"\0\1\0\1\0\0\0\0\0\4abcd"))


def test_a_truncated_reply_may_miss_records() -> None:
    parsed = parse_reply(
        packet(0x8380, (1, 9, 0, 1), QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\0\0\1" + b"\xc0\x0c\0")
    )
    assert parsed.message.tc
    assert parsed.message.answer == records("web.default.svc.cluster.local. 5 IN A 10.0.0.1")


def test_a_ttl_with_its_top_bit_set_is_zero() -> None:
    raw = packet(0x8180, (1, 1, 0, 0), QUESTION + b"\xc0\x0c\0\1\0\1\x80\0\0\1\0\4\x0a\0\0\1")
    assert parse_reply(raw).message.answer[0].ttl == 0


def test_formerr_without_a_question() -> None:
    parsed = parse_reply(packet(0x8181, (0, 0, 0, 0), b""))
    assert parsed.question is None
    assert parsed.message.rcode == Rcode.FORMERR


def test_extended_errors_of_an_upstream_are_passed_on() -> None:
    theirs = dns.message.make_response(dns.message.make_query("x.org.", "A", use_edns=0))
    bare, worded = dns.edns.EDECode.DNSSEC_INDETERMINATE, dns.edns.EDECode.NO_REACHABLE_AUTHORITY
    theirs.use_edns(0, options=[dns.edns.EDEOption(worded, "no servers"), dns.edns.EDEOption(bare, None)])
    parsed = parse_reply(theirs.to_wire())
    assert parsed.message.errors == ((22, "no servers"), (5, ""))
    passed_on = reply_to(query("x.org. A", edns=Edns(1232)), parsed.message)
    assert [(o.code, o.text) for o in passed_on.options if isinstance(o, dns.edns.EDEOption)] == [
        (22, "no servers"),
        (5, None),
    ]


def test_queries_to_upstreams() -> None:
    message = dns.message.from_wire(encode_query(question(A), 77, udp_size_bytes=1232, do=True, cd=True))
    assert message.id == 77
    assert message.opcode() == dns.opcode.QUERY
    assert dns.flags.to_text(message.flags) == "RD CD"
    assert (message.payload, message.ednsflags) == (1232, dns.flags.DO)
    assert message.question[0].to_text() == "web.default.svc.cluster.local. IN A"
    assert dns.message.from_wire(encode_query(question(A), 1, rd=False)).edns == -1
