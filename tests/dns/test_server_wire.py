"""What the server says to bytes on the wire, over real sockets: header, EDNS, sizes, transports."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator

import dns.edns
import dns.flags
import dns.message
import dns.query
import pytest

from dnsserver import names
from tests.dns.running import MANIFESTS, Running, big_headless, server

CHAOS = "    chaos cluster-dns team@example.org\n    any\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    manifests = "---\n".join(
        [MANIFESTS, big_headless(100, "hundred"), big_headless(4000, "thousands"), big_headless(4200, "more")]
    )
    with server(manifests=manifests, more=CHAOS) as found:
        yield found


def header(*, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0)) -> bytes:
    return struct.pack("!6H", 0xBEEF, flags, *counts)


def question(text: str = "web.default.svc.cluster.local", qtype: int = 1, qclass: int = 1) -> bytes:
    return names.from_text(text) + struct.pack("!HH", qtype, qclass)


def opt(*, version: int = 0, size: int = 1232, flags: int = 0, data: bytes = b"") -> bytes:
    return b"\0" + struct.pack("!HHBBHH", 41, size, 0, version, flags, len(data)) + data


def over_udp(port: int, data: bytes, timeout_s: float = 2.0) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.sendto(data, ("127.0.0.1", port))
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535)
    return None


def over_tcp(port: int, data: bytes, timeout_s: float = 2.0) -> bytes | None:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as sock:
        sock.sendall(struct.pack("!H", len(data)) + data)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                more = sock.recv(65535)
                if not more:
                    return None
                received += more
        return received[2:] or None


SENDERS = {"udp": over_udp, "tcp": over_tcp}

DROPPED = {
    "a reply": header(flags=0x8100) + question(),
    "a reply to a NOTIFY": header(flags=0xA000) + question(),
    "eleven bytes": header()[:11],
    "one byte": b"\0",
}


@pytest.mark.parametrize("data", DROPPED.values(), ids=DROPPED.keys())
def test_dropped(running: Running, data: bytes) -> None:
    assert over_udp(running.port, data, timeout_s=0.3) is None


HEADER_ONLY = {
    # what is sent: the reply's flags
    "opcode IQUERY": (header(flags=0x0800) + question(), 0x8804),
    "opcode STATUS": (header(flags=0x1000) + question(), 0x9004),
    "opcode NOTIFY": (header(flags=0x2000) + question(), 0xA004),
    "opcode UPDATE": (header(flags=0x2800) + question(), 0xA804),
    "no question": (header(counts=(0, 0, 0, 0)), 0x8101),
    "two questions": (header(counts=(2, 0, 0, 0)) + question() * 2, 0x8101),
    "two answers": (header(counts=(1, 2, 0, 0)) + question(), 0x8101),
    "three additionals": (header(counts=(1, 0, 0, 3)) + question(), 0x8101),
    "a count without a record": (header(counts=(1, 0, 0, 1)) + question(), 0x8101),
    "two OPT records": (header(counts=(1, 0, 0, 2)) + question() + opt() * 2, 0x8101),
    "a cut name": (header() + b"\x03web\x07default", 0x8101),
    "a cut question": (header() + question()[:-1], 0x8101),
    "a pointer to itself": (header() + b"\xc0\x0c\0\1\0\1", 0x8101),
    "a label of 64": (header() + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", 0x8101),
    "a name of 256": (header() + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", 0x8101),
    "bytes behind": (header() + question() + b"x", 0x8101),
}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(("data", "flags"), HEADER_ONLY.values(), ids=HEADER_ONLY.keys())
def test_refused_by_its_header_alone(running: Running, transport: str, data: bytes, flags: int) -> None:
    assert SENDERS[transport](running.port, data) == struct.pack("!6H", 0xBEEF, flags, 0, 0, 0, 0)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web.default.svc.cluster.local A", "NOERROR 10.96.0.10"),
        ("WeB.dEfAuLt.SvC.cLuStEr.LoCaL A", "NOERROR 10.96.0.10"),
        ("web.default.svc.cluster.local AAAA", "NOERROR"),
        ("no.default.svc.cluster.local A", "NXDOMAIN"),
        ("db.default.svc.cluster.local A", "NOERROR 10.1.0.1 10.1.0.2 10.1.0.3"),
        ("db-1.db.default.svc.cluster.local A", "NOERROR 10.1.0.2"),
        ("_http._tcp.web.default.svc.cluster.local SRV", "NOERROR 0 100 80 web.default.svc.cluster.local."),
        ("10-0-0-7.default.pod.cluster.local A", "NOERROR 10.0.0.7"),
        ("10.0.96.10.in-addr.arpa PTR", "NOERROR web.default.svc.cluster.local."),
        ("dns-version.cluster.local TXT", 'NOERROR "1.1.0"'),
        ("www.example.org A", "REFUSED"),
        ("web.default.svc.cluster.local ANY", 'NOERROR "ANY obsoleted" "See RFC 8482"'),
    ],
)
def test_answers(running: Running, transport: str, text: str, expected: str) -> None:
    name, qtype = text.split()
    for edns in (False, 0):  # without and with OPT
        assert running.ask(name, qtype, tcp=transport == "tcp", use_edns=edns) == expected


def test_zone_transfers_are_refused(running: Running) -> None:
    for qtype in (251, 252):
        for send in SENDERS.values():
            reply = send(running.port, header() + question("cluster.local", qtype))
            assert reply is not None
            assert reply[3] & 15 == 5


def test_badvers(running: Running) -> None:
    reply = over_udp(running.port, header(counts=(1, 0, 0, 1)) + question() + opt(version=1))
    assert reply is not None
    message = dns.message.from_wire(reply)
    assert (message.rcode(), message.edns) == (16, 0)


@pytest.mark.parametrize(("size", "echoed"), [(512, 512), (1232, 1232), (4096, 4096), (100, 100)])
def test_opt_is_answered_with_opt(running: Running, size: int, echoed: int) -> None:
    for flags in (0, 0x8000, 0x7FFF):
        reply = over_udp(running.port, header(counts=(1, 0, 0, 1)) + question() + opt(size=size, flags=flags))
        assert reply is not None
        message = dns.message.from_wire(reply)
        assert (message.edns, message.payload, message.ednsflags) == (0, echoed, flags & 0x8000)


def test_no_opt_is_answered_without(running: Running) -> None:
    reply = over_udp(running.port, header() + question())
    assert reply is not None
    assert dns.message.from_wire(reply).edns == -1


@pytest.mark.parametrize(
    ("code", "data", "kept"),
    [(3, b"", True), (10, b"12345678", True), (12, b"\0" * 16, True), (8, b"\0\1\x18\0\xc0\0\2", False)],
    ids=["nsid", "cookie", "padding", "client-subnet"],
)
def test_options_are_kept_or_stripped(running: Running, code: int, data: bytes, kept: bool) -> None:
    option = struct.pack("!HH", code, len(data)) + data
    reply = over_udp(running.port, header(counts=(1, 0, 0, 1)) + question() + opt(data=option))
    assert reply is not None
    assert (code in [o.otype for o in dns.message.from_wire(reply).options]) == kept


def test_the_question_keeps_its_case_in_every_query(running: Running) -> None:
    rng = random.Random(1)
    for _ in range(50):
        text = "".join(rng.choice((c.upper(), c)) for c in "db.default.svc.cluster.local")
        reply = over_udp(running.port, header() + question(text))
        assert reply is not None
        assert reply[12 : 12 + len(text) + 2] == names.from_text(text)
        assert all(rrset.name.to_text() == text + "." for rrset in dns.message.from_wire(reply).answer)


# -- sizes


@pytest.mark.parametrize(("size", "fits"), [(None, 512), (512, 512), (1232, 1232), (4096, 4096)])
def test_what_does_not_fit_is_cut_and_says_so(running: Running, size: int | None, fits: int) -> None:
    name = "thousands.default.svc.cluster.local"
    query = dns.message.make_query(name, "A", use_edns=size is not None and 0, payload=size or 0)
    reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
    assert reply.flags & dns.flags.TC
    assert reply.question == query.question
    assert (reply.edns == 0) == (size is not None)
    assert fits - 40 < len(reply.to_wire(max_size=65535)) <= fits
    whole = dns.query.tcp(query, "127.0.0.1", port=running.port, timeout=5)
    assert not whole.flags & dns.flags.TC
    assert len(next(iter(whole.answer))) == 4000


def test_a_datagram_is_never_longer_than_ipv4_allows(running: Running) -> None:
    for name in ("more.default.svc.cluster.local", "More.default.svc.cluster.local"):
        reply = over_udp(running.port, header(counts=(1, 0, 0, 1)) + question(name) + opt(size=65535))
        assert reply is not None
        assert 65507 - 40 < len(reply) <= 65507
        assert dns.message.from_wire(reply).flags & dns.flags.TC


def test_what_fits_is_whole(running: Running) -> None:
    query = dns.message.make_query("hundred.default.svc.cluster.local", "A", use_edns=0, payload=4096)
    reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
    assert not reply.flags & dns.flags.TC
    assert len(next(iter(reply.answer))) == 100


def test_answers_take_turns(running: Running) -> None:
    firsts = set()
    for _ in range(30):
        query = dns.message.make_query("db.default.svc.cluster.local", "A")
        reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
        firsts.add(reply.answer[0][0].to_text())
    assert firsts == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}


# -- other classes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("version.bind", '"cluster-dns"'), ("authors.bind", '"team@example.org"')],
)
def test_chaos_is_answered_here(running: Running, name: str, expected: str) -> None:
    query = dns.message.make_query(name, "TXT", "CH")
    reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
    assert [rdata.to_text() for rrset in reply.answer for rdata in rrset] == [expected]


def test_other_classes_are_refused(running: Running) -> None:
    query = dns.message.make_query("web.default.svc.cluster.local", "A", "HS")
    assert dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2).rcode() == 5


# -- dig

DIG = [
    # arguments, what its output must and must not hold
    ("web.default.svc.cluster.local", ["status: NOERROR", "30 IN\tA\t10.96.0.10", "qr aa rd;"], ["MALFORMED"]),
    ("web.default.svc.cluster.local +noedns", ["10.96.0.10"], ["OPT PSEUDOSECTION"]),
    ("web.default.svc.cluster.local +dnssec", ["flags: do;", "10.96.0.10"], []),
    ("web.default.svc.cluster.local +norecurse", ["flags: qr aa;"], []),
    ("web.default.svc.cluster.local +cdflag", ["cd;"], []),
    ("web.default.svc.cluster.local +nsid", ["status: NOERROR"], []),
    ("web.default.svc.cluster.local +subnet=192.0.2.0/24", ["10.96.0.10"], ["CLIENT-SUBNET"]),
    ("web.default.svc.cluster.local +ednsopt=65001:0102", ["10.96.0.10"], ["65001"]),
    ("web.default.svc.cluster.local +edns=1 +noednsnegotiation", ["status: BADVERS"], ["10.96.0.10"]),
    ("web.default.svc.cluster.local +opcode=notify", ["status: NOTIMP"], []),
    ("web.default.svc.cluster.local +opcode=update", ["status: NOTIMP"], []),
    ("web.default.svc.cluster.local +header-only", ["status: FORMERR"], []),
    ("web.default.svc.cluster.local +keepopen +tcp", ["10.96.0.10", "(TCP)"], []),
    ("thousands.default.svc.cluster.local +ignore", ["qr aa tc rd;"], []),
    ("thousands.default.svc.cluster.local", ["Truncated, retrying in TCP mode", "ANSWER: 4000"], []),
    ("-t SRV _pg._tcp.db.default.svc.cluster.local", ["0 33 5432 db-0.db.default.svc.cluster.local.", "10.1.0.1"], []),
    ("-x 10.1.0.2", ["db-1.db.default.svc.cluster.local."], []),
    ("-c CH -t TXT version.bind", ["cluster-dns"], []),
    ("-t AXFR cluster.local", ["Transfer failed"], []),
    ("no.default.svc.cluster.local", ["status: NXDOMAIN", "SOA\tns.dns.cluster.local. hostmaster.cluster."], []),
    ("-t SOA cluster.local", ["ANSWER: 1", "7200 1800 86400 30"], []),
    ("-t NS CLUSTER.local", ["NS\tns.dns.CLUSTER.local."], []),
]  # fmt: skip


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (Debian package bind9-dnsutils)")
@pytest.mark.parametrize(("arguments", "there", "absent"), DIG, ids=[row[0] for row in DIG])
def test_dig(running: Running, arguments: str, there: list[str], absent: list[str]) -> None:
    command = ["dig", "+nocmd", "@127.0.0.1", "-p", str(running.port), "+time=2", "+tries=1", *arguments.split()]
    output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    for text in there:
        assert text in output
    for text in absent:
        assert text not in output
