"""Forwarding to real name servers: unbound, NSD and dnsmasq, over UDP, TCP and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns import peers
from tests.dns.chains import chain

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with peers.nsd(tmp_path_factory.mktemp("nsd")) as port:
        yield port


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with peers.unbound(tmp_path_factory.mktemp("unbound")) as port:
        yield port


@pytest.fixture(scope="module")
def dnsmasq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with peers.dnsmasq(tmp_path_factory.mktemp("dnsmasq")) as port:
        yield port


@pytest.fixture(params=["nsd", "unbound"])
def authority(request: pytest.FixtureRequest) -> int:
    port: int = request.getfixturevalue(request.param)
    return port


EXPECTED = [
    ("www.example.test. A", "NOERROR\nwww.example.test. 300 IN A 192.0.2.80"),
    ("www.example.test. AAAA", "NOERROR\nwww.example.test. 300 IN AAAA 2001:db8::80"),
    (
        "alias.example.test. A",
        "NOERROR\nalias.example.test. 300 IN CNAME www.example.test.\nwww.example.test. 300 IN A 192.0.2.80",
    ),
    ("mail.example.test. MX", "NOERROR\nmail.example.test. 300 IN MX 10 www.example.test."),
    ("srv.example.test. SRV", "NOERROR\nsrv.example.test. 300 IN SRV 0 5 443 www.example.test."),
    ("text.example.test. TXT", 'NOERROR\ntext.example.test. 300 IN TXT "some text" "more text"'),
    ("www.example.test. MX", "NOERROR"),
    ("missing.example.test. A", "NXDOMAIN"),
]


@pytest.mark.parametrize(("asked", "expected"), EXPECTED, ids=[asked for asked, _ in EXPECTED])
async def test_replies_come_through(authority: int, asked: str, expected: str) -> None:
    async with chain(f"forward . 127.0.0.1:{authority}") as ask:
        assert (await ask(asked)).answered == expected


async def test_case_of_the_question_is_the_clients(authority: int) -> None:
    async with chain(f"forward . 127.0.0.1:{authority}\ncache") as ask:
        for _ in range(2):
            assert (await ask("wWw.eXample.Test. A")).answered == "NOERROR\nwWw.eXample.Test. 300 IN A 192.0.2.80"


async def test_truncated_replies_are_fetched_over_tcp(authority: int) -> None:
    async with chain(f"forward . 127.0.0.1:{authority}") as ask:
        reply = await ask("big.example.test. TXT", transport="tcp")
        assert len(reply.message.answer) == 2
        again = await ask("big.example.test. TXT")
        assert sorted(again.message.answer) == sorted(reply.message.answer)


@pytest.mark.parametrize("option", ["force_tcp", "prefer_udp"])
async def test_transports(authority: int, option: str) -> None:
    async with chain(f"forward . 127.0.0.1:{authority} {{\n {option}\n}}") as ask:
        assert (await ask("www.example.test. A", transport="tcp")).answered == EXPECTED[0][1]


async def test_dnsmasq_answers_without_soa(dnsmasq: int) -> None:
    async with chain(f"forward . 127.0.0.1:{dnsmasq}\ncache") as ask:
        assert (await ask("www.example.test. A")).answered == "NOERROR\nwww.example.test. 120 IN A 192.0.2.80"
        assert (await ask("missing.example.test. A")).answered == "NXDOMAIN"


async def test_foreign_data_is_not_authoritative(nsd: int) -> None:
    async with chain(f"forward . 127.0.0.1:{nsd}\ncache 30") as ask:
        for _ in range(2):
            reply = await ask("www.example.test. A")
            assert not reply.message.aa
            assert reply.answered == "NOERROR\nwww.example.test. 30 IN A 192.0.2.80"


async def test_a_denial_is_kept_for_the_lesser_of_soa_ttl_and_minimum(nsd: int) -> None:
    async with chain(f"forward . 127.0.0.1:{nsd}\ncache") as ask:
        for _ in range(2):
            reply = await ask("missing.example.test. A")
            assert [rr.ttl for rr in reply.message.authority] == [60]


async def test_tls_with_the_right_name(tmp_path: Path) -> None:
    certificate = peers.Certificate(tmp_path, "dns.example.test")
    with peers.unbound(tmp_path, tls=certificate) as port:
        options = f"tls {certificate.chain}"
        async with chain(f"forward . tls://127.0.0.1%dns.example.test:{port} {{\n {options}\n}}") as ask:
            for asked, expected in EXPECTED:
                assert (await ask(asked)).answered == expected
            assert ask.counter("coredns_proxy_conn_cache_misses_total") == 1
            assert ask.counter("coredns_proxy_conn_cache_hits_total") == len(EXPECTED) - 1
        async with chain(
            f"forward . tls://127.0.0.1:{port} {{\n {options}\n tls_servername dns.example.test\n}}"
        ) as ask:
            assert (await ask(EXPECTED[0][0])).answered == EXPECTED[0][1]


async def test_tls_with_another_name_or_an_unknown_authority_is_not_trusted(tmp_path: Path) -> None:
    certificate = peers.Certificate(tmp_path, "dns.example.test")
    with peers.unbound(tmp_path, tls=certificate) as port:
        for upstream, options in (
            (f"tls://127.0.0.1%other.example.test:{port}", f"tls {certificate.chain}"),
            (f"tls://127.0.0.1%dns.example.test:{port}", "tls"),
        ):
            async with chain(f"forward . {upstream} {{\n {options}\n}}") as ask:
                reply = await ask("www.example.test. A")
                assert reply.rcode == "SERVFAIL"
                assert "certificate" in reply.error.lower()


async def test_an_upstream_by_name(nsd: int) -> None:
    async with chain(f"forward . localhost:{nsd}") as ask:
        assert (await ask("www.example.test. A")).answered == EXPECTED[0][1]


async def test_a_resolver_of_its_own_for_upstreams_by_name(tmp_path: Path, nsd: int) -> None:
    with peers.dnsmasq(tmp_path, "--host-record=dns.example.test,127.0.0.1") as port:
        async with chain(f"forward . dns.example.test:{nsd} {{\n resolver 127.0.0.1:{port}\n}}") as ask:
            assert (await ask("www.example.test. A")).answered == EXPECTED[0][1]


async def test_the_next_upstream_is_asked_when_one_dies(tmp_path: Path, nsd: int) -> None:
    with peers.unbound(tmp_path) as port:
        async with chain(f"forward . 127.0.0.1:{port} 127.0.0.1:{nsd} {{\n policy sequential\n}}") as ask:
            assert (await ask("www.example.test. A")).answered == EXPECTED[0][1]
            assert not ask.upstream(0).down
    async with chain(f"forward . 127.0.0.1:{port} 127.0.0.1:{nsd} {{\n policy sequential\n}}") as ask:
        for _ in range(4):
            assert (await ask("www.example.test. A")).answered == EXPECTED[0][1]
        assert ask.upstream(0).down
