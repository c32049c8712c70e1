"""The cache: what is kept, how long, and what is served of it."""

# ruff: noqa: SIM117

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dnsserver import records, rrtext
from dnsserver.cache import MAX_BYTES, Cache, Kind, kind_of, ttl_of
from dnsserver.corefile_model import CacheConfig, CacheLimits, Prefetch, ServeStale
from dnsserver.encode import encode
from dnsserver.message import RR, Handler, Message, Prepared, Query, Question
from dnsserver.plugins.base import Environment
from tests.dns import notation
from tests.dns.chains import Ask, chain
from tests.dns.notation import question
from tests.dns.peers import Behaviour, Misbehaving, failing, honest, misbehaving, reply_to

SOA = "test. 300 IN SOA ns.test. root.test. 1 7200 1800 86400 60"


def message(text: str, *, rcode: int = 0, **more: object) -> Message:
    """ANSWER, then after `;;` AUTHORITY, in zone-file lines."""
    sections: list[list[RR]] = [[]]
    for line in text.splitlines():
        if line.strip() == ";;":
            sections.append([])
        elif line.strip():
            sections[-1].append(rrtext.from_text(line))
    authority = tuple(sections[1]) if len(sections) > 1 else ()
    return Message(rcode=rcode, answer=tuple(sections[0]), authority=authority, **more)  # type: ignore[arg-type]


def config(**more: object) -> CacheConfig:
    return CacheConfig(zones=(b"\0",), **more)  # type: ignore[arg-type]


# -- what is kept


@pytest.mark.parametrize(
    ("asked", "reply", "kind"),
    [
        ("a.test. A", message("a.test. 5 IN A 192.0.2.1"), Kind.SUCCESS),
        ("a.test. A", message("a.test. 5 IN CNAME b.test.\nb.test. 5 IN A 192.0.2.1"), Kind.SUCCESS),
        ("a.test. CNAME", message("a.test. 5 IN CNAME b.test."), Kind.SUCCESS),
        ("a.test. ANY", message("a.test. 5 IN HINFO x y"), Kind.SUCCESS),
        ("a.test. A", message(";;\ntest. 5 IN NS ns.test."), Kind.SUCCESS),
        ("a.test. A", message(f";;\n{SOA}"), Kind.NODATA),
        ("a.test. A", message(f"a.test. 5 IN CNAME b.test.\n;;\n{SOA}"), Kind.NODATA),
        ("a.test. A", message(f";;\n{SOA}", rcode=3), Kind.NXDOMAIN),
        ("a.test. A", message("", rcode=2), Kind.FAILURE),
        ("a.test. A", message("", rcode=4), Kind.FAILURE),
        # and what is not
        ("a.test. A", message("a.test. 5 IN A 192.0.2.1", tc=True), None),
        ("a.test. A", message("a.test. 5 IN A 192.0.2.1", cacheable=False), None),
        ("a.test. CH A", message("a.test. 5 IN A 192.0.2.1"), None),
        ("a.test. AXFR", message(SOA), None),
        ("a.test. A", message(""), None),
        ("a.test. A", message("a.test. 5 IN CNAME b.test."), None),
        ("a.test. A", message("", rcode=3), None),
        ("a.test. A", message(f"a.test. 5 IN A 192.0.2.1\n;;\n{SOA}", rcode=3), None),
        ("a.test. A", message(f";;\n{SOA}", rcode=5), None),
        ("a.test. A", message(f";;\n{SOA}", rcode=1), None),
    ],
)
def test_what_is_kept(asked: str, reply: Message, kind: Kind | None) -> None:
    assert kind_of(question(asked), reply) is kind


@pytest.mark.parametrize(
    ("text", "kind", "ttl_s"),
    [
        ("a.test. 300 IN A 192.0.2.1\na.test. 200 IN A 192.0.2.2", Kind.SUCCESS, 200),
        ("a.test. 300 IN CNAME b.test.\nb.test. 20 IN A 192.0.2.1", Kind.SUCCESS, 20),
        ("a.test. 300 IN A 192.0.2.1\n;;\ntest. 30 IN NS ns.test.", Kind.SUCCESS, 30),
        ("a.test. 0 IN A 192.0.2.1", Kind.SUCCESS, 0),
        (f";;\n{SOA}", Kind.NXDOMAIN, 60),  # the minimum
        (";;\ntest. 30 IN SOA ns.test. root.test. 1 7200 1800 86400 60", Kind.NODATA, 30),  # the SOA's own
        (f"a.test. 10 IN CNAME b.test.\n;;\n{SOA}", Kind.NODATA, 10),
        (f"a.test. 300 IN A 192.0.2.1\n;;\n{SOA}", Kind.SUCCESS, 300),  # the minimum is for denials
    ],
)
def test_for_how_long(text: str, kind: Kind, ttl_s: int) -> None:
    assert ttl_of(kind, message(text), wall_s=0) == ttl_s


@pytest.mark.parametrize(("wall_s", "ttl_s"), [(1_000, 300), (1_900, 100), (2_000, 0), (2_001, 0)])
def test_signatures_end_the_stay(wall_s: float, ttl_s: int) -> None:
    rdata = struct.pack("!HBBIIIH", 1, 13, 2, 300, 2_000, 0, 1) + b"\x04test\0" + b"s"
    signed = Message(answer=(rrtext.from_text("a.test. 300 IN A 192.0.2.1"), RR(b"\x01a\x04test\0", 46, 1, 300, rdata)))
    assert ttl_of(Kind.SUCCESS, signed, wall_s) == ttl_s


class Kept:
    """A cache with a clock one sets."""

    def __init__(self, cache_config: CacheConfig | None = None) -> None:
        self.cache = Cache(cache_config or config())
        self.now_s = 100.0

    def store(self, asked: str, reply: Message, *, do: bool = False, cd: bool = False) -> bool:
        entry, _ = self.cache.store(question(asked), reply, do=do, cd=cd, now_s=self.now_s, wall_s=0)
        return entry is not None

    def find(self, asked: str, *, do: bool = False, cd: bool = False) -> str | None:
        """`fresh 30 NOERROR`, with the seconds left."""
        wanted = question(asked)
        found = self.cache.find(wanted.lower, wanted.qtype, do=do, cd=cd, now_s=self.now_s)
        if found is None:
            return None
        left_s = found.entry.left_s(self.now_s)
        return f"{found.state.name.lower()} {left_s} {rrtext.rcode_name(found.entry.message.rcode)}"


A300 = message("a.test. 300 IN A 192.0.2.1")
NXDOMAIN = message(f";;\n{SOA}", rcode=3)
NODATA = message(f";;\n{SOA}")
SERVFAIL = message("", rcode=2)


def test_ttls_count_down_and_end() -> None:
    kept = Kept()
    kept.store("a.test. A", A300)
    assert kept.find("A.TEST. A") == "fresh 300 NOERROR"
    kept.now_s += 299.5
    assert kept.find("a.test. A") == "fresh 1 NOERROR"
    kept.now_s += 0.5
    assert kept.find("a.test. A") is None
    assert kept.cache.sizes == (0, 0)


def test_ttl_0_is_not_kept_and_a_low_one_is_not_raised() -> None:
    kept = Kept()
    assert not kept.store("a.test. A", message("a.test. 0 IN A 192.0.2.1"))
    assert kept.store("b.test. A", message("b.test. 1 IN A 192.0.2.1"))
    assert kept.find("b.test. A") == "fresh 1 NOERROR"


def test_caps_and_floors() -> None:
    kept = Kept(config(success=CacheLimits(ttl_s=30, min_ttl_s=10), denial=CacheLimits(ttl_s=20)))
    kept.store("a.test. A", A300)
    kept.store("b.test. A", message("b.test. 3 IN A 192.0.2.1"))
    kept.store("c.test. A", NXDOMAIN)
    assert not kept.store("d.test. A", message("d.test. 0 IN A 192.0.2.1"))
    assert [kept.find(f"{name}.test. A") for name in "abc"] == [
        "fresh 30 NOERROR",
        "fresh 10 NOERROR",
        "fresh 20 NXDOMAIN",
    ]


def test_do_and_cd_are_kept_apart() -> None:
    kept = Kept()
    kept.store("a.test. A", A300, do=True)
    assert kept.find("a.test. A", do=True) is not None
    assert kept.find("a.test. A") is None
    assert kept.find("a.test. A", do=True, cd=True) is None


def test_a_missing_name_is_missing_for_every_type() -> None:
    kept = Kept()
    kept.store("a.test. A", NXDOMAIN)
    assert kept.find("a.test. AAAA") == "fresh 60 NXDOMAIN"
    assert kept.find("b.a.test. A") is None


def test_a_and_aaaa_agree_about_existence() -> None:
    kept = Kept()
    kept.store("a.test. A", A300)
    kept.store("a.test. AAAA", NXDOMAIN)
    assert kept.find("a.test. A") == "fresh 60 NXDOMAIN"
    kept.store("a.test. A", A300)
    assert kept.find("a.test. AAAA") is None
    kept.store("a.test. AAAA", NODATA)
    assert kept.find("a.test. A") == "fresh 300 NOERROR"


def test_a_failure_does_not_hide_what_is_known() -> None:
    kept = Kept()
    kept.store("a.test. A", A300)
    kept.store("a.test. A", SERVFAIL)
    assert kept.find("a.test. A") == "fresh 300 NOERROR"
    kept.store("b.test. A", SERVFAIL)
    assert kept.find("b.test. A") == "fresh 5 SERVFAIL"
    assert kept.find("b.test. AAAA") is None
    kept.store("b.test. A", message("b.test. 9 IN A 192.0.2.1"))
    assert kept.find("b.test. A") == "fresh 9 NOERROR"


def test_failures_are_kept_as_told() -> None:
    kept = Kept(config(servfail_s=0))
    assert not kept.store("a.test. A", SERVFAIL)


def test_zones_without_caching() -> None:
    zone = (b"\x07cluster\x05local\0",)
    kept = Kept(config(success=CacheLimits(ttl_s=30, disabled=zone)))
    assert not kept.store("a.cluster.local. A", message("a.cluster.local. 5 IN A 192.0.2.1"))
    assert kept.store("b.cluster.local. A", NXDOMAIN)
    assert kept.store("a.xcluster.local. A", message("a.xcluster.local. 5 IN A 192.0.2.1"))


def test_what_was_used_stays_when_room_is_short() -> None:
    kept = Kept(config(success=CacheLimits(capacity=100, ttl_s=3600)))
    kept.store("popular.test. A", message("popular.test. 3000 IN A 192.0.2.1"))
    for number in range(1000):
        kept.store(f"n{number}.test. A", message(f"n{number}.test. 300 IN A 192.0.2.1"))
        if number % 20 == 0:
            assert kept.find("popular.test. A") is not None
    assert kept.cache.sizes == (100, 0)


def test_denials_do_not_push_out_successes() -> None:
    kept = Kept(config(success=CacheLimits(capacity=10, ttl_s=3600), denial=CacheLimits(capacity=10, ttl_s=3600)))
    kept.store("a.test. A", A300)
    for number in range(100):
        kept.store(f"n{number}.test. A", NXDOMAIN)
    assert kept.cache.sizes == (1, 10)


def test_memory_is_bounded_in_bytes_too() -> None:
    kept = Kept()
    big = message("\n".join(f'big.test. 300 IN TXT "{"x" * 250}{n:04}"' for n in range(100)))
    for number in range(2000):
        kept.store(f"n{number}.test. TXT", big)
    assert kept.cache.weight_bytes <= MAX_BYTES
    assert 100 < kept.cache.sizes[0] < 2000


def test_prefetch_is_due_for_popular_names_near_their_end() -> None:
    kept = Kept(config(prefetch=Prefetch(amount=3, duration_s=60, percentage=20)))
    kept.store("a.test. A", A300)
    kept.now_s += 239
    assert kept.find("a.test. A") == "fresh 61 NOERROR"
    kept.now_s += 1
    assert kept.find("a.test. A") == "fresh 60 NOERROR"  # two hits
    assert kept.find("a.test. A") == "prefetch 60 NOERROR"
    kept.now_s += 59.5
    kept.store("a.test. A", A300)  # renewed: still popular, not due
    assert kept.find("a.test. A") == "fresh 300 NOERROR"
    kept.now_s += 250  # a gap
    assert kept.find("a.test. A") == "fresh 50 NOERROR"


def test_stale_replies_are_kept_for_their_time() -> None:
    kept = Kept(config(serve_stale=ServeStale(duration_s=1000)))
    kept.store("a.test. A", A300)
    kept.store("b.test. A", NXDOMAIN)
    kept.now_s += 301
    assert kept.find("a.test. A") == "stale -1 NOERROR"
    assert kept.find("b.test. A") == "stale -241 NXDOMAIN"
    kept.store("a.test. A", SERVFAIL)
    assert kept.find("a.test. A") == "stale -1 NOERROR"
    kept.now_s += 1000
    assert kept.find("a.test. A") is None


@pytest.mark.parametrize(("prefer", "expected"), [(False, "fresh 60 NXDOMAIN"), (True, "stale -1 NOERROR")])
def test_prefer_positive(prefer: bool, expected: str) -> None:
    kept = Kept(config(serve_stale=ServeStale(prefer_positive=prefer)))
    kept.store("a.test. A", A300)
    kept.find("a.test. A")
    kept.now_s += 301
    kept.store("a.test. A", NXDOMAIN)
    found = kept.find("a.test. A")
    assert found is not None
    assert found.split()[0] == expected.split(maxsplit=1)[0]
    assert found.split()[2] == expected.split()[2]


# -- properties

NAMES = [f"{name}.test." for name in "abc"]


class CacheAgainstModel(RuleBasedStateMachine):
    """No reply older than its TTL, none above a cap, never more entries than capacity; find never resurrects."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept(
            config(success=CacheLimits(capacity=3, ttl_s=50), denial=CacheLimits(capacity=2, ttl_s=20), servfail_s=5)
        )
        self.stored: dict[tuple[str, str], float] = {}

    @rule(name=st.sampled_from(NAMES), qtype=st.sampled_from(["A", "AAAA"]), ttl=st.integers(0, 100))
    def store_success(self, name: str, qtype: str, ttl: int) -> None:
        data = "192.0.2.1" if qtype == "A" else "2001:db8::1"
        self.kept.store(f"{name} {qtype}", message(f"{name} {ttl} IN {qtype} {data}"))
        self.stored[name, qtype] = int(self.kept.now_s) + min(ttl, 50)

    @rule(name=st.sampled_from(NAMES), qtype=st.sampled_from(["A", "AAAA"]), rcode=st.sampled_from([0, 2, 3]))
    def store_denial(self, name: str, qtype: str, rcode: int) -> None:
        reply = message("" if rcode == 2 else f";;\n{SOA}", rcode=rcode)
        self.kept.store(f"{name} {qtype}", reply)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.kept.now_s += seconds

    @rule(name=st.sampled_from(NAMES), qtype=st.sampled_from(["A", "AAAA"]))
    def look(self, name: str, qtype: str) -> None:
        found = self.kept.find(f"{name} {qtype}")
        if found is not None:
            state, left, rcode = found.split()
            assert state == "fresh"
            assert 0 < int(left) <= (20 if rcode == "NXDOMAIN" else 50)

    @rule(name=st.sampled_from(NAMES))
    def families_agree(self, name: str) -> None:
        found = [self.kept.find(f"{name} {qtype}") for qtype in ("A", "AAAA")]
        kinds = {text.split()[2] for text in found if text is not None}
        assert not {"NOERROR", "NXDOMAIN"} <= kinds

    @invariant()
    def within_capacity(self) -> None:
        success, denial = self.kept.cache.sizes
        assert success <= 3
        assert denial <= 2
        assert self.kept.cache.weight_bytes >= 0


TestCacheAgainstModel = CacheAgainstModel.TestCase
TestCacheAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def sent(prepared: Prepared, asked: Question, query_id: int, tail: int = 0) -> bytes:
    """The reply the hot path makes of it, to a query without EDNS and with RD."""
    flags = (prepared.flags | 0x0100).to_bytes(2, "big")
    header = query_id.to_bytes(2, "big") + flags + b"\0\1" + prepared.counts
    return header + asked.name + struct.pack("!HH", asked.qtype, asked.qclass) + prepared.tails[tail]


REPLIES = [
    ("a.test. A", A300),
    ("a.test. A", message("A.Test. 300 IN A 192.0.2.1\na.test. 300 IN A 192.0.2.2\na.test. 9 IN A 192.0.2.3", ra=True)),
    ("a.test. A", message("a.test. 300 IN CNAME b.other.\nb.other. 300 IN A 192.0.2.1")),
    ("a.test. MX", message("a.test. 300 IN MX 10 mail.a.test.\na.test. 300 IN MX 20 mail.other.")),
    ("a.test. SRV", message("a.test. 300 IN SRV 0 5 443 Host.a.test.")),
    ("missing.test. A", NXDOMAIN),
    ("a.test. TXT", NODATA),
]


@pytest.mark.parametrize(("asked", "reply"), REPLIES, ids=[f"{n} {r[0]}" for n, r in enumerate(REPLIES)])
def test_the_prepared_reply_says_what_the_message_says(asked: str, reply: Message) -> None:
    cache = Cache(config())
    wanted = question(asked)
    entry, _ = cache.store(wanted, reply, do=False, cd=False, now_s=0, wall_s=0)
    assert entry is not None
    for ttl_s in (entry.ttl_s, 7):
        prepared = entry.prepared(wanted.lower, wanted.qtype, ttl_s)
        assert len(prepared.tails) == max(1, sum(rr.type in (1, 28) for rr in reply.answer))
        query = notation.query(asked)
        for tail in range(len(prepared.tails)):
            expected = notation.shown(encode(entry.reply(ttl_s), query))
            assert notation.shown(sent(prepared, wanted, query.id, tail)) == expected


@given(st.integers(2, 20))
def test_each_address_comes_first_in_turn(count: int) -> None:
    cache = Cache(config())
    wanted = question("a.test. A")
    reply = message("\n".join(f"a.test. 300 IN A 192.0.2.{n}" for n in range(count)))
    entry, _ = cache.store(wanted, reply, do=False, cd=False, now_s=0, wall_s=0)
    assert entry is not None
    tails = entry.prepared(wanted.lower, wanted.qtype, 300).tails
    assert len(tails) == len(set(tails)) == -(-count // -(-count // 8))


# -- in the chain


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_second_query_does_not_reach_the_upstream() -> None:
    clock = Clock()
    async with misbehaving(honest) as upstream:
        async with chain(f"cache 30\nforward . 127.0.0.1:{upstream.port}", clock=clock) as ask:
            assert (await ask("www.test. A")).answered == "NOERROR\nwww.test. 30 IN A 192.0.2.1"
            clock.now_s += 10
            assert (await ask("WWW.test. A")).answered == "NOERROR\nWWW.test. 20 IN A 192.0.2.1"
            assert len(upstream.queries) == 1
            clock.now_s += 20
            assert (await ask("www.test. A")).ttls == [30]
            assert len(upstream.queries) == 2
            assert ask.counter("coredns_cache_hits_total", type="success") == 1
            assert ask.counter("coredns_cache_misses_total") == 2
            assert ask.counter("coredns_cache_requests_total") == 3
            assert ask.counter("coredns_cache_entries", type="success") == 1


async def test_keepttl() -> None:
    clock = Clock()
    async with misbehaving(honest) as upstream:
        async with chain(f"cache 30 {{\n keepttl\n}}\nforward . 127.0.0.1:{upstream.port}", clock=clock) as ask:
            await ask("www.test. A")
            clock.now_s += 10
            assert (await ask("www.test. A")).ttls == [30]


@pytest.mark.parametrize(
    ("lines", "dropped"),
    [
        ("evil.test. 300 IN A 198.51.100.66", 1),
        ("alias.test. 300 IN CNAME www.test.\nalias.test. 300 IN A 198.51.100.66", 1),
        ("WWW.Test. 300 IN CNAME web.test.\nweb.test. 300 IN A 192.0.2.1", 0),
        ("test. 300 IN DNAME example.\nwww.example. 300 IN A 192.0.2.1", 0),
    ],
)
async def test_replies_about_another_name_are_not_kept(lines: str, dropped: int) -> None:
    async def lying(_server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
        send(reply_to(query, *lines.splitlines()))

    async with misbehaving(lying) as upstream:
        async with chain(f"cache 30\nforward . 127.0.0.1:{upstream.port}") as ask:
            await ask("www.test. A")
            assert ask.counter("coredns_cache_drops_total") == dropped
            assert ask.counter("coredns_cache_entries", type="success") == 1 - dropped


async def test_only_the_listed_zones_are_cached() -> None:
    async with misbehaving(honest) as upstream:
        async with chain(f"cache 30 a.test\nforward . 127.0.0.1:{upstream.port}") as ask:
            for _ in range(2):
                await ask("x.a.test. A")
                await ask("x.b.test. A")
            assert len(upstream.queries) == 3


async def test_halves_that_are_disabled_for_a_zone() -> None:
    async def denying(server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
        if b"gone" in query:
            soa = "test. 300 IN SOA ns.test. h.test. 1 7200 1800 86400 300"
            send(reply_to(query, rcode="NXDOMAIN", authority=(soa,)))
        else:
            await honest(server, query, send)

    options = "disable success a.test\n disable denial b.test"
    async with misbehaving(denying) as upstream:
        async with chain(f"cache 30 {{\n {options}\n}}\nforward . 127.0.0.1:{upstream.port}") as ask:
            asked = {}
            for name in ("www.a.test.", "gone.a.test.", "www.b.test.", "gone.b.test."):
                before = len(upstream.queries)
                for _ in range(3):
                    await ask(f"{name} A")
                asked[name] = len(upstream.queries) - before
    assert asked == {"www.a.test.": 3, "gone.a.test.": 1, "www.b.test.": 1, "gone.b.test.": 3}


async def test_what_this_server_knows_itself_is_never_cached() -> None:
    async with chain(
        'cache 30\nhosts /dev/null {\n 192.0.2.1 a.test\n}\ntemplate IN TXT {\n answer "{{ .Name }} 60 IN TXT x"\n}'
    ) as ask:
        for _ in range(3):
            assert (await ask("a.test. A")).ttls == [3600]
            assert (await ask("a.test. TXT")).ttls == [60]
        assert ask.counter("coredns_cache_entries") == 0


async def test_a_source_out_of_reach_is_not_asked_by_every_query() -> None:
    async with chain("cache\nforward . 127.0.0.1:1") as ask:
        assert (await ask("www.test. A")).error == "Connection refused"
        assert ask.counter("coredns_cache_entries", type="denial") == 1
        assert (await ask("www.test. A")).rcode == "SERVFAIL"
        assert ask.counter("coredns_cache_hits_total", type="denial") == 1


async def test_prefetch_renews_behind_the_reply() -> None:
    clock = Clock()
    async with misbehaving(honest) as upstream:
        text = f"cache 100 {{\n prefetch 2 1m 20%\n}}\nforward . 127.0.0.1:{upstream.port}"
        async with chain(text, clock=clock) as ask:
            for _ in range(3):
                await ask("www.test. A")
            clock.now_s += 50
            await ask("www.test. A")
            clock.now_s += 35
            assert (await ask("www.test. A")).ttls == [15]
            await _until(lambda: len(upstream.queries) == 2)
            await _until_renewed(ask, 100)
            assert ask.counter("coredns_cache_prefetch_total") == 1


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        await asyncio.sleep(0.01)
    pytest.fail("did not become true")


async def _until_renewed(ask: Ask, ttl_s: int) -> None:
    """Wait for the reply to what the upstream was asked behind ours."""
    for _ in range(100):
        if (await ask("www.test. A")).ttls == [ttl_s]:
            return
        await asyncio.sleep(0.01)
    pytest.fail("was not renewed")


class Switch:
    """A server that can be broken."""

    def __init__(self) -> None:
        self.behave: Behaviour = honest

    async def __call__(self, server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
        await self.behave(server, query, send)


async def _silent(_server: Misbehaving, _query: bytes, _send: Callable[[bytes], None]) -> None:
    return


@pytest.mark.parametrize("mode", ["", "1h immediate", "1h verify"])
async def test_stale_replies_while_the_source_fails(mode: str) -> None:
    clock, source = Clock(), Switch()
    async with misbehaving(source) as upstream:
        text = f"cache 30 {{\n serve_stale {mode}\n}}\nforward . 127.0.0.1:{upstream.port}"
        async with chain(text, clock=clock) as ask:
            await ask("www.test. A")
            clock.now_s += 31
            source.behave = failing("SERVFAIL")
            for _ in range(3):
                reply = await ask("www.test. A")
                assert reply.answered == "NOERROR\nwww.test. 0 IN A 192.0.2.1"
                assert reply.message.errors == ((3, ""),)  # Stale Answer
            await _until(lambda: len(upstream.queries) == 2)  # a failed renewal is not repeated at once
            assert ask.counter("coredns_cache_served_stale_total") == 3
            source.behave = honest
            clock.now_s += 40
            await ask("www.test. A")
            await _until(lambda: len(upstream.queries) == 3)
            await _until_renewed(ask, 30)
            clock.now_s += 3700
            source.behave = failing("SERVFAIL")
            assert (await ask("www.test. A")).rcode == "SERVFAIL"


async def test_verify_waits_for_the_source_first_and_not_forever() -> None:
    clock, source = Clock(), Switch()
    async with misbehaving(source) as upstream:
        text = f"cache 30 {{\n serve_stale 1h verify 100ms\n}}\nforward . 127.0.0.1:{upstream.port}"
        async with chain(text, clock=clock) as ask:
            await ask("www.test. A")
            clock.now_s += 31
            assert (await ask("www.test. A")).ttls == [30]
            clock.now_s += 31
            source.behave = _silent
            began_s = asyncio.get_running_loop().time()
            assert (await ask("www.test. A")).ttls == [0]
            assert asyncio.get_running_loop().time() - began_s < 1


async def test_a_kept_denial_does_not_hide_what_the_cluster_learns_later() -> None:
    """With kubeadm's fallthrough, reverse names of the world and of the cluster share zones."""
    known: set[bytes] = set()

    def make(_config: object, rest: Handler) -> Handler:
        async def cluster(query: Query) -> Message | None:
            if query.question.lower in known:
                return Message(answer=(records.ptr(query.question.name, 5, b"\x03web\0"),), cacheable=False)
            return await rest(query)

        return cluster

    async with misbehaving(denying) as upstream:
        text = f"kubernetes cluster.local in-addr.arpa\ncache 30\nforward . 127.0.0.1:{upstream.port}"
        async with chain(text, environment=Environment(kubernetes=make)) as ask:
            for _ in range(3):
                assert (await ask("1.0.96.10.in-addr.arpa. PTR")).rcode == "NXDOMAIN"
            assert len(upstream.queries) == 1, "kept"
            known.add(question("1.0.96.10.in-addr.arpa. PTR").lower)
            assert (await ask("1.0.96.10.in-addr.arpa. PTR")).answered == (
                "NOERROR\n1.0.96.10.in-addr.arpa. 5 IN PTR web."
            )


async def denying(_server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
    send(reply_to(query, rcode="NXDOMAIN", authority=("arpa. 300 IN SOA ns. root. 1 2 3 4 60",)))


# -- for the hot path


async def test_cached_replies_go_out_without_the_chain() -> None:
    clock = Clock()
    async with misbehaving(honest) as upstream:
        async with chain(f"cache 30\nloadbalance\nforward . 127.0.0.1:{upstream.port}", clock=clock) as ask:
            assert _hot(ask, "www.test. A", clock) is None
            await ask("www.test. A")
            clock.now_s += 5
            prepared = _hot(ask, "www.test. A", clock)
            assert prepared is not None
            shown = notation.shown(sent(prepared, question("www.test. A"), 1))
            assert shown == "NOERROR\nwww.test. 25 IN A 192.0.2.1"
            clock.now_s += 25
            assert _hot(ask, "www.test. A", clock) is None


@pytest.mark.parametrize(
    "directive",
    ["log", "acl {\n block net 10.0.0.0/8\n}", "rewrite name www.test a.test", "loadbalance {\n prefer 10.0.0.0/8\n}"],
)
async def test_but_not_past_a_plugin_that_has_something_to_do(directive: str) -> None:
    clock = Clock()
    async with misbehaving(honest) as upstream:
        async with chain(f"cache 30\n{directive}\nforward . 127.0.0.1:{upstream.port}", clock=clock) as ask:
            await ask("www.test. A")
            await ask("a.test. A")
            assert _hot(ask, "www.test. A", clock) is None


def _hot(ask: Ask, asked: str, clock: Clock) -> Prepared | None:
    wanted = question(asked)
    return ask.chain.cached(wanted.lower, wanted.qtype, do=False, cd=False, now_s=clock())
