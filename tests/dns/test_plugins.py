"""Plugins, by question and answer."""

# ruff: noqa: E501, ISC004, ASYNC240

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from dnsserver import corefile, names, records, rrtext
from dnsserver.chain import Listen, Runtime, plugin_names
from dnsserver.daemon import new_environment, set_log_level
from dnsserver.message import RR, Edns, Handler, Message, QType, Query
from dnsserver.metrics import ServerMetrics
from dnsserver.plugins.autopath import search_domains
from dnsserver.plugins.base import Environment
from dnsserver.plugins.dns64 import embed
from dnsserver.plugins.errors import duration_text
from dnsserver.plugins.hosts import parse
from dnsserver.plugins.loadbalance import Loadbalance
from dnsserver.plugins.weights import WeightFile
from dnsserver.plugins.weights import parse as parse_weights
from kubecore.model import Pod
from tests.dns import notation
from tests.dns.chains import chain

DATA = """\
www.example.test.   300 IN A 192.0.2.80
www.example.test.   300 IN AAAA 2001:db8::80
v4.example.test.    900 IN A 192.0.2.4
many.example.test.  300 IN A 192.0.2.1
many.example.test.  300 IN A 192.0.2.2
many.example.test.  300 IN A 10.0.0.3
alias.example.test. 300 IN CNAME www.example.test.
mail.example.test.  300 IN MX 10 www.example.test.
srv.example.test.   300 IN SRV 0 5 443 www.example.test.
"""
SOA = "example.test. 300 IN SOA ns.example.test. root.example.test. 1 7200 1800 86400 60"


class Zone:
    """A link of the chain that answers out of zone-file lines: stands where `kubernetes` does."""

    def __init__(self, text: str = DATA, rest: Handler | None = None) -> None:
        self.records = [rrtext.from_text(line) for line in text.splitlines() if line.strip()]
        self.asked: list[str] = []
        self._rest = rest

    async def __call__(self, query: Query) -> Message | None:
        question = query.question
        name = question.lower
        if not names.is_below(name, names.from_text("example.test")) and self._rest is not None:
            return await self._rest(query)
        self.asked.append(f"{names.to_text(question.name)} {rrtext.type_name(question.qtype)}")
        found: list[RR] = []
        known = {rr.name for rr in self.records}
        soa = (rrtext.from_text(SOA),)
        if name not in known:
            return Message(rcode=3, authority=soa, aa=True, cacheable=False)
        for _ in range(5):
            here = [rr for rr in self.records if rr.name == name]
            alias = next((rr for rr in here if rr.type == 5), None)
            wanted = [rr for rr in here if rr.type == question.qtype]
            if wanted or alias is None:
                found += [rr._replace(name=question.name) if rr.name == question.lower else rr for rr in wanted]
                break
            found.append(alias._replace(name=question.name) if alias.name == question.lower else alias)
            name = alias.rdata
        complete = bool(found) and found[-1].type == question.qtype
        return Message(answer=tuple(found), authority=() if complete else soa, aa=True, cacheable=False)


def kubernetes(zone: Zone, **more: object) -> Environment:
    """Surroundings in which `zone` answers where `kubernetes` would."""

    def make(_config: object, rest: Handler) -> Handler:
        zone._rest = rest
        return zone

    return replace(Environment(kubernetes=make), **more)  # type: ignore[arg-type]


K8S = "kubernetes cluster.local {\n pods verified\n}\n"


async def answered(directives: str, asked: str, **more: object) -> str:
    async with chain(K8S + directives, environment=kubernetes(Zone())) as ask:
        return (await ask(asked, **more)).answered


# -- chaos, any, acl, minimal, whoami, local, cancel


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("version.bind. CH TXT", 'NOERROR\nversion.bind. 0 CH TXT "v1"'),
        ("VERSION.server. CH TXT", 'NOERROR\nVERSION.server. 0 CH TXT "v1"'),
        ("authors.bind. CH TXT", 'NOERROR\nauthors.bind. 0 CH TXT "alice"\nauthors.bind. 0 CH TXT "bob"'),
        ("hostname.bind. CH TXT", f'NOERROR\nhostname.bind. 0 CH TXT "{os.uname().nodename}"'),
        ("id.server. CH TXT", f'NOERROR\nid.server. 0 CH TXT "{os.uname().nodename}"'),
        ("version.bind. CH A", "REFUSED"),
        ("www.example.test. CH A", "REFUSED"),
        ("version.bind. TXT", "REFUSED"),
    ],
)
async def test_chaos(asked: str, expected: str) -> None:
    assert await answered("chaos v1 alice bob", asked) == expected


async def test_without_chaos_other_classes_are_refused() -> None:
    assert await answered("", "version.bind. CH TXT") == "REFUSED"


async def test_any() -> None:
    expected = 'NOERROR\nwww.example.test. 8482 IN HINFO "ANY obsoleted" "See RFC 8482"'
    assert await answered("any", "www.example.test. ANY") == expected


ACL = """acl example.test {
    block type A net 10.1.0.0/16
    filter type AAAA net 10.1.0.0/16 2001:db8::/32
    drop net 10.2.0.0/16
    allow net 10.3.0.0/16
    block net 10.0.0.0/8
}
"""


@pytest.mark.parametrize(
    ("client", "asked", "expected"),
    [
        ("10.1.2.3", "www.example.test. A", "REFUSED 15"),
        ("10.1.2.3", "www.example.test. AAAA", "NOERROR 17"),
        ("2001:db8::1", "www.example.test. AAAA", "NOERROR 17"),
        ("2001:db8::1", "www.example.test. A", "NOERROR"),
        ("10.2.0.1", "www.example.test. A", "nothing"),
        ("10.3.0.1", "www.example.test. A", "NOERROR"),
        ("10.4.0.1", "www.example.test. A", "REFUSED 15"),
        ("::ffff:10.4.0.1", "www.example.test. A", "REFUSED 15"),
        ("192.0.2.1", "www.example.test. A", "NOERROR"),
    ],
)
async def test_acl(client: str, asked: str, expected: str) -> None:
    async with chain(K8S + ACL, environment=kubernetes(Zone())) as ask:
        message = await ask.maybe(asked, client=client)
        if message is None:
            assert expected == "nothing"
            assert ask.counter("coredns_acl_dropped_requests_total", zone="example.test.") == 1
        else:
            codes = "".join(f" {code}" for code, _ in message.errors)
            assert rrtext.rcode_name(message.rcode) + codes == expected


async def test_minimal_strips_successes_only() -> None:
    async with chain(K8S + "minimal", environment=kubernetes(Zone())) as ask:
        assert len((await ask("missing.example.test. A")).message.authority) == 1
        assert (await ask("www.example.test. A")).message.authority == ()


async def test_whoami() -> None:
    async with chain("whoami") as ask:
        message = (await ask("who.test. A", client="2001:db8::7", client_port=4242, transport="tcp")).message
        assert [rrtext.to_text(rr) for rr in message.additional] == [
            "who.test. 0 IN AAAA 2001:db8::7",
            "_tcp.who.test. 0 IN SRV 0 0 4242 .",
        ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("localhost. A", "NOERROR\nlocalhost. 86400 IN A 127.0.0.1"),
        ("localhost.example.test. AAAA", "NOERROR\nlocalhost.example.test. 86400 IN AAAA ::1"),
        ("1.0.0.127.in-addr.arpa. PTR", "NOERROR\n1.0.0.127.in-addr.arpa. 86400 IN PTR localhost."),
        ("2.0.0.127.in-addr.arpa. PTR", "NOERROR"),
        ("localhost. MX", "NOERROR"),
        ("www.example.test. A", "NOERROR\nwww.example.test. 300 IN A 192.0.2.80"),
    ],
)
async def test_local(asked: str, expected: str) -> None:
    assert await answered("local", asked) == expected


async def test_cancel() -> None:
    async def slow(_query: Query) -> Message | None:
        await asyncio.sleep(5)
        return None

    environment = Environment(kubernetes=lambda _config, _rest: slow)
    async with chain(K8S + "cancel 20ms", environment=environment) as ask:
        assert (await ask("www.example.test. A")).rcode == "SERVFAIL"


async def test_the_end_of_a_chain_refuses() -> None:
    assert await answered("", "other.test. A") == "REFUSED"


@pytest.mark.parametrize(
    ("directives", "where"), [("", False), ("errors", False), ("errors {\n stacktrace\n}", True), ("debug", True)]
)
async def test_a_fault_in_a_plugin_is_servfail_and_told(directives: str, where: bool) -> None:
    async def broken(_query: Query) -> Message | None:
        raise ZeroDivisionError

    told: list[tuple[type[Exception], bool]] = []
    environment = Environment(
        kubernetes=lambda _config, _rest: broken,
        panicked=lambda error, _query, trace: told.append((type(error), trace)),
    )
    async with chain(K8S + directives, environment=environment) as ask:
        assert (await ask("www.example.test. A")).rcode == "SERVFAIL"
    assert told == [(ZeroDivisionError, where)]


def test_where_a_fault_happened_is_logged_if_asked_for() -> None:
    registry = CollectorRegistry()
    environment = new_environment(registry, ServerMetrics(registry, "test"))
    with capture_logs() as logs:
        for trace in (False, True):
            environment.panicked(ZeroDivisionError("no"), notation.query("a.test. A"), trace)
    assert ["exc_info" in entry for entry in logs] == [False, True]


def test_debug_shows_events_of_that_level() -> None:
    before = structlog.get_config()
    try:
        for text, shown in (("debug", True), ("", False)):
            set_log_level(corefile.load(f".:53 {{\n whoami\n{text}\n}}"), "info")
            with capture_logs() as logs:
                structlog.get_logger().debug("a.thing.happened")
            assert bool(logs) is shown
    finally:
        structlog.configure(**before)


# -- loadbalance


def balanced(lines: str, *, prefer: str = "", seed: int = 1) -> list[str]:
    block = corefile.load(
        f".:53 {{\n loadbalance {{\n {f'prefer {prefer}' if prefer else ''}\n }}\n whoami\n}}"
    ).blocks[0]
    assert block.loadbalance is not None

    async def nobody(_query: Query) -> Message | None:
        return None

    plugin = Loadbalance(block.loadbalance, nobody, random.Random(seed))
    section = tuple(rrtext.from_text(line) for line in lines.splitlines())
    return [rrtext.to_text(rr).split(" ", 3)[3] for rr in plugin.ordered(section)]


MIXED = """\
a.test. 5 IN MX 1 m.
a.test. 5 IN A 192.0.2.1
a.test. 5 IN CNAME b.test.
b.test. 5 IN CNAME c.test.
a.test. 5 IN TXT t
a.test. 5 IN A 192.0.2.2"""


def test_aliases_come_first_in_their_order_and_exchangers_last() -> None:
    for seed in range(20):
        kinds = [line.split()[0] for line in balanced(MIXED, seed=seed)]
        assert kinds == ["CNAME", "CNAME", "TXT", "A", "A", "MX"]
        assert balanced(MIXED, seed=seed)[:2] == ["CNAME b.test.", "CNAME c.test."]


def test_every_order_is_equally_likely() -> None:
    lines = "\n".join(f"a.test. 5 IN A 192.0.2.{n}" for n in range(3))
    orders = Counter(tuple(balanced(lines, seed=seed)) for seed in range(3000))
    assert len(orders) == 6
    assert max(orders.values()) < 1.25 * min(orders.values())


def test_preferred_networks_come_first() -> None:
    lines = "a.test. 5 IN A 192.0.2.1\na.test. 5 IN A 10.0.0.1\na.test. 5 IN AAAA 2001:db8::1"
    for seed in range(10):
        assert balanced(lines, prefer="10.0.0.0/8", seed=seed)[0] == "A 10.0.0.1"
        assert balanced(lines, prefer="2001:db8::/32", seed=seed)[0] == "AAAA 2001:db8::1"


WEIGHTS = """\
# what stands below a name is its addresses
a.test
192.0.2.1 3
192.0.2.2 1   # and so on
2001:db8::1 255

B.Test.
192.0.2.1 200
"""


async def first_of(directives: str, times: int, asked: str = "www.example.test. A") -> Counter[str]:
    """Which address came first how often."""
    addresses = ("192.0.2.1", "192.0.2.2", "192.0.2.3")

    async def many(query: Query) -> Message | None:
        alias = RR(query.question.name, 5, 1, 5, query.question.name)
        made = (alias, *(records.address(query.question.name, 5, address) for address in addresses))
        return Message(answer=made, cacheable=False)

    found: Counter[str] = Counter()
    async with chain(K8S + directives, environment=Environment(kubernetes=lambda _config, _rest: many)) as ask:
        for _ in range(times):
            lines = (await ask(asked)).answered.splitlines()
            assert lines[1].split()[3] == "CNAME"
            assert sorted(line.split()[-1] for line in lines[2:]) == list(addresses)
            found[lines[2].split()[-1]] += 1
    return found


async def test_weights_say_which_address_comes_first(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(WEIGHTS)
    directive = f"loadbalance weighted {tmp_path / 'weights'}"
    weighted = await first_of(directive, 3000, "A.test. A")
    assert [round(weighted[f"192.0.2.{n}"] / 600) for n in (1, 2, 3)] == [3, 1, 1], "an address without a weight has 1"
    unknown = await first_of(directive, 600)
    assert max(unknown.values()) < 1.5 * min(unknown.values())


async def test_preferred_networks_come_before_weights(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(WEIGHTS)
    directive = f"loadbalance weighted {tmp_path / 'weights'} {{\n prefer 192.0.2.3/32\n}}"
    assert await first_of(directive, 20, "a.test. A") == {"192.0.2.3": 20}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("192.0.2.1 3", "weights:1: no domain name stands above this address; begin with the name"),
        ("a.test\n192.0.2.1 0", "weights:2: '0' is no weight; write 1 to 255"),
        ("a.test\n192.0.2.1 256", "weights:2: '256' is no weight; write 1 to 255"),
        ("a.test\n192.0.2 1", "weights:2: '192.0.2' does not appear to be an IPv4 or IPv6 address"),
        ("a.test b c", "weights:1: write a domain name alone, or ADDRESS WEIGHT"),
        (None, "weights: No such file or directory; loadbalance takes its weights there"),
    ],
)
async def test_weights_that_cannot_be_used_stop_the_start(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "weights").write_text(text)
    with pytest.raises(OSError, match=re.escape(complaint)):
        async with chain(f"whoami\nloadbalance weighted {tmp_path / 'weights'}"):
            pass


async def test_weights_that_change_are_read_again_and_bad_ones_leave_the_old(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("a.test\n192.0.2.1 1\n")
    weights = WeightFile(path, 0.01)
    await weights.start()
    try:
        path.write_text("a.test\n192.0.2.1 20\n")
        async with asyncio.timeout(5):
            while weights.table != parse_weights(["a.test", "192.0.2.1 20"], ""):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        path.write_text("a.test\n192.0.2.1 3000\n")
        await asyncio.sleep(0.05)
        assert weights.table == parse_weights(["a.test", "192.0.2.1 20"], "")
    finally:
        await weights.close()


# -- hosts

HOSTS = """\
127.0.0.1 localhost localhost.localdomain
192.0.2.1 one.test One-Alias.test # comment
192.0.2.2 one.test
2001:db8::1 one.test
# 192.0.2.3 comment.test
bad-address two.test
192.0.2.4
192.0.2.5 bad..name good.test
192.0.2.6 *.wild.test
fe80::1%lo0 scoped.test
"""


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("one.test. A", "NOERROR\none.test. 3600 IN A 192.0.2.1\none.test. 3600 IN A 192.0.2.2"),
        ("ONE.test. AAAA", "NOERROR\nONE.test. 3600 IN AAAA 2001:db8::1"),
        ("one-alias.test. A", "NOERROR\none-alias.test. 3600 IN A 192.0.2.1"),
        ("one.test. MX", "NOERROR"),
        ("good.test. A", "NOERROR\ngood.test. 3600 IN A 192.0.2.5"),
        ("x.wild.test. A", "NOERROR\nx.wild.test. 3600 IN A 192.0.2.6"),
        ("wild.test. A", "SERVFAIL"),
        ("x.y.wild.test. A", "SERVFAIL"),
        ("scoped.test. AAAA", "NOERROR\nscoped.test. 3600 IN AAAA fe80::1"),
        ("comment.test. A", "SERVFAIL"),
        ("two.test. A", "SERVFAIL"),
        (
            "1.2.0.192.in-addr.arpa. PTR",
            "NOERROR\n1.2.0.192.in-addr.arpa. 3600 IN PTR one.test.\n1.2.0.192.in-addr.arpa. 3600 IN PTR One-Alias.test.",
        ),
        ("1.2.0.192.in-addr.arpa. A", "NOERROR"),
        ("9.2.0.192.in-addr.arpa. PTR", "REFUSED"),
        ("a.inline.test. A", "NOERROR\na.inline.test. 3600 IN A 192.0.2.99"),
    ],
)
async def test_hosts(hosts_file: Path, asked: str, expected: str) -> None:
    async with chain(f"hosts {hosts_file} . {{\n 192.0.2.99 a.inline.test\n}}") as ask:
        assert (await ask(asked)).answered == expected


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ("fallthrough", "missing.test. A", "REFUSED"),
        ("fallthrough other.test", "missing.test. A", "SERVFAIL"),
        ("fallthrough test", "missing.test. A", "REFUSED"),
        ("ttl 60", "one.test. AAAA", "NOERROR\none.test. 60 IN AAAA 2001:db8::1"),
        ("no_reverse\n fallthrough", "1.2.0.192.in-addr.arpa. PTR", "REFUSED"),
    ],
)
async def test_hosts_options(hosts_file: Path, options: str, asked: str, expected: str) -> None:
    async with chain(f"hosts {hosts_file} {{\n {options}\n}}") as ask:
        assert (await ask(asked)).answered == expected


async def test_hosts_zones_limit_names_not_pointers(hosts_file: Path) -> None:
    async with chain(f"hosts {hosts_file} one.test") as ask:
        assert (await ask("good.test. A")).answered == "REFUSED"
        pointer = "1.2.0.192.in-addr.arpa. 3600 IN PTR one.test."
        assert (await ask("1.2.0.192.in-addr.arpa. PTR")).answered == f"NOERROR\n{pointer}"


async def test_a_changed_hosts_file_is_read_again(hosts_file: Path) -> None:
    async with chain(f"hosts {hosts_file} {{\n reload 20ms\n}}") as ask:
        assert ask.counter("coredns_hosts_entries") == 9
        hosts_file.write_text("192.0.2.50 new.test\n")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if (await ask("new.test. A")).rcode == "NOERROR":
                break
        assert (await ask("new.test. A")).answered == "NOERROR\nnew.test. 3600 IN A 192.0.2.50"
        assert (await ask("one.test. A")).rcode == "SERVFAIL"
        hosts_file.unlink()
        await asyncio.sleep(0.1)
        assert (await ask("new.test. A")).rcode == "NOERROR"
        assert ask.counter("coredns_hosts_reload_timestamp_seconds") > 0


def test_a_hosts_table_has_each_pair_once() -> None:
    assert parse(["192.0.2.1 a.test A.TEST a.test"], (names.ROOT,)).entries == 1


# -- rewrite


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        (
            "rewrite name other.test www.example.test",
            "Other.test. A",
            "NOERROR\nOther.test. 300 IN A 192.0.2.80",
        ),
        (
            "rewrite name suffix .other.test .example.test answer auto",
            "alias.other.test. A",
            "NOERROR\nalias.other.test. 300 IN CNAME www.other.test.\nwww.other.test. 300 IN A 192.0.2.80",
        ),
        (
            "rewrite name suffix .other.test. .example.test.",
            "alias.other.test. A",
            "NOERROR\nalias.other.test. 300 IN CNAME www.example.test.\nwww.example.test. 300 IN A 192.0.2.80",
        ),
        (
            "rewrite name prefix my- v answer auto",
            "my-4.example.test. A",
            "NOERROR\nmy-4.example.test. 900 IN A 192.0.2.4",
        ),
        (
            "rewrite name substring .east. .",
            "www.east.example.test. A",
            "NOERROR\nwww.east.example.test. 300 IN A 192.0.2.80",
        ),
        (
            r"rewrite name regex ^(.*)-(west)\.other\.test\.$ {1}.example.test answer name ^(.*)\.example\.test\.$ {1}-west.other.test",
            "alias-west.other.test. A",
            "NOERROR\nalias-west.other.test. 300 IN CNAME www.example.test.\nwww-west.other.test. 300 IN A 192.0.2.80",
        ),
        (
            r"rewrite stop {"
            "\n name regex (.*)\\.other\\.test {1}.example.test\n answer name (.*)\\.example\\.test {1}.other.test\n"
            " answer value (.*)\\.example\\.test {1}.other.test\n}",
            "srv.other.test. SRV",
            "NOERROR\nsrv.other.test. 300 IN SRV 0 5 443 www.other.test.",
        ),
        (
            r"rewrite name regex (.*)\.other\.test {1}.example.test",
            "www.other.test. A",
            "NOERROR\nwww.other.test. 300 IN A 192.0.2.80",
        ),
        ("rewrite type ANY A", "v4.example.test. ANY", "NOERROR\nv4.example.test. 900 IN A 192.0.2.4"),
        ("rewrite class CH IN", "v4.example.test. CH A", "NOERROR\nv4.example.test. 900 IN A 192.0.2.4"),
        ("rewrite ttl suffix example.test 30", "v4.example.test. A", "NOERROR\nv4.example.test. 30 IN A 192.0.2.4"),
        ("rewrite ttl exact v4.example.test 1000-2000", "v4.example.test. A", "NOERROR\nv4.example.test. 1000 IN A 192.0.2.4"),
        ("rewrite ttl exact v4.example.test -60", "v4.example.test. A", "NOERROR\nv4.example.test. 60 IN A 192.0.2.4"),
        ("rewrite ttl exact v4.example.test 60-", "v4.example.test. A", "NOERROR\nv4.example.test. 900 IN A 192.0.2.4"),
        ("rewrite rcode regex .* NXDOMAIN NOERROR", "missing.example.test. A", "NOERROR"),
        ("rewrite rcode exact other.test NXDOMAIN NOERROR", "missing.example.test. A", "NXDOMAIN"),
        (
            "rewrite cname exact www.example.test v4.example.test",
            "alias.example.test. A",
            "NOERROR\nalias.example.test. 300 IN CNAME v4.example.test.\nv4.example.test. 900 IN A 192.0.2.4",
        ),
        # the first that matches is the last, unless it says continue
        ("rewrite name a.test www.example.test\nrewrite name www.example.test v4.example.test", "a.test. A", "NOERROR\na.test. 300 IN A 192.0.2.80"),
        (
            "rewrite continue name a.test www.example.test\nrewrite name www.example.test v4.example.test",
            "a.test. A",
            "NOERROR\na.test. 900 IN A 192.0.2.4",
        ),
        ("rewrite continue name a.test b.test\nrewrite ttl exact b.test 1", "www.example.test. A", "NOERROR\nwww.example.test. 300 IN A 192.0.2.80"),
        # a rule must not make a name that is none
        ("rewrite name regex ^(.*)$ {1}{1}{1}{1}{1}{1}{1}{1}{1}", "a-long-label-that-is-repeated.example.test. A", "SERVFAIL"),
    ],
)  # fmt: skip
async def test_rewrite(rules: str, asked: str, expected: str) -> None:
    assert await answered(rules, asked) == expected


# -- autopath

SEARCH = """\
db.shop.svc.cluster.local.   30 IN A 10.96.0.1
tool.other.svc.cluster.local. 30 IN A 10.96.0.2
"""


class ClusterAndWorld:
    """Cluster names, and one name of the world behind them."""

    asked: list[str]

    def __init__(self) -> None:
        self.asked = []
        self.records = {rr.name: rr for rr in map(rrtext.from_text, SEARCH.splitlines())}
        world = rrtext.from_text("www.example.org. 300 IN A 192.0.2.80")
        self.records[world.name] = world
        self.failing = names.from_text("broken.shop.svc.cluster.local")

    async def __call__(self, query: Query) -> Message | None:
        question = query.question
        self.asked.append(names.to_text(question.name))
        if question.lower == self.failing:
            return Message(rcode=2)
        rr = self.records.get(question.lower)
        if rr is None:
            return Message(rcode=3, authority=(rrtext.from_text(SOA),), cacheable=False)
        answer = (rr._replace(name=question.name),) if rr.type == question.qtype else ()
        return Message(answer=answer, aa=True, cacheable=False)


PODS = {"10.0.0.1": "shop"}


@pytest.mark.parametrize(
    ("client", "asked", "expected", "lookups"),
    [
        # what the pod's resolver would find, in one query
        (
            "10.0.0.1",
            "www.example.org.shop.svc.cluster.local. A",
            "NOERROR\nwww.example.org.shop.svc.cluster.local. 300 IN CNAME www.example.org.\nwww.example.org. 300 IN A 192.0.2.80",
            5,
        ),
        (
            "10.0.0.1",
            "tool.other.Shop.svc.cluster.local. A",
            "NOERROR\ntool.other.Shop.svc.cluster.local. 30 IN CNAME tool.other.svc.cluster.local.\ntool.other.svc.cluster.local. 30 IN A 10.96.0.2",
            2,
        ),
        # a name that exists is answered as it is
        ("10.0.0.1", "db.shop.svc.cluster.local. A", "NOERROR\ndb.shop.svc.cluster.local. 30 IN A 10.96.0.1", 1),
        # AAAA finds the same name as A: it exists
        ("10.0.0.1", "www.example.org.shop.svc.cluster.local. AAAA", "NOERROR", 5),
        ("10.0.0.1", "missing.shop.svc.cluster.local. A", "NXDOMAIN", 5),
        # a failure ends the search: the name may exist
        ("10.0.0.1", "broken.shop.svc.cluster.local. A", "SERVFAIL", 1),
        # not this pod's search path
        ("10.0.0.1", "www.example.org.other.svc.cluster.local. A", "NXDOMAIN", 1),
        ("10.0.0.1", "shop.svc.cluster.local. A", "NXDOMAIN", 1),
        # nobody's, or a host's, address
        ("10.0.0.9", "www.example.org.shop.svc.cluster.local. A", "NXDOMAIN", 1),
    ],
)  # fmt: skip
async def test_autopath(tmp_path: Path, client: str, asked: str, expected: str, lookups: int) -> None:
    source = ClusterAndWorld()
    environment = Environment(kubernetes=lambda _config, _rest: source, namespace_of=PODS.get)
    async with chain(K8S + "autopath @kubernetes", environment=environment) as ask:
        autopath = next(s for s in ask.chain.services if type(s).__name__ == "Autopath")
        autopath._host_search = search_domains("search lan.test\n")  # type: ignore[attr-defined]
        answer = await ask(asked, client=client)
        assert answer.answered == expected
        assert answer.message.aa == (answer.rcode == "NOERROR")  # as the reply for the name that was found
        assert len(source.asked) == lookups
        found = 1 if "CNAME" in expected else 0
        assert ask.counter("coredns_autopath_success_total") == found


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        ("nameserver 192.0.2.1\nsearch a.test B.test. . \noptions ndots:5", ["a.test.", "b.test."]),
        ("domain a.test\nsearch b.test", ["b.test."]),
        ("", []),
    ],
)
def test_search_domains(text: str, domains: list[str]) -> None:
    assert [names.to_text(domain) for domain in search_domains(text)] == domains


# -- template

TEMPLATE = r"""
template IN A ip.test {
    match "^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)[.]ip[.]test[.]$"
    match "^(?P<a>x)(?P<b>y)[.]"
    answer "{{ .Name }} 60 {{ .Class }} {{ .Type }} 10.0.{{ .Group.a }}.{{ index .Match 2 }}"
    authority "{{ .Zone }} 60 IN NS ns.{{ .Zone }}"
    additional "ns.{{ .Zone }} 60 IN A 192.0.2.53"
    fallthrough fall.ip.test
}
template IN TXT ip.test {
    match ([0-9a-f]+)[.]hex[.]ip[.]test
    answer "{{ .Name }} 60 IN TXT \"{{ parseInt (index .Match 1) 16 32 }}\" \"{{ .Match | len }} {{ .Remote }}\" {{ if eq .Question.Qtype 16 }}yes{{ else }}no{{ end }}"
}
template ANY ANY gone.test {
    rcode NXDOMAIN
    authority "gone.test. 60 IN SOA ns.gone.test. root.gone.test. 1 2 3 4 5"
    ederror 15 "gone for good"
}
template IN ANY broken.test {
    answer "{{ .Name }} 60 IN A not-an-address"
}
"""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("ip-1-2.ip.test. A", "NOERROR\nip-1-2.ip.test. 60 IN A 10.0.1.2"),
        ("IP-1-2.ip.TEST. A", "NOERROR\nip-1-2.ip.test. 60 IN A 10.0.1.2"),
        ("other.ip.test. A", "SERVFAIL"),
        ("other.fall.ip.test. A", "REFUSED"),
        ("ip-1-2.ip.test. AAAA", "REFUSED"),
        ("ff.hex.ip.test. TXT", 'NOERROR\nff.hex.ip.test. 60 IN TXT "255" "2 192.0.2.7" "yes"'),
        ("x.gone.test. A", "NXDOMAIN"),
        ("x.gone.test. CH TXT", "NXDOMAIN"),
        ("x.broken.test. A", "SERVFAIL"),
        ("other.test. A", "REFUSED"),
    ],
)
async def test_template(asked: str, expected: str) -> None:
    async with chain(TEMPLATE) as ask:
        assert (await ask(asked)).answered == expected


ALIASES = """
template IN ANY alias.test {
    match ^to-(?P<target>[a-z]+)[.]
    answer "{{ .Name }} 60 IN CNAME {{ .Group.target }}.test"
}
template IN A a.test {
    answer "{{ .Name }} 5 IN A 192.0.2.1"
}
template IN A here.alias.test both.test {
    answer "{{ .Name }} 60 IN CNAME a.test." "a.test. 60 IN A 192.0.2.9"
}
template ANY ANY gone.test {
    rcode NXDOMAIN
    authority "gone.test. 60 IN SOA ns.gone.test. root.gone.test. 1 2 3 4 5"
}
template ANY ANY broken.test {
    rcode SERVFAIL
}
template IN ANY loop.test {
    answer "{{ .Name }} 60 IN CNAME x.loop.test."
}
"""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("to-a.alias.test. A", "NOERROR\nto-a.alias.test. 60 IN CNAME a.test.\na.test. 5 IN A 192.0.2.1"),
        ("to-a.alias.test. CNAME", "NOERROR\nto-a.alias.test. 60 IN CNAME a.test."),
        # the template has the target's records itself
        ("both.test. A", "NOERROR\nboth.test. 60 IN CNAME a.test.\na.test. 60 IN A 192.0.2.9"),
        # RFC 6604: the code of the last name
        ("to-gone.alias.test. A", "NXDOMAIN\nto-gone.alias.test. 60 IN CNAME gone.test."),
        ("to-broken.alias.test. A", "SERVFAIL\nto-broken.alias.test. 60 IN CNAME broken.test."),
        # nobody here has the target
        ("to-nowhere.alias.test. A", "NOERROR\nto-nowhere.alias.test. 60 IN CNAME nowhere.test."),
    ],
)
async def test_a_template_s_alias_is_followed(asked: str, expected: str) -> None:
    async with chain(ALIASES) as ask:
        assert (await ask(asked)).answered == expected


async def test_a_template_s_alias_ends_with_the_denial_of_its_target() -> None:
    async with chain(ALIASES) as ask:
        message = (await ask("to-gone.alias.test. AAAA")).message
        assert [rr.type for rr in message.authority] == [QType.SOA]
        assert (await ask("x.y.loop.test. A")).rcode == "SERVFAIL"


async def test_template_sections_and_figures() -> None:
    async with chain(TEMPLATE) as ask:
        message = (await ask("ip-1-2.ip.test. A")).message
        assert [rrtext.to_text(rr) for rr in message.authority] == ["ip.test. 60 IN NS ns.ip.test."]
        assert [rrtext.to_text(rr) for rr in message.additional] == ["ns.ip.test. 60 IN A 192.0.2.53"]
        assert message.aa
        assert (await ask("x.gone.test. A")).message.errors == ((15, "gone for good"),)
        assert ask.counter("coredns_template_matches_total", zone="ip.test.", type="A") == 1
        await ask("x.broken.test. A")
        assert ask.counter("coredns_template_rr_failures_total", section="answer") == 1


async def test_a_question_cannot_write_records() -> None:
    text = 'template IN TXT test {\n answer "{{ .Name }} 60 IN TXT {{ .Name }}"\n}'
    async with chain(text) as ask:
        answer = await ask('a"\\032b\\010c\\;d.test. TXT')
        assert len(answer.message.answer) == 1
        assert answer.message.answer[0].rdata.count(b"test") == 1


# -- dns64


@pytest.mark.parametrize(
    ("options", "client", "asked", "expected"),
    [
        ("", "2001:db8::1", "v4.example.test. AAAA", "NOERROR\nv4.example.test. 300 IN AAAA 64:ff9b::c000:204"),
        ("", "192.0.2.1", "v4.example.test. AAAA", "NOERROR"),
        ("allow_ipv4", "192.0.2.1", "v4.example.test. AAAA", "NOERROR\nv4.example.test. 300 IN AAAA 64:ff9b::c000:204"),
        ("", "2001:db8::1", "www.example.test. AAAA", "NOERROR\nwww.example.test. 300 IN AAAA 2001:db8::80"),
        ("translate_all", "2001:db8::1", "www.example.test. AAAA", "NOERROR\nwww.example.test. 300 IN AAAA 64:ff9b::c000:250"),
        ("", "2001:db8::1", "missing.example.test. AAAA", "NXDOMAIN"),
        ("", "2001:db8::1", "v4.example.test. A", "NOERROR\nv4.example.test. 900 IN A 192.0.2.4"),
        ("", "2001:db8::1", "mail.example.test. AAAA", "NOERROR"),
        ("prefix 2001:db8:64::/64", "2001:db8::1", "v4.example.test. AAAA", "NOERROR\nv4.example.test. 300 IN AAAA 2001:db8:64:0:c0:2:400:0"),
    ],
)  # fmt: skip
async def test_dns64(options: str, client: str, asked: str, expected: str) -> None:
    assert await answered(f"dns64 {{\n {options}\n}}", asked, client=client) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("only.test. AAAA", "NOERROR\nonly.test. 60 IN AAAA 64:ff9b::c000:204"),
        ("none.test. AAAA", "NOERROR"),
        ("mixed.test. AAAA", "NOERROR\nmixed.test. 60 IN AAAA 2001:db8::80"),
    ],
)
async def test_dns64_takes_mapped_addresses_for_none(asked: str, expected: str) -> None:
    """RFC 6147 §5.1.4."""
    text = """
dns64
template IN AAAA only.test none.test {
    answer "{{ .Name }} 60 IN AAAA ::ffff:192.0.2.1"
}
template IN AAAA mixed.test {
    answer "{{ .Name }} 60 IN AAAA ::ffff:192.0.2.1" "{{ .Name }} 60 IN AAAA 2001:db8::80"
}
template IN A only.test {
    answer "{{ .Name }} 60 IN A 192.0.2.4"
}
"""
    async with chain(text) as ask:
        assert (await ask(asked, client="2001:db8::1")).answered == expected


async def test_dns64_leaves_validating_clients_alone() -> None:
    edns = Edns(1232, do=True)
    text = await answered("dns64", "v4.example.test. AAAA", client="2001:db8::1", edns=edns, cd=True)
    assert text == "NOERROR"


@pytest.mark.parametrize(
    ("prefix", "address"),
    [  # RFC 6052 §2.4
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
        ("64:ff9b::/96", "64:ff9b::c000:221"),
    ],
)
def test_where_an_ipv4_address_goes(prefix: str, address: str) -> None:
    import ipaddress

    packed = ipaddress.IPv4Address("192.0.2.33").packed
    assert str(ipaddress.IPv6Address(embed(ipaddress.IPv6Network(prefix), packed))) == address


# -- log, errors


async def test_the_familiar_line() -> None:
    seconds = iter((10.0, 10.000083))
    async with chain(K8S + "log", environment=kubernetes(Zone()), clock=lambda: next(seconds)) as ask:
        edns = Edns(1232, do=True)
        await ask("WWW.Example.test. A", client="10.1.2.3", client_port=50759, id=29008, edns=edns, size_bytes=54)
    assert ask.lines == [
        '[INFO] 10.1.2.3:50759 - 29008 "A IN www.example.test. udp 54 true 1232" NOERROR qr,aa,rd 61 0.000083s'
    ]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("{remote} {local} {proto} {rcode}", "[INFO] [2001:db8::1] - tcp NXDOMAIN"),
        ("{name}|{type}|{class}|{>id}|{>opcode}|{>bufsize}", "[INFO] missing.example.test.|A|IN|4711|0|65535"),
        ("x{/kubernetes/endpoint}y {>rflags}", "[INFO] x-y qr,aa,rd"),
    ],
)
async def test_formats(form: str, line: str) -> None:
    async with chain(f'{K8S}log . "{form}"', environment=kubernetes(Zone())) as ask:
        await ask("missing.example.test. A", client="2001:db8::1", transport="tcp")
    assert ask.lines == [line]


METADATA = ("kind", "namespace", "service", "endpoint", "port-name", "protocol", "cluster", "parse-error")


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("Web.Prod.svc.cluster.local.", "svc prod web    - -"),
        ("_http._tcp.web.prod.svc.cluster.local.", "svc prod web  http tcp - -"),
        ("db-0.web.prod.svc.cluster.local.", "svc prod web db-0   - -"),
        ("db-0.east.web.prod.svc.clusterset.local.", "svc prod web db-0   east -"),
        ("_pg._tcp.web.prod.svc.clusterset.local.", "svc prod web  pg tcp  -"),
        ("10-1-2-3.prod.pod.cluster.local.", "pod prod 10-1-2-3    - -"),
        ("prod.svc.cluster.local.", "svc prod     - -"),
        ("cluster.local.", "      - -"),
        ("a.b.c.web.prod.svc.cluster.local.", "- - - - - - - invalid query name"),
        ("www.example.test.", "- - - - - - - -"),
    ],
)
async def test_what_a_cluster_name_says_is_in_the_line(asked: str, line: str) -> None:
    fields = " ".join(f"{{/kubernetes/{label}}}" for label in METADATA)
    directive = "kubernetes cluster.local clusterset.local {\n multicluster clusterset.local\n}\n"
    async with chain(f'{directive}log . "{fields}"', environment=kubernetes(Zone())) as ask:
        await ask(f"{asked} A")
    assert ask.lines == [f"[INFO] {line}"]


@pytest.mark.parametrize("mode", ["verified", "insecure"])
async def test_who_asks_is_in_the_line_where_pods_are_known(mode: str) -> None:
    form = "{/kubernetes/client-namespace} {/kubernetes/client-pod-name} {/kubernetes/client-label/app}"
    environment = replace(kubernetes(Zone()), pod_of=lambda address: POD if address == "10.1.0.1" else None)
    text = f'kubernetes cluster.local {{\n pods {mode}\n}}\nlog . "{form}"'
    async with chain(text, environment=environment) as ask:
        await ask("www.example.test. A", client="10.1.0.1")
        await ask("www.example.test. A", client="10.1.0.2")
    assert ask.lines == ["[INFO] prod shop-1 shop" if mode == "verified" else "[INFO] - - -", "[INFO] - - -"]


POD = Pod("prod", "shop-1", ips=("10.1.0.1",), labels=(("app", "shop"),))


@pytest.mark.parametrize(
    ("classes", "logged"),
    [
        ("success", ["www"]),
        ("denial", ["missing", "www MX"]),
        ("error", ["refused"]),
        ("denial error", ["missing", "www MX", "refused"]),
        ("all", ["www", "missing", "www MX", "refused"]),
    ],
)
async def test_classes(classes: str, logged: list[str]) -> None:
    text = f'{K8S}log . "{{name}} {{type}}" {{\n class {classes}\n}}'
    async with chain(text, environment=kubernetes(Zone())) as ask:
        for asked in ("www.example.test. A", "missing.example.test. A", "www.example.test. MX", "refused.test. A"):
            await ask(asked)
    short = [line.removeprefix("[INFO] ").replace(".example.test.", "").replace(".test.", "") for line in ask.lines]
    assert [line.removesuffix(" A") for line in short] == logged


async def test_log_zones() -> None:
    async with chain(f"{K8S}log other.test", environment=kubernetes(Zone())) as ask:
        await ask("www.example.test. A")
        await ask("www.other.test. A")
    assert len(ask.lines) == 1


async def test_errors() -> None:
    async with chain("errors\nforward . 127.0.0.1:1") as ask:
        await ask("Www.test. AAAA")
    assert ask.lines == ["[ERROR] plugin/errors: 2 www.test. AAAA: Connection refused"]


async def test_the_first_of_several_errors_is_shown() -> None:
    text = 'errors {\n consolidate 30s "refused$" info show_first\n}\nforward . 127.0.0.1:1'
    async with chain(text) as ask:
        for number in range(3):
            await ask(f"n{number}.test. A")
        assert ask.lines == ["[INFO] plugin/errors: 2 n0.test. A: Connection refused"]
    assert ask.lines[1:] == ["[INFO] plugin/errors: 2 errors like 'refused$' occurred in last 30s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "50ms"), (1.5, "1.5s"), (30, "30s"), (300, "5m0s"), (3600, "1h0m0s"), (5445, "1h30m45s")],
)
def test_durations_are_written_as_elsewhere(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


async def test_errors_counted_together() -> None:
    text = 'errors {\n consolidate 50ms "refused$" warning\n}\nforward . 127.0.0.1:1'
    async with chain(text) as ask:
        for number in range(5):
            await ask(f"n{number}.test. A")
        assert ask.lines == []
        await asyncio.sleep(0.08)
        assert ask.lines == ["[WARNING] plugin/errors: 5 errors like 'refused$' occurred in last 50ms"]
        await ask("x.test. A")
    assert ask.lines[-1] == "[WARNING] plugin/errors: 1 errors like 'refused$' occurred in last 50ms"


# -- routing


ZONES = """
cluster.local {
    template ANY ANY {
        answer "{{ .Name }} 1 IN TXT cluster"
    }
}
example.local . {
    template ANY ANY {
        answer "{{ .Name }} 1 IN TXT rest"
    }
}
a.example.local:53 {
    bind 127.0.0.1 127.0.0.2
    whoami
}
only.test:1053 {
    whoami
}
"""


@pytest.mark.parametrize(
    ("asked", "zone"),
    [
        ("x.cluster.local. A", "cluster.local."),
        ("CLUSTER.local. A", "cluster.local."),
        ("xcluster.local. A", "."),
        ("a.example.local. A", "example.local."),
        (". NS", "."),
        # DS lives with the parent
        ("cluster.local. DS", "."),
        ("example.local. DS", "."),
        ("x.cluster.local. DS", "cluster.local."),
        (". DS", "."),
    ],
)
def test_the_longest_zone_answers(asked: str, zone: str) -> None:
    runtime = Runtime(corefile.load(ZONES), Environment())
    question = notation.question(asked)
    match = runtime.routers[Listen("", 53)].find(question.lower, question.qtype)
    assert match is not None
    assert names.to_text(match.zone) == zone


def test_sockets_and_their_zones() -> None:
    runtime = Runtime(corefile.load(ZONES), Environment())
    assert {
        listen: sorted(names.to_text(zone) for zone in router.zones) for listen, router in runtime.routers.items()
    } == {
        Listen("", 53): [".", "cluster.local.", "example.local."],
        Listen("127.0.0.1", 53): ["a.example.local."],
        Listen("127.0.0.2", 53): ["a.example.local."],
        Listen("", 1053): ["only.test."],
    }
    everything = runtime.router_of_all()
    assert len(everything.zones) == 5


async def test_names_in_no_zone_are_refused() -> None:
    runtime = Runtime(corefile.load("cluster.local {\n whoami\n}\n"), Environment())
    router = runtime.routers[Listen("", 53)]
    message = await router(notation.query("example.org. A"))
    assert message is not None
    assert (message.rcode, message.errors[0][0]) == (5, 20)
    ds = router.find(notation.question("cluster.local. DS").lower, 43)
    assert ds is not None, "no parent here: the zone itself"


def test_plugins_act_in_the_fixed_order_whatever_the_file_says() -> None:
    text = "forward . 192.0.2.1\ncache\nkubernetes cluster.local\nlog\nerrors\nloop\nrewrite name a.test b.test\nhealth"
    one = corefile.load(f".:53 {{\n{text}\n}}\n").blocks[0]
    other = corefile.load(".:53 {\n" + "\n".join(reversed(text.splitlines())) + "\n}\n").blocks[0]
    assert plugin_names(one) == plugin_names(other)
    assert plugin_names(one) == ("health", "errors", "log", "rewrite", "cache", "kubernetes", "loop", "forward")
