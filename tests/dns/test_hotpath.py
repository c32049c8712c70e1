"""The hot path by itself: what it may answer, for how long, and that nobody can make it grow or forget."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator

import dns.flags
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsserver import hotpath, names, wire
from dnsserver.answer import prepare
from dnsserver.config import PodsMode
from dnsserver.encode import encode
from dnsserver.hotpath import HotPath
from dnsserver.kept import Cell, Fast, Lasting
from dnsserver.message import Message, Prepared, Query, Question
from dnsserver.plugins.base import end_of_chain
from dnsserver.plugins.kubernetes import Kubernetes
from dnsserver.zone import Zone
from kubecore.model import Delete, ObjectKey, Resource, Upsert
from tests.dns import cluster

A_TAIL = b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x0a\0\0"


class Told:
    """A server that knows some names: how the tests stand in for it."""

    def __init__(self) -> None:
        self.tails: dict[bytes, tuple[bytes, ...]] = {}
        self.lasting = Lasting.UNTIL_CHANGED
        self.asked: list[bytes] = []
        self.cells: list[Cell] = []
        self.counts_down = False
        self.max_udp_bytes = 65535

    def resolve(self, lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:
        self.asked.append(lower)
        tails = self.tails.get(lower)
        if tails is None:
            return None

        def cell(asked: int, replied: int, do: bool) -> Cell:
            self.cells.append(Cell(self.lasting))
            return self.cells[-1]

        counts = struct.pack("!HHH", len(tails[0]) // 16, 0, 0)
        return Fast(Prepared(0x8400, counts, tails), lower, cell, self.max_udp_bytes, self.counts_down)


@pytest.fixture
def told() -> Told:
    return Told()


def name(text: str) -> bytes:
    return names.from_text(text)


def asked(text: str, *, qtype: int = 1, opt: bytes = b"", flags: int = 0x0100) -> bytes:
    """A query without its id."""
    return struct.pack("!HHHHH", flags, 1, 0, 0, 1 if opt else 0) + name(text) + struct.pack("!HH", qtype, 1) + opt


def opt(size: int = 1232, *, do: bool = False) -> bytes:
    return b"\0" + struct.pack("!HHIH", 41, size, 0x8000 if do else 0, 0)


def addresses(reply: bytes | None) -> list[int]:
    """Last bytes of the A records of a reply to a lower-case question with one-pointer owners."""
    assert reply is not None
    count = int.from_bytes(reply[4:6], "big")
    end = reply.index(0, 10) + 5
    return [reply[end + 16 * i + 15] for i in range(count)]


# -- what comes back


@pytest.mark.parametrize("text", ["web.example", "WEB.Example", "wEb.eXaMpLe"])
@pytest.mark.parametrize("extra", [b"", opt(), opt(4096, do=True)])
def test_the_question_comes_back_as_it_was_asked(told: Told, text: str, extra: bytes) -> None:
    told.tails[name("web.example")] = (A_TAIL + b"\1",)
    hot = HotPath(told.resolve)
    for _ in range(3):
        reply = hot.reply_to(asked(text, opt=extra))
        assert reply is not None
        assert reply[:2] == b"\x85\0"
        assert reply[10 : 10 + len(name(text))] == name(text)
        assert reply.endswith(extra)
        assert int.from_bytes(reply[8:10], "big") == bool(extra)
    assert sum(cell.hits for cell in told.cells) == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(0x0000, 0x8400), (0x0100, 0x8500), (0x0120, 0x8500), (0x0110, 0x8510), (0x0010, 0x8410)],
)
def test_rd_and_cd_are_copied_and_ad_is_not(told: Told, flags: int, expected: int) -> None:
    told.tails[name("web.example")] = (A_TAIL + b"\1",)
    reply = HotPath(told.resolve).reply_to(asked("web.example", flags=flags))
    assert reply is not None
    assert int.from_bytes(reply[:2], "big") == expected


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\1\0\0\1",
        asked("web.example")[:-1],
        asked("web.example")[:-4],
        asked("web.example") + b"x",
        asked("web.example", flags=0x8100),
        asked("web.example", flags=0x2900),
        asked("web.example", flags=0x0140),
        asked("web.example", flags=0x0300),
        struct.pack("!HHHHH", 0x0100, 2, 0, 0, 0) + asked("web.example")[10:],
        asked("web.example", opt=opt()[:-1] + b"\4\0\x0a\0\0"),
        asked("web.example", opt=opt()[:5] + b"\0\1\0\0\0\0"),
        asked("web.example", opt=opt()[:5] + b"\1\0\0\0\0\0"),
        struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + b"\x0bweb\0example\0\0\1\0\1",
        struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + b"\x03web\xc0\x0c\0\0\1\0\1",
        struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + name("web.example") + b"\0\1\0\3",
    ],
    ids=[
        "empty", "short", "cut-class", "no-type", "bytes-behind", "a-reply", "opcode", "z-bit", "tc-bit",
        "two-questions", "edns-option", "edns-version", "edns-rcode", "zero-in-label", "pointer", "chaos",
    ],
)  # fmt: skip
def test_what_is_not_a_plain_query_is_left_to_the_chain(told: Told, key: bytes) -> None:
    told.tails = {name("web.example"): (A_TAIL + b"\1",), b"\x0bweb\0": (A_TAIL + b"\1",)}
    assert HotPath(told.resolve).reply_to(key) is None


def test_multiple_addresses_take_turns_in_both_layers(told: Told) -> None:
    records = [A_TAIL + bytes((n,)) for n in (1, 2, 3)]
    told.tails[name("web.example")] = tuple(b"".join(records[n:] + records[:n]) for n in range(3))
    hot = HotPath(told.resolve)
    plain = [addresses(hot.reply_to(asked("web.example")))[0] for _ in range(6)]
    mixed = [addresses(hot.reply_to(asked("Web.example")))[0] for _ in range(6)]
    assert sorted(plain) == sorted(mixed) == [1, 1, 2, 2, 3, 3]
    assert plain[:3] == plain[3:]


@pytest.mark.parametrize(("size", "answered"), [(512, False), (1231, False), (1241, True), (4096, True)])
@pytest.mark.parametrize("text", ["web.example", "Web.example"])
def test_a_reply_that_does_not_fit_is_left_to_the_chain(told: Told, size: int, answered: bool, text: str) -> None:
    told.tails[name("web.example")] = (b"".join(A_TAIL + bytes((n,)) for n in range(75)),)  # 1240 bytes with OPT
    hot = HotPath(told.resolve)
    for _ in range(2):
        assert (hot.reply_to(asked(text, opt=opt(size))) is not None) == answered
    assert HotPath(told.resolve, tcp=True).reply_to(asked(text)) is not None


def test_a_server_block_may_set_a_smaller_limit(told: Told) -> None:
    told.tails[name("web.example")] = (b"".join(A_TAIL + bytes((n,)) for n in range(75)),)
    told.max_udp_bytes = 1232
    assert HotPath(told.resolve).reply_to(asked("web.example", opt=opt(4096))) is None
    assert HotPath(told.resolve, tcp=True).reply_to(asked("web.example", opt=opt(4096))) is not None


# -- how long


def test_a_change_drops_what_carries_its_tag_and_nothing_else(told: Told) -> None:
    told.tails = {name("a.example"): (A_TAIL + b"\1",), name("b.example"): (A_TAIL + b"\1",)}
    hot = HotPath(told.resolve)
    for text in ("a.example", "A.example", "b.example"):
        hot.reply_to(asked(text))
    told.tails = dict.fromkeys(told.tails, (A_TAIL + b"\2",))
    hot.forget(frozenset({name("a.example")}))
    assert addresses(hot.reply_to(asked("a.example"))) == [2]
    assert addresses(hot.reply_to(asked("A.example"))) == [2]
    assert addresses(hot.reply_to(asked("b.example"))) == [1]


class Serial:
    serial = 1


@pytest.mark.parametrize("extra", [b"", opt(), opt(4096, do=True)])
@pytest.mark.parametrize("text", ["no.example", "NO.Example"])
def test_a_denial_shows_the_serial_of_now_and_is_made_once(text: str, extra: bytes) -> None:
    zone, made = Serial(), []
    soa = b"\xc0\x0f\0\6\0\1\0\0\0\x1e\0\x16\0\0" + b"%s" + b"\0\0\0\1" * 4

    def resolve(lower: bytes, qtype: int, do: bool, cd: bool) -> Fast:
        made.append(lower)
        tail = soa % zone.serial.to_bytes(4, "big")
        prepared = Prepared(0x8403, b"\0\0\0\1\0\0", (tail,), b"\0\x0f\0\2\0\0")
        return Fast(prepared, b"tag", lambda *_: Cell(Lasting.UNTIL_SERIAL), shows=zone)

    hot = HotPath(resolve)
    for serial in (1, 2, 3, 2**32 - 1):
        zone.serial = serial
        hot.forget({b"another tag"})
        for _ in range(3):
            reply = hot.reply_to(asked(text, opt=extra))
            assert reply is not None
            assert dns.message.from_wire(b"\0\0" + reply).authority[0][0].serial == serial
            assert reply.endswith(extra[:9] + b"\0\6\0\x0f\0\2\0\0" if extra else b"\0\0\0\1" * 4)
    assert len(made) == 1
    hot.forget({b"tag"})
    hot.reply_to(asked(text, opt=extra))
    assert len(made) == 2


def ttl_of(reply: bytes | None) -> int:
    assert reply is not None
    at = reply.index(0, 10) + 5 + 6
    return int.from_bytes(reply[at : at + 4], "big")


@pytest.mark.parametrize("counts_down", [True, False])
def test_what_counts_down_is_right_for_a_second(told: Told, counts_down: bool) -> None:
    told.tails, told.lasting = {name("a.example"): (A_TAIL + b"\1",)}, Lasting.UNTIL_SECOND
    told.counts_down = counts_down
    hot = HotPath(told.resolve)
    seen = []
    for now in (100.2, 100.9, 101.0, 104.5, 129.9, 130.0):
        if not counts_down:
            left = 30 - (int(now) - 100)
            told.tails[name("a.example")] = (A_TAIL[:6] + left.to_bytes(4, "big") + A_TAIL[10:] + b"\1",)
        hot.tick(now)
        seen.append(ttl_of(hot.reply_to(asked("a.example", opt=opt()))))
    assert seen[:5] == [30, 30, 29, 26, 1]
    # At 130 the time is over: the server is asked again, which here still knows the name.
    assert len(told.asked) == (2 if counts_down else 5)


def test_clearing_forgets_everything(told: Told) -> None:
    told.tails = {name("a.example"): (A_TAIL + b"\1",)}
    hot = HotPath(told.resolve)
    hot.reply_to(asked("a.example"))
    hot.clear()
    told.tails = {}
    assert hot.reply_to(asked("a.example")) is None
    assert hot.entries == 0


# -- nobody can make it grow, or forget


def flood(rng: random.Random) -> Iterator[str]:
    while True:
        yield f"{rng.getrandbits(64):x}.example"


def test_a_flood_of_names_is_forgotten_and_what_is_in_use_is_not(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotpath, "GENERATION_BYTES", 200_000)
    told.tails[name("in-use.example")] = (A_TAIL + b"\1",)
    hot = HotPath(told.resolve)
    most = 0
    for n, text in zip(range(5000), flood(random.Random(1)), strict=False):
        told.tails[name(text)] = (A_TAIL + b"\1",)
        hot.reply_to(asked(text))
        if n % 100 == 0:
            hot.reply_to(asked("in-use.example"))
            hot.tick(n / 100)
        most = max(most, hot.entries)
    assert told.asked.count(name("in-use.example")) == 1
    assert most < 1000


def test_varying_the_case_does_not_fill_the_memo(told: Told) -> None:
    told.tails[name("aaaaaaaaaaaaaaaa.example")] = (A_TAIL + b"\1",)
    hot = HotPath(told.resolve)
    rng = random.Random(1)
    for _ in range(2000):
        hot.reply_to(asked("".join(rng.choice("aA") for _ in range(16)) + ".example"))
    assert hot.entries <= 2


def test_varying_sizes_and_flags_is_bounded(told: Told) -> None:
    told.tails[name("web.example")] = (A_TAIL + b"\1",)
    hot = HotPath(told.resolve)
    for size in range(512, 5000):
        assert hot.reply_to(asked("Web.example", opt=opt(size))) is not None
    assert hot.entries <= 16
    assert len(hot._shapes) <= 256


@given(st.binary(max_size=80))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    told = Told()
    told.tails[name("web.example")] = (A_TAIL + b"\1",)
    hot = HotPath(told.resolve)
    hot.reply_to(data)
    hot.reply_to(struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + data)


# -- it says what the chain says

ZONE = cluster.zone_of(
    cluster.namespace("default"),
    cluster.service("default/web", "10.96.0.1 fd00::1", "http:80 dns:53/UDP"),
    cluster.service("default/db", "None", "pg:5432"),
    cluster.piece("default/db", "10.1.0.1=db-0 10.1.0.2 10.1.0.3", "pg:5432"),
    cluster.service("default/none", "None", "pg:5432"),
    cluster.service("default/out", to="www.example.org"),
    cluster.service("default/in", to="web.default.svc.cluster.local"),
    settings=cluster.config("cluster.local in-addr.arpa", pods=PodsMode.INSECURE, ttl_s=30),
    local="10.1.0.1",
)
NAMES = [
    "cluster.local", "svc.cluster.local", "default.svc.cluster.local", "web.default.svc.cluster.local",
    "db.default.svc.cluster.local", "db-0.db.default.svc.cluster.local", "10-1-0-2.db.default.svc.cluster.local",
    "none.default.svc.cluster.local", "out.default.svc.cluster.local", "in.default.svc.cluster.local",
    "_http._tcp.web.default.svc.cluster.local", "_pg._tcp.db.default.svc.cluster.local", "no.default.svc.cluster.local",
    "10-1-0-2.default.pod.cluster.local", "dns-version.cluster.local", "ns.dns.cluster.local", "nothing.cluster.local",
    "1.0.96.10.in-addr.arpa", "2.0.1.10.in-addr.arpa", "9.9.9.9.in-addr.arpa", "0.1.10.in-addr.arpa",
]  # fmt: skip
TYPES = [1, 2, 5, 6, 12, 16, 28, 33, 64, 65, 257]


def fast(zone: Zone) -> HotPath:
    def resolve(lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:
        prepared = prepare(zone, Question(lower, lower, qtype))
        return None if prepared is None else Fast(prepared, zone.tag(lower), lambda *_: Cell(Lasting.UNTIL_CHANGED))

    return HotPath(resolve)


def normal(reply: bytes) -> str:
    """A reply as text; records of a section in any order, since addresses take turns."""
    message = dns.message.from_wire(reply)
    lines: list[str] = [str(message.flags), str(message.ednsflags), str(message.payload)]
    lines += [option.to_text() for option in message.options]
    lines += [str(message.question[0]) if message.question else "", "case:" + repr(reply[12:40])]
    for section in (message.answer, message.authority, message.additional):
        lines += sorted(f"{rrset.name} {rrset.ttl} {rrset.rdtype} {rdata}" for rrset in section for rdata in rrset)
        lines.append("--")
    return "\n".join(lines)


@pytest.mark.parametrize("text", NAMES)
async def test_it_says_what_the_chain_says(text: str) -> None:
    async def unasked(query: Query) -> Message | None:
        return None

    hot, chain = fast(ZONE), Kubernetes(ZONE, end_of_chain, unasked)
    compared = 0
    for qtype in TYPES:
        for spelt in (text, text.upper(), text.title()):
            for extra in (b"", opt(), opt(512), opt(4096, do=True)):
                for flags in (0x0100, 0x0010):
                    datagram = b"\x12\x34" + asked(spelt, qtype=qtype, opt=extra, flags=flags)
                    for _ in range(2):  # once to be made, once out of the memo
                        quick = hot.reply_to(datagram[2:])
                    if quick is None:
                        continue
                    query = wire.accept(datagram, "udp", "192.0.2.1")
                    assert isinstance(query, Query)
                    message = await chain(query)
                    assert message is not None
                    assert normal(b"\x12\x34" + quick) == normal(encode(message, query))
                    compared += 1
    assert compared > 50 or text.startswith(("out.", "in."))


# -- more than fits


def many(count: int) -> Zone:
    """`db`, headless, with so many endpoints."""
    slices = [
        cluster.piece("default/db", " ".join(f"10.{k}.{i >> 8}.{i & 255}" for i in range(n)), "pg:5432", name=f"p{k}")
        for k, n in enumerate([count - count // 2, count // 2])
    ]
    return cluster.zone_of(
        cluster.namespace("default"),
        cluster.service("default/db", "None", "pg:5432"),
        *slices,
        settings=cluster.config("cluster.local", ttl_s=30),
    )


@pytest.mark.parametrize("count", [20, 31, 50, 100, 300, 1000])
@pytest.mark.parametrize("extra", [b"", opt(512), opt(1232), opt(1233), opt(4096, do=True)], ids=len)
@pytest.mark.parametrize("text", ["db.default.svc.cluster.local", "DB.Default.svc.cluster.local"])
async def test_many_addresses_as_many_as_fit_and_each_first_in_turn(count: int, extra: bytes, text: str) -> None:
    zone = many(count)
    service = zone.service("default", "db")
    assert service is not None
    hot, query = fast(zone), wire.accept(b"\0\0" + asked(text, opt=extra), "udp", "192.0.2.1")
    assert isinstance(query, Query)
    message = await Kubernetes(zone, end_of_chain, end_of_chain)(query)
    assert message is not None
    expected = dns.message.from_wire(encode(message, query))
    for _ in range(5):
        reply = dns.message.from_wire(b"\0\0" + (hot.reply_to(asked(text, opt=extra)) or b""))
        given = [rr.address for rrset in reply.answer for rr in rrset]
        assert (reply.flags, reply.payload, len(given)) == (expected.flags, expected.payload, len(expected.answer[0]))
        assert set(given) <= set(service.addresses())
        assert len(set(given)) == len(given)


@pytest.mark.parametrize("count", [20, 31, 100, 300, 1000, 5000])
def test_each_of_many_addresses_is_first_equally_often(count: int) -> None:
    hot, question = fast(many(count)), asked("db.default.svc.cluster.local")
    at = len(question) + 12
    turns = 12 * count  # whatever number of orders they are kept in
    firsts = Counter((hot.reply_to(question) or b"")[at : at + 4] for _ in range(turns))
    assert set(firsts.values()) == {12}
    assert len(firsts) == count


@pytest.mark.parametrize("count", [3, 20, 100, 300, 1000])
@pytest.mark.parametrize("size", [0, 512, 600, 777, 1232, 4096, 9000, 65000])
async def test_a_long_answer_is_cut_behind_whole_records(count: int, size: int) -> None:
    """The chain's reply may hold a record more: it can point into the question, the hot path's repeats names."""
    zone = many(count)
    hot = fast(zone)
    for text in ("db.default.svc.cluster.local", "_pg._tcp.db.default.svc.cluster.local"):
        datagram = b"\x12\x34" + asked(text, qtype=33, opt=opt(size) if size else b"")
        query = wire.accept(datagram, "udp", "192.0.2.1")
        assert isinstance(query, Query)
        message = await Kubernetes(zone, end_of_chain, end_of_chain)(query)
        assert message is not None
        whole = message.answer, message.additional
        limit = max(512, size)
        for _ in range(2):
            quick = b"\x12\x34" + (hot.reply_to(datagram[2:]) or b"")
            reply = dns.message.from_wire(quick, one_rr_per_rrset=True)
            sections = reply.answer, reply.additional
            for shown, expected in zip(sections, whole, strict=True):
                assert [(r.name.to_text().lower(), r.rdtype) for r in shown] == [
                    (names.to_text(r.name).lower(), r.type) for r in expected[: len(shown)]
                ]
            cut = [len(shown) < len(expected) for shown, expected in zip(sections, whole, strict=True)]
            assert bool(reply.flags & dns.flags.TC) == cut[0]
            assert limit - 80 * any(cut) < len(quick) <= limit or not any(cut)
            assert (reply.ednsflags, reply.payload) == (0, size)


def test_a_cut_reply_counts_with_its_own_size() -> None:
    zone = many(100)
    cells: dict[tuple[int, int], Cell] = {}

    def resolve(lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:
        prepared = prepare(zone, Question(lower, lower, qtype))
        assert prepared is not None
        return Fast(
            prepared, b"", lambda asked, replied, _: cells.setdefault((asked, replied), Cell(Lasting.UNTIL_CHANGED))
        )

    hot, question = HotPath(resolve), asked("db.default.svc.cluster.local")
    reply = hot.reply_to(question) or b""
    assert cells[len(question) + 2, len(reply) + 2].hits == 1
    assert sum(cell.hits for cell in cells.values()) == 1


def test_many_addresses_take_little_memory() -> None:
    prepared = prepare(
        many(1000), Question(name("db.default.svc.cluster.local"), name("db.default.svc.cluster.local"), 1)
    )
    assert prepared is not None
    assert sum(map(len, prepared.tails)) <= 2 * 2 * 16 * 1000


def test_through_changes_it_says_what_the_zone_says() -> None:
    """Random questions while Services come and go: never an old address, an old denial or an old serial."""
    rng = random.Random(3)
    state = cluster.state_of(cluster.namespace("default"))
    zone = Zone(cluster.config("cluster.local in-addr.arpa", ttl_s=30))
    zone.load(state, 1.0)
    texts = [f"s{i}.default.svc.cluster.local" for i in range(6)] + ["_http._tcp.s1.default.svc.cluster.local"]
    texts += ["a.b.s2.default.svc.cluster.local", "x.nowhere.svc.cluster.local", "cluster.local"]

    def resolve(lower: bytes, qtype: int, do: bool, cd: bool) -> Fast | None:
        prepared = prepare(zone, Question(lower, lower, qtype))
        if prepared is None:
            return None
        denial = prepared.counts[2:4] != b"\0\0"
        lasting = Lasting.UNTIL_SERIAL if denial else Lasting.UNTIL_CHANGED
        return Fast(prepared, zone.tag(lower), lambda *_: Cell(lasting), shows=zone if denial else None)

    hot = HotPath(resolve)
    for step in range(4000):
        if step % 7 == 0:
            key = ObjectKey("default", f"s{rng.randrange(6)}")
            if rng.random() < 0.4:
                state.apply_event(Delete(Resource.SERVICES, key))
            else:
                made = cluster.service(str(key), f"10.96.0.{rng.randrange(1, 250)}", "http:80")
                state.apply_event(Upsert(made))
            hot.forget(zone.apply(state, state.take_changes(), 5.0).tags)
        hot.tick(step / 100)
        lower, qtype = name(rng.choice(texts)), rng.choice([1, 28, 33, 6])
        text = names.to_text(lower)
        reply = hot.reply_to(asked(text.title() if rng.random() < 0.3 else text, qtype=qtype, opt=opt()))
        fresh = HotPath(resolve).reply_to(asked(text, qtype=qtype, opt=opt()))
        if reply is not None:
            assert fresh is not None
            assert (
                normal(b"\0\0" + reply).lower().partition("case:")[2].partition("\n")[2]
                == (normal(b"\0\0" + fresh).lower().partition("case:")[2].partition("\n")[2])
            )


def test_the_memo_survives_a_long_life(told: Told) -> None:
    """Random questions, changes and ticks: what comes back is always what the server last said."""
    rng = random.Random(7)
    texts = [f"n{i}.example" for i in range(30)]
    hot = HotPath(told.resolve)
    told.tails = {name(t): (A_TAIL + b"\0",) for t in texts}
    for step in range(20_000):
        text = rng.choice(texts)
        if step % 50 == 0:
            told.tails[name(text)] = (A_TAIL + bytes((rng.randrange(256),)),)
            hot.forget(frozenset({name(text)}))
        spelt = text if rng.random() < 0.7 else text.upper()
        reply = hot.reply_to(asked(spelt, opt=opt() if rng.random() < 0.5 else b""))
        assert addresses(reply) == [told.tails[name(text)][0][-1]]
        hot.tick(step / 1000)
