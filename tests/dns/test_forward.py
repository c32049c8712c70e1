"""Forwarding when upstreams are dead, slow, lying, truncating, failing or looping."""

# ruff: noqa: SIM117, E501

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from dnsserver import resolvconf
from dnsserver.corefile_model import Upstream
from tests.dns import peers
from tests.dns.chains import chain
from tests.dns.peers import CLOSE, Misbehaving, failing, honest, misbehaving, reply_to, silent, slow

Send = Callable[[bytes], None]
HONEST = "NOERROR\nwww.test. 300 IN A 192.0.2.1"


def servers(*upstreams: Misbehaving) -> str:
    return " ".join(f"127.0.0.1:{upstream.port}" for upstream in upstreams)


# -- the reply is the one to what was asked (RFC 5452)


def _forged(query: bytes, how: str) -> bytes:
    asked = dns.message.from_wire(query)
    match how:
        case "id":
            return reply_to(bytes((query[0] ^ 0x55,)) + query[1:], "www.test. 300 IN A 198.51.100.66")
        case "name":
            other = dns.message.make_query("evil.test.", "A")
            other.id = asked.id
            return reply_to(other.to_wire(), "evil.test. 300 IN A 198.51.100.66")
        case "type":
            other = dns.message.make_query("www.test.", "AAAA")
            other.id = asked.id
            return reply_to(other.to_wire(), "www.test. 300 IN AAAA 2001:db8::66")
        case "no question":
            return query[:2] + b"\x81\x80" + bytes(8)
        case "query":
            return query
        case "short":
            return query[:7]
        case _:
            return b""


@pytest.mark.parametrize("how", ["id", "name", "type", "no question", "query", "short", "empty"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_what_is_no_reply_to_the_question_is_ignored_and_the_true_reply_taken(how: str, transport: str) -> None:
    async def lie_then_truth(server: Misbehaving, query: bytes, send: Send) -> None:
        for _ in range(3):
            send(_forged(query, how) or b"\0")
        await asyncio.sleep(0.02)
        await honest(server, query, send)

    async with misbehaving(lie_then_truth) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("www.test. A", transport=transport)).answered == HONEST
        assert ask.counter("dnsserver_forward_rejected_replies_total") == 3
        assert len(upstream.queries) == 1


async def test_a_reply_from_another_address_or_port_is_ignored() -> None:
    async def elsewhere(_server: Misbehaving, query: bytes, send: Send) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            other.sendto(reply_to(query, "www.test. 300 IN A 198.51.100.66"), ("127.0.0.1", _server.sources[-1]))
        await asyncio.sleep(0.02)
        await honest(_server, query, send)

    async with misbehaving(elsewhere) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("www.test. A")).answered == HONEST


async def test_late_and_repeated_replies_change_nothing() -> None:
    async def twice(server: Misbehaving, query: bytes, send: Send) -> None:
        await honest(server, query, send)
        await honest(server, query, send)
        send(reply_to(query, "www.test. 300 IN A 198.51.100.66"))

    async with misbehaving(twice) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        for _ in range(20):
            assert (await ask("www.test. A")).answered == HONEST


async def test_ids_and_source_ports_are_spread() -> None:
    async with misbehaving(honest) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        for number in range(400):
            await ask(f"n{number}.test. A")
        ids = {query[:2] for query in upstream.queries}
        assert len(ids) > 380
        assert len(set(upstream.sources)) >= 400 // 64
        most_used = max(upstream.sources.count(port) for port in set(upstream.sources))
        assert most_used <= 64


@pytest.mark.parametrize("damage", ["rdata", "count", "pointer", "garbage"])
async def test_a_malformed_reply_is_a_failure_of_that_upstream(damage: str) -> None:
    async def broken(_server: Misbehaving, query: bytes, send: Send) -> None:
        good = bytearray(reply_to(query, "www.test. 300 IN A 192.0.2.1"))
        end = query.index(b"\0\0\x01\0\x01", 12) + 5
        match damage:
            case "rdata":
                good = good[: end + 14]
            case "count":
                good[6:8] = b"\0\x09"
            case "pointer":
                good[end : end + 2] = b"\xc0\xff"
            case "garbage":
                good[end:] = b"\xff" * 9
        send(bytes(good))

    async with misbehaving(broken) as bad, misbehaving(honest) as good:
        async with chain(f"forward . {servers(bad, good)} {{\n policy sequential\n}}") as ask:
            assert (await ask("www.test. A")).answered == HONEST
        async with chain(f"forward . {servers(bad)}") as ask:
            reply = await ask("www.test. A")
            assert reply.rcode == "SERVFAIL"
            assert reply.error.startswith("malformed reply")


async def test_an_upstream_without_edns_is_asked_again_without() -> None:
    async def old(server: Misbehaving, query: bytes, send: Send) -> None:
        if dns.message.from_wire(query).edns >= 0:
            send(query[:2] + b"\x81\x81" + bytes(8))  # FORMERR, header only
        else:
            await honest(server, query, send)

    async with misbehaving(old) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("www.test. A")).answered == HONEST
        assert (await ask("www2.test. A")).rcode == "NOERROR"
        assert len(upstream.queries) == 3


async def test_a_question_an_upstream_refuses_with_and_without_edns_does_not_cost_the_others_edns() -> None:
    async def picky(server: Misbehaving, query: bytes, send: Send) -> None:
        if b"\3bad" in query:
            send(query[:2] + b"\x81\x81" + bytes(8))  # FORMERR, header only
        else:
            await honest(server, query, send)

    async with misbehaving(picky) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("bad.test. A")).rcode == "FORMERR"
        assert (await ask("www.test. A")).answered == HONEST
        assert [dns.message.from_wire(query).edns for query in upstream.queries] == [0, -1, 0]


# -- dead and slow ones


async def test_a_refusing_port_fails_over_at_once() -> None:
    async with misbehaving(honest) as upstream:
        dead = peers.free_port()
        text = f"forward . 127.0.0.1:{dead} {servers(upstream)} {{\n policy sequential\n}}"
        async with chain(text) as ask:
            began_s = time.monotonic()
            for _ in range(5):
                assert (await ask("www.test. A")).answered == HONEST
            assert time.monotonic() - began_s < 0.2
            assert ask.upstream(0).down


async def test_a_silent_upstream_costs_a_quarter_of_a_second_once_and_then_nothing() -> None:
    async with misbehaving(silent) as mute, misbehaving(honest) as upstream:
        text = f"forward . {servers(mute, upstream)} {{\n policy sequential\n health_check 100ms\n}}"
        async with chain(text) as ask:
            began_s = time.monotonic()
            assert (await ask("www.test. A")).answered == HONEST
            assert 0.2 < time.monotonic() - began_s < 0.5
            assert ask.counter("dnsserver_forward_hedges_total") == 1


async def test_all_silent_is_servfail_before_clients_give_up() -> None:
    async with misbehaving(silent) as one, misbehaving(silent) as two, chain(f"forward . {servers(one, two)}") as ask:
        began_s = time.monotonic()
        reply = await ask("www.test. A")
        assert reply.rcode == "SERVFAIL"
        assert reply.message.errors[0][0] == 23  # Network Error
        assert 3.0 < time.monotonic() - began_s < 4.5
        assert (len(one.queries) >= 2, len(two.queries) >= 2) == (True, True)


async def test_all_refusing_is_servfail_at_once() -> None:
    async with chain(f"forward . 127.0.0.1:{peers.free_port()} 127.0.0.1:{peers.free_port()}") as ask:
        began_s = time.monotonic()
        reply = await ask("www.test. A")
        assert (reply.rcode, reply.error) == ("SERVFAIL", "Connection refused")
        assert time.monotonic() - began_s < 0.5
        assert ask.counter("coredns_forward_healthcheck_broken_total") == 0


async def test_a_slow_reply_is_still_taken() -> None:
    async with misbehaving(slow(2.5)) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("www.test. A")).answered == HONEST


async def test_an_upstream_is_down_after_max_fails_and_up_after_a_probe() -> None:
    alive = False

    async def sometimes(server: Misbehaving, query: bytes, send: Send) -> None:
        if alive:
            await honest(server, query, send)

    async with misbehaving(sometimes) as first, misbehaving(honest) as second:
        text = f"forward . {servers(first, second)} {{\n policy sequential\n health_check 50ms\n max_fails 1\n}}"
        async with chain(text) as ask:
            await ask("www.test. A")
            ask.upstream(0).failed("no reply in time")
            assert ask.upstream(0).down
            before = len(first.queries)
            await ask("a.test. A")
            assert [q for q in first.queries[before:] if b"\x01a\x04test" in q] == []
            await asyncio.sleep(0.1)
            alive = True
            for _ in range(60):
                await asyncio.sleep(0.05)
                if not ask.upstream(0).down:
                    break
            assert not ask.upstream(0).down
            probes = [q for q in first.queries if q[12:][:1] == b"\0"]
            assert probes, "the probe is for the root"
            assert probes[0][13:17] == b"\0\x02\0\x01"


async def test_what_probes_ask() -> None:
    async def failing_first(server: Misbehaving, query: bytes, send: Send) -> None:
        if len(server.queries) > 1:
            await honest(server, query, send)

    async with misbehaving(failing_first) as first, misbehaving(honest) as second:
        options = "policy sequential\n health_check 30ms no_rec domain probe.test\n max_fails 1"
        async with chain(f"forward . {servers(first, second)} {{\n {options}\n}}") as ask:
            ask.upstream(0).failed("no reply in time")
            for _ in range(100):
                await asyncio.sleep(0.02)
                if not ask.upstream(0).down:
                    break
            assert not ask.upstream(0).down
            probe = dns.message.from_wire(first.queries[0])
            assert probe.question[0].to_text() == "probe.test. IN NS"
            assert not probe.flags & dns.flags.RD


@pytest.mark.parametrize(("option", "rcode"), [("", "NOERROR"), ("max_connect_attempts 1", "SERVFAIL")])
async def test_how_many_upstreams_are_tried(option: str, rcode: str) -> None:
    async with misbehaving(honest) as second:
        text = f"forward . 127.0.0.1:{peers.free_port()} {servers(second)} {{\n policy sequential\n {option}\n}}"
        async with chain(text) as ask:
            assert (await ask("www.test. A")).rcode == rcode


@pytest.mark.parametrize("option", ["", "force_tcp"])
async def test_more_idle_connections_than_wanted_are_closed(option: str) -> None:
    async with misbehaving(slow(0.1)) as upstream:
        async with chain(f"forward . {servers(upstream)} {{\n max_idle_conns 1\n {option}\n}}") as ask:
            pool = ask.upstream(0).pool
            asking = asyncio.gather(*(ask(f"n{number}.test. A") for number in range(100)))
            await asyncio.sleep(0.05)
            assert pool.open_sockets > 1
            await asking
            for _ in range(100):
                await asyncio.sleep(0.05)
                if pool.open_sockets == 1:
                    break
            assert pool.open_sockets == 1


async def test_max_fails_0_never_gives_up_an_upstream() -> None:
    async with chain(f"forward . 127.0.0.1:{peers.free_port()} {{\n max_fails 0\n}}") as ask:
        for _ in range(5):
            assert (await ask("www.test. A")).rcode == "SERVFAIL"
        assert not ask.upstream(0).down


@pytest.mark.parametrize(("option", "asked"), [("", True), ("failfast_all_unhealthy_upstreams", False)])
async def test_all_down_asks_one_anyway_unless_told_to_fail_fast(option: str, asked: bool) -> None:
    async with misbehaving(honest) as upstream:
        text = f"forward . {servers(upstream)} {{\n health_check 10s\n {option}\n}}"
        async with chain(text) as ask:
            ask.upstream(0).failed("for the test")
            ask.upstream(0).failed("for the test")
            reply = await ask("www.test. A")
            assert reply.rcode == ("NOERROR" if asked else "SERVFAIL")
            assert bool(upstream.queries) == asked
            assert ask.counter("coredns_forward_healthcheck_broken_total") == 1


async def test_an_upstream_that_fails_everything_is_passed_over() -> None:
    async with misbehaving(failing("SERVFAIL")) as broken, misbehaving(honest) as well:
        text = f"forward . {servers(broken, well)} {{\n policy sequential\n}}"
        async with chain(text) as ask:
            replies = [(await ask(f"n{number}.test. A")).rcode for number in range(30)]
            assert replies[0] == "SERVFAIL"
            assert replies[-15:] == ["NOERROR"] * 15
            assert ask.upstream(0).ailing


# -- policies


async def test_policies() -> None:
    async with misbehaving(honest) as one, misbehaving(honest) as two, misbehaving(honest) as three:
        all_three = (one, two, three)
        expected = {"sequential": (30, 0, 0), "round_robin": (10, 10, 10)}
        for policy, counts in expected.items():
            for server in all_three:
                server.queries.clear()
            async with chain(f"forward . {servers(*all_three)} {{\n policy {policy}\n}}") as ask:
                for number in range(30):
                    await ask(f"n{number}.test. A")
            assert tuple(len(server.queries) for server in all_three) == counts
        async with chain(f"forward . {servers(*all_three)}") as ask:
            for server in all_three:
                server.queries.clear()
            for number in range(90):
                await ask(f"n{number}.test. A")
        assert all(len(server.queries) > 10 for server in all_three)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("", "REFUSED"), ("failover REFUSED", HONEST), ("failover SERVFAIL", "REFUSED")],
)
async def test_failover(option: str, expected: str) -> None:
    async with misbehaving(failing("REFUSED")) as first, misbehaving(honest) as second:
        text = f"forward . {servers(first, second)} {{\n policy sequential\n {option}\n}}"
        async with chain(text) as ask:
            assert (await ask("www.test. A")).answered == expected


async def test_failover_with_nobody_left_gives_the_last_reply() -> None:
    async with misbehaving(failing("REFUSED")) as one, misbehaving(failing("REFUSED")) as two:
        async with chain(f"forward . {servers(one, two)} {{\n failover REFUSED\n}}") as ask:
            assert (await ask("www.test. A")).rcode == "REFUSED"
            assert (len(one.queries), len(two.queries)) == (1, 1)


@pytest.mark.parametrize(
    ("rcode", "option", "expected"),
    [
        ("NXDOMAIN", "next NXDOMAIN", HONEST),
        ("NXDOMAIN", "next SERVFAIL", "NXDOMAIN"),
        ("NOERROR", "next_on_nodata", HONEST),
        ("NOERROR", "", "NOERROR"),
    ],
)
async def test_next_forward(rcode: str, option: str, expected: str) -> None:
    async with misbehaving(failing(rcode)) as first, misbehaving(honest) as second:
        text = f"forward . {servers(first)} {{\n {option}\n}}\nforward . {servers(second)}"
        async with chain(text) as ask:
            assert (await ask("www.test. A")).answered == expected


async def test_stub_domains_and_exceptions() -> None:
    async with misbehaving(honest) as stub, misbehaving(honest) as rest:
        text = f"forward stub.test {servers(stub)} {{\n except own.stub.test\n}}\nforward test {servers(rest)}"
        async with chain(text) as ask:
            for name in ("a.stub.test.", "stub.test.", "own.stub.test.", "x.own.stub.test.", "xstub.test."):
                assert (await ask(f"{name} A")).rcode == "NOERROR"
            assert (await ask("example.org. A")).rcode == "REFUSED"
            assert len(stub.queries) == 2
            assert len(rest.queries) == 3


async def test_the_upstream_that_replied_is_in_the_log_line() -> None:
    async with misbehaving(honest) as upstream:
        text = f'log . "{{name}} {{/forward/upstream}}"\ncache 30\nforward . {servers(upstream)}'
        async with chain(text) as ask:
            for _ in range(2):
                await ask("www.test. A")
    assert ask.lines[:2] == [f"[INFO] www.test. 127.0.0.1:{upstream.port}", "[INFO] www.test. -"], "the cache replied"


# -- TCP


async def test_truncation_is_followed_over_tcp_and_the_limits_are_the_clients() -> None:
    async def truncating(server: Misbehaving, query: bytes, send: Send) -> None:
        if server.streams:
            send(reply_to(query, *(f"www.test. 300 IN A 192.0.2.{n}" for n in range(200))))
        else:
            send(reply_to(query, "www.test. 300 IN A 192.0.2.0", flags="TC"))

    async with misbehaving(truncating) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        reply = await ask("www.test. A")
        assert len(reply.message.answer) == 200
        assert not reply.message.tc
        assert (upstream.streams, len(upstream.queries)) == (1, 2)


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "silent"])
async def test_without_tcp_the_truncated_reply_is_passed_on(closing: bool) -> None:
    async def truncating(server: Misbehaving, query: bytes, send: Send) -> None:
        if not server.streams:
            send(reply_to(query, "www.test. 300 IN A 192.0.2.0", flags="TC"))
        elif closing:
            send(CLOSE)

    async with misbehaving(truncating) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        began_s = time.monotonic()
        reply = await ask("www.test. A")
        assert time.monotonic() - began_s < (0.5 if closing else 2.0)
        assert reply.message.tc
        assert reply.answered == "NOERROR\nwww.test. 300 IN A 192.0.2.0"


async def test_one_connection_serves_many_queries_out_of_order() -> None:
    async def shuffled(server: Misbehaving, query: bytes, send: Send) -> None:
        await asyncio.sleep(0.001 * (97 - len(server.queries) % 97))
        name = dns.message.from_wire(query).question[0].name
        send(reply_to(query, f"{name} 300 IN TXT {name}"))

    async with misbehaving(shuffled) as upstream, chain(f"forward . {servers(upstream)} {{\n force_tcp\n}}") as ask:
        await ask("first.test. TXT")
        answers = await asyncio.gather(*(ask(f"n{number}.test. TXT") for number in range(30)))
        for number, answer in enumerate(answers):
            assert answer.answered == f'NOERROR\nn{number}.test. 300 IN TXT "n{number}.test."'
        assert upstream.streams == 1


async def test_a_connection_the_upstream_closed_is_replaced() -> None:
    async def one_each(server: Misbehaving, query: bytes, send: Send) -> None:
        await honest(server, query, send)
        send(CLOSE)

    async with misbehaving(one_each) as upstream:
        async with chain(f"forward . {servers(upstream)} {{\n force_tcp\n max_fails 0\n}}") as ask:
            for number in range(10):
                assert (await ask(f"n{number}.test. A")).rcode == "NOERROR"


async def test_the_clients_transport_is_the_upstreams() -> None:
    async with misbehaving(honest) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        await ask("a.test. A", transport="udp")
        assert upstream.streams == 0
        await ask("b.test. A", transport="tcp")
        assert upstream.streams == 1
    async with misbehaving(honest) as upstream, chain(f"forward . {servers(upstream)} {{\n prefer_udp\n}}") as ask:
        await ask("b.test. A", transport="tcp")
        assert upstream.streams == 0


async def test_idle_sockets_are_closed() -> None:
    async with misbehaving(honest) as upstream:
        async with chain(f"forward . {servers(upstream)} {{\n expire 100ms\n}}") as ask:
            await ask("a.test. A")
            await ask("b.test. A", transport="tcp")
            pool = ask.upstream(0).pool
            assert pool.open_sockets == 2
            for _ in range(40):
                await asyncio.sleep(0.05)
                if pool.open_sockets == 0:
                    break
            assert pool.open_sockets == 0
            assert (await ask("c.test. A")).rcode == "NOERROR"


# -- limits


async def test_identical_queries_under_way_are_asked_once() -> None:
    async with misbehaving(slow(0.1)) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        names = ["www.test. A", "WWW.test. A", "www.TEST. A"] * 30
        answers = await asyncio.gather(*map(ask, names))
        assert len(upstream.queries) == 1
        assert [answer.answered.split()[1] for answer in answers] == [name.split()[0] for name in names]
        assert ask.counter("dnsserver_forward_coalesced_total") == 89


async def test_too_many_queries_are_refused_early() -> None:
    async with misbehaving(slow(0.2)) as upstream:
        async with chain(f"forward . {servers(upstream)} {{\n max_concurrent 10\n}}") as ask:
            began_s = time.monotonic()
            tasks = [asyncio.create_task(ask(f"n{number}.test. A")) for number in range(50)]
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            assert len(done) == 40
            assert {task.result().rcode for task in done} == {"REFUSED"}
            assert time.monotonic() - began_s < 0.19
            rest = await asyncio.gather(*(task for task in tasks if task not in done))
            assert {answer.rcode for answer in rest} == {"NOERROR"}
            assert ask.counter("coredns_forward_max_concurrent_rejects_total") == 40
            assert not ask.upstream(0).down


async def test_a_flood_to_a_silent_upstream_holds_a_bounded_number_of_sockets() -> None:
    async with misbehaving(silent) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        tasks = [asyncio.create_task(ask(f"n{number}.test. A")) for number in range(5000)]
        await asyncio.sleep(0.5)
        assert ask.upstream(0).pool.open_sockets < 200
        await ask.runtime.close()
        assert {task.result().rcode for task in (await asyncio.wait(tasks))[0]} == {"SERVFAIL"}


async def test_a_waiting_client_that_leaves_does_not_take_the_reply_from_others() -> None:
    async with misbehaving(slow(0.1)) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        first = asyncio.create_task(ask("www.test. A"))
        second = asyncio.create_task(ask("www.test. A"))
        await asyncio.sleep(0.02)
        first.cancel()
        assert (await second).answered == HONEST
        assert len(upstream.queries) == 1


async def test_other_classes_are_not_forwarded() -> None:
    async with misbehaving(honest) as upstream, chain(f"chaos\nforward . {servers(upstream)}") as ask:
        assert (await ask("version.bind. CH TXT")).rcode == "NOERROR"
        assert (await ask("other.bind. CH TXT")).rcode == "REFUSED"
        assert upstream.queries == []


async def test_the_upstreams_extended_error_is_passed_on() -> None:
    async def blocked(_server: Misbehaving, query: bytes, send: Send) -> None:
        reply = dns.message.make_response(dns.message.from_wire(query))
        reply.set_rcode(dns.rcode.SERVFAIL)
        reply.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "DNSSEC Bogus")])
        send(reply.to_wire())

    async with misbehaving(blocked) as upstream, chain(f"forward . {servers(upstream)}") as ask:
        assert (await ask("www.test. A")).message.errors == ((6, "DNSSEC Bogus"),)


# -- loops


async def test_a_loop_stops_forwarding_and_nothing_else() -> None:
    """The upstream hands every query back, as a stub resolver that forwards here does."""
    looping = True
    asks: list[Callable[..., object]] = []

    async def back(server: Misbehaving, query: bytes, send: Send) -> None:
        if not looping:
            send(reply_to(query, rcode="NXDOMAIN"))
            return
        question = dns.message.from_wire(query).question[0]
        message = await asks[0](f"{question.name} {dns.rdatatype.to_text(question.rdtype)}")  # type: ignore[misc]
        send(reply_to(query, rcode=message.rcode))

    async with misbehaving(back) as upstream:
        text = f"loop\nerrors\nhosts /dev/null {{\n 192.0.2.9 own.test\n fallthrough\n}}\nforward . {servers(upstream)}"
        async with chain(text) as ask:
            asks.append(ask)
            for _ in range(100):
                await asyncio.sleep(0.02)
                if ask.counter("dnsserver_forward_looped"):
                    break
            assert ask.counter("dnsserver_forward_looped", zone=".") == 1
            reply = await ask("www.test. A")
            assert reply.rcode == "SERVFAIL"
            assert "lead back" in reply.error
            assert "lead back" in ask.lines[-1]
            assert (await ask("own.test. A")).answered == "NOERROR\nown.test. 3600 IN A 192.0.2.9"
            looping = False
            loop = next(s for s in ask.chain.services if type(s).__name__ == "Loop")
            await loop.probe()  # type: ignore[attr-defined]
            assert (await ask("www.test. A")).rcode == "NXDOMAIN"
            assert ask.counter("dnsserver_forward_looped") == 0


async def test_no_loop_is_seen_where_there_is_none() -> None:
    async with misbehaving(failing("NXDOMAIN")) as upstream, chain(f"loop\nforward . {servers(upstream)}") as ask:
        await asyncio.sleep(0.7)
        assert ask.counter("dnsserver_forward_looped") == 0
        assert len(upstream.queries) == 2


# -- files like resolv.conf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.1\nsearch a.test\noptions ndots:5\nnameserver 2001:DB8::1\n", ["192.0.2.1", "2001:db8::1"]),
        ("# nameserver 192.0.2.9\nnameserver\nnameserver x\nnameserver 192.0.2.1 # first\nnameserver 192.0.2.1", ["192.0.2.1"]),
        ("", []),
    ],
)  # fmt: skip
def test_nameservers_of_a_file(text: str, expected: list[str]) -> None:
    assert resolvconf.parse(text) == tuple(Upstream(host, 53) for host in expected)


@pytest.mark.parametrize(
    ("conf", "uplinks", "expected", "replaced"),
    [
        ("nameserver 127.0.0.53", "nameserver 192.0.2.1\nnameserver 192.0.2.2", ["192.0.2.1", "192.0.2.2"], "127.0.0.53"),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.9", "nameserver 192.0.2.1", ["192.0.2.9", "192.0.2.1"], "127.0.0.53"),
        ("nameserver 127.0.0.53", None, ["127.0.0.53"], ""),
        ("nameserver 127.0.0.53", "nameserver 127.0.0.53", ["127.0.0.53"], ""),
        ("nameserver 192.0.2.9", "nameserver 192.0.2.1", ["192.0.2.9"], ""),
    ],
)  # fmt: skip
def test_a_stub_resolver_is_replaced_by_the_servers_behind_it(
    tmp_path: Path, conf: str, uplinks: str | None, expected: list[str], replaced: str
) -> None:
    path, behind = tmp_path / "resolv.conf", tmp_path / "uplinks"
    path.write_text(conf)
    if uplinks is not None:
        behind.write_text(uplinks)
    found = resolvconf.read(path, uplinks=behind)
    assert ([upstream.host for upstream in found.upstreams], found.replaced) == (expected, replaced)


async def test_a_file_that_changes_changes_the_upstreams(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.2\n")
    async with chain(f"forward . {path}") as ask:
        forwarder = ask.chain.forwards[0].forwarder
        first = ask.upstream(0)
        path.write_text("nameserver 127.0.0.2\nnameserver 127.0.0.3\n")
        await forwarder.reload()
        assert [u.name for u in forwarder.upstreams] == ["127.0.0.2:53", "127.0.0.3:53"]
        assert ask.upstream(0) is first
        path.unlink()
        await forwarder.reload()
        assert len(forwarder.upstreams) == 2


@pytest.mark.parametrize(
    ("directives", "told"),
    [
        ("forward . upstream.invalid", "forward: upstream 'upstream.invalid' does not resolve ("),
        ("forward . tls://127.0.0.1 {{\n tls {0}/ca\n}}", "forward: tls: '{0}/ca': No such file or directory; name a"),
        ("forward . tls://127.0.0.1 {{\n tls {0}/c {0}/k\n}}", "forward: tls: '{0}/c', '{0}/k': No such file or "),
        ("forward . tls://127.0.0.1 {{\n tls {0}/text\n}}", "forward: tls: '{0}/text': not PEM, or not a pair; name"),
    ],
)
async def test_what_cannot_start_names_the_culprit(tmp_path: Path, directives: str, told: str) -> None:
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(OSError, match=re.escape(told.format(tmp_path))):
        async with chain(directives.format(tmp_path)):
            pass


async def test_a_file_without_servers_is_servfail_not_a_crash(tmp_path: Path) -> None:
    async with chain(f"forward . {tmp_path}/absent") as ask:
        reply = await ask("www.test. A")
        assert (reply.rcode, reply.error) == ("SERVFAIL", "no upstream is configured or alive")
