"""Whatever arrives: no exception, no reply to a reply, id and case kept, the limit kept or TC set."""

from __future__ import annotations

import string

import dns.message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnsserver.answer import NeedsTarget, answer, finish, prepare
from dnsserver.encode import AA, QR, encode, encode_query
from dnsserver.external import answer_external
from dnsserver.message import RR, Edns, Message, Prepared, Query, Question
from dnsserver.wire import Reject, WireError, accept, parse_reply
from tests.dns.notation import question
from tests.fuzz.fuzz_answer import EXTERNAL, ZONE, check

NAMES = [
    "web.default.svc.cluster.local.",
    "db.default.svc.cluster.local.",
    "db-0.db.default.svc.cluster.local.",
    "_http._tcp.web.default.svc.cluster.local.",
    "_tcp.web.default.svc.cluster.local.",
    "alias.default.svc.cluster.local.",
    "inner.default.svc.cluster.local.",
    "gone.default.svc.cluster.local.",
    "none.default.svc.cluster.local.",
    "1-2-3-4.default.pod.cluster.local.",
    "default.svc.cluster.local.",
    "cluster.local.",
    "ns.dns.cluster.local.",
    "dns-version.cluster.local.",
    "1.0.96.10.in-addr.arpa.",
    "96.10.in-addr.arpa.",
    "1.1.244.10.in-addr.arpa.",
    "a.pin._zone.db.default.svc.cluster.local.",
    "a.b.prefer._zone.db.default.svc.cluster.local.",
    "_zone.db.default.svc.cluster.local.",
    "set.default.svc.set.local.",
    "db-0.east.set.default.svc.set.local.",
    "east.set.default.svc.set.local.",
    "_pg._tcp.set.default.svc.set.local.",
    "set.local.",
    "www.example.org.",
    "web.default.ext.example.",
    ".",
]
TYPES = st.one_of(st.sampled_from([1, 28, 33, 12, 5, 6, 2, 16, 255, 251, 252, 41, 65]), st.integers(0, 65535))


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A name near what exists, in any case, sometimes with a label in front; any type."""
    text = draw(st.sampled_from(NAMES))
    front = draw(st.sampled_from(["", "", "*.", "_x.", "a.", r"\000.", "xn--4ca."]))
    flips = draw(st.integers(0, 2 ** len(text) - 1))
    cased = "".join(c.upper() if flips >> i & 1 else c for i, c in enumerate(text)) if draw(st.booleans()) else text
    wire = question(f"{front if text != '.' else ''}{cased} A").name
    return Question(wire, wire.lower(), draw(TYPES), draw(st.sampled_from([1, 1, 1, 3, 255, 0])))


OPTIONS = st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=30)), max_size=4).map(tuple)
EDNS = st.one_of(
    st.none(), st.builds(Edns, st.integers(0, 65535), do=st.booleans(), version=st.just(0), options=OPTIONS)
)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=600))
@example(b"")
def test_any_bytes(data: bytes) -> None:
    check(data)


@settings(max_examples=300, deadline=None)
@given(questions(), st.integers(0, 65535), st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=4))
def test_queries_with_flipped_bytes(asked: Question, query_id: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(encode_query(asked, query_id, udp_size_bytes=1232))
    for at, value in flips:
        data[at % len(data)] = value
    check(bytes(data))


@settings(max_examples=400, deadline=None)
@given(questions(), EDNS, st.sampled_from(["udp", "tcp"]), st.integers(512, 65535), st.booleans())
def test_replies(asked: Question, edns: Edns | None, transport: str, cap: int, rd: bool) -> None:
    made = Query(77, asked, transport, "192.0.2.1", 1, rd=rd, edns=edns)  # type: ignore[arg-type]
    outcome = answer(ZONE, asked)
    if outcome is None:
        outcome = answer_external(ZONE, EXTERNAL, asked)
    if outcome is None:
        return
    message = finish(outcome, None) if isinstance(outcome, NeedsTarget) else outcome.message
    raw = encode(message, made, cap)
    assert len(raw) <= min(cap, made.limit_bytes)
    assert raw[:2] == b"\0\x4d"
    assert raw[2] & 0x81 == 0x80 | rd
    assert raw[12 : 12 + len(asked.name)] == asked.name
    parsed = parse_reply(raw)
    assert parsed.question == asked
    assert (parsed.edns is None) is (edns is None)
    if edns is not None and parsed.edns is not None:
        assert (parsed.edns.udp_size_bytes, parsed.edns.do) == (edns.udp_size_bytes, edns.do)
    if not parsed.message.tc:
        assert parsed.message.answer == message.answer
    for rr in parsed.message.answer[:1]:
        assert rr.name == asked.name


def rebuilt(prepared: Prepared, asked: Question, tail: bytes) -> bytes:
    """What the hot path sends for a query without EDNS, RD clear, id 0."""
    flags = prepared.flags.to_bytes(2, "big")
    kind = asked.qtype.to_bytes(2, "big") + asked.qclass.to_bytes(2, "big")
    return b"\0\0" + flags + b"\0\1" + prepared.counts + asked.name + kind + tail


@settings(max_examples=400, deadline=None)
@given(questions())
def test_prepared_replies_say_what_full_ones_say(asked: Question) -> None:
    prepared = prepare(ZONE, asked._replace(name=asked.lower))
    outcome = answer(ZONE, asked)
    if prepared is None:
        return
    assert outcome is not None
    assert not isinstance(outcome, NeedsTarget)
    if prepared.lower_only and asked.name != asked.lower:
        return
    made = Query(0, asked, "tcp", "192.0.2.1", 1, rd=False)
    full = parse_reply(encode(outcome.message, made)).message
    firsts = set()
    for tail in prepared.tails:
        message = parse_reply(rebuilt(prepared, asked, tail)).message
        assert sorted(message.answer) == sorted(full.answer)
        assert (message.authority, message.additional) == (full.authority, full.additional)
        assert (message.rcode, message.aa, message.ra) == (full.rcode, True, False)
        firsts.add(message.answer[:1])
    assert len(firsts) == len(prepared.tails)
    assert prepared.flags & (QR | AA) == QR | AA


LABELS = st.lists(st.text(string.ascii_letters + string.digits, min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_replies_parse_or_are_refused(data: bytes, header: bool) -> None:
    raw = b"\0\0\x81\x80\0\1\0\1\0\0\0\0" + data if header else data
    try:
        parsed = parse_reply(raw)
    except WireError:
        return
    made = Query(0, parsed.question or question(". A"), "tcp", "192.0.2.1", 1)
    assert parse_reply(encode(parsed.message, made)).message.answer == parsed.message.answer


@settings(max_examples=150, deadline=None)
@given(LABELS, st.lists(st.tuples(LABELS, st.integers(0, 2**31 - 1), LABELS), max_size=6))
def test_encoding_survives_another_decoder(name: list[str], records: list[tuple[list[str], int, list[str]]]) -> None:
    asked = question(".".join(name) + ". CNAME")
    answers = tuple(
        RR(question(".".join(o) + ". A").name, 5, 1, ttl, question(".".join(t) + ". A").name) for o, ttl, t in records
    )
    made = Query(1, asked, "tcp", "192.0.2.1", 1)
    raw = encode(Message(answer=answers), made)
    theirs = dns.message.from_wire(raw, one_rr_per_rrset=True)
    assert [(r.name.to_wire(), r.ttl, r[0].target.to_wire()) for r in theirs.answer] == [
        (rr.name, rr.ttl, rr.rdata) for rr in answers
    ]
    assert parse_reply(raw).message.answer == answers


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=12, max_size=300))
def test_a_reject_is_small_and_a_reply(data: bytes) -> None:
    reply = accept(data, "udp", "192.0.2.1")
    if isinstance(reply, Reject):
        assert reply.reply[:2] == data[:2]
        assert reply.reply[2] & 0x80
        assert len(reply.reply) <= max(len(data), 512)
